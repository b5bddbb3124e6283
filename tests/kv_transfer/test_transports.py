"""One contract for every transport: the bytes of the named pages arrive, then the notice, once; all else stays."""

from __future__ import annotations

import itertools
import multiprocessing as mp
import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

import pytest
import torch

from baton.config.schema import EngineSection
from baton.kv_transfer.in_process import InProcessNetwork, InProcessTransport
from baton.kv_transfer.nixl import NixlTransport
from baton.kv_transfer.transport import Notice, TransferEvent, Transport, WriteDone, WriteFailed
from baton.kv_transfer.transports import TRANSPORTS, find_transport
from baton.protocol.errors import ConfigError, HandoffFailed
from baton.protocol.worker import PageLayout

LAYOUT = PageLayout(32, 2, 4, 2, 8, "float32", "m")
Make = Callable[..., Transport]
_serial = itertools.count()


def _pages(seed: int, layout: PageLayout = LAYOUT) -> torch.Tensor:
    return torch.rand(layout.shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[*TRANSPORTS, "in_process"])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    network, made = InProcessNetwork(), []

    def build(pages: torch.Tensor, name: str, layout: PageLayout = LAYOUT) -> Transport:
        agent = f"{name}:{next(_serial)}"
        if request.param in TRANSPORTS:
            transport = find_transport(request.param)(pages, layout, agent, 0)
        else:
            transport = InProcessTransport(network, pages, layout, agent)
        made.append(transport)
        return transport

    yield build
    for transport in made:
        transport.close()


def test_the_default_transport_is_in_the_table_and_an_unknown_name_lists_the_known_ones() -> None:
    assert find_transport(EngineSection().transport) is NixlTransport
    with pytest.raises(ConfigError, match=r"no transport 'pigeon': set engine\.transport to one of nixl"):
        find_transport("pigeon")


def _until(done: Callable[[list[TransferEvent]], bool], *transports: Transport) -> list[list[TransferEvent]]:
    """Poll all sides until `done` holds for their events together."""
    events: list[list[TransferEvent]] = [[] for _ in transports]
    deadline = time.monotonic() + 20
    while not done([event for side in events for event in side]):
        assert time.monotonic() < deadline, events
        for side, transport in zip(events, transports, strict=True):
            side += transport.poll()
    return events


def _ended(count: int) -> Callable[[list[TransferEvent]], bool]:
    return lambda events: sum(isinstance(event, WriteDone | WriteFailed) for event in events) >= count


def _noticed(count: int) -> Callable[[list[TransferEvent]], bool]:
    return lambda events: sum(isinstance(event, Notice) for event in events) >= count


def test_the_named_pages_arrive_and_nothing_else_changes(make: Make) -> None:
    source_pages, target_pages = _pages(1), _pages(2)
    before = target_pages.clone()
    source, target = make(source_pages, "source"), make(target_pages, "target")
    source.connect(target.endpoint)
    target.connect(source.endpoint)
    ours, theirs = [3, 31, 0, 7], [9, 2, 30, 11]
    transfer = source.write(target.endpoint.agent, ours, theirs, b"state")
    at_source, at_target = _until(lambda e: _ended(1)(e) and _noticed(1)(e), source, target)
    expected = before.clone()
    expected[theirs] = source_pages[ours]
    assert torch.equal(target_pages, expected)
    (done,) = at_source
    assert isinstance(done, WriteDone)
    assert (done.transfer_id, done.num_bytes) == (transfer, 4 * LAYOUT.page_bytes)
    assert at_target == [Notice(source.endpoint.agent, b"state")]
    assert source.in_flight == 0


def test_a_notice_without_pages_arrives_alone(make: Make) -> None:
    source, target = make(_pages(1), "source"), make(_pages(2), "target")
    source.connect(target.endpoint)
    target.connect(source.endpoint)
    source.write(target.endpoint.agent, [], [], b"only words")
    _, at_target = _until(lambda e: _ended(1)(e) and _noticed(1)(e), source, target)
    assert [event.payload for event in at_target if isinstance(event, Notice)] == [b"only words"]


def test_hundreds_of_writes_each_end_once(make: Make) -> None:
    source_pages, target_pages = _pages(1), _pages(2)
    source, target = make(source_pages, "source"), make(target_pages, "target")
    source.connect(target.endpoint)
    target.connect(source.endpoint)
    count = 300
    ids = [
        source.write(target.endpoint.agent, [i % 32], [(i * 5) % 32], str(i).encode() if i % 3 == 0 else None)
        for i in range(count)
    ]
    at_source, at_target = _until(lambda e: _ended(count)(e) and _noticed(100)(e), source, target)
    assert sorted(event.transfer_id for event in at_source if isinstance(event, WriteDone)) == ids
    notices = [event.payload for event in at_target if isinstance(event, Notice)]
    assert sorted(notices) == sorted(str(i).encode() for i in range(0, count, 3))
    assert target.poll() == []


def test_pages_of_another_layout_are_refused(make: Make) -> None:
    other = PageLayout(32, 2, 8, 2, 8, "float32", "m")
    source, target = make(_pages(1), "source"), make(_pages(2, other), "target", other)
    with pytest.raises(HandoffFailed, match="page=8"):
        source.connect(target.endpoint)


@pytest.mark.parametrize(("ours", "theirs"), [([32], [0]), ([0], [32]), ([-1], [0]), ([0, 1], [0])])
def test_pages_that_do_not_exist_are_refused_and_nothing_is_written(
    make: Make, ours: list[int], theirs: list[int]
) -> None:
    target_pages = _pages(2)
    before = target_pages.clone()
    source, target = make(_pages(1), "source"), make(target_pages, "target")
    source.connect(target.endpoint)
    with pytest.raises(HandoffFailed):
        source.write(target.endpoint.agent, ours, theirs, None)
    assert torch.equal(target_pages, before)


def test_an_unknown_peer_is_refused(make: Make) -> None:
    source = make(_pages(1), "source")
    with pytest.raises(HandoffFailed, match="nobody"):
        source.write("nobody", [0], [0], None)


def test_a_peer_can_be_dropped_and_another_incarnation_takes_over(make: Make) -> None:
    source_pages, old_pages, new_pages = _pages(1), _pages(2), _pages(3)
    source, old = make(source_pages, "source"), make(old_pages, "target")
    source.connect(old.endpoint)
    source.disconnect(old.endpoint.agent)
    with pytest.raises(HandoffFailed):
        source.write(old.endpoint.agent, [0], [0], None)
    old.close()
    new = make(new_pages, "target")
    source.connect(new.endpoint)
    source.connect(new.endpoint)  # again: replaces the first
    source.write(new.endpoint.agent, [5], [6], None)
    _until(_ended(1), source, new)
    assert torch.equal(new_pages[6], source_pages[5])


def test_a_write_to_an_unreachable_agent_fails() -> None:
    network = InProcessNetwork()
    source = InProcessTransport(network, _pages(1), LAYOUT, "a")
    target = InProcessTransport(network, _pages(2), LAYOUT, "b")
    source.connect(target.endpoint)
    source.write("b", [0], [0], None)
    network.unreachable.add("b")
    (event,) = source.poll()
    assert isinstance(event, WriteFailed)


def _peer(pipe: Connection) -> None:
    """A process with zeroed pages: polls until two notices have come, then shows them."""
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
    context = mp.get_context("spawn")
    source_pages = _pages(1)
    source = NixlTransport(source_pages, LAYOUT, "killer:1")
    peers = []
    for _ in range(2):
        ours, theirs = context.Pipe()
        process = context.Process(target=_peer, args=(theirs,), daemon=True)
        process.start()
        endpoint = ours.recv()
        source.connect(endpoint)
        ours.send(source.endpoint)
        peers.append((process, ours, endpoint.agent))
    for _, _, agent in peers:
        source.write(agent, list(range(32)), list(range(31, -1, -1)), b"done")
    _until(_ended(2), source)
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
        ends = [event for event in _until(_ended(1), source)[0] if isinstance(event, WriteFailed)]
    source.disconnect(dead)
    source.write(alive, [4], [4], b"again")
    (end,) = [event for event in _until(_ended(1), source)[0] if isinstance(event, WriteDone | WriteFailed)]
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
    """A process that drops the other and takes it back when it is told to, and shows its pages in the end."""
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
    context = mp.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=_relinked_peer, args=(theirs,), daemon=True)
    process.start()
    source_pages = _pages(1)
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
        (end,) = [event for event in _until(_ended(1), source)[0] if isinstance(event, WriteDone | WriteFailed)]
        assert isinstance(end, WriteDone)
        if target_first:
            relink_target()
        source.disconnect(target.agent)
        source.connect(target)
        if not target_first:
            relink_target()
    source.write(target.agent, [20], [20], b"last")
    _until(_ended(1), source)
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


def test_progress_moves_pages_and_keeps_events_until_they_are_polled(make: Make) -> None:
    source_pages, target_pages = _pages(1), _pages(2)
    source, target = make(source_pages, "source"), make(target_pages, "target")
    source.connect(target.endpoint)
    target.connect(source.endpoint)
    transfer = source.write(target.endpoint.agent, [3], [9], b"state")
    deadline = time.monotonic() + 20
    while not torch.equal(target_pages[9], source_pages[3]):
        assert time.monotonic() < deadline
        source.progress()
        target.progress()
    for _ in range(100):
        source.progress()
        target.progress()
    at_source, at_target = _until(lambda e: _ended(1)(e) and _noticed(1)(e), source, target)
    assert [event.transfer_id for event in at_source if isinstance(event, WriteDone)] == [transfer]
    assert at_target == [Notice(source.endpoint.agent, b"state")]
    assert source.poll() == target.poll() == []
