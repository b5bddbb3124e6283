"""Sequences that outlived their router: who gets them, and what becomes of the others."""

from __future__ import annotations

from dataclasses import replace

from baton.protocol.messages import Cancel
from baton.protocol.request import Request, SamplingParams
from baton.protocol.session_messages import DetachedSequence
from baton.router.core.commands import SendToWorker
from baton.router.core.orphans import Orphans
from tests.router.hand_driven import submission

REQUEST = Request("r", (1, 2, 3), SamplingParams(max_tokens=50, temperature=1.0, seed=4), tenant="mine")


def _held(request_id: str = "r", num_tokens: int = 10, request: Request = REQUEST) -> DetachedSequence:
    return DetachedSequence(request_id, request.digest, num_tokens, 53)


def _claim(orphans: Orphans, num_emitted: int, request: Request = REQUEST) -> object:
    return orphans.claim(submission(request, emitted=(5,) * num_emitted))


def _cancel(worker: str, request_id: str = "r") -> SendToWorker:
    return SendToWorker(worker, Cancel(request_id))


def test_the_same_request_gets_its_sequence_once() -> None:
    orphans = Orphans(30.0)
    assert orphans.offer("a", [_held()], 0.0) == []
    assert _claim(orphans, 7) == (("a", 10), [])
    assert _claim(orphans, 7) == (None, [])


def test_what_the_tokens_depend_on_is_in_the_digest_and_nothing_else() -> None:
    sampling = REQUEST.sampling
    others = (
        replace(REQUEST, tenant="theirs"),
        replace(REQUEST, prompt=(1, 2)),
        replace(REQUEST, sampling=replace(sampling, seed=5)),
        replace(REQUEST, sampling=replace(sampling, max_tokens=51)),
        replace(REQUEST, sampling=replace(sampling, stop=("x",))),
    )
    assert len({REQUEST.digest, *(other.digest for other in others)}) == 1 + len(others)
    assert replace(REQUEST, request_id="x", arrival_s=3.0, deadline_s=9.0, priority=2).digest == REQUEST.digest
    greedy = replace(REQUEST, sampling=replace(sampling, temperature=0.0))
    assert replace(greedy, sampling=replace(greedy.sampling, seed=9)).digest == greedy.digest


def test_another_tenant_gets_nothing_and_the_sequence_is_cancelled() -> None:
    orphans = Orphans(30.0)
    orphans.offer("a", [_held()], 0.0)
    assert _claim(orphans, 0, replace(REQUEST, tenant="theirs")) == (None, [_cancel("a")])
    assert len(orphans) == 0


def test_a_sequence_has_decoded_on_since_its_worker_registered() -> None:
    orphans = Orphans(30.0)
    orphans.offer("a", [_held(num_tokens=3)], 0.0)
    assert _claim(orphans, 4) == (("a", 3), [])


def test_of_two_workers_with_the_same_sequence_the_one_that_is_further_goes_on() -> None:
    orphans = Orphans(30.0)
    orphans.offer("a", [_held(num_tokens=10)], 0.0)
    assert orphans.offer("b", [_held(num_tokens=12)], 1.0) == [_cancel("a")]
    assert orphans.offer("c", [_held(num_tokens=12)], 2.0) == [_cancel("c")]
    assert list(orphans.on("b")) == ["r"]
    assert _claim(orphans, 0) == (("b", 12), [])


def test_no_sequence_waits_for_ever_and_not_too_many_wait() -> None:
    orphans = Orphans(30.0, most=2)
    assert orphans.offer("a", [_held("x"), _held("y"), _held("z")], 0.0) == [_cancel("a", "z")]
    assert orphans.expired(29.9) == []
    assert orphans.expired(30.0) == [_cancel("a", "x"), _cancel("a", "y")]
    assert len(orphans) == 0


def test_what_was_held_is_gone_with_its_worker() -> None:
    orphans = Orphans(30.0)
    orphans.offer("a", [_held("x")], 0.0)
    orphans.offer("b", [_held("y")], 0.0)
    orphans.lost("a")
    assert "x" not in orphans
    assert "y" in orphans


def test_where_nothing_is_to_be_continued_all_is_cancelled_at_once() -> None:
    assert Orphans(0.0).offer("a", [_held()], 0.0) == [_cancel("a")]
