"""Each peer's formula, on clusters small enough to work out by hand; then each of them as the policy of a cluster."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.protocol.errors import ConfigError
from baton.protocol.request import Objectives
from baton.protocol.worker import RoleName
from baton.router.policy.baselines.balancing import LeastLoaded, Random, RoundRobin
from baton.router.policy.baselines.cache_aware import CacheAware
from baton.router.policy.baselines.conductor import Conductor
from baton.router.policy.baselines.kv_router import KvRouter
from baton.router.policy.baselines.latency_headroom import LatencyHeadroom
from baton.router.policy.baselines.power_of_two import PowerOfTwo
from baton.router.policy.cluster_state import ClusterState, RunningSequence
from baton.router.policy.output_length import point
from baton.router.policy.placement import Place, Placement, PlacementInput, Refuse
from baton.router.policy.policies import NAMES, make_policy
from baton.simulator.stepped_cluster import SteppedCluster
from baton.simulator.token_checker import expected_output
from tests.router.policy.clusters import cache, cluster_of, decode, fill

WORKERS = ("prefill-0", "prefill-1", "decode-0", "decode-1")
PREFIX = tuple(range(100, 160))  # pages of 960 tokens


def item(
    tokens: int = 1000, ttft_s: float | None = None, tpot_s: float | None = None, **other: object
) -> PlacementInput:
    return PlacementInput("r", tokens, objectives=Objectives(ttft_s, tpot_s), **other)  # type: ignore[arg-type]


def prefill_choice(policy: Placement, state: ClusterState, request: PlacementInput | None = None) -> str:
    (verdict,) = policy.decide([request or item()], state, 0.0)
    return verdict.decision.prefill if isinstance(verdict, Place) else "refused"


def decode_choice(policy: Placement, state: ClusterState, request: PlacementInput | None = None) -> str | None:
    return policy.find_decode(request or item(), state, None, 0.0)


def send(state: ClusterState, worker: str, *prompts: int) -> None:
    """Let prompts of so many tokens be under way to a worker."""
    already = len(state.workers[worker].assigned)
    for index, tokens in enumerate(prompts, already):
        state.assign(worker, f"prompt {index} of {worker}", tokens, (), 0.0)


def test_round_robin_takes_turns_in_each_pool() -> None:
    state, policy = cluster_of(*WORKERS), RoundRobin()
    assert [prefill_choice(policy, state) for _ in range(3)] == ["prefill-0", "prefill-1", "prefill-0"]
    assert [decode_choice(policy, state) for _ in range(3)] == ["decode-0", "decode-1", "decode-0"]


def test_random_choice_depends_on_the_seed_alone_and_reaches_everyone() -> None:
    state = cluster_of(*WORKERS)
    runs = [[prefill_choice(policy, state) for _ in range(20)] for policy in (Random(1), Random(1), Random(2))]
    assert runs[0] == runs[1] != runs[2]
    assert set(runs[0]) == {"prefill-0", "prefill-1"}


def test_least_loaded_counts_requests_not_tokens() -> None:
    state = cluster_of(*WORKERS)
    send(state, "prefill-0", 10, 10)
    send(state, "prefill-1", 5000)
    decode(state, "decode-0", 1)
    assert prefill_choice(LeastLoaded(), state) == "prefill-1"
    assert decode_choice(LeastLoaded(), state) == "decode-1"


def test_cache_aware_follows_a_match_above_three_tenths_of_the_prompt() -> None:
    state = cluster_of(*WORKERS)
    cache(state, "prefill-1", PREFIX[:20])  # 320 tokens
    send(state, "prefill-1", 10)
    assert prefill_choice(CacheAware(), state, item(1000, page_keys=PREFIX)) == "prefill-1"
    assert prefill_choice(CacheAware(), state, item(1100, page_keys=PREFIX)) == "prefill-0"


@pytest.mark.parametrize(
    ("busy", "idle", "chosen"), [(66, 1, "prefill-0"), (64, 0, "prefill-1"), (190, 126, "prefill-1")]
)
def test_cache_aware_balances_beyond_64_requests_and_one_and_a_half_times(busy: int, idle: int, chosen: str) -> None:
    state = cluster_of(*WORKERS)
    cache(state, "prefill-1", PREFIX)
    send(state, "prefill-1", *[10] * busy)
    send(state, "prefill-0", *[10] * idle)
    assert prefill_choice(CacheAware(), state, item(page_keys=PREFIX)) == chosen


def test_kv_router_adds_up_blocks_to_prefill_and_blocks_that_decode() -> None:
    state = cluster_of(*WORKERS)
    policy = KvRouter()
    cache(state, "prefill-1", PREFIX[:25])  # 400 tokens
    send(state, "prefill-1", 320)
    request = item(800, page_keys=PREFIX)
    views = state.workers
    assert policy._cost(request, views["prefill-0"], 0) == 50 + 0 + 50
    assert policy._cost(request, views["prefill-1"], 400) == (320 + 800 - 400) / 16 + 0 + 50
    assert prefill_choice(policy, state, request) == "prefill-1"
    send(state, "prefill-1", 320)
    assert prefill_choice(policy, state, request) == "prefill-0"
    decode(state, "decode-0", 3, tokens=100)
    decode(state, "decode-1", 1, tokens=301)
    assert decode_choice(policy, state) == "decode-0"


def test_kv_router_with_a_temperature_prefers_the_cheaper_worker_but_not_always() -> None:
    state = cluster_of(*WORKERS)
    send(state, "prefill-1", 1000)
    policy = KvRouter(seed=3, temperature=0.7)
    chosen = [prefill_choice(policy, state) for _ in range(400)]
    share = chosen.count("prefill-0") / 400
    assert share == pytest.approx(1 / (1 + 2.718 ** (-1 / 0.7)), abs=0.06)


def test_conductor_takes_the_least_ttft_of_queue_and_what_is_not_cached() -> None:
    state = cluster_of(*WORKERS)
    cache(state, "prefill-1", PREFIX)
    send(state, "prefill-1", 900)  # 91 ms of queue, and 5 ms for the rest of the prompt, against 101 ms
    request = item(page_keys=PREFIX)
    assert prefill_choice(Conductor(), state, request) == "prefill-1"
    send(state, "prefill-1", 50)
    assert prefill_choice(Conductor(), state, request) == "prefill-0"
    decode(state, "decode-0", 2)
    assert decode_choice(Conductor(), state) == "decode-1"


@pytest.mark.parametrize(
    ("ttft_s", "tpot_s", "refused"),
    [(0.11, None, False), (0.1, None, True), (None, 0.006, False), (None, 0.004, True), (None, None, False)],
)
def test_conductor_refuses_what_it_predicts_to_miss_its_objectives(
    ttft_s: float | None, tpot_s: float | None, refused: bool
) -> None:
    state = cluster_of("prefill-0", "decode-0")
    decode(state, "decode-0", 3)
    (verdict,) = Conductor().decide([item(1000, ttft_s, tpot_s)], state, 0.0)
    assert isinstance(verdict, Refuse) == refused
    if isinstance(verdict, Refuse):
        assert verdict.error.retry_after_s == pytest.approx(0.101)
        (again,) = Conductor().decide([item(1000, ttft_s, tpot_s, resumed=True)], state, 0.0)
        assert isinstance(again, Place)


def test_latency_headroom_takes_the_closest_fit() -> None:
    state = cluster_of(*WORKERS)
    send(state, "prefill-0", 300)
    assert prefill_choice(LatencyHeadroom(), state, item(ttft_s=0.2)) == "prefill-0"
    assert prefill_choice(LatencyHeadroom(), state, item(ttft_s=0.12)) == "prefill-1"
    assert prefill_choice(LatencyHeadroom(), state, item(ttft_s=0.05)) == "prefill-1"
    decode(state, "decode-1", 5)  # 7 ms with one more, against 2 ms
    assert decode_choice(LatencyHeadroom(), state, item(tpot_s=0.01)) == "decode-1"
    assert decode_choice(LatencyHeadroom(), state, item(tpot_s=0.005)) == "decode-0"


def test_latency_headroom_prefills_on_the_decode_worker_what_is_nearly_cached_there() -> None:
    state = cluster_of("prefill-0", "decode-0")
    cache(state, "decode-0", PREFIX[:50])  # 800 tokens
    (near,) = LatencyHeadroom().decide([item(1055, page_keys=PREFIX)], state, 0.0)
    (far,) = LatencyHeadroom().decide([item(1056, page_keys=PREFIX)], state, 0.0)
    assert isinstance(near, Place)
    assert isinstance(far, Place)
    assert (near.decision.prefill, near.decision.local) == ("decode-0", True)
    assert (far.decision.prefill, far.decision.local) == ("prefill-0", False)


def test_power_of_two_weighs_tokens_for_prefill_and_long_answers_for_decode() -> None:
    state, policy = cluster_of(*WORKERS), PowerOfTwo()
    send(state, "prefill-0", 600)
    send(state, "prefill-1", 250, 250)
    assert prefill_choice(policy, state) == "prefill-1"
    for worker, outputs in (("decode-0", (2000, 10, 10)), ("decode-1", (2000, 2000, 10, 10, 10, 10, 10))):
        for index, output in enumerate(outputs):
            state.expect(worker, f"s{index}", RunningSequence(10, point(output)))
    assert [policy._heavy_ratio(state.workers[name]) for name in WORKERS[2:]] == [1 / 2, 2 / 5]
    assert decode_choice(policy, state) == "decode-1"
    fill(state, "decode-1", 70)
    assert decode_choice(policy, state, item(1000, output=point(150))) == "decode-0"


@pytest.mark.parametrize("name", NAMES)
def test_every_policy_serves_a_cluster_without_two_pools_and_waits_for_one_that_cannot_decode(name: str) -> None:
    for only in ("mixed-0", "decode-0"):
        (verdict,) = make_policy(name).decide([item()], cluster_of(only), 0.0)
        assert isinstance(verdict, Place)
        assert verdict.decision.local
    assert make_policy(name).decide([item()], cluster_of("prefill-0"), 0.0) == []
    assert make_policy(name).decide([], cluster_of(*WORKERS), 0.0) == []
    assert make_policy(name).find_decode(item(), cluster_of("prefill-0"), None, 0.0) is None
    assert make_policy(name).name == name


@pytest.mark.parametrize("name", NAMES)
def test_a_policy_gives_whole_requests_to_a_decode_pool_beside_a_prefill_pool_if_it_says_so(name: str) -> None:
    policy, whole = make_policy(name, refuse_late=False), set()
    for tokens in (10, 1000, 20_000):
        for prompts_before in (0, 1, 40):
            state = cluster_of(*WORKERS)
            for worker in ("prefill-0", "prefill-1"):
                send(state, worker, *[2000] * prompts_before)
            verdicts = policy.decide([item(tokens, ttft_s=0.5, tpot_s=0.5)], state, 0.0)
            whole |= {verdict.decision.local for verdict in verdicts if isinstance(verdict, Place)}
    assert (True in whole) == policy.serves_locally


def test_an_unknown_policy_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="round_robin"):
        make_policy("best")


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 2**32 - 1), death=st.booleans())
def test_under_every_policy_each_request_gets_its_tokens_and_every_page_comes_back(
    name: str, seed: int, death: bool
) -> None:
    rng = random.Random(seed)
    cluster = SteppedCluster(rng, placement=make_policy(name, refuse_late=False, seed=seed))
    for worker in WORKERS:
        cluster.add(worker, RoleName(worker.split("-")[0]))
    cluster.settle()
    shared = [rng.randrange(5) for _ in range(16)]
    requests = []
    for number in range(8):
        prompt = shared[: rng.choice([0, 4, 9, 16])] + [rng.randrange(90) for _ in range(rng.randint(1, 24))]
        requests.append(cluster.submit(f"r{number}", prompt, rng.randint(1, 12)))
        for _ in range(rng.randint(0, 8)):
            cluster.step()
    if death:
        cluster.kill(rng.choice(sorted(cluster.workers)))
    cluster.settle()
    for request in requests:
        assert cluster.ended[request.request_id].error is None
        assert cluster.shown[request.request_id] == expected_output(request)
    cluster.check_nothing_is_held()
