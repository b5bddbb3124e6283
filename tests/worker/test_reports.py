"""The router's belief of a worker's pages follows the pages, over messages that are numbered and may be lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from baton.decode_worker.role import DecodeRole
from baton.engine.batch import StepBudget
from baton.engine.kv_pages import PagePool
from baton.protocol.messages import WorkerMessage
from baton.protocol.prefix_hash import page_hashes, page_keys, root_hash
from baton.protocol.session_messages import LoadReport, PagesChanged
from baton.protocol.worker import StepSample
from baton.router.policy.prefix_index import PrefixIndex
from baton.worker.core.reports import LOAD_EVERY_S, MAX_STEP_SAMPLES, Reports
from baton.worker.core.role import Occupancy
from baton.worker.core.state import WorkerState
from tests.page_pools import evict_all

ROOT = root_hash("model")
IDLE = Occupancy(0, 0, 0, 0, (), ())


@dataclass(eq=False)
class FixedRole(DecodeRole):
    """A role whose load the test sets."""

    held: Occupancy = IDLE

    def occupancy(self) -> Occupancy:
        return self.held


def _worker(num_pages: int = 10) -> tuple[Reports, FixedRole]:
    state = WorkerState("w:1", "model", frozenset([0]), 1000, StepBudget(8, 8), PagePool(num_pages, 2))
    return Reports("w", state), FixedRole(state)


def _cache(pool: PagePool, tokens: Sequence[int]) -> None:
    """Compute a prompt and let its pages go, as far as there is room."""
    hashes = page_hashes(tokens, pool.page_size, ROOT)
    pages = pool.match(hashes)
    pages += pool.allocate(min(len(hashes) - len(pages), pool.num_available))
    for page, page_hash in zip(pages, hashes, strict=False):
        pool.commit(page, page_hash)
    pool.release(pages)


def _pages(messages: Sequence[WorkerMessage]) -> list[PagesChanged]:
    return [message for message in messages if isinstance(message, PagesChanged)]


class ReportedPagesMachine(RuleBasedStateMachine):
    """Pool, reports and index; the link between them may drop a message of pages, which the next one reveals."""

    def __init__(self) -> None:
        super().__init__()
        self.reports, self.role = _worker()
        self.pool = self.reports.state.pool
        self.index = PrefixIndex()
        self.now = 0.0
        self.lost = False
        self.acknowledge()

    def deliver(self, messages: Sequence[WorkerMessage], lose: bool = False) -> None:
        for message in _pages(messages):
            if lose:
                self.lost = True
            elif self.index.on_change("w", message):
                assert not self.lost or message.snapshot
                self.lost = False
            else:
                assert self.lost
                assert self.index.match(page_keys(self.pool.matchable()[:1])) == []
                self.deliver(self.reports.snapshot())

    @rule()
    def acknowledge(self) -> None:
        self.index.add("w")
        self.deliver(self.reports.on_register_ack(0.5))

    @rule(tokens=st.lists(st.integers(0, 2), min_size=2, max_size=12))
    def compute(self, tokens: list[int]) -> None:
        _cache(self.pool, tokens)

    @rule()
    def clear(self) -> None:
        evict_all(self.pool)

    @rule(lose=st.integers(0, 3).map(lambda value: value == 3))
    def report(self, lose: bool) -> None:
        self.now += 1.0
        self.deliver(self.reports.due(self.role, self.now, idle=True), lose)

    @rule()
    def sweep(self) -> None:
        self.index.sweep()

    @invariant()
    def what_is_reported_is_what_is_there(self) -> None:
        if self.lost or self.pool._changes:
            return
        bit = 1 << (self.index.bit("w") or 0)
        believed = {key for key, holders in self.index._table.items() if holders & bit}
        assert believed == set(page_keys(self.pool.matchable()))


ReportedPagesMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
test_the_index_equals_the_pool_whatever_is_lost = ReportedPagesMachine.TestCase


def test_messages_of_pages_are_numbered_one_by_one_and_none_is_sent_without_a_change() -> None:
    reports, role = _worker()
    messages = _pages(reports.on_register_ack(0.5))
    for now, tokens in enumerate([[1, 1], [2, 2], [2, 2], [1, 1, 2, 2]]):
        _cache(reports.state.pool, tokens)
        messages += _pages(reports.due(role, float(now), idle=True))
    messages += _pages(reports.snapshot())
    assert [message.sequence_number for message in messages] == [1, 2, 3, 4, 5]
    assert [message.snapshot for message in messages] == [True, False, False, False, True]
    assert [len(message.stored) for message in messages] == [0, 1, 1, 1, 3]


def test_a_load_that_the_router_cannot_know_of_is_reported_soon_and_any_other_as_a_sign_of_life() -> None:
    reports, role = _worker(num_pages=80)
    reports.on_register_ack(0.5)
    assert reports.due(role, 0.0, idle=True)
    assert not reports.due(role, 0.4, idle=True)
    assert reports.wait_s(0.4) == 0.5 - 0.4
    assert reports.due(role, 0.5, idle=True)
    role.held = replace(IDLE, waiting=1, pending_prefill_tokens=100, request_ids=("r",))
    assert not reports.due(role, 0.6, idle=True)  # the router has sent that prompt
    (report,) = reports.due(role, 1.0, idle=False)
    assert isinstance(report, LoadReport)
    assert (report.load.sequence_number, report.load.request_ids) == (3, ("r",))
    reports.on_step(StepSample(40, 800, 0, 0, 0.1))
    assert not reports.due(role, 1.0 + LOAD_EVERY_S / 2, idle=False)
    assert reports.due(role, 1.0 + LOAD_EVERY_S, idle=False)  # a part of a prompt is computed, and can be matched
    role.held = replace(IDLE, request_ids=("r",))
    reports.on_step(StepSample(0, 0, 1, 100, 0.1))
    assert not reports.due(role, 1.2, idle=True)  # the router expects that
    few, many = reports.state.pool.allocate(5), reports.state.pool.allocate(70)
    assert reports.due(role, 1.3, idle=True)  # few pages are left
    assert not reports.due(role, 1.4, idle=True)
    reports.state.pool.release(many)
    assert reports.due(role, 1.5, idle=True)
    reports.state.pool.release(few)
    assert not reports.due(role, 1.6, idle=True)
    role.held = IDLE
    assert reports.due(role, 1.6, idle=True)  # nothing is held


def test_steps_of_one_kind_after_each_other_are_one_sample() -> None:
    reports, role = _worker()
    for sample in (StepSample(8, 32, 0, 0, 0.4), StepSample(0, 0, 2, 20, 0.1), StepSample(0, 0, 3, 33, 0.2)):
        reports.on_step(sample)
    (report,) = reports.due(role, 0.0, idle=True)
    assert isinstance(report, LoadReport)
    assert report.load.steps == (StepSample(8, 32, 0, 0, 0.4), StepSample(0, 0, 5, 53, 0.1 + 0.2, steps=2))


def test_only_the_newest_steps_travel_and_each_once() -> None:
    reports, role = _worker()
    for number in range(MAX_STEP_SAMPLES + 5):
        reports.on_step(StepSample(number + 1, 0, number % 2, 0, 0.1))
    (first,) = reports.due(role, 0.0, idle=True)
    (second,) = reports.due(role, 1.0, idle=True)
    assert isinstance(first, LoadReport)
    assert isinstance(second, LoadReport)
    assert [step.prefill_tokens for step in first.load.steps] == list(range(6, MAX_STEP_SAMPLES + 6))
    assert second.load.steps == ()
