"""Who holds pages that no live request accounts for is found, and what only moves between two looks is not."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from baton.protocol.errors import Cancelled
from baton.protocol.session_messages import LoadReport
from baton.protocol.worker import RoleName
from baton.router.core.page_audit import Look, PageAudit, Verdict, judge
from baton.simulator.stepped_cluster import SteppedCluster
from tests.router.send_orders import began


def _cluster(seed: int) -> SteppedCluster:
    cluster = SteppedCluster(random.Random(seed))
    for name in ("prefill-0", "decode-0", "decode-1"):
        cluster.add(name, RoleName(name.split("-")[0]))
    cluster.settle()
    return cluster


def _look(cluster: SteppedCluster) -> Look:
    core = cluster.core
    return PageAudit(core.state, core.operations.records, core.membership.transfers, core.adoption.orphans).look()


def _watch(cluster: SteppedCluster, looks: int = 6) -> Verdict:
    """What is found while everybody goes on reporting."""
    seen = []
    for _ in range(looks):
        cluster.now += 0.5
        cluster.tick()
        seen.append(_look(cluster))
    return judge(seen)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_cluster_at_work_leaks_nothing(seed: int) -> None:
    cluster = _cluster(seed)
    for index in range(6):
        cluster.submit(f"r{index}", [index] * 9, 12)
    looks = []
    for step in range(400):
        if step % 90 == 50:
            cluster.cancel(f"r{step // 90}", Cancelled("gone"))
        cluster.step()
        if step % 20 == 0:
            cluster.tick()
            looks.append(_look(cluster))
    cluster.settle()
    looks.append(_look(cluster))
    cluster.now += 0.5
    cluster.tick()
    looks.append(_look(cluster))
    verdict = judge(looks)
    assert verdict.clean, verdict
    assert _watch(cluster).clean


def test_what_a_running_request_holds_is_accounted_for_at_every_moment() -> None:
    cluster = _cluster(3)
    cluster.submit("r", list(range(14)), 40)
    owned = 0
    while cluster.core.live:
        cluster.step()
        for worker in cluster.workers.values():
            cluster.report(worker)
        for one in judge([_look(cluster)]).workers:
            assert one.pages_accounted >= one.latest.pages_in_use or not cluster.core.live
            owned = max(owned, one.latest.pages_in_use)
    assert owned >= 4


def _say(cluster: SteppedCluster, worker: str, **changed: object) -> None:
    view = cluster.core.state.workers[worker]
    load = replace(view.load, sequence_number=view.load.sequence_number + 1, **changed)  # type: ignore[arg-type]
    cluster.core.on_message(worker, LoadReport(load), cluster.now)


def test_an_unknown_reservation_is_a_leak() -> None:
    cluster = _cluster(1)
    first = _look(cluster)
    pages = cluster.core.state.workers["decode-0"].load.pages_free
    looks = []
    for _ in range(3):
        _say(cluster, "decode-0", pages_free=pages - 5, reservation_ids=("gone/1",), request_ids=("ghost",))
        looks.append(_look(cluster))
    verdict = judge(looks)
    (found,) = (one for one in verdict.workers if one.latest.worker == "decode-0")
    assert not verdict.clean
    assert found.unknown == ("ghost", "gone/1")
    assert found.pages_leaked == 5
    (before,) = (one for one in judge([first, *looks]).workers if one.latest.worker == "decode-0")
    assert before.unknown == ()  # it was not there all the while
    assert before.pages_leaked == 0


def test_pages_that_no_name_stands_for_are_a_leak() -> None:
    cluster = _cluster(1)
    load = cluster.core.state.workers["decode-1"].load
    looks = []
    for _ in range(2):
        _say(cluster, "decode-1", pages_free=load.pages_free - 2)
        looks.append(_look(cluster))
    (found,) = (one for one in judge(looks).workers if one.pages_leaked)
    assert (found.latest.worker, found.pages_leaked, found.unknown) == ("decode-1", 2, ())


def test_of_a_worker_that_does_not_report_nothing_is_proven() -> None:
    cluster = _cluster(1)
    verdict = judge([_look(cluster), _look(cluster)])
    assert not verdict.clean
    assert not any(one.reported for one in verdict.workers)


def test_a_handoff_that_will_never_be_answered_is_found() -> None:
    cluster = _cluster(1)
    began(cluster.core.membership.transfers, "forgotten/1", "prefill-0", "decode-0")
    verdict = _watch(cluster)
    assert verdict.lost_handoffs == ("forgotten/1",)
    assert not verdict.clean
