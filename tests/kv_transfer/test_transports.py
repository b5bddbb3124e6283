"""The contract of every transport: exactly the named pages are written, then the notice arrives once."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from baton.config.schema import EngineSection
from baton.harness.in_process import InProcessNetwork, InProcessTransport
from baton.kv_transfer.nixl import NixlTransport
from baton.kv_transfer.transport import Notice, Transport, WriteDone, WriteFailed
from baton.kv_transfer.transports import TRANSPORTS, find_transport
from baton.protocol.errors import ConfigError, HandoffFailed
from baton.protocol.worker import PageLayout
from tests.kv_transfer.polling import LAYOUT, ended, noticed, poll_until, random_pages

Make = Callable[..., Transport]
_serial = itertools.count()


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


def test_the_named_pages_arrive_and_nothing_else_changes(make: Make) -> None:
    source_pages, target_pages = random_pages(1), random_pages(2)
    before = target_pages.clone()
    source, target = make(source_pages, "source"), make(target_pages, "target")
    source.connect(target.endpoint)
    target.connect(source.endpoint)
    ours, theirs = [3, 31, 0, 7], [9, 2, 30, 11]
    transfer = source.write(target.endpoint.agent, ours, theirs, b"state")
    at_source, at_target = poll_until(lambda e: ended(1)(e) and noticed(1)(e), source, target)
    expected = before.clone()
    expected[theirs] = source_pages[ours]
    assert torch.equal(target_pages, expected)
    (done,) = at_source
    assert isinstance(done, WriteDone)
    assert (done.transfer_id, done.num_bytes) == (transfer, 4 * LAYOUT.page_bytes)
    assert at_target == [Notice(source.endpoint.agent, b"state")]
    assert source.in_flight == 0


def test_a_notice_without_pages_arrives_alone(make: Make) -> None:
    source, target = make(random_pages(1), "source"), make(random_pages(2), "target")
    source.connect(target.endpoint)
    target.connect(source.endpoint)
    source.write(target.endpoint.agent, [], [], b"no pages")
    _, at_target = poll_until(lambda e: ended(1)(e) and noticed(1)(e), source, target)
    assert [event.payload for event in at_target if isinstance(event, Notice)] == [b"no pages"]


def test_hundreds_of_writes_each_end_once(make: Make) -> None:
    source_pages, target_pages = random_pages(1), random_pages(2)
    source, target = make(source_pages, "source"), make(target_pages, "target")
    source.connect(target.endpoint)
    target.connect(source.endpoint)
    count = 300
    ids = [
        source.write(target.endpoint.agent, [i % 32], [(i * 5) % 32], str(i).encode() if i % 3 == 0 else None)
        for i in range(count)
    ]
    at_source, at_target = poll_until(lambda e: ended(count)(e) and noticed(100)(e), source, target)
    assert sorted(event.transfer_id for event in at_source if isinstance(event, WriteDone)) == ids
    notices = [event.payload for event in at_target if isinstance(event, Notice)]
    assert sorted(notices) == sorted(str(i).encode() for i in range(0, count, 3))
    assert target.poll() == []


def test_pages_of_another_layout_are_refused(make: Make) -> None:
    other = PageLayout(32, 2, 8, 2, 8, "float32", "m")
    source, target = make(random_pages(1), "source"), make(random_pages(2, other), "target", other)
    with pytest.raises(HandoffFailed, match="page=8"):
        source.connect(target.endpoint)


@pytest.mark.parametrize(("ours", "theirs"), [([32], [0]), ([0], [32]), ([-1], [0]), ([0, 1], [0])])
def test_pages_that_do_not_exist_are_refused_and_nothing_is_written(
    make: Make, ours: list[int], theirs: list[int]
) -> None:
    target_pages = random_pages(2)
    before = target_pages.clone()
    source, target = make(random_pages(1), "source"), make(target_pages, "target")
    source.connect(target.endpoint)
    with pytest.raises(HandoffFailed):
        source.write(target.endpoint.agent, ours, theirs, None)
    assert torch.equal(target_pages, before)


def test_an_unknown_peer_is_refused(make: Make) -> None:
    source = make(random_pages(1), "source")
    with pytest.raises(HandoffFailed, match="unknown-peer"):
        source.write("unknown-peer", [0], [0], None)


def test_a_disconnected_peer_is_replaced_by_its_new_incarnation(make: Make) -> None:
    source_pages, old_pages, new_pages = random_pages(1), random_pages(2), random_pages(3)
    source, old = make(source_pages, "source"), make(old_pages, "target")
    source.connect(old.endpoint)
    source.disconnect(old.endpoint.agent)
    with pytest.raises(HandoffFailed):
        source.write(old.endpoint.agent, [0], [0], None)
    old.close()
    new = make(new_pages, "target")
    source.connect(new.endpoint)
    source.connect(new.endpoint)  # replaces the first connection
    source.write(new.endpoint.agent, [5], [6], None)
    poll_until(ended(1), source, new)
    assert torch.equal(new_pages[6], source_pages[5])


def test_a_write_to_an_unreachable_agent_fails() -> None:
    network = InProcessNetwork()
    source = InProcessTransport(network, random_pages(1), LAYOUT, "a")
    target = InProcessTransport(network, random_pages(2), LAYOUT, "b")
    source.connect(target.endpoint)
    source.write("b", [0], [0], None)
    network.unreachable.add("b")
    (event,) = source.poll()
    assert isinstance(event, WriteFailed)


def test_progress_moves_pages_and_keeps_events_until_they_are_polled(make: Make) -> None:
    source_pages, target_pages = random_pages(1), random_pages(2)
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
    at_source, at_target = poll_until(lambda e: ended(1)(e) and noticed(1)(e), source, target)
    assert [event.transfer_id for event in at_source if isinstance(event, WriteDone)] == [transfer]
    assert at_target == [Notice(source.endpoint.agent, b"state")]
    assert source.poll() == target.poll() == []
