"""Tokens and TLS of the HTTP API, on a gateway without a router."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2

from baton.builtin_model import CHECKPOINT
from baton.config.schema import AccessSection
from baton.gateway.build import RunningGateway, start_gateway
from tests.certificates import self_signed
from tests.plans import gateway_config


@contextlib.asynccontextmanager
async def gateway_with(access: AccessSection) -> AsyncIterator[RunningGateway]:
    """A gateway without a router."""
    running = await start_gateway(gateway_config(CHECKPOINT, access=access))
    try:
        yield running
    finally:
        await running.stop(0.0)


def _entry(token: str, role: str) -> str:
    digest = hashlib.sha256(token.encode()).hexdigest()
    return f'[[token]]\nsha256 = "{digest}"\ntenant = "acme"\nroles = ["{role}"]\n'


def test_all_but_probes_need_a_token_of_the_role(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(_entry("good", "generate") + _entry("operator", "admin"))

    async def scene() -> None:
        async with (
            gateway_with(AccessSection(tokens_file=str(tokens))) as running,
            httpx2.AsyncClient(base_url=f"http://127.0.0.1:{running.http_port}") as client,
        ):

            async def status(path: str, **headers: str) -> int:
                return (await client.get(path, headers=headers)).status_code

            assert await status("/health") == 200
            for path in ("/v1/models", "/v1/completions", "/tokenizer_info", "/version", "/unknown"):
                refused = await client.get(path)
                assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
            assert await status("/v1/models", authorization="Bearer bad") == 401
            assert await status("/v1/models", authorization="Bearer operator") == 403
            assert await status("/v1/models", authorization="Bearer good") == 200
            twice = [("authorization", "Bearer good"), ("authorization", "Bearer good")]
            assert (await client.get("/v1/models", headers=twice)).status_code == 401
            tokens.write_text(_entry("renewed", "generate"))
            assert await status("/v1/models", authorization="Bearer good") == 401
            assert await status("/v1/models", authorization="Bearer renewed") == 200

    asyncio.run(scene())


def test_tls_uses_a_renewed_certificate_from_the_next_connection_on(tmp_path: Path) -> None:
    first, second = self_signed(tmp_path, "first"), self_signed(tmp_path, "second")
    served = self_signed(tmp_path, "served")
    first.write_over(served)
    access = AccessSection(tls_certificate=str(served.certificate), tls_key=str(served.key))

    async def get(port: int | None, ca: Path) -> int:
        trusted = ssl.create_default_context(cafile=str(ca))
        async with httpx2.AsyncClient(base_url=f"https://127.0.0.1:{port}", verify=trusted) as client:
            return (await client.get("/health")).status_code

    async def scene() -> None:
        async with gateway_with(access) as running:
            assert await get(running.http_port, first.certificate) == 200
            second.write_over(served)
            with contextlib.suppress(httpx2.ConnectError):
                await get(running.http_port, first.certificate)
                raise AssertionError("the old certificate is still served")
            assert await get(running.http_port, second.certificate) == 200

    asyncio.run(scene())


def test_mutual_tls_refuses_clients_without_a_certificate(tmp_path: Path) -> None:
    ours, theirs = self_signed(tmp_path, "ours"), self_signed(tmp_path, "theirs")
    access = AccessSection(
        tls_certificate=str(ours.certificate), tls_key=str(ours.key), client_ca=str(theirs.certificate)
    )

    async def scene() -> None:
        async with gateway_with(access) as running:
            trusted = ssl.create_default_context(cafile=str(ours.certificate))
            base_url = f"https://127.0.0.1:{running.http_port}"
            async with httpx2.AsyncClient(base_url=base_url, verify=trusted) as client:
                with contextlib.suppress(httpx2.TransportError):
                    await client.get("/health")
                    raise AssertionError("a client without a certificate is served")
            trusted.load_cert_chain(theirs.certificate, theirs.key)
            async with httpx2.AsyncClient(base_url=base_url, verify=trusted) as client:
                assert (await client.get("/health")).status_code == 200

    asyncio.run(scene())
