"""Schedules of faults on virtual clusters: every promise is kept, and a planted bug is found and shrunk."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from baton.engine.sequence import Sequence, page_ids
from baton.engine.step import Slice, StepPlan
from baton.gateway.core.commands import ShowTokens
from baton.gateway.core.stream import TextToken
from baton.protocol.messages import Release
from baton.protocol.request import Request, SamplingParams
from baton.protocol.worker import RoleName
from baton.router.core import request_ends
from baton.router.core.commands import SendToWorker
from baton.router.core.gateways import Gateways
from baton.router.core.transfers import Transfers
from baton.router.policy.latency_model import StepCosts
from baton.simulator.fault_run import FaultRun, play
from baton.simulator.faults import FaultKind, Schedule, draw, shrink
from baton.simulator.stepped_cluster import SteppedCluster
from baton.simulator.timing import Timing
from baton.simulator.token_checker import PageMemory, Violation, next_token
from baton.worker.core import rank_writes
from baton.worker.core.rank_writes import RankWrites
from baton.worker.core.role import WriteEnded, WritePages
from baton.worker.core.token_streams import TokenStreams

PER_TEST, TESTS = 250, 8  # schedules: as many as take a minute of one core


@pytest.mark.slow
@pytest.mark.parametrize("block", range(TESTS))
def test_faults_cost_no_token_no_page_and_no_end_of_a_request(block: int) -> None:
    for seed in range(block * PER_TEST, (block + 1) * PER_TEST):
        result = play(draw(seed))
        assert not result.failure, f"{result.failure}\nbaton simulate --faults --seed {seed}"


def test_the_seeds_draw_every_fault_on_three_to_eight_workers() -> None:
    schedules = [draw(seed) for seed in range(200)]
    assert {fault.kind for schedule in schedules for fault in schedule.faults} == set(FaultKind)
    sizes = [len(schedule.workers) for schedule in schedules]
    assert (min(sizes), max(sizes)) == (3, 8)
    degrees = {(one.ranks[RoleName.PREFILL], one.ranks[RoleName.DECODE], one.kv_heads) for one in schedules}
    assert degrees == set(product((1, 2), repeat=3))


def test_a_schedule_plays_out_the_same_each_time() -> None:
    for seed in range(5):
        assert draw(seed) == draw(seed)
        assert play(draw(seed)) == play(draw(seed))


def _release_at_once(self: Transfers, order: SendToWorker, target: str = "") -> list[SendToWorker]:
    """`Transfers.outgoing` as it was before releases waited for the writer."""
    return [order] if isinstance(order.message, Release) else OUTGOING(self, order, target)


def _by_name_alone(self: Gateways, gateway: str, incarnation: str) -> bool:
    """`Gateways.has_registered` as if a gateway's processes were one."""
    return gateway in self.by_name


def _notice_with_each_part(self: RankWrites[Any], command: WritePages, parts: Collection[Any]) -> WritePages:
    """`RankWrites.start` as if each pair of ranks could send the notice with its own pages."""
    START(self, command, parts)
    return command


def _latest_error(before: WriteEnded, ended: WriteEnded) -> WriteEnded:
    """The outcome of a write as if its last part's error were all that counts."""
    return replace(ended, num_bytes=before.num_bytes + ended.num_bytes)


OUTGOING, START = Transfers.outgoing, RankWrites.start
PLANTED: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "a release does not wait for the writer": lambda patch: patch.setattr(Transfers, "outgoing", _release_at_once),
    "a request forgets its reservation": lambda patch: patch.setattr(request_ends, "_release", lambda *_: []),
    "a sequence stays with its first gateway": lambda patch: patch.setattr(TokenStreams, "adopt", lambda *_: []),
    "a notice is sent before all pairs of ranks have delivered": lambda patch: patch.setattr(
        RankWrites, "start", _notice_with_each_part
    ),
    "a pair of ranks fails and its handoff commits": lambda patch: patch.setattr(rank_writes, "_sum", _latest_error),
    "a report is about any process of a gateway": lambda patch: patch.setattr(
        Gateways, "has_registered", _by_name_alone
    ),
}


def _first_failure() -> Schedule:
    return next(schedule for schedule in map(draw, range(300)) if play(schedule).failure)


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_found_shrinks_and_replays(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    PLANTED[bug](monkeypatch)
    failing = _first_failure()
    smallest = shrink(failing, lambda schedule: bool(play(schedule).failure))
    assert len(smallest.faults) < max(len(failing.faults), 3)
    replayed = draw(smallest.seed).keeping([fault.number for fault in smallest.faults])
    assert play(replayed).failure == play(smallest).failure != ""
    monkeypatch.undo()
    assert not play(smallest).failure


def test_shrinking_keeps_the_faults_that_it_takes() -> None:
    schedule = next(one for one in map(draw, range(100)) if len(one.faults) == 8)

    def fails(one: Schedule) -> bool:
        return {2, 5} <= {fault.number for fault in one.faults}

    smallest = shrink(schedule, fails)
    assert [fault.number for fault in smallest.faults] == [2, 5]
    assert str(smallest).count("\n") == 2


def test_slow_steps_take_long() -> None:
    ends_s = []
    for step_s in (5e-3, 50e-3):
        schedule = draw(1).keeping([])
        run = FaultRun(schedule, Timing(StepCosts(step_s, 0.0, 0.0, 0.0, 0.0), jitter=0.0))
        run.run()
        ends_s.append(max(run.cluster.clients.longest_pause_s.values()))
    assert ends_s[1] > 0.05 > ends_s[0] > 0.005


def _step(memory: PageMemory, tokens: list[int], start: int, page: int) -> list[int]:
    sequence = Sequence.start(Request("r", tuple(tokens), SamplingParams(max_tokens=9)))
    sequence.computed, sequence.page_table = start, page_ids([page])
    plan = StepPlan((Slice(sequence, start, len(tokens) - start, True),))
    return [token.token_id for token in memory.execute(plan).tokens]


def test_foreign_kv_shows_in_the_step_that_reads_it() -> None:
    memory = PageMemory("w", num_pages=2, page_size=4)
    assert _step(memory, [1, 2], 0, page=0) == [next_token([1, 2])]
    assert _step(memory, [1, 2, 3], 2, page=0) == [next_token([1, 2, 3])]
    for tokens, start, page in (([1, 2, 3, 4], 3, 1), ([1, 5, 3, 4], 3, 0)):
        with pytest.raises(Violation, match="foreign KV"):
            _step(memory, tokens, start, page)


def test_kv_that_one_head_of_a_page_lacks_is_foreign() -> None:
    memory = PageMemory("w", num_pages=1, page_size=4, num_heads=2)
    _step(memory, [1, 2, 3], 0, page=0)
    memory.swap_out([0], [5])
    memory.corrupt([0], head=1)
    with pytest.raises(Violation, match="foreign KV"):
        _step(memory, [1, 2, 3, 4], 3, page=0)
    memory.swap_in([5], [0])
    assert _step(memory, [1, 2, 3, 4], 3, page=0) == [next_token([1, 2, 3, 4])]


def _token(index: int) -> ShowTokens:
    return ShowTokens("r", [TextToken(index, 7, "", None, ())])


@pytest.mark.parametrize("indices", [(0, 2), (0, 1, 1)])
def test_a_gap_and_a_repeat_are_seen_by_the_client(indices: tuple[int, ...]) -> None:
    cluster = SteppedCluster(random.Random(0))
    gateway = cluster.gateways["gateway-0"]
    cluster.clients.ask(Request("r", (1, 2), SamplingParams(max_tokens=9)), gateway)
    cluster.perform_at(gateway, [_token(index) for index in indices[:-1]])
    with pytest.raises(Violation, match="got token"):
        cluster.perform_at(gateway, [_token(indices[-1])])
