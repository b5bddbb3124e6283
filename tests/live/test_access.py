"""A cluster with mutual TLS, tokens and keys on the worker link: authentication, roles, limits and secrecy."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import baton
from baton.client.errors import (
    ConfigError,
    InvalidRequest,
    NoWorkers,
    Overloaded,
    PermissionDenied,
    Unauthenticated,
)
from baton.config.schema import AccessSection
from baton.router.build import start_router
from tests.certificates import self_signed
from tests.live.secured_cluster import (
    MAX_PROMPT_TOKENS,
    MAX_STREAMS,
    TOKENS,
    Secured,
    entries_for,
    started,
    token_of,
)
from tests.plans import router_config, start_front

PROMPT = [(5 * position) % 300 + 3 for position in range(100)]


@pytest.fixture(scope="module")
def secured(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    with started(checkpoint, tmp_path_factory.mktemp("secured")) as made:
        yield made


def test_a_client_with_certificate_and_token_is_served_and_hits_only_its_own_prefix(secured: Secured) -> None:
    def cached(tenant: str) -> int:
        with secured.client(tenant) as client:
            return client.generate(PROMPT, max_tokens=4, ignore_eos=True).cached_tokens

    assert cached("acme") == 0
    assert cached("rival") == 0
    for tenant in ("acme", "rival"):
        # Another worker than before may answer, without the prefix; after a few requests every worker has it.
        assert max(cached(tenant) for _ in range(4)) == 96


def test_a_request_names_its_own_tenant_or_none(secured: Secured) -> None:
    with secured.client("acme") as client:
        assert client.generate([5, 6], max_tokens=1, tenant="acme").output_tokens == 1
        with pytest.raises(PermissionDenied, match="a tenant other than"):
            client.generate([5, 6], max_tokens=1, tenant="rival")


def test_roles_open_one_port_each(secured: Secured) -> None:
    with secured.admin() as admin:
        assert admin.cluster().pools
    with secured.admin("acme") as admin, pytest.raises(PermissionDenied, match="admin"):
        admin.cluster()
    with secured.admin("acme") as admin, pytest.raises(PermissionDenied, match="admin"):
        list(admin.watch("any"))
    with secured.client("operator") as client:
        for call in (lambda: client.generate([1], max_tokens=1), client.model, lambda: client.tokenize("a")):
            with pytest.raises(PermissionDenied, match="generate"):
                call()


def test_without_a_token_only_health_answers(secured: Secured, monkeypatch: pytest.MonkeyPatch) -> None:
    with baton.Client(secured.addresses[0], **secured.files()) as client:
        with pytest.raises(Unauthenticated, match="BATON_TOKEN"):
            client.generate([1], max_tokens=1)
        with pytest.raises(Unauthenticated):
            client.model()
        for address in secured.addresses:
            with grpc.secure_channel(address, secured.credentials()) as channel:
                answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with secured.client("unknown") as client, pytest.raises(Unauthenticated, match="invalid"):
        client.model()
    monkeypatch.setenv("BATON_TOKEN", token_of("acme"))
    for name, value in secured.files().items():
        monkeypatch.setenv(f"BATON_{name.upper()}", value)
    with baton.Client(secured.addresses[0]) as client:
        assert client.model().name


def test_a_connection_error_is_reported_in_one_sentence(secured: Secured, tmp_path: Path) -> None:
    other = self_signed(tmp_path, "other")
    for changed, kind, words in (
        ({"tls_ca": other.certificate}, ConfigError, "another CA signed it"),
        ({"tls_certificate": None, "tls_key": None}, NoWorkers, "tls_certificate and tls_key"),
        ({"tls_certificate": other.certificate, "tls_key": other.key}, NoWorkers, "tls_certificate and tls_key"),
        ({"tls_ca": None, "tls_certificate": None, "tls_key": None}, NoWorkers, "tls_ca"),
    ):
        with secured.client(**changed) as client, pytest.raises(kind, match=words) as caught:
            client.model()
        secured.errors.append(repr(caught.value))
    for changed, words in (
        ({"tls_ca": tmp_path / "none"}, "cannot be read"),
        ({"tls_key": None}, "needs its key"),
        ({"tls_ca": None}, "needs tls_ca"),
    ):
        with pytest.raises(ConfigError, match=words):
            secured.client(**changed)
    with pytest.raises(ConfigError, match="copy it again"):
        baton.Client(secured.addresses[0], token="two\nlines")


def test_tls_to_a_plaintext_port_is_reported_in_one_sentence(tmp_path: Path) -> None:
    ca = self_signed(tmp_path, "ca").certificate
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with baton.Client(f"127.0.0.1:{port}", tls_ca=str(ca)) as client, pytest.raises(ConfigError, match="not speak TLS"):
        client.model()
    server.stop(None)


def test_limits_are_enforced_and_named(secured: Secured) -> None:
    with secured.client() as client:
        for prompt in ([5] * (MAX_PROMPT_TOKENS + 1), "x" * 100_000):
            with pytest.raises(InvalidRequest, match=str(MAX_PROMPT_TOKENS)):
                client.generate(prompt, max_tokens=1)
        with pytest.raises(InvalidRequest, match="max_message_mib"):
            client.generate("x" * (1 << 21), max_tokens=1)


def test_the_concurrent_streams_of_a_tenant_are_limited(secured: Secured) -> None:
    with secured.client() as client, secured.client("rival") as other:
        streams = [client.stream([7] * 20, max_tokens=200, ignore_eos=True) for _ in range(MAX_STREAMS)]
        for stream in streams:
            next(stream)
        with pytest.raises(Overloaded, match="'acme' has 2 answers under way") as caught:
            client.generate([1, 2], max_tokens=1)
        assert caught.value.retry_after_s
        assert other.generate([1, 2], max_tokens=1).output_tokens == 1
        for stream in streams:
            stream.cancel()
        deadline = time.monotonic() + 20
        while True:  # a cancelled stream is no longer counted once the router has received the cancellation
            try:
                assert client.generate([1, 2], max_tokens=1).output_tokens == 1
                return
            except Overloaded:
                assert time.monotonic() < deadline


def test_renewed_files_are_used_without_a_restart(secured: Secured, tmp_path: Path) -> None:
    (secured.folder / "tokens.toml").write_text(entries_for({**TOKENS, "newcomer": ["generate"]}))
    with secured.client("newcomer") as client:
        assert client.model().name
    old = tmp_path / "old.crt"
    old.write_bytes(secured.server.certificate.read_bytes())
    with secured.client() as connected:
        assert connected.model().name
        self_signed(tmp_path, "renewed").write_over(secured.server)
        for open_one in (secured.client, secured.client):
            with open_one() as client:  # the client accepts the new certificate
                assert client.model().name
        with secured.admin() as admin:
            assert admin.cluster().pools
        with secured.client(tls_ca=old) as client, pytest.raises(ConfigError, match="another CA"):
            client.model()
        assert connected.model().name  # an existing connection stays open


def test_invalid_new_files_leave_the_old_ones_in_use(secured: Secured) -> None:
    key = secured.server.key.read_bytes()
    secured.server.key.write_text("no key")
    with secured.client() as client:
        assert client.model().name
    (secured.folder / "tokens.toml").write_text("pasted-" + token_of("acme"))
    with secured.client() as client:
        assert client.model().name
    kept = [line for line in secured.output.splitlines() if "stays in use" in line]
    assert ["server.key" in line for line in kept] == [True, False]
    secured.server.key.write_bytes(key)
    (secured.folder / "tokens.toml").write_text(entries_for(TOKENS))
    with secured.client() as client:
        assert client.model().name


def test_no_secret_was_printed_or_logged(secured: Secured) -> None:
    """Last in this file, so that all requests above have used these secrets."""
    with secured.client("unknown") as client, pytest.raises(Unauthenticated) as caught:
        client.model()
    printed = "\n".join([secured.output, *secured.errors, repr(caught.value), repr(secured.client().__dict__.keys())])
    assert "RouterConfig(" in printed
    assert "WorkerConfig(" in printed
    secrets = [token_of(tenant) for tenant in (*TOKENS, "newcomer", "unknown")]
    secrets += [sha256(token.encode()).hexdigest() for token in secrets]
    secrets += json.loads((secured.folder / "secrets.json").read_text())
    secrets += secured.server.key.read_text().splitlines()
    for secret in secrets:
        assert secret not in printed


def test_an_unprotected_admin_port_needs_explicit_configuration(checkpoint: Path) -> None:
    plan = router_config(checkpoint, admin_host="0.0.0.0")
    with pytest.raises(ConfigError, match=r"access\.open_admin"):
        asyncio.run(start_router(plan))

    async def start_and_stop() -> None:
        router = await start_router(replace(plan, access=AccessSection(open_admin=True)))
        await router.stop(0.0)

    asyncio.run(start_and_stop())


def test_tls_alone_requires_no_client_certificate_and_tokens_alone_no_tls(checkpoint: Path, tmp_path: Path) -> None:
    pair = self_signed(tmp_path, "server")
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(entries_for(TOKENS))

    async def name_of_model(access: AccessSection, **given: Any) -> str:
        front = await start_front(router_config(checkpoint, access=access))
        try:
            async with baton.AsyncClient(front.address, **given) as client:
                return (await client.model()).name
        finally:
            await front.stop()

    with_tls = AccessSection(tls_certificate=str(pair.certificate), tls_key=str(pair.key))
    with_tokens = AccessSection(tokens_file=str(tokens))
    assert asyncio.run(name_of_model(with_tls, tls_ca=str(pair.certificate))) == "m"
    assert asyncio.run(name_of_model(with_tokens, token=token_of("acme"))) == "m"
    with pytest.raises(Unauthenticated):
        asyncio.run(name_of_model(with_tokens))
