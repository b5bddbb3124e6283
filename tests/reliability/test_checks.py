"""The pure parts of the runs: what counts as a leak, how memory grows, which requests met their objectives."""

from __future__ import annotations

import pytest

from baton.client.errors import Overloaded
from baton.harness.load import Sent
from baton.protocol.v1.admin_pb2 import PageCheck, WorkerPages
from tests.reliability.leaks import leaked
from tests.reliability.memory import mib_per_hour, of_workers
from tests.reliability.overload import Outcome


def test_what_no_request_accounts_for_is_leaked() -> None:
    workers = [
        WorkerPages(name="decode-0", pages_in_use=9, pages_leaked=2, reported=True),
        WorkerPages(name="prefill-0", pages_in_use=4, unknown=["r7"], reported=True),
    ]
    check = PageCheck(workers=workers, live_requests=5, lost_handoffs=["r1/1"])
    assert leaked(check) == 2 + 1 + 1
    assert leaked(check, at_rest=True) == 13 + 1 + 1 + 5
    assert leaked(PageCheck(workers=[WorkerPages(reported=True)]), at_rest=True) == 0


def test_a_check_without_a_worker_s_report_proves_nothing() -> None:
    with pytest.raises(ValueError, match="no report from decode-1"):
        leaked(PageCheck(workers=[WorkerPages(name="decode-1")]))


def test_the_first_fifth_of_the_samples_does_not_count() -> None:
    warm_up = [(float(second), 100.0 + 50 * second) for second in range(20)]
    steady = [(float(second), 1000.0 + second / 60) for second in range(20, 101)]
    assert mib_per_hour(warm_up + steady) == pytest.approx(60.0)
    assert mib_per_hour([(0.0, 1.0)]) == 0.0


def test_the_memory_of_workers_leaves_router_and_gateways_out() -> None:
    assert of_workers({"router": 1.0, "gateway-0": 2.0, "prefill-0": 3.0, "decode-0": 4.0}) == [3.0, 4.0]


def test_an_answer_is_good_within_both_objectives_and_a_refusal_is_no_failure() -> None:
    sent = [
        Sent("good", 0.0, None, ended_s=1.0, ttft_s=1.9, tpot_s=0.1),
        Sent("late", 0.0, None, ended_s=1.0, ttft_s=2.1, tpot_s=0.1),
        Sent("slow", 0.0, None, ended_s=1.0, ttft_s=1.0, tpot_s=0.3),
        Sent("refused", 0.0, None, ended_s=1.0, error=Overloaded("Full.", retry_after_s=2.0)),
        Sent("no hint", 0.0, None, ended_s=1.0, error=Overloaded("Full.")),
    ]
    outcome = Outcome(sent, recovery_s=0.0, queued_max=0, live_max=0)
    assert outcome.good == 1
    assert [one.request_id for one in outcome.late] == ["late"]
    assert [one.request_id for one in outcome.slow] == ["slow"]
    assert (len(outcome.refused), outcome.refused_without_hint, len(outcome.failed)) == (2, 1, 0)
