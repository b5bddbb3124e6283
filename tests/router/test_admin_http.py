"""The router's HTTP for operators: access and errors."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import httpx2
import pytest

from baton.builtin_model import CHECKPOINT
from baton.config.schema import AccessSection
from baton.router.build import start_router
from tests.plans import router_config


def _entry(token: str, role: str) -> str:
    digest = hashlib.sha256(token.encode()).hexdigest()
    return f'[[token]]\nsha256 = "{digest}"\ntenant = "acme"\nroles = ["{role}"]\n'


@pytest.mark.parametrize(("token", "status"), [("", 401), ("user", 403), ("watcher", 404), ("operator", 404)])
def test_all_but_probes_need_a_token_of_the_role(tmp_path: Path, token: str, status: int) -> None:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(_entry("user", "generate") + _entry("watcher", "watch") + _entry("operator", "admin"))

    async def scene() -> None:
        running = await start_router(router_config(CHECKPOINT, access=AccessSection(tokens_file=str(tokens))))
        headers = {"authorization": f"Bearer {token}"} if token else {}
        try:
            async with httpx2.AsyncClient(base_url=f"http://{running.addresses.admin_http}", headers=headers) as client:
                assert (await client.get("/health")).status_code == 200
                assert (await client.get("/unknown")).status_code == status
        finally:
            await running.stop()

    asyncio.run(scene())


def test_no_http_is_served_when_it_is_off() -> None:
    async def scene() -> None:
        running = await start_router(router_config(CHECKPOINT, admin_http_port="off"))
        assert running.addresses.admin_http == "" and running.http_server is None
        await running.stop()

    asyncio.run(scene())
