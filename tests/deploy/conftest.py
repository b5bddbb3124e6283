"""Shared by the tests of notes: a process that ended, and ports that answer or are silent."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator

import pytest

from baton.deploy.processes import NotedProcess, noted_process


@pytest.fixture
def ended() -> NotedProcess:
    """A process that has just ended."""
    with subprocess.Popen(["sleep", "60"]) as process:
        noted = noted_process("gcs_server", process.pid)
        process.kill()
    assert noted is not None
    return noted


@pytest.fixture
def port() -> Iterator[int]:
    """A port that accepts connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that neither accepts nor refuses connections: its backlog is full."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        yield server.getsockname()[1]
