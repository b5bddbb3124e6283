"""Sampling on the GPU: the CPU's tokens, and an error for logits that are not numbers."""

from __future__ import annotations

import pytest
import torch

from baton.engine.sampler import sample
from baton.engine.sequence import Sequence
from baton.harness.sampling_check import tokens_equal_to_cpu
from baton.protocol.errors import InternalError
from baton.protocol.request import Request, SamplingParams


@pytest.mark.parametrize("vocab", [300, 32_000, 151_936])
def test_tokens_are_those_of_the_cpu(device: torch.device, vocab: int) -> None:
    assert tokens_equal_to_cpu(device.type, 64, vocab) == 1.0


def test_biases_and_penalties_give_the_cpus_tokens_and_log_probabilities(device: torch.device) -> None:
    logits = torch.randn(3, 5000)
    params = SamplingParams(logit_bias=((7, 9.0), (4321, -100.0)), repetition_penalty=1.5, logprobs=2)
    sequences = [Sequence.start(Request("r", (1, 7, 9), params)) for _ in logits]
    expected = sample(logits.clone(), sequences, frozenset())
    for got, token in zip(sample(logits.to(device), sequences, frozenset()), expected, strict=True):
        assert got.token_id == token.token_id
        assert got.logprob == pytest.approx(token.logprob, abs=1e-4)


def test_logits_that_are_not_numbers_are_an_error(device: torch.device) -> None:
    logits = torch.randn(2, 5000, device=device)
    logits[1, 4321] = float("nan")
    sequences = [Sequence.start(Request("r", (1,), SamplingParams(temperature=1.0, top_p=0.9)))] * 2
    with pytest.raises(InternalError, match="not finite numbers"):
        sample(logits, sequences, frozenset())
