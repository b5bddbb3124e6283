"""Debian's Chromium without a window, driven by the DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium")
START_S, WAIT_S = 60.0, 30.0
OPTIONS = (
    *("--headless=new", "--disable-gpu", "--no-first-run", "--disable-extensions", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--hide-scrollbars", "--remote-debugging-port=0", "--no-sandbox"),
    *("--disable-dev-shm-usage", "--force-color-profile=srgb"),
)


@dataclass(eq=False)
class Page:
    """One tab. `errors` are those of its console, `urls` all that it has asked for."""

    socket: ClientConnection
    session: str = ""
    errors: list[str] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)
    _answers: dict[int, asyncio.Future[Any]] = field(default_factory=dict)
    _sent: int = 0

    async def call(self, method: str, **parameters: Any) -> Any:
        """One command of the protocol; raises `RuntimeError` with the browser's message."""
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        answer = self._answers[self._sent] = asyncio.get_running_loop().create_future()
        await self.socket.send(json.dumps(message))
        async with asyncio.timeout(WAIT_S):
            return await answer

    async def read(self) -> None:
        """Take in what the browser sends, until the connection ends."""
        async for text in self.socket:
            message = json.loads(text)
            answer = self._answers.pop(message.get("id", 0), None)
            if answer is not None and not answer.done():
                if "error" in message:
                    answer.set_exception(RuntimeError(message["error"]["message"]))
                else:
                    answer.set_result(message["result"])
            self._on_event(message.get("method", ""), message.get("params", {}))

    def _on_event(self, method: str, event: dict[str, Any]) -> None:
        match method:
            case "Runtime.exceptionThrown":
                self.errors.append(str(event["exceptionDetails"].get("exception", event["exceptionDetails"])))
            case "Runtime.consoleAPICalled" if event["type"] in ("error", "warning", "assert"):
                self.errors.append(str(event["args"]))
            case "Log.entryAdded" if event["entry"]["level"] in ("error", "warning"):
                self.errors.append(f"{event['entry']['text']} {event['entry'].get('url', '')}")
            case "Network.requestWillBeSent":
                self.urls.append(event["request"]["url"])

    async def open(self, url: str) -> None:
        """Show a page."""
        await self.call("Page.navigate", url=url)

    async def value(self, expression: str) -> Any:
        """The value of JavaScript in the page; a promise is awaited. Raises `RuntimeError` if it throws."""
        got = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in got:
            raise RuntimeError(str(got["exceptionDetails"].get("exception", got)))
        return got["result"].get("value")

    async def until(self, expression: str) -> Any:
        """Wait for a true value of JavaScript in the page; raises `TimeoutError`, with the page's errors."""
        try:
            async with asyncio.timeout(WAIT_S):
                while not (value := await self.value(expression)):
                    await asyncio.sleep(0.05)
                return value
        except TimeoutError:
            raise TimeoutError(f"{expression} stays false; the console has {self.errors}") from None

    async def click(self, selector: str) -> None:
        """Click an element once it is there."""
        quoted = json.dumps(selector)
        await self.until(f"document.querySelector({quoted}) !== null")
        await self.value(f"document.querySelector({quoted}).click()")

    async def size(self, width: int, height: int, scale: float = 1.0) -> None:
        """Set the window's size in CSS pixels."""
        metrics: dict[str, Any] = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
        await self.call("Emulation.setDeviceMetricsOverride", **metrics)

    async def prefer(self, **features: str) -> None:
        """Set media features, such as `color_scheme="dark"`."""
        given = [{"name": f"prefers-{name.replace('_', '-')}", "value": value} for name, value in features.items()]
        await self.call("Emulation.setEmulatedMedia", features=given)

    async def screenshot(self, whole: bool = False) -> bytes:
        """The window, or the whole page, as a PNG."""
        shot = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(shot["data"])


@asynccontextmanager
async def browsing() -> AsyncIterator[Page]:
    """A tab of a browser of its own."""
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            *(CHROMIUM, *OPTIONS, f"--user-data-dir={profile}", "about:blank"),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "HOME": profile},
        )
        try:
            async with connect(await _address(process), max_size=None) as socket:
                page = Page(socket)
                reading = asyncio.create_task(page.read())
                try:
                    await _attach(page)
                    yield page
                finally:
                    reading.cancel()
        finally:
            process.kill()
            await process.wait()


async def _address(process: asyncio.subprocess.Process) -> str:
    """Where the browser listens, which it writes on its error output."""
    assert process.stderr is not None
    async with asyncio.timeout(START_S):
        async for line in process.stderr:
            if found := re.search(rb"DevTools listening on (ws://\S+)", line):
                return found[1].decode()
    raise ChildProcessError("Chromium has ended.")


async def _attach(page: Page) -> None:
    target = await page.call("Target.createTarget", url="about:blank")
    attached = await page.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
    page.session = attached["sessionId"]
    for domain in ("Page", "Runtime", "Network", "Log"):
        await page.call(f"{domain}.enable")
