"""The same requests give the same tokens in transformers, on one mixed worker, and on two workers over NIXL."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch
import transformers

from tests.live.conftest import CHUNK_TOKENS, PAGE_SIZE, Live
from tests.live.requests import Case, cases, run_all

pytestmark = pytest.mark.ray


def _run(live: Live, wanted: list[Case]) -> list[list[int]]:
    async def go() -> list[list[int]]:
        async with live.async_client() as client:
            return [answer.token_ids for answer in await run_all(client, wanted)]

    return asyncio.run(go())


def test_two_hundred_requests_give_the_same_tokens_everywhere(split: Live, mixed: Live) -> None:
    wanted = cases()
    over_nixl = _run(split, wanted)
    on_one_worker = _run(mixed, wanted)
    assert over_nixl == on_one_worker
    reference: Any = transformers.AutoModelForCausalLM.from_pretrained(split.folder, dtype=torch.float32)
    for case, tokens in zip(wanted, over_nixl, strict=True):
        assert len(tokens) <= case.sampling.max_tokens
        if case.sampling.greedy:
            prompt = torch.tensor([case.prompt])
            count = case.sampling.max_tokens
            expected = reference.generate(
                prompt, max_new_tokens=count, min_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0
            )
            assert tokens == expected[0, len(case.prompt) :].tolist()
    split.wait_idle()
    mixed.wait_idle()


def test_a_repeated_prompt_leaves_its_full_pages_where_they_are(split: Live) -> None:
    prompt = [5 + index % 200 for index in range(2 * CHUNK_TOKENS + 3)]
    with split.client() as client:
        first = client.generate(prompt, max_tokens=4, ignore_eos=True)
        again = client.generate(prompt, max_tokens=4, ignore_eos=True)
    full_pages = len(prompt) // PAGE_SIZE
    assert first.handoff is not None
    assert again.handoff is not None
    assert first.handoff.pages_sent + first.handoff.pages_cached == full_pages + 1
    assert again.handoff.pages_cached == full_pages
    assert again.handoff.pages_sent == 1
    assert again.cached_tokens == full_pages * PAGE_SIZE
    assert again.token_ids == first.token_ids


def test_a_handoff_reports_its_bytes(split: Live) -> None:
    with split.client() as client:
        answer = client.generate(list(range(10, 60)), max_tokens=3, ignore_eos=True)
    assert answer.prefill_worker == "prefill-0"
    assert answer.decode_worker == "decode-0"
    assert answer.handoff is not None
    page_bytes = 2 * 2 * PAGE_SIZE * 2 * 16 * 4  # layers, K and V, positions, heads, head size, float32
    assert answer.handoff.bytes_sent == answer.handoff.pages_sent * page_bytes
    assert answer.handoff.transfer_s > 0
