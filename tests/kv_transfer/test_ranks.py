"""Pages between workers of unequal numbers of ranks: every byte, one end per write, and the death of one rank."""

from __future__ import annotations

import itertools
import multiprocessing as mp
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection

import pytest
import torch

from baton.harness.forked import forked
from baton.harness.in_process import InProcessNetwork, InProcessTransport
from baton.kv_transfer.nixl import NixlTransport
from baton.kv_transfer.transport import Notice, Transport, WriteDone, WriteFailed
from baton.protocol.errors import HandoffFailed
from baton.protocol.worker import PageLayout, RankAddress
from tests.kv_transfer.polling import ended, joined, noticed, poll_until, random_pages, slices

DEGREES = [(1, 2), (2, 1), (2, 2), (4, 1), (1, 4)]
_serial = itertools.count()
Open = Callable[..., Transport]


def _layout(num_heads: int, num_pages: int = 32) -> PageLayout:
    return PageLayout(num_pages, 2, 4, num_heads, 8, "float32", "m")


def _worker(open_: Open, pages: torch.Tensor, name: str, num_ranks: int) -> tuple[list[Transport], list[torch.Tensor]]:
    """The transports and the storage of a worker's ranks."""
    agent, layout, storage = f"{name}:{next(_serial)}", _layout(pages.shape[1], len(pages)), slices(pages, num_ranks)
    return [open_(own, layout, agent, rank=rank, num_ranks=num_ranks) for rank, own in enumerate(storage)], storage


def _serve(pipe: Connection) -> None:
    """Be a worker of several ranks in this process, one after the other, until sent None."""
    while (order := pipe.recv()) is not None:
        pages, num_ranks = order
        ranks, storage = _worker(NixlTransport, torch.from_numpy(pages), f"target-{os.getpid()}", num_ranks)
        pipe.send(joined(ranks))
        source = pipe.recv()
        for rank in ranks:
            rank.connect(source)
        events = poll_until(noticed(1), *ranks)
        pipe.send(([own.numpy() for own in storage], events))
        for rank in ranks:
            rank.close()


@pytest.fixture(scope="module")
def target_process() -> Iterator[Connection]:
    ours, theirs = mp.Pipe()
    process = forked(_serve, theirs)
    process.start()
    yield ours
    ours.send(None)
    process.join(10)
    assert process.exitcode == 0


@pytest.fixture
def in_process() -> Open:
    network = InProcessNetwork()

    def build(pages: torch.Tensor, layout: PageLayout, agent: str, rank: int, num_ranks: int) -> Transport:
        return InProcessTransport(network, pages, layout, agent, rank, num_ranks)

    return build


def _check_arrived(
    source: torch.Tensor, target: torch.Tensor, arrived: list[torch.Tensor], ours: list[int], theirs: list[int]
) -> None:
    expected = target.clone()
    expected[theirs] = source[ours]
    for own, wanted in zip(arrived, slices(expected, len(arrived)), strict=True):
        assert torch.equal(own, wanted)


def _some_pages(seed: int) -> tuple[list[int], list[int]]:
    """Seven pages of each side, in random order."""
    generator = random.Random(seed)
    return generator.sample(range(32), 7), generator.sample(range(24), 7)


def _write(ranks: list[Transport], agent: str, ours: list[int], theirs: list[int], target_ranks: int) -> None:
    """Write from every rank, then send the notice; each write ends once."""
    heads = max(ranks[0].endpoint.layout.num_kv_heads, target_ranks)
    ids = [rank.write(agent, ours, theirs, None) for rank in ranks]
    events = poll_until(ended(len(ranks)), *ranks)
    for transfer_id, side in zip(ids, events, strict=True):
        assert [event.transfer_id for event in side if isinstance(event, WriteDone)] == [transfer_id]
    num_bytes = sum(event.num_bytes for side in events for event in side if isinstance(event, WriteDone))
    assert num_bytes == 7 * heads * ranks[0].endpoint.layout.head_bytes
    assert [rank.poll() for rank in ranks] == [[]] * len(ranks)
    ranks[0].notify(agent, b"whole")


@pytest.mark.parametrize("num_heads", [8, 2, 1])
@pytest.mark.parametrize(("source_ranks", "target_ranks"), DEGREES)
def test_every_byte_arrives_at_the_rank_that_keeps_its_head_over_nixl(
    target_process: Connection, num_heads: int, source_ranks: int, target_ranks: int
) -> None:
    pages, target = random_pages(1, _layout(num_heads)), random_pages(2, _layout(num_heads, 24))
    target_process.send((target.numpy(), target_ranks))
    ranks, storage = _worker(NixlTransport, pages, f"source-{os.getpid()}", source_ranks)
    endpoint = target_process.recv()
    for rank in ranks:
        rank.connect(endpoint)
    target_process.send(joined(ranks))
    ours, theirs = _some_pages(num_heads)
    _write(ranks, endpoint.agent, ours, theirs, target_ranks)
    while not target_process.poll(0.001):
        assert [rank.poll() for rank in ranks] == [[]] * source_ranks
    arrived, events = target_process.recv()
    _check_arrived(pages, target, [torch.from_numpy(own) for own in arrived], ours, theirs)
    assert events == [[Notice(joined(ranks).agent, b"whole")]] + [[]] * (target_ranks - 1)
    for own, before in zip(storage, slices(pages, source_ranks), strict=True):
        assert torch.equal(own, before)
    for rank in ranks:
        rank.close()


@pytest.mark.parametrize("num_heads", [8, 2, 1])
@pytest.mark.parametrize(("source_ranks", "target_ranks"), DEGREES)
def test_every_byte_arrives_at_the_rank_that_keeps_its_head_in_one_process(
    in_process: Open, num_heads: int, source_ranks: int, target_ranks: int
) -> None:
    pages, target = random_pages(1, _layout(num_heads)), random_pages(2, _layout(num_heads, 24))
    ranks, _ = _worker(in_process, pages, "source", source_ranks)
    target_side, arrived = _worker(in_process, target, "target", target_ranks)
    for rank in ranks:
        rank.connect(joined(target_side))
    ours, theirs = _some_pages(num_heads)
    _write(ranks, joined(target_side).agent, ours, theirs, target_ranks)
    _check_arrived(pages, target, arrived, ours, theirs)
    assert target_side[0].poll() == [Notice(joined(ranks).agent, b"whole")]


@pytest.mark.parametrize(("source_ranks", "target_ranks"), [(2, 1), (1, 2), (2, 2)])
def test_a_notice_travels_with_a_write_between_single_ranks_only_and_comes_from_rank_0(
    in_process: Open, source_ranks: int, target_ranks: int
) -> None:
    ranks, _ = _worker(in_process, random_pages(1, _layout(2)), "source", source_ranks)
    target, _ = _worker(in_process, random_pages(2, _layout(2)), "target", target_ranks)
    agent = joined(target).agent
    for rank in ranks:
        rank.connect(joined(target))
        with pytest.raises(HandoffFailed, match="carries no notice"):
            rank.write(agent, [0], [0], b"early")
    for rank in ranks[1:]:
        with pytest.raises(HandoffFailed, match="rank 0 does"):
            rank.notify(agent, b"wrong rank")
    assert target[0].poll() == []


def test_a_peer_is_connected_with_all_its_ranks_or_none() -> None:
    pages = random_pages(1, _layout(2))
    (source,), _ = _worker(NixlTransport, pages, "source", 1)
    target, arrived = _worker(NixlTransport, random_pages(2, _layout(2)), "target", 2)
    whole = joined(target)
    with pytest.raises(HandoffFailed, match="cannot be reached"):
        source.connect(replace(whole, ranks=(whole.ranks[0], RankAddress(b"not metadata"))))
    with pytest.raises(HandoffFailed, match="is not connected"):
        source.write(whole.agent, [0], [0], None)
    assert source.in_flight == 0
    source.connect(whole)
    source.write(whole.agent, [3], [4], None)
    poll_until(ended(1), source, *target)
    for own, ours in zip(arrived, slices(pages, 2), strict=True):
        assert torch.equal(own[4], ours[3])
    source.disconnect(whole.agent)
    with pytest.raises(HandoffFailed, match="is not connected"):
        source.notify(whole.agent, b"late")
    for transport in (source, *target):
        transport.close()


def _one_rank(pipe: Connection) -> None:
    """Be rank 1 of 2 of the worker "killed" until killed."""
    _, own = slices(random_pages(3, _layout(2)), 2)
    transport = NixlTransport(own, _layout(2), "killed", rank=1, num_ranks=2)
    pipe.send(transport.endpoint)
    transport.connect(pipe.recv())
    while True:
        transport.poll()
        time.sleep(0.001)


def test_the_death_of_one_target_rank_fails_each_write_once_and_no_other_peer() -> None:
    (source,), _ = _worker(NixlTransport, random_pages(1, _layout(2)), f"source-{os.getpid()}", 1)
    own, _ = slices(random_pages(3, _layout(2)), 2)
    first = NixlTransport(own, _layout(2), "killed", rank=0, num_ranks=2)
    pipe, theirs = mp.Pipe()
    process = forked(_one_rank, theirs)
    process.start()
    killed = replace(first.endpoint, ranks=(*first.endpoint.ranks, *pipe.recv().ranks))
    other, _ = _worker(NixlTransport, random_pages(2, _layout(2)), "survivor", 2)
    source.connect(killed)
    source.connect(joined(other))
    pipe.send(source.endpoint)
    transfer_id = source.write("killed", [1, 2], [2, 1], None)
    (done,) = poll_until(ended(1), source, first)[0]
    assert isinstance(done, WriteDone) and done.transfer_id == transfer_id
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    deadline, failed = time.monotonic() + 20, False
    while not failed:
        assert time.monotonic() < deadline
        try:
            transfer_id = source.write("killed", [1, 2], [2, 1], None)
        except HandoffFailed:
            break
        (end,) = [
            event for event in poll_until(ended(1), source, first)[0] if isinstance(event, WriteDone | WriteFailed)
        ]
        assert end.transfer_id == transfer_id
        failed = isinstance(end, WriteFailed)
    source.disconnect("killed")
    source.write(joined(other).agent, [5], [6], None)
    (done,) = poll_until(ended(1), source, *other)[0]
    assert isinstance(done, WriteDone) and source.poll() == []
    for transport in (source, first, *other):
        transport.close()
