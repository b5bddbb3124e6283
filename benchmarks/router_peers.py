"""The routers that Baton's router is compared with, each in front of mock SGLang servers.

They have default settings, but no limit on concurrent requests that the open loop could reach.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import psutil

from benchmarks.mock_http import mock_http_process
from benchmarks.process_group import end_group
from benchmarks.router_sides import START_S, Side, start
from benchmarks.stream_clients import HttpClient

UNLIMITED = 1 << 16


@dataclass(frozen=True, slots=True)
class Peer:
    """A router with sglang-router's command line, `launch --pd-disaggregation`."""

    name: str  # Name of its flag and suffix of its figures.
    package: str
    module: str  # Peers are run as modules, because both packages install a program `smg`.


PEERS = (Peer("sglang", "sglang-router", "sglang_router"), Peer("smg", "smg", "smg"))


def find_peer(peer: Peer, python: str | None) -> list[str] | None:
    """The command that launches the peer with `python` (None: this interpreter), or None if it is not installed."""
    if python is None:
        installed = importlib.util.find_spec(peer.module) is not None
    elif shutil.which(python) is None:
        raise SystemExit(
            f"--{peer.name}: {python} is not a program; give the Python of an environment with {peer.package}."
        )
    else:
        asked = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({peer.module!r}) is None)"
        installed = subprocess.run([python, "-I", "-c", asked], check=False).returncode == 0
    return [python or sys.executable, "-I", "-m", peer.module, "launch"] if installed else None


@contextmanager
def peer_side(peer: Peer, command: list[str]) -> Iterator[Side]:
    """The peer with a mock prefill and a mock decode server."""
    with ExitStack() as stack:
        servers = start(stack, mock_http_process)
        prefill_port, decode_port = servers.receive()
        port, metrics_port = _free_ports(2)
        # No KV is transferred, so the prefill server's own port serves as its bootstrap port.
        arguments = ["--pd-disaggregation", "--prefill", f"http://127.0.0.1:{prefill_port}", str(prefill_port)]
        arguments += ["--decode", f"http://127.0.0.1:{decode_port}", "--host", "127.0.0.1", "--port", str(port)]
        arguments += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics_port), "--log-level", "error"]
        arguments += ["--max-concurrent-requests", str(UNLIMITED), "--queue-size", str(UNLIMITED)]
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(  # In a new session, which Ctrl-C does not reach.
            [*command, *arguments], stdout=subprocess.DEVNULL, env=environment, start_new_session=True
        )
        stack.callback(end_group, process)
        _await_ready(peer, f"http://127.0.0.1:{port}/readiness", process)
        yield Side(
            f"_{peer.name}",
            {"router": [psutil.Process(process.pid)]},
            lambda streams, paced: HttpClient(port, streams, paced),
            servers,
            lambda streams, paced: HttpClient(decode_port, streams, paced),
            servers,
        )


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _await_ready(peer: Peer, url: str, process: subprocess.Popen[bytes]) -> None:
    """Poll the peer's readiness, without a proxy; raises `RuntimeError` when it ends or takes too long."""
    deadline = time.monotonic() + START_S
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        if process.poll() is not None:
            raise RuntimeError(f"{peer.package} ended at once with code {process.returncode}.")
        try:
            with opener.open(url, timeout=2):
                return
        except OSError as error:  # Not listening yet, or 503.
            if time.monotonic() > deadline:
                raise RuntimeError(f"{peer.package} is not ready after {START_S:g} s: {error}.") from None
        time.sleep(0.05)
