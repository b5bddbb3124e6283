"""Failures reported for other systems, one test each with its issue number; without processes."""

from __future__ import annotations

import random

import pytest

from baton.decode_worker.handoff_receiver import HandoffReceiver
from baton.engine.kv_pages import PagePool
from baton.engine.sequence import Sequence
from baton.protocol.errors import Cancelled
from baton.protocol.handoff import HandoffNotice
from baton.protocol.messages import Reserve, Work
from baton.protocol.request import Request, SamplingParams
from baton.protocol.worker import RoleName
from baton.router.policy.output_length import point
from baton.router.policy.placement import PlacementInput
from baton.router.policy.policies import make_policy
from baton.router.policy.predicted_latency import PredictedLatency
from baton.simulator.page_network import PageWrite
from baton.simulator.stepped_cluster import SteppedCluster
from baton.simulator.token_checker import expected_output
from tests.router.policy.clusters import cache, cluster_of, decode
from tests.waiting import step_until

PROMPT = list(range(1, 22))
Posted = list[PageWrite]


def _cluster(*names: str, seed: int = 0) -> SteppedCluster:
    """A cluster in which every request is disaggregated."""
    cluster = SteppedCluster(random.Random(seed), placement=make_policy("least_loaded", True))
    for name in names:
        cluster.add(name, RoleName(name.split("-")[0]))
    cluster.settle()
    return cluster


def _withhold_a_write(cluster: SteppedCluster) -> Posted:
    """The first write that a worker posts: it has started, and completes when the test delivers it."""
    step_until(cluster.step, lambda: cluster.network.writes)
    held, cluster.network.writes = cluster.network.writes, []
    return held


def test_an_aborted_requests_pages_are_not_reused_while_a_late_write_may_land() -> None:
    """sglang 35049, 35360, 38961."""
    cluster = _cluster("prefill-0", "decode-0")
    cluster.submit("left", PROMPT, 9)
    late = _withhold_a_write(cluster)
    write = late[0].command
    source, target = cluster.workers["prefill-0"].state.pool, cluster.workers["decode-0"].state.pool
    generations = [target.generation(page) for page in write.target_pages]
    cluster.cancel("left", Cancelled("gone"))
    others = [cluster.submit(f"r{index}", [index] * 25, 30) for index in range(5)]
    for _ in range(3000):
        cluster.step()
        for worker in cluster.workers.values():
            cluster.report(worker)
    assert [cluster.shown[one.request_id] for one in others] == [expected_output(one) for one in others]
    assert [target.generation(page) for page in write.target_pages] == generations
    assert min(source.num_in_use, target.num_in_use) >= len(write.target_pages)
    cluster.network.writes += late
    cluster.settle()
    cluster.check_nothing_is_held()


def test_a_dead_writer_leaves_no_page_reserved() -> None:
    """vllm 46283, 50754."""
    cluster = _cluster("prefill-0", "prefill-1", "decode-0")
    request = cluster.submit("r", PROMPT, 9)
    writer = _withhold_a_write(cluster)[0].source
    assert len(cluster.core.membership.transfers) == 1
    cluster.kill(writer.name)
    cluster.settle()
    assert cluster.shown["r"] == expected_output(request)
    assert len(cluster.core.membership.transfers) == 0
    cluster.check_nothing_is_held()
    whole = cluster.submit("as large as a worker", [3] * 80, 12)
    cluster.settle()
    assert cluster.shown[whole.request_id] == expected_output(whole)


def test_pages_are_pushed_not_leased() -> None:
    """aws-do-eks 84: during a slow transfer no page is reused, and the request is served without waiting for it."""
    cluster = _cluster("prefill-0", "decode-0")
    request = cluster.submit("slow", PROMPT, 9)
    slow = _withhold_a_write(cluster)
    for _ in range(60):
        cluster.now += 60.0
        for view in cluster.core.state.workers.values():
            view.last_message_s = cluster.now  # both keep reporting
        cluster.tick()
        cluster.step()
    assert cluster.shown["slow"] == expected_output(request)
    held = cluster.workers["decode-0"].state.pool.num_in_use
    assert held >= len(slow[0].command.target_pages)
    cluster.network.writes += slow
    cluster.settle()
    cluster.check_nothing_is_held()


def test_a_notice_of_an_older_generation_of_pages_commits_nothing() -> None:
    """aws-do-eks 84: an answer is never computed on pages that were reused in between."""
    inbound = HandoffReceiver(PagePool(8, 4), "decode-0:1", "model")
    sequence = Sequence.start(Request("r", (1, 2, 3, 4, 5), SamplingParams(), 0.0))
    order = Reserve("r/1", "r", Work(sequence.request), "gateway-0", 0)
    reservation = inbound.reserve(order, sequence, 0)
    assert reservation is not None
    stale = tuple(generation - 1 for generation in reservation.generations)
    assert inbound.commit(HandoffNotice("r/1", "r", 5, (7,), stale)) is None
    assert inbound.reservation_ids == ("r/1",)
    assert inbound.commit(HandoffNotice("r/1", "r", 5, (7,), reservation.generations)) == (sequence, "gateway-0")


def test_a_returning_worker_has_another_agent_name() -> None:
    """vllm 49238: peers never find metadata of the former incarnation under the same name."""
    cluster = _cluster("prefill-0", "decode-0")
    former = cluster.workers["prefill-0"].state.agent
    cluster.silence("prefill-0")
    cluster.workers["prefill-0"].silent = False
    cluster.settle()
    agent = cluster.workers["prefill-0"].state.agent
    assert agent != former
    assert cluster.workers["decode-0"].peers.keys() == {agent}


@pytest.mark.parametrize("first", [0, 1, 2])
def test_a_client_that_leaves_between_prefill_and_decode_strands_no_page(first: int) -> None:
    """llm-d 1138: at any step from the first token to the handoff's end."""
    between = 0
    for steps in range(first, 120, 3):
        cluster = _cluster("prefill-0", "decode-0", seed=4)
        cluster.submit("r", PROMPT, 30)
        for _ in range(steps):
            cluster.step()
        between += bool(cluster.shown["r"]) and not cluster.workers["decode-0"].role.occupancy().running
        cluster.cancel("r", Cancelled("gone"))
        cluster.settle()
        cluster.check_nothing_is_held()
    assert between


def test_decode_is_not_chosen_by_prefix_alone() -> None:
    """llm-d-router 604: an overloaded worker is not chosen although it has the prefix."""
    state = cluster_of("prefill-0", "decode-0", "decode-1")
    keys = tuple(range(1, 20))
    cache(state, "decode-0", keys)
    request = PlacementInput("r", 320, page_keys=keys, output=point(160))
    decode(state, "decode-0", 40, tokens=320)
    assert PredictedLatency().find_decode(request, state, None, 0.0) == "decode-1"
