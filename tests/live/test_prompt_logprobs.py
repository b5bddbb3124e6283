"""Log-probabilities of prompts through a whole cluster: transformers', with and without a handoff."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from tests.live.conftest import CHUNK_TOKENS, Live

pytestmark = pytest.mark.ray

PROMPT = [5 + 7 * index % 200 for index in range(2 * CHUNK_TOKENS + 11)]


@pytest.mark.parametrize("name", ["split", "mixed"])
def test_they_equal_transformers_beside_a_cached_prefix(name: str, request: pytest.FixtureRequest) -> None:
    live: Live = request.getfixturevalue(name)
    reference: Any = transformers.AutoModelForCausalLM.from_pretrained(live.folder, dtype=torch.float32)
    with torch.inference_mode():
        expected = reference(torch.tensor([PROMPT])).logits[0].log_softmax(-1)
    with live.client() as client:
        plain = client.generate(PROMPT, max_tokens=4, ignore_eos=True)
        answer = client.generate(PROMPT, max_tokens=4, ignore_eos=True, prompt_logprobs=2)
        after = client.generate(PROMPT, max_tokens=4, ignore_eos=True)
    assert [token.id for token in answer.prompt] == PROMPT
    assert answer.prompt[0].logprob is None
    for token, row in zip(answer.prompt[1:], expected, strict=False):
        assert token.logprob == pytest.approx(float(row[token.id]), abs=1e-4)
        top = row.topk(2)
        assert [likely for likely, _ in token.top_logprobs] == top.indices.tolist()
        assert [value for _, value in token.top_logprobs] == pytest.approx(top.values.tolist(), abs=1e-4)
    assert (answer.cached_tokens, after.cached_tokens > 0) == (0, True)
    assert answer.token_ids == plain.token_ids == after.token_ids
    assert not plain.prompt
    live.wait_idle()
