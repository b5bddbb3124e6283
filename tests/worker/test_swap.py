"""Preempted sequences wait in host memory and go on from there: nothing is mixed up, lost, or computed twice."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.decode_worker.role import DecodeRole
from baton.decode_worker.swap import SwapSpace
from baton.engine.sequence import Sequence, page_ids
from baton.protocol.errors import BatonError, Cancelled
from baton.protocol.messages import Cancel, Prefill, Reserve, RouterMessage, SendPages, Work
from baton.protocol.request import Request, SamplingParams
from baton.protocol.session_messages import SwitchRole
from baton.protocol.worker import RoleName
from baton.router.core.page_audit import PageAudit, judge
from baton.simulator.stepped_cluster import SteppedCluster
from baton.simulator.virtual_worker import PAGE_SIZE, VirtualWorker
from baton.worker.core.role import Send, SwapIn, SwapOut
from baton.worker.role_switch import switch_role
from tests.page_pools import count_matches
from tests.router.test_any_operation import _random_ask

SEEDS = st.integers(0, 2**32 - 1)


def _request(name: str, prompt: list[int], max_tokens: int = 30) -> Request:
    return Request(name, tuple(prompt), SamplingParams(max_tokens=max_tokens))


def _order(request: Request) -> Prefill:
    return Prefill(request.request_id, Work(request), "g", False, 0)


def _worker(num_pages: int = 12, host_pages: int = 12) -> tuple[SteppedCluster, VirtualWorker, DecodeRole]:
    """A mixed worker that gets its orders from the test; its messages stay in its outbox."""
    cluster = SteppedCluster(random.Random(0), num_pages=num_pages, host_pages=host_pages, ends=False)
    worker = cluster.add("mixed-0", RoleName.MIXED)
    cluster.settle()
    cluster.receive = lambda worker: False  # type: ignore[method-assign]
    assert isinstance(worker.role, DecodeRole)
    return cluster, worker, worker.role


def _say(cluster: SteppedCluster, worker: VirtualWorker, *messages: RouterMessage) -> None:
    for message in messages:
        cluster.to_worker(worker, message)


def _two_of_which_one_is_swapped_out() -> tuple[SteppedCluster, VirtualWorker, DecodeRole]:
    cluster, worker, role = _worker()
    for name in ("a", "b"):
        _say(cluster, worker, _order(_request(name, [ord(name) % 90] * 13)))
    while not role.occupancy().swapped:
        assert cluster.run_step(worker)
    assert role.occupancy().request_ids == ("a", "b")
    return cluster, worker, role


def _check_slots(space: SwapSpace) -> None:
    held = [slot for one in space._swapped.values() for slot in one.slots]
    assert sorted([*space._free, *held]) == list(range(space.num_slots))


def _tokens(worker: VirtualWorker, request_id: str) -> list[int]:
    stream = worker.state.streams._find(request_id)
    assert stream is not None
    return stream.sequence.tokens[stream.sequence.prompt_len :]


@settings(deadline=None, max_examples=80)
@given(seed=SEEDS, host_pages=st.integers(0, 30), shared=st.booleans())
def test_growth_cancels_and_swaps_in_any_order_keep_every_page_and_slot(
    seed: int, host_pages: int, shared: bool
) -> None:
    cluster, worker, role = _worker(14, host_pages)
    rng, live = random.Random(seed), {}
    for number in range(12):
        prompt = [7] * (8 if shared else 0) + [rng.randrange(90) for _ in range(rng.randint(1, 14))]
        request = live[f"r{number}"] = _request(f"r{number}", prompt, rng.randint(1, 26))
        _say(cluster, worker, _order(request))
        for _ in range(rng.randint(0, 14)):
            cluster.run_step(worker)
            worker.state.pool.check_integrity()
            _check_slots(role._swap)
        if rng.random() < 0.3:
            gone = rng.choice(sorted(live))
            del live[gone]
            _say(cluster, worker, Cancel(gone))
    while cluster.run_step(worker):
        _check_slots(role._swap)
    for request in live.values():
        assert _tokens(worker, request.request_id) == cluster.expected(request)
    assert worker.state.pool.num_in_use == role._swap.num_in_use == 0
    assert role.occupancy().pending_prefill_tokens == 0


@settings(deadline=None, max_examples=100)
@given(seed=SEEDS, host_pages=st.sampled_from([3, 10, 40]), operations=st.booleans(), death=st.booleans())
def test_a_cluster_short_of_pages_serves_everybody_whatever_moves_leaves_or_dies(
    seed: int, host_pages: int, operations: bool, death: bool
) -> None:
    rng = random.Random(seed)
    cluster = SteppedCluster(rng, num_pages=18, host_pages=host_pages, ends=False, split=seed % 2 == 0, duplicates=0.1)
    for name in ("prefill-0", "decode-0", "decode-1", "mixed-0"):
        cluster.add(name, RoleName(name.split("-")[0]))
    cluster.settle()
    requests = [
        cluster.submit(f"r{index}", [rng.randrange(90) for _ in range(rng.randint(1, 24))], rng.randint(1, 40))
        for index in range(9)
    ]
    left = set()
    for _ in range(10):
        for _ in range(rng.randint(0, 25)):
            cluster.step()
        if rng.random() < 0.2:
            left.add(gone := rng.choice(requests).request_id)
            cluster.cancel(gone, Cancelled("gone"))
        if operations:
            try:
                cluster.operate(_random_ask(rng, cluster))
            except BatonError as error:
                assert error.message
    if death:
        cluster.kill(rng.choice(sorted(cluster.workers)))
    cluster.settle()
    cluster.undrain_all()
    cluster.settle()
    for request in requests:
        shown, expected = cluster.shown[request.request_id], cluster.expected(request)
        assert shown == expected[: len(shown)]
        assert shown == expected or request.request_id in left
    cluster.check_nothing_is_held()


def _run_short_of_pages(host_pages: int) -> VirtualWorker:
    cluster = SteppedCluster(random.Random(3), num_pages=24, host_pages=host_pages, ends=False)
    worker = cluster.add("mixed-0", RoleName.MIXED)
    cluster.settle()
    requests = [cluster.submit(f"r{index}", [index] * 30, 40) for index in range(4)]
    cluster.settle()
    for request in requests:
        assert cluster.shown[request.request_id] == cluster.expected(request)
    cluster.check_nothing_is_held()
    return worker


def test_what_is_swapped_out_is_not_computed_again_and_without_host_memory_it_is() -> None:
    swapping, recomputing = _run_short_of_pages(24), _run_short_of_pages(0)
    needed = 4 * (30 + 40 - 1)
    held, other = swapping.role.occupancy(), recomputing.role.occupancy()
    assert (held.swap_outs > 0, held.recomputes) == (True, 0)
    assert (other.swap_outs, other.recomputes > 0) == (0, True)
    assert swapping.computed == needed < recomputing.computed


def test_of_a_swapped_sequence_only_the_pages_that_left_the_cache_are_copied_back() -> None:
    cluster, worker, role = _two_of_which_one_is_swapped_out()
    sequence = role._waiting["b"]
    computed = role._swap._swapped["b"].computed
    for _ in range(2 * PAGE_SIZE):
        cluster.run_step(worker)
    _say(cluster, worker, Cancel("a"))
    cached = count_matches(worker.state.pool, sequence.page_hashes)
    assert 0 < cached < computed // PAGE_SIZE  # the end of the chain made room
    copies, plan = worker.session.plan(0.0)
    assert plan is not None
    (swap_in,) = copies
    assert isinstance(swap_in, SwapIn)
    assert page_ids(swap_in.pages) == sequence.page_table[cached : -(-computed // PAGE_SIZE)]
    assert sequence.computed == computed
    assert plan.num_tokens == 1
    cluster.perform_for(worker, copies)
    worker.execute(plan)  # finds its own KV


def test_pages_that_another_sequence_reads_too_are_shared_again_and_stay_as_they_are() -> None:
    cluster, worker, role = _worker(13)
    prompt = [5] * 8
    for name in ("a", "b"):
        _say(cluster, worker, _order(_request(name, [*prompt, ord(name) % 90, 1, 2])))
        cluster.run_step(worker)
    common = role._running["a"].page_table[:2]
    assert role._running["b"].page_table[:2] == common
    while not role.occupancy().swapped:
        cluster.run_step(worker)
    while role.occupancy().swapped:
        cluster.run_step(worker)
    if "b" in role._running:
        assert role._running["b"].page_table[:2] == common
    while cluster.run_step(worker):
        pass
    for name in ("a", "b"):
        request = _request(name, [*prompt, ord(name) % 90, 1, 2])
        assert _tokens(worker, name) == cluster.expected(request)


@pytest.mark.parametrize("end", [Cancel("b"), _order(_request("b", [1] * 5, 4))])
def test_a_swapped_sequence_that_is_cancelled_or_replaced_frees_its_slots(end: RouterMessage) -> None:
    cluster, worker, role = _two_of_which_one_is_swapped_out()
    assert role._swap.num_in_use
    _say(cluster, worker, end)
    assert role._swap.num_in_use == role.occupancy().swapped == 0
    _check_slots(role._swap)


def test_a_swapped_sequence_cannot_move_and_keeps_the_role_from_being_switched() -> None:
    cluster, worker, role = _two_of_which_one_is_swapped_out()
    other = SteppedCluster(random.Random(0), num_pages=40).add("decode-1", RoleName.DECODE)
    (answer,) = other.role.on_message(Reserve("b/1", "b", Work(_request("b", [8] * 13)), "g", 0, PAGE_SIZE), 0.0)
    assert isinstance(answer, Send)
    worker.outbox.clear()
    _say(cluster, worker, SendPages("b", answer.message.reservation))  # type: ignore[union-attr]
    (ended,) = worker.outbox
    assert ended.outcome.value == "drained"  # type: ignore[union-attr]
    assert role.occupancy().swapped == 1
    _, _, refused = switch_role(role, worker.state, SwitchRole(RoleName.PREFILL, 1))
    assert refused.error


def test_a_swapped_sequence_keeps_its_slots_when_a_new_router_comes() -> None:
    cluster, worker, role = _two_of_which_one_is_swapped_out()
    swap_outs = role.occupancy().swap_outs
    role.on_new_router(worker.state)
    assert {sequence.request_id for sequence in worker.state.streams.held()} == {"a", "b"}
    assert (role.occupancy().swapped, role.occupancy().swap_outs) == (1, swap_outs)
    _check_slots(role._swap)
    (swapped,) = role._swap._swapped
    computed = role._swap.computed_tokens
    _say(cluster, worker, Cancel("a" if swapped == "b" else "b"))
    copies, _ = role.plan(0.0)
    assert [type(copy) for copy in copies] == [SwapIn]
    assert role._running[swapped].computed >= computed
    assert len(role._swap) == 0


def test_newcomers_do_not_get_the_pages_that_a_swapped_sequence_waits_for() -> None:
    cluster, worker, role = _two_of_which_one_is_swapped_out()
    available = worker.state.pool.num_available
    assert available >= 1
    small = Reserve("c/1", "c", Work(_request("c", [1, 2])), "g", 0)
    (refused,) = role.on_message(small, 0.0)
    assert type(refused.message).__name__ == "ReservationRefused"  # type: ignore[union-attr]
    _say(cluster, worker, _order(_request("d", [1, 2])))
    assert [*role._waiting] == ["b", "d"]


def test_a_sequence_larger_than_the_free_slots_is_recomputed() -> None:
    space = SwapSpace(2, PAGE_SIZE)
    sequence = Sequence(_request("r", [1] * 12), [1] * 13, computed=12, page_table=page_ids([4, 5, 6, 7]))
    assert space.swap_out(sequence) is None
    sequence.computed = 7
    assert space.swap_out(sequence) == SwapOut((4, 5), (0, 1))
    assert (len(space), space.num_in_use, space.computed_tokens) == (1, 2, 7)
    sequence.computed, sequence.page_table = 0, page_ids([9, 8, 7, 6])
    assert space.swap_in(sequence) == SwapIn((0, 1), (9, 8))
    assert (sequence.computed, space.num_in_use) == (7, 0)


def test_nothing_is_copied_where_the_cache_has_more_than_was_computed() -> None:
    space = SwapSpace(4, PAGE_SIZE)
    sequence = Sequence(_request("r", [1] * 20), [1] * 20, computed=6, page_table=page_ids([1, 2, 3, 4, 5]))
    assert space.swap_out(sequence) is not None
    sequence.computed = sequence.cached = 8  # another sequence of the same prompt was computed in between
    assert space.swap_in(sequence) is None
    assert (sequence.computed, space.num_in_use) == (8, 0)


def test_the_router_hears_of_swapped_sequences_and_finds_no_leak() -> None:
    cluster = SteppedCluster(random.Random(5), num_pages=24, host_pages=24, ends=False)
    worker = cluster.add("mixed-0", RoleName.MIXED)
    cluster.settle()
    for index in range(4):
        cluster.submit(f"r{index}", [index] * 30, 40)
    core = cluster.core
    audit = PageAudit(core.state, core.operations.records, core.membership.transfers, core.adoption.orphans)
    looks, told = [], set()
    while core.live:
        cluster.step()
        cluster.now += 0.05
        cluster.tick()
        looks.append(audit.look())
        load = core.state.workers["mixed-0"].load
        told.add(load.swapped)
        assert load.swapped <= load.waiting
        assert load.pending_prefill_tokens >= 0
    assert max(told) > 0
    assert judge(looks).clean
    cluster.settle()
    assert core.state.workers["mixed-0"].load.swap_outs == worker.role.occupancy().swap_outs > 0
