"""The router dies at any moment and comes back without any state: streams go on, mostly where they ran."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from baton.protocol.request import SamplingParams
from baton.protocol.worker import RoleName
from baton.router.core.operation import Drain
from baton.router.core.page_audit import PageAudit, judge
from baton.simulator.stepped_cluster import SteppedCluster
from tests.router.restarts import ask_again, check_answers, finish, move_clients, random_cluster, replace_gateway

SEEDS = st.integers(0, 2**32 - 1)


@settings(deadline=None, max_examples=100)
@given(seed=SEEDS, duplicates=st.sampled_from([0.0, 0.2]))
def test_the_router_may_be_restarted_at_any_moment(seed: int, duplicates: float) -> None:
    cluster = random_cluster(seed, mixed=seed % 2, duplicates=duplicates)
    requests = cluster.submit_any(6)
    for _ in range(cluster.rng.randint(1, 3)):
        cluster.go_on(cluster.rng.randint(0, 120))
        cluster.restart_router()
    finish(cluster)
    check_answers(cluster, requests)


@settings(deadline=None, max_examples=100)
@given(seed=SEEDS, duplicates=st.sampled_from([0.0, 0.2]))
def test_clients_may_move_to_another_gateway_at_any_moment(seed: int, duplicates: float) -> None:
    cluster = random_cluster(seed, mixed=seed % 2, duplicates=duplicates, gateways=4)
    requests = cluster.submit_any(6)
    for number in range(1, cluster.rng.randint(2, 4)):
        cluster.go_on(cluster.rng.randint(0, 60))
        move_clients(cluster, f"gateway-{number}")
    ask_again(cluster)
    check_answers(cluster, requests)


@settings(deadline=None, max_examples=100)
@given(seed=SEEDS)
@example(seed=5865640)  # a stalled write of an earlier request of an id ended while a new one ran elsewhere
def test_a_gateway_may_be_restarted_at_any_moment(seed: int) -> None:
    cluster = random_cluster(seed, mixed=seed % 2, gateways=2)
    requests = cluster.submit_any(6)
    for _ in range(cluster.rng.randint(1, 3)):
        cluster.go_on(cluster.rng.randint(0, 60))
        if cluster.rng.random() < 0.3:
            cluster.restart_router()
        replace_gateway(cluster, cluster.rng.choice(sorted(cluster.gateways)))
    ask_again(cluster)
    check_answers(cluster, requests)


@settings(deadline=None, max_examples=100)
@given(seed=SEEDS, duplicates=st.sampled_from([0.0, 0.2]))
@example(seed=1102, duplicates=0.0)  # it was moved while it sought another decode worker
def test_connections_may_break_at_any_moment(seed: int, duplicates: float) -> None:
    cluster = random_cluster(seed, mixed=seed % 2, duplicates=duplicates)
    requests = cluster.submit_any(6)
    for _ in range(cluster.rng.randint(1, 6)):
        cluster.go_on(cluster.rng.randint(0, 60))
        cluster.break_connection(cluster.rng.choice([*sorted(cluster.workers), *sorted(cluster.gateways)]))
    finish(cluster)
    check_answers(cluster, requests)


def test_a_broken_connection_costs_no_computation_where_the_sequences_run() -> None:
    cluster = random_cluster(seed=2, prefill=1, decode=1)
    requests = cluster.submit_any(1)
    while cluster.workers["decode-0"].role.occupancy().running == 0:
        cluster.step()
    cluster.break_connection("decode-0")
    finish(cluster)
    check_answers(cluster, requests)
    assert cluster.core.adoption.continued == 1


@settings(deadline=None, max_examples=80)
@given(seed=SEEDS)
def test_restarts_among_silence_links_and_deaths(seed: int) -> None:
    cluster = random_cluster(seed)
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
    finish(cluster)
    check_answers(cluster, requests)


@settings(deadline=None, max_examples=40)
@given(seed=SEEDS)
def test_what_no_gateway_claims_is_cancelled_in_time(seed: int) -> None:
    cluster = random_cluster(seed)
    cluster.submit_any(6)
    cluster.go_on(cluster.rng.randint(0, 120))
    cluster.kill_gateway("gateway-0")
    if cluster.rng.random() < 0.5:
        cluster.restart_router()
    finish(cluster)
    cluster.check_nothing_is_held()


def _register(cluster: SteppedCluster) -> None:
    while len(cluster.core.state.workers) < len(cluster.workers):
        cluster.step()
        for worker in cluster.workers.values():
            cluster.report(worker)


@pytest.mark.parametrize("gateway_first", [True, False])
def test_running_sequences_are_continued_and_not_computed_again(gateway_first: bool) -> None:
    cluster = SteppedCluster(random.Random(3), 200, ends=False)
    for name, role in (("prefill-0", RoleName.PREFILL), ("decode-0", RoleName.DECODE), ("decode-1", RoleName.DECODE)):
        cluster.add(name, role)
    cluster.settle()
    requests = [cluster.submit(f"r{index}", [index + 1] * 9, 60) for index in range(4)]
    while any(len(tokens) < 5 for tokens in cluster.shown.values()):
        cluster.step()
    prefilled = {name: worker.prefilled for name, worker in cluster.workers.items()}
    cluster.cut_link("gateway-0", "router")
    cluster.restart_router()
    if not gateway_first:
        _register(cluster)
        assert len(cluster.core.adoption.orphans) == 4
    cluster.heal_link("gateway-0", "router")
    cluster.exchange(cluster.gateways["gateway-0"])
    finish(cluster)
    check_answers(cluster, requests)
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
    cluster.kill_gateway("gateway-0")
    cluster.restart_router()
    _register(cluster)
    cluster.add_gateway("gateway-1")
    other = {
        "tenant": replace(mine, tenant="theirs"),
        "prompt": replace(mine, prompt=(1, 2, 4)),
        "seed": replace(mine, sampling=SamplingParams(max_tokens=40, temperature=1.0, seed=2)),
        "limit": replace(mine, sampling=SamplingParams(max_tokens=41)),
    }[change]
    cluster.requests["r"], cluster.shown["r"] = other, []
    cluster.resume("r")
    finish(cluster)
    check_answers(cluster, [other])
    assert cluster.core.adoption.continued == 0


def test_a_claimed_sequence_can_be_moved_and_is_accounted_for() -> None:
    cluster = SteppedCluster(random.Random(5), 200, ends=False)
    for name, role in (("prefill-0", RoleName.PREFILL), ("decode-0", RoleName.DECODE), ("decode-1", RoleName.DECODE)):
        cluster.add(name, role)
    cluster.settle()
    request = cluster.submit("r", [1, 2, 3], 500)
    while len(cluster.shown["r"]) < 5:
        cluster.step()
    cluster.kill_gateway("gateway-0")
    cluster.restart_router()
    _register(cluster)
    cluster.add_gateway("gateway-0", 2)
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
    finish(cluster)
    check_answers(cluster, [request])
    assert cluster.ended["r"].migrations == 1


def test_a_drain_waits_for_unclaimed_sequences() -> None:
    cluster = SteppedCluster(random.Random(8), 200, ends=False)
    for name, role in (("prefill-0", RoleName.PREFILL), ("decode-0", RoleName.DECODE), ("decode-1", RoleName.DECODE)):
        cluster.add(name, role)
    cluster.settle()
    cluster.submit("r", [1, 2, 3], 300)
    while len(cluster.shown["r"]) < 5:
        cluster.step()
    home = cluster.core.requests.live["r"].decode_worker
    cluster.kill_gateway("gateway-0")
    cluster.restart_router()
    _register(cluster)
    drain = cluster.operate(Drain((home,)))
    assert not drain.state.ended
    assert drain.steps[0].detail == "1 request left"
    finish(cluster)
    assert drain.state.value == "done"
    cluster.check_nothing_is_held()
