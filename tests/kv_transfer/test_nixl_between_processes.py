"""NIXL between processes: transfers, the death of a peer, and reconnecting under the same names."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import time
from multiprocessing.connection import Connection

import pytest
import torch

from baton.harness.forked import forked
from baton.kv_transfer.nixl import NixlTransport
from baton.kv_transfer.transport import Notice, WriteDone, WriteFailed
from baton.protocol.errors import HandoffFailed
from tests.kv_transfer.polling import LAYOUT, ended, poll_until, random_pages


def _peer(pipe: Connection) -> None:
    """A process with zeroed pages: polls until two notices have arrived, then returns both."""
    pages = torch.zeros(LAYOUT.shape)
    transport = NixlTransport(pages, LAYOUT, f"peer-{os.getpid()}:1")
    pipe.send(transport.endpoint)
    transport.connect(pipe.recv())
    notices: list[bytes] = []
    while len(notices) < 2:
        notices += [event.payload for event in transport.poll() if isinstance(event, Notice)]
        time.sleep(0.001)
    pipe.send((pages.numpy(), notices))
    transport.close()


def test_between_processes_bytes_are_equal_and_a_killed_peer_fails_its_writes_only() -> None:
    source_pages = random_pages(1)
    source = NixlTransport(source_pages, LAYOUT, "killer:1")
    peers = []
    for _ in range(2):
        ours, theirs = mp.Pipe()
        process = forked(_peer, theirs)
        process.start()
        endpoint = ours.recv()
        source.connect(endpoint)
        ours.send(source.endpoint)
        peers.append((process, ours, endpoint.agent))
    for _, _, agent in peers:
        source.write(agent, list(range(32)), list(range(31, -1, -1)), b"done")
    poll_until(ended(2), source)
    (victim, _, dead), (survivor, pipe, alive) = peers
    os.kill(victim.pid or 0, signal.SIGKILL)
    victim.join()
    ends: list[object] = []
    deadline = time.monotonic() + 20
    while not ends:
        assert time.monotonic() < deadline
        try:
            source.write(dead, [1], [1], b"late")
        except HandoffFailed:
            break
        ends = [event for event in poll_until(ended(1), source)[0] if isinstance(event, WriteFailed)]
    source.disconnect(dead)
    source.write(alive, [4], [4], b"again")
    (end,) = [event for event in poll_until(ended(1), source)[0] if isinstance(event, WriteDone | WriteFailed)]
    assert isinstance(end, WriteDone)
    pages, notices = pipe.recv()
    expected = source_pages.flip(0)
    expected[4] = source_pages[4]
    assert torch.equal(torch.from_numpy(pages), expected)
    assert notices == [b"done", b"again"]
    survivor.join(10)
    source.close()
    assert survivor.exitcode == 0


def _relinked_peer(pipe: Connection) -> None:
    """A process that reconnects to its peer when sent "relink", and answers every order with its pages and notices."""
    pages = torch.zeros(LAYOUT.shape)
    transport = NixlTransport(pages, LAYOUT, "relinked-peer:1")
    pipe.send(transport.endpoint)
    other = pipe.recv()
    transport.connect(other)
    notices: list[bytes] = []
    order = ""
    while order != "end":
        notices += [event.payload for event in transport.poll() if isinstance(event, Notice)]
        if pipe.poll(0.001):
            order = pipe.recv()
            if order == "relink":
                transport.disconnect(other.agent)
                transport.connect(other)
            pipe.send((pages.numpy(), notices))
    transport.close()


@pytest.mark.parametrize("target_first", [True, False])
def test_peers_in_two_processes_disconnect_and_reconnect_under_the_same_names(target_first: bool) -> None:
    pipe, theirs = mp.Pipe()
    process = forked(_relinked_peer, theirs)
    process.start()
    source_pages = random_pages(1)
    source = NixlTransport(source_pages, LAYOUT, f"relinker-{target_first}:1")
    target = pipe.recv()
    source.connect(target)
    pipe.send(source.endpoint)

    def relink_target() -> None:
        pipe.send("relink")
        while not pipe.poll(0.001):
            source.poll()
        pipe.recv()

    for number in range(5):
        source.write(target.agent, [number], [number + 10], str(number).encode())
        (end,) = [event for event in poll_until(ended(1), source)[0] if isinstance(event, WriteDone | WriteFailed)]
        assert isinstance(end, WriteDone)
        if target_first:
            relink_target()
        source.disconnect(target.agent)
        source.connect(target)
        if not target_first:
            relink_target()
    source.write(target.agent, [20], [20], b"last")
    poll_until(ended(1), source)
    notices: list[bytes] = []
    while b"last" not in notices:
        source.poll()
        pipe.send("show")
        pages, notices = pipe.recv()
    assert notices == [b"0", b"1", b"2", b"3", b"4", b"last"]
    assert torch.equal(torch.from_numpy(pages)[10:15], source_pages[:5])
    pipe.send("end")
    pipe.recv()
    process.join(10)
    source.close()
    assert process.exitcode == 0
