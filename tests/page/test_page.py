"""The operators' page in a browser: what it shows, what it can do, and that it asks no other host."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import baton
from baton.builtin_model import CHECKPOINT
from baton.config.schema import AccessSection
from baton.harness.process_cluster import ProcessCluster, plans
from baton.router.build import start_router
from tests.page.browser import CHROMIUM, Page, browsing
from tests.plans import router_config
from tests.router.policy.clusters import cluster_of
from tests.router.tokens import token_file

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no `chromium` on PATH: apt-get install chromium")
TIMEOUT_S = 200.0
READY = "document.body?.dataset.renderMs !== undefined"
NAMELESS = """[...document.querySelectorAll('button, input, select, progress, svg[role=img]')].filter((one) =>
    !one.labels?.length && !one.textContent.trim() && !one.ariaLabel && !one.getAttribute('aria-labelledby')
).map((one) => one.outerHTML)"""
NO_SCROLL = "document.documentElement.scrollWidth <= innerWidth"
WORKERS = "[...document.querySelectorAll('[data-worker]')].map((one) => one.dataset.worker).join()"


def run(scene: Callable[[], Awaitable[None]]) -> None:
    """Run a scene with a bound on its time."""
    asyncio.run(asyncio.wait_for(scene(), TIMEOUT_S))


@asynccontextmanager
async def page_at(address: str) -> AsyncIterator[Page]:
    """The page in a browser; afterwards its console must be clean, and all that it asked for must be at `address`."""
    async with browsing() as page:
        await page.size(1280, 900)
        await page.open(f"http://{address}/")
        yield page
        assert page.errors == []
        assert {urlsplit(url).netloc for url in page.urls if not url.startswith("data:")} == {address}


def test_a_request_appears_with_its_waterfall_and_a_worker_is_drained_by_its_plan() -> None:
    async def scene() -> None:
        router, worker = plans(CHECKPOINT, 1024, 300, policy="least_loaded")
        cluster = ProcessCluster(router, worker, {"prefill": 1, "decode": 2})
        async with (
            cluster,
            baton.AsyncClient(cluster.address) as client,
            page_at(cluster.router.addresses.admin_http) as page,
        ):
            await page.until(READY)
            assert await page.value(WORKERS) == "prefill-0,decode-0,decode-1"
            await client.generate("The baton goes", max_tokens=8, request_id="seen-in-the-page")
            await _explain(page, "seen-in-the-page")
            await _drain(page, "decode-1")
            view = cluster.router.driver.core.state.workers["decode-1"]
            await cluster.until(lambda: not view.serving)
            await page.until("document.querySelector('[data-worker=decode-1]').dataset.state === 'drained'")
            await page.until("document.querySelector('.operation[data-state=done]') !== null")

    run(scene)


async def _explain(page: Page, request_id: str) -> None:
    """Open a request's waterfall, once it is in the list."""
    await page.click(f".id[title={request_id}]")
    phases = "[...document.querySelectorAll('.waterfall .phase')].map((one) => one.firstChild.data).join()"
    await page.until(f"{phases} === 'Queue,Prefill,Handoff,Decode'")
    await page.value("document.getElementById('sheet').close()")


async def _drain(page: Page, worker: str) -> None:
    """Drain a worker from its sheet: first its plan is shown, then it is confirmed."""
    await page.click(f"[data-worker={worker}]")
    await page.click("#drain")
    await page.until(f"document.querySelector('#ask[open] .steps')?.textContent.includes('{worker}')")
    assert await page.value("document.querySelector('.operation') === null")
    await page.click("#ask-yes")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_window_does_not_scroll_sideways_with_a_thousand_workers(scheme: str) -> None:
    async def scene() -> None:
        state = cluster_of(*(f"prefill-{index}" for index in range(300)), *(f"decode-{index}" for index in range(700)))
        running = await start_router(router_config(CHECKPOINT, lost_after_s=1e6), state)
        try:
            async with page_at(running.addresses.admin_http) as page:
                await page.prefer(color_scheme=scheme)
                await page.until(READY)
                assert await page.value("document.querySelectorAll('.cell[data-worker]').length") == 1000
                for width in (1280, 400):
                    await page.size(width, 900)
                    await page.until(NO_SCROLL)
                await page.until("Number(document.body.dataset.renderMs) < 100")
                assert await page.value(NAMELESS) == []
                await _walk_cells(page)
                ground = await page.value("getComputedStyle(document.documentElement).backgroundColor")
                assert (ground == "rgb(10, 12, 17)") is (scheme == "dark")
        finally:
            await running.stop(0.0)

    run(scene)


async def _walk_cells(page: Page) -> None:
    """The Tab key stops once at a grid of workers, and arrow keys move within it."""
    assert await page.value("document.querySelectorAll('.cell[tabindex=\"0\"]').length") == 2
    await page.value("document.querySelector('[data-worker=decode-0]').focus()")
    await page.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowRight")
    await page.until("document.activeElement.dataset.worker === 'decode-1'")
    assert await page.value("document.activeElement.tabIndex") == 0
    assert await page.value("document.querySelectorAll('.cell[tabindex=\"0\"]').length") == 2


def test_with_tokens_the_page_asks_for_one_and_shows_the_cluster_then(tmp_path: Path) -> None:
    async def scene() -> None:
        access = AccessSection(tokens_file=token_file(tmp_path))
        running = await start_router(router_config(CHECKPOINT, access=access, lost_after_s=1e6), cluster_of("decode-0"))
        try:
            async with browsing() as page:
                await page.open(f"http://{running.addresses.admin_http}/")
                await page.until("document.getElementById('ask')?.open")
                await page.value("document.getElementById('token').value = 'watcher'")
                await page.click("#ask-yes")
                await page.until(READY)
                await page.click("[data-worker=decode-0]")
                await page.click("#drain")
                await page.until("document.getElementById('ask-body').textContent.includes(\"role 'admin'\")")
                assert await page.value("document.body.innerHTML.includes('watcher')") is False
        finally:
            await running.stop(0.0)

    run(scene)
