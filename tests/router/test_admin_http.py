"""The router's HTTP for operators: access, other sites' pages, the page's files, and its API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from baton.builtin_model import CHECKPOINT
from baton.config.schema import AccessSection
from baton.router.build import start_router
from baton.router.page.origin import check_host, check_origin
from tests.plans import router_config
from tests.router.tokens import token_file

JSON = {"content-type": "application/json"}


@pytest.fixture
def access(tmp_path: Path) -> AccessSection:
    """A token of each role."""
    return AccessSection(tokens_file=token_file(tmp_path))


@asynccontextmanager
async def serving(access: AccessSection | None = None, token: str = "") -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a router's HTTP for operators."""
    running = await start_router(router_config(CHECKPOINT, access=access or AccessSection()))
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        async with httpx2.AsyncClient(base_url=f"http://{running.addresses.admin_http}", headers=headers) as client:
            yield client
    finally:
        await running.stop()


@pytest.mark.parametrize(
    ("token", "reads", "acts"), [("", 401, 401), ("user", 403, 403), ("watcher", 200, 403), ("operator", 200, 200)]
)
def test_reading_needs_the_role_watch_and_acting_the_role_admin(
    access: AccessSection, token: str, reads: int, acts: int
) -> None:
    async def scene() -> None:
        async with serving(access, token) as client:
            for path in ("/health", "/", "/page.css"):
                assert (await client.get(path)).status_code == 200
            assert (await client.get("/unknown")).status_code == (404 if reads == 200 else reads)
            for path in ("/api/cluster", "/api/operations", "/api/links", "/api/policy"):
                assert (await client.get(path)).status_code == reads
            assert (await client.post("/api/auto", json={"on": True})).status_code == acts

    asyncio.run(scene())


def test_an_open_stream_ends_when_its_token_is_removed(access: AccessSection) -> None:
    async def scene() -> None:
        async with serving(access, "watcher") as client, client.stream("GET", "/api/events") as response:
            lines = response.aiter_lines()
            assert (await anext(lines)).startswith("data: ")
            Path(access.tokens_file).write_text("")
            async with asyncio.timeout(10):
                async for _ in lines:
                    pass
            assert (await client.get("/api/events")).status_code == 401

    asyncio.run(scene())


def test_the_api_has_the_fields_of_the_admin_messages() -> None:
    async def scene() -> None:
        async with serving() as client:
            cluster = (await client.get("/api/cluster")).json()
            assert cluster["settings"]["policy"] and cluster["pools"] == [] and cluster["queued_requests"] == 0
            policy = (await client.post("/api/policy", json={"name": "round_robin"})).json()
            assert policy["name"] == "round_robin" and "least_loaded" in policy["known"]
            assert (await client.get("/api/policy")).json() == policy
            assert (await client.post("/api/auto", json={"on": True})).json()["auto"] is True
            assert (await client.get("/api/cluster")).json()["planner"]["auto"] is True
            assert (await client.get("/api/operations")).json() == {"operations": []}

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "word"),
    [
        ("GET", "/api/explain?id=none", None, 404, "no record"),
        ("POST", "/api/operations", b"{}", 400, "missing"),
        ("POST", "/api/operations", b"[1]", 400, "not a StartOperationRequest"),
        ("POST", "/api/operations", b'{"drain": {"workers": 3}}', 400, "not a StartOperationRequest"),
        ("POST", "/api/operations", b'{"drane": {}}', 400, "drane"),
        ("POST", "/api/operations", b"{", 400, "not a StartOperationRequest"),
        ("POST", "/api/operations", b'{"dry_run": true, "drain": {"workers": ["w"]}}', 404, "w"),
        ("POST", "/api/operations/x/cancel", b"{}", 404, "x"),
        ("POST", "/api/operations/x/end", b"{}", 404, "cancel"),
        ("POST", "/api/policy", b'{"name": "best"}', 400, "best"),
        ("POST", "/api/cluster", b"{}", 405, "GET"),
        ("PUT", "/api/operations", b"{}", 405, "GET, POST"),
    ],
)
def test_an_invalid_call_is_refused_with_a_sentence(
    method: str, path: str, body: bytes | None, status: int, word: str
) -> None:
    async def scene() -> None:
        async with serving() as client:
            answer = await client.request(method, path, content=body, headers=JSON)
            assert (answer.status_code, word in answer.json()["error"]["message"]) == (status, True), answer.text

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"content-type": "application/json; charset=utf-8", "sec-fetch-site": "same-origin"}, 200),
        ({"content-type": "text/plain"}, 400),
        ({"content-type": "application/x-www-form-urlencoded"}, 400),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example:8001"}, 403),
    ],
)
def test_a_page_of_another_site_cannot_act(headers: dict[str, str], status: int) -> None:
    async def scene() -> None:
        async with serving() as client:
            answer = await client.post("/api/auto", content=b'{"on": true}', headers={**JSON, **headers})
            assert answer.status_code == status
            assert (await client.get("/api/cluster")).json()["planner"]["auto"] is (status == 200)

    asyncio.run(scene())


def test_a_page_of_another_site_cannot_read_and_its_own_origin_may_act() -> None:
    async def scene() -> None:
        async with serving() as client:
            assert (await client.get("/api/cluster", headers={"sec-fetch-site": "cross-site"})).status_code == 403
            assert (await client.get("/", headers={"host": "rebound.example"})).status_code == 403
            host = str(client.base_url).removeprefix("http://").rstrip("/")
            own = {"origin": f"http://{host}"}
            assert (await client.post("/api/auto", json={"on": True}, headers=own)).status_code == 200

    asyncio.run(scene())


@pytest.mark.parametrize("host", ["localhost:8001", "127.0.0.1:9", "[::1]:8001", "localhost"])
def test_this_machine_has_these_names(host: str) -> None:
    check_host({"host": host})
    check_origin("POST", {"host": host, "origin": f"http://{host}", **JSON})


def test_the_page_allows_scripts_and_styles_of_its_own_origin_alone() -> None:
    async def scene() -> None:
        async with serving() as client:
            answer = await client.get("/")
            assert answer.headers["content-type"] == "text/html; charset=utf-8"
            policy: Any = dict(
                part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";")
            )
            assert policy["default-src"] == "'none'" and policy["script-src"] == policy["style-src"] == "'self'"
            assert policy["connect-src"] == "'self'" and policy["frame-ancestors"] == "'none'"
            assert (await client.head("/")).status_code == 200

    asyncio.run(scene())


def test_no_http_is_served_when_it_is_off() -> None:
    async def scene() -> None:
        running = await start_router(router_config(CHECKPOINT, admin_http_port="off"))
        assert running.addresses.admin_http == "" and running.http_server is None
        await running.stop()

    asyncio.run(scene())
