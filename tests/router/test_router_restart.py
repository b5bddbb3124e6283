"""The router dies at any moment and comes back knowing nothing: streams go on, mostly where they ran."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from baton.config.schema import RouterSection
from baton.protocol.errors import NoWorkers, PromptTooLong, WrongRole
from baton.protocol.messages import Prefill, RequestFailed
from baton.protocol.request import Request, SamplingParams
from baton.protocol.worker import RoleName
from baton.router.core.core import RouterCore
from baton.router.core.live_request import Phase
from baton.router.core.operation import Drain
from baton.router.core.page_audit import PageAudit, judge
from baton.router.policy.predicted_latency import PredictedLatency
from baton.simulator.cluster import CLAIM_WITHIN_S
from baton.simulator.stepped_cluster import SteppedCluster

SEEDS = st.integers(0, 2**32 - 1)


def _cluster(seed: int, prefill: int = 2, decode: int = 2, mixed: int = 0, duplicates: float = 0.0) -> SteppedCluster:
    rng = random.Random(seed)
    ends, split = seed % 3 == 0, seed % 2 == 0
    pages, host_pages = rng.choice([14, 20, 30]), seed % 5 * 4
    cluster = SteppedCluster(rng, pages, ends=ends, split=split, duplicates=duplicates, host_pages=host_pages)
    cluster.add_pools(prefill, decode, mixed)
    return cluster


def _come_back(cluster: SteppedCluster) -> None:
    """Every client asks for the rest, some at once and some when workers have joined."""
    waiting = [request_id for request_id in cluster.requests if request_id not in cluster.ended]
    cluster.rng.shuffle(waiting)
    for request_id in waiting:
        cluster.go_on(cluster.rng.randint(0, 12))
        cluster.resume(request_id)


def _finish(cluster: SteppedCluster) -> None:
    for worker in cluster.workers.values():
        worker.silent = False
    cluster.settle()
    cluster.now += CLAIM_WITHIN_S + 2.0
    cluster.tick()
    cluster.settle()


def _check(cluster: SteppedCluster, requests: list[Request]) -> None:
    for request in requests:
        assert cluster.ended[request.request_id].error is None
        assert cluster.shown[request.request_id] == cluster.expected(request)
    cluster.check_nothing_is_held()
    assert not cluster.network.writes
    assert len(cluster.core.membership.transfers) == 0


@settings(deadline=None, max_examples=100)
@given(seed=SEEDS, duplicates=st.sampled_from([0.0, 0.2]))
def test_the_router_may_be_restarted_at_any_moment(seed: int, duplicates: float) -> None:
    cluster = _cluster(seed, mixed=seed % 2, duplicates=duplicates)
    requests = cluster.submit_any(6)
    for _ in range(cluster.rng.randint(1, 3)):
        cluster.go_on(cluster.rng.randint(0, 120))
        cluster.restart_router()
        _come_back(cluster)
    _finish(cluster)
    _check(cluster, requests)


@settings(deadline=None, max_examples=100)
@given(seed=SEEDS, duplicates=st.sampled_from([0.0, 0.2]))
@example(seed=1102, duplicates=0.0)  # it was moved while it sought another decode worker
def test_connections_may_break_at_any_moment(seed: int, duplicates: float) -> None:
    cluster = _cluster(seed, mixed=seed % 2, duplicates=duplicates)
    requests = cluster.submit_any(6)
    for _ in range(cluster.rng.randint(1, 6)):
        cluster.go_on(cluster.rng.randint(0, 60))
        cluster.break_connection(cluster.rng.choice(sorted(cluster.workers)))
    _finish(cluster)
    _check(cluster, requests)


def test_a_broken_connection_costs_no_computation_where_the_sequences_run() -> None:
    cluster = _cluster(seed=2, prefill=1, decode=1)
    requests = cluster.submit_any(1)
    while cluster.workers["decode-0"].role.occupancy().running == 0:
        cluster.step()
    cluster.break_connection("decode-0")
    _finish(cluster)
    _check(cluster, requests)
    assert cluster.core.adoption.continued == 1


@settings(deadline=None, max_examples=80)
@given(seed=SEEDS)
def test_restarts_among_silence_links_and_deaths(seed: int) -> None:
    cluster = _cluster(seed)
    rng = cluster.rng
    requests = cluster.submit_any(6)
    for _ in range(rng.randint(1, 4)):
        cluster.go_on(rng.randint(0, 80))
        name = rng.choice(sorted(cluster.workers))
        match rng.randrange(3):
            case 0:
                cluster.workers[name].silent = not cluster.workers[name].silent
            case 1:
                incarnation = cluster.workers[name].incarnation
                cluster.kill(name)
                cluster.add(name, RoleName(name.split("-")[0]), incarnation + 1)
            case _:
                for worker in cluster.workers.values():
                    worker.silent = False
        cluster.go_on(rng.randint(0, 20))
        cluster.restart_router()
        _come_back(cluster)
    _finish(cluster)
    _check(cluster, requests)


@settings(deadline=None, max_examples=40)
@given(seed=SEEDS)
def test_who_does_not_come_back_is_cancelled_in_time(seed: int) -> None:
    cluster = _cluster(seed)
    cluster.submit_any(6)
    cluster.go_on(cluster.rng.randint(0, 120))
    cluster.restart_router()
    _finish(cluster)
    cluster.check_nothing_is_held()


def _register(cluster: SteppedCluster) -> None:
    while len(cluster.core.state.workers) < len(cluster.workers):
        cluster.step()
        for worker in cluster.workers.values():
            cluster.report(worker)


@pytest.mark.parametrize("clients_first", [True, False])
def test_running_sequences_are_continued_and_not_computed_again(clients_first: bool) -> None:
    cluster = SteppedCluster(random.Random(3), 200, ends=False)
    for name, role in (("prefill-0", RoleName.PREFILL), ("decode-0", RoleName.DECODE), ("decode-1", RoleName.DECODE)):
        cluster.add(name, role)
    cluster.settle()
    requests = [cluster.submit(f"r{index}", [index + 1] * 9, 60) for index in range(4)]
    while any(len(tokens) < 5 for tokens in cluster.shown.values()):
        cluster.step()
    prefilled = {name: worker.prefilled for name, worker in cluster.workers.items()}
    cluster.restart_router()
    if not clients_first:
        _register(cluster)
        assert len(cluster.core.adoption.orphans) == 4
    for request in requests:
        cluster.resume(request.request_id)
    _finish(cluster)
    _check(cluster, requests)
    assert cluster.core.adoption.continued == 4
    assert prefilled == {name: worker.prefilled for name, worker in cluster.workers.items()}
    explained = cluster.core.explanations.get("r0")
    assert explained is not None
    assert "continued" in explained.decision.why


@pytest.mark.parametrize("change", ["tenant", "prompt", "seed", "limit"])
def test_another_request_of_the_same_id_does_not_get_the_sequence(change: str) -> None:
    cluster = SteppedCluster(random.Random(5), 200, ends=False)
    for name, role in (("prefill-0", RoleName.PREFILL), ("decode-0", RoleName.DECODE)):
        cluster.add(name, role)
    cluster.settle()
    mine = cluster.submit("r", [1, 2, 3], 40, tenant="mine")
    while len(cluster.shown["r"]) < 5:
        cluster.step()
    cluster.restart_router()
    _register(cluster)
    other = {
        "tenant": replace(mine, tenant="theirs"),
        "prompt": replace(mine, prompt=(1, 2, 4)),
        "seed": replace(mine, sampling=SamplingParams(max_tokens=40, temperature=1.0, seed=2)),
        "limit": replace(mine, sampling=SamplingParams(max_tokens=41)),
    }[change]
    cluster.requests["r"], cluster.shown["r"] = other, []
    cluster.resume("r")
    _finish(cluster)
    _check(cluster, [other])
    assert cluster.core.adoption.continued == 0


def test_a_claimed_sequence_can_be_moved_and_is_accounted_for() -> None:
    cluster = SteppedCluster(random.Random(5), 200, ends=False)
    for name, role in (("prefill-0", RoleName.PREFILL), ("decode-0", RoleName.DECODE), ("decode-1", RoleName.DECODE)):
        cluster.add(name, role)
    cluster.settle()
    request = cluster.submit("r", [1, 2, 3], 500)
    while len(cluster.shown["r"]) < 5:
        cluster.step()
    cluster.restart_router()
    _register(cluster)
    core = cluster.core
    audit = PageAudit(core.state, core.operations.records, core.membership.transfers, core.adoption.orphans)

    def looks() -> bool:
        seen = []
        for _ in range(6):
            for _ in range(20):
                cluster.step()
            cluster.now += 0.6
            for worker in cluster.workers.values():
                cluster.report(worker)
            seen.append(audit.look())
        return judge(seen).clean

    assert looks()
    cluster.resume("r")
    while len(cluster.shown["r"]) < 20:
        cluster.step()
    home = core.requests.live["r"].decode_worker
    assert looks()
    assert list(core.state.workers[home].running) == ["r"]
    drain = cluster.operate(Drain((home,)))
    while not drain.state.ended:
        cluster.go_on(10)
    assert drain.state.value == "done"
    assert cluster.workers[home].state.pool.num_in_use == 0
    _finish(cluster)
    _check(cluster, [request])
    assert cluster.ended["r"].migrations == 1


def test_a_drain_waits_for_sequences_that_nobody_has_claimed() -> None:
    cluster = SteppedCluster(random.Random(8), 200, ends=False)
    for name, role in (("prefill-0", RoleName.PREFILL), ("decode-0", RoleName.DECODE), ("decode-1", RoleName.DECODE)):
        cluster.add(name, role)
    cluster.settle()
    cluster.submit("r", [1, 2, 3], 300)
    while len(cluster.shown["r"]) < 5:
        cluster.step()
    home = cluster.core.requests.live["r"].decode_worker
    cluster.restart_router()
    _register(cluster)
    drain = cluster.operate(Drain((home,)))
    assert not drain.state.ended
    assert drain.steps[0].detail == "1 request left"
    _finish(cluster)
    assert drain.state.value == "done"
    cluster.check_nothing_is_held()


def _core(grace_s: float) -> RouterCore:
    return RouterCore("router", PredictedLatency(), None, RouterSection(no_workers_grace_s=grace_s), started_s=0.0)


def test_requests_wait_a_moment_for_the_first_worker_that_decodes() -> None:
    cluster = SteppedCluster(random.Random(0))
    cluster.core = cluster.new_router("young", cluster.now)
    requests = [cluster.submit("r0", [1, 2, 3], 4)]
    cluster.add("prefill-0", RoleName.PREFILL)
    for _ in range(10):
        cluster.step()
    requests.append(cluster.submit("r1", [1, 2, 3] * 4, 4))
    cluster.add("decode-0", RoleName.DECODE)
    _finish(cluster)
    _check(cluster, requests)


def test_requests_that_waited_for_a_worker_in_vain_fail_with_the_reason() -> None:
    cluster = SteppedCluster(random.Random(0))
    cluster.core = cluster.new_router("young", cluster.now)
    cluster.submit("r0", [1, 2, 3], 4)
    cluster.now += 4.9
    cluster.tick()
    assert "r0" not in cluster.ended
    cluster.now += 0.2
    cluster.tick()
    assert isinstance(cluster.ended["r0"].error, NoWorkers)
    with pytest.raises(NoWorkers, match="start one"):
        cluster.submit("r1", [1, 2, 3], 4)
    assert cluster.core.live == 0


def test_the_grace_counts_anew_from_when_the_last_worker_was_lost() -> None:
    cluster = SteppedCluster(random.Random(0))
    cluster.add("mixed-0", RoleName.MIXED)
    cluster.settle()
    cluster.now += 100.0
    cluster.kill("mixed-0")
    cluster.submit("r0", [1, 2, 3], 4)
    cluster.now += 1.0
    cluster.add("mixed-0", RoleName.MIXED, 2)
    _finish(cluster)
    assert cluster.ended["r0"].error is None


def test_a_prompt_that_turns_out_too_long_for_those_who_came_is_refused() -> None:
    cluster = SteppedCluster(random.Random(0), num_pages=4)
    cluster.core = cluster.new_router("young", cluster.now)
    cluster.submit("r0", [1] * 30, 4)
    cluster.add("mixed-0", RoleName.MIXED)
    _finish(cluster)
    assert isinstance(cluster.ended["r0"].error, PromptTooLong)


def test_without_grace_nobody_waits() -> None:
    with pytest.raises(NoWorkers):
        _core(0.0).submit(Request("r", (1,), SamplingParams()), 0.0)


def test_a_worker_that_always_says_it_has_another_role_ends_the_request_instead_of_a_loop() -> None:
    cluster = _cluster(1, prefill=1, decode=1)
    cluster.submit("r", [1, 2, 3], 20)
    worker = cluster.workers["prefill-0"]
    for _ in range(20):
        orders = [message for message in worker.inbox if isinstance(message, Prefill)]
        worker.inbox.clear()
        for _ in orders * 3:  # and says it several times
            cluster.to_router(worker, [RequestFailed("r", "WrongRole", "no")])
        if "r" in cluster.ended:
            break
    assert isinstance(cluster.ended["r"].error, WrongRole)
    _finish(cluster)
    cluster.check_nothing_is_held()


def test_a_late_refusal_of_an_earlier_worker_does_not_end_the_attempt_that_runs() -> None:
    cluster = _cluster(1, prefill=2, decode=1)
    request = cluster.submit("r", [1, 2, 3], 20)
    first = cluster.core.requests.live["r"].prefill_worker
    cluster.workers[first].inbox.clear()
    cluster.core.state.cordon(first)
    cluster.to_router(cluster.workers[first], [RequestFailed("r", "WrongRole", "no")])
    while not cluster.shown["r"] or cluster.core.requests.live["r"].phase is Phase.PREFILLING:
        cluster.step()
    assert cluster.core.requests.live["r"].prefill_worker != first
    cluster.to_router(cluster.workers[first], [RequestFailed("r", "InternalError", "late")])
    _finish(cluster)
    _check(cluster, [request])
