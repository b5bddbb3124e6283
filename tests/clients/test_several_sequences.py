"""Sequences of one prompt (`n`): the prompt is computed and handed over once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from baton.gateway.ended_request import EndedRequest
from tests.clients.cluster import MODEL, Served, serve

N, TOKENS, PAGE = 4, 301, 16


@pytest.fixture(scope="module")
def split() -> Iterator[Served]:
    with serve({"prefill": 1, "decode": 1}, "predicted_latency") as running:
        yield running


def test_sequences_of_a_prompt_share_its_pages_on_both_workers(split: Served) -> None:
    ended: list[EndedRequest] = []
    split.read(lambda cluster: cluster.gateway.driver.on_ended.append(ended.append))
    prompt = [5 + 7 * index % 200 for index in range(TOKENS)]
    with split.client(max_retries=0) as client:
        answer = client.completions.create(
            model=MODEL, prompt=prompt, n=N, seed=3, max_tokens=24, extra_body={"ignore_eos": True}
        )
    assert len({choice.text for choice in answer.choices}) > 1
    first, *others = sorted((one.end for one in ended), key=lambda end: end.cached_tokens)
    assert (len(others), first.cached_tokens) == (N - 1, 0)
    assert {other.cached_tokens for other in others} == {TOKENS // PAGE * PAGE}
    assert first.handoff is not None
    assert first.handoff.pages_sent == -(-TOKENS // PAGE)
    for other in others:  # Served where the pages are, or prefilled beside them: then the last page alone travels
        local = other.prefill_worker == other.decode_worker == first.decode_worker
        assert other.handoff is None if local else other.handoff is not None and other.handoff.pages_sent == 1
