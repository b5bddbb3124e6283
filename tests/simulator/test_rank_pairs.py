"""Virtual workers of several ranks: writes from rank to rank, and what one rank's fault does to its worker."""

from __future__ import annotations

import random

from baton.protocol.handoff import HandoffOutcome
from baton.protocol.messages import HandoffEnded
from baton.protocol.worker import RoleName
from baton.router.policy.policies import make_policy
from baton.simulator.stepped_cluster import SteppedCluster
from baton.simulator.timed_cluster import EXIT_S, TimedCluster
from tests.waiting import step_until

PROMPT = list(range(1, 10))
TWO = dict.fromkeys(RoleName, 2)


def _stepped(prefill: int, decode: int, kv_heads: int) -> SteppedCluster:
    """A prefill and a decode worker of so many ranks."""
    ranks = {RoleName.PREFILL: prefill, RoleName.DECODE: decode}
    placement = make_policy("least_loaded", True)
    cluster = SteppedCluster(random.Random(0), placement=placement, ranks=ranks, num_kv_heads=kv_heads)
    cluster.add_pools(1, 1)
    return cluster


def _timed() -> TimedCluster:
    cluster = TimedCluster(random.Random(0), ranks=TWO, num_kv_heads=2, ends=False)
    for role in (RoleName.PREFILL, RoleName.DECODE):
        cluster.start(f"{role.value}-0", role)
    cluster.run_until(0.5)
    return cluster


def test_a_handoff_waits_for_the_pair_whose_cable_is_cut() -> None:
    cluster = _stepped(2, 1, 2)
    network, memory = cluster.network, cluster.workers["decode-0"].memory
    network.cut.add(frozenset(("prefill-0/1", "decode-0/0")))
    request = cluster.submit("r", PROMPT, 5)
    step_until(cluster.step, lambda: network.writes and not any(write.rank == 0 for write in network.writes))
    (held,) = {write.ends for write in network.writes}
    assert held == ("prefill-0/1", "decode-0/0")
    page = network.writes[0].command.target_pages[0]
    first, second = (head[page][0] for head in memory.pages)
    assert (first, second) == ((PROMPT[0], 0), None)
    assert not cluster.workers["decode-0"].notices
    network.cut.clear()
    cluster.settle()
    assert cluster.shown["r"] == cluster.expected(request)
    cluster.check_nothing_is_held()


def test_a_pair_that_fails_fails_the_write_when_the_other_one_has_ended() -> None:
    cluster = _stepped(2, 2, 2)
    worker, agent = cluster.workers["prefill-0"], cluster.workers["decode-0"].state.agent
    worker.broken.add((agent, 1, 1))
    cluster.network.cut.add(frozenset(("prefill-0/0", "decode-0/0")))
    cluster.submit("r", PROMPT, 5)
    step_until(cluster.step, lambda: cluster.network.writes)
    step_until(cluster.step, lambda: not any(write.rank == 1 for write in cluster.network.writes))
    assert len(worker.rank_writes) == 1
    assert worker.session.writes_in_flight
    cluster.network.cut.clear()
    step_until(cluster.step, lambda: not len(worker.rank_writes))
    (ended,) = [message for message in worker.outbox if isinstance(message, HandoffEnded)]
    assert (ended.outcome, ended.reason) == (HandoffOutcome.FAILED, "unreachable")
    assert not cluster.workers["decode-0"].notices


def test_each_copy_of_a_head_is_written() -> None:
    for prefill, decode, kv_heads, pairs in ((1, 2, 1, 2), (2, 1, 1, 1), (2, 2, 1, 2), (1, 2, 2, 2), (2, 1, 2, 2)):
        cluster = _stepped(prefill, decode, kv_heads)
        request = cluster.submit("r", PROMPT, 5)
        step_until(cluster.step, lambda cluster=cluster: cluster.network.writes)  # type: ignore[misc]
        assert len(cluster.network.writes) == pairs
        assert all(write.whole is (pairs == 1) for write in cluster.network.writes)
        cluster.settle()
        assert cluster.shown["r"] == cluster.expected(request)


def test_the_end_of_a_rank_is_the_end_of_its_worker() -> None:
    cluster = _timed()
    request = cluster.submit("r", PROMPT, 60)
    cluster.run_until(1.0, lambda: len(cluster.shown["r"]) > 5)
    worker = cluster.workers["decode-0"]
    cluster.end_rank(worker, 1, back_after_s=0.2)
    shown, now = len(cluster.shown["r"]), cluster.now
    cluster.run_until(now + EXIT_S)
    assert worker.gone
    assert len(cluster.shown["r"]) <= shown + 2  # Tokens that were on their way
    cluster.run_until(now + 10.0, lambda: "r" in cluster.ended)
    assert cluster.shown["r"] == cluster.expected(request)
    assert cluster.workers["decode-0"].incarnation == worker.incarnation + 1


def test_no_step_ends_while_a_rank_is_stopped() -> None:
    cluster = _timed()
    request = cluster.submit("r", PROMPT, 60)
    cluster.run_until(1.0, lambda: len(cluster.shown["r"]) > 5)
    worker, now = cluster.workers["decode-0"], cluster.now
    cluster.stop_rank(worker, 1, True)
    cluster.run_until(now + 0.1)
    shown = len(cluster.shown["r"])
    cluster.run_until(now + 1.0)
    assert len(cluster.shown["r"]) == shown
    assert worker.stepping is not None
    cluster.stop_rank(worker, 1, False)
    cluster.run_until(now + 5.0, lambda: "r" in cluster.ended)
    assert cluster.shown["r"] == cluster.expected(request)
    assert cluster.workers["decode-0"] is worker
