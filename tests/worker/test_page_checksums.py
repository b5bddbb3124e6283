"""Pages that arrive otherwise than they were sent are noticed, and never decoded from."""

from __future__ import annotations

import itertools
import random

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.engine.storage import head_checksums, page_checksum
from baton.protocol.codec import decode_notice, encode_notice
from baton.protocol.errors import BatonError, HandoffFailed
from baton.protocol.handoff import HandoffNotice
from baton.simulator.token_checker import expected_output
from baton.worker.core.page_checksums import checksums, sampled, wrong_pages
from tests.router.test_any_operation import _cluster as pools
from tests.router.test_any_operation import _random_ask


@given(st.text(max_size=20), st.integers(0, 300), st.integers(1, 40))
def test_the_sample_has_its_share_and_always_the_last_page(reservation_id: str, num_pages: int, every: int) -> None:
    places = sampled(reservation_id, num_pages, every)
    assert list(places) == sorted(set(places))
    assert all(0 <= place < num_pages for place in places)
    if num_pages:
        assert places[-1] == num_pages - 1
        assert num_pages // every <= len(places) <= num_pages // every + 2
    assert sampled(reservation_id, num_pages, 0) == ()
    assert sampled(reservation_id, num_pages, 1) == tuple(range(num_pages))


def test_one_flipped_bit_is_noticed() -> None:
    pages = torch.randn(6, 2, 2, 2, 4, 8)

    def checksum(page: int) -> int:
        return page_checksum(head_checksums(pages, page))

    sums = checksums([(0, 4), (1, 2)], checksum)
    notice = decode_notice(encode_notice(HandoffNotice("r/1", "r", 8, (1,), (1, 1), sums)))
    assert wrong_pages(notice, (4, 2), checksum) == []
    pages[2].view(torch.uint8)[1, 1, 0, 3, 5] ^= 1
    assert wrong_pages(notice, (4, 2), checksum) == [1]
    assert wrong_pages(notice, (4,), checksum) == [1]


@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.lists(st.integers(1, 7), unique=True))
def test_a_page_has_the_same_checksum_however_its_heads_are_divided(seed: int, heads: int, cuts: list[int]) -> None:
    pages = torch.randn(2, heads, 2, 2, 4, 8, generator=torch.Generator().manual_seed(seed)).half()
    ends = [*sorted(cut for cut in cuts if cut < heads), heads]
    ranks = [pages[:, start:end].clone() for start, end in itertools.pairwise([0, *ends])]
    divided = page_checksum(crc for rank in ranks for crc in head_checksums(rank, 1))
    assert divided == page_checksum(head_checksums(pages, 1))
    swapped = pages.clone()
    swapped[1] = pages[1].flip(0)
    assert heads == 1 or page_checksum(head_checksums(swapped, 1)) != divided


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), operations=st.booleans())
def test_corrupt_handoffs_are_computed_again_or_fail_in_one_sentence(seed: int, operations: bool) -> None:
    cluster = pools(seed)
    cluster.network.corruption = 0.3
    requests = cluster.submit_any(8, 20, 40)
    rng = random.Random(seed)
    for _ in range(6 if operations else 0):
        for _ in range(20):
            cluster.step()
        try:
            cluster.operate(_random_ask(rng, cluster))
        except BatonError as refusal:
            assert refusal.message
    cluster.settle()
    for request in requests:
        error = cluster.ended[request.request_id].error
        assert error is None or isinstance(error, HandoffFailed)
        expected = expected_output(request)
        assert cluster.shown[request.request_id] == expected[: len(cluster.shown[request.request_id])]
        assert error is not None or cluster.shown[request.request_id] == expected
    cluster.check_nothing_is_held()
