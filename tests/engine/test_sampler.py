"""The sampler against transformers' own processors; tokens depend on their request alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessorList
from transformers.generation import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from baton.engine.race import definition
from baton.engine.race.draw import kept_tokens
from baton.engine.sampler import NEVER, _adjust, _penalise, sample
from baton.engine.sequence import Sequence
from baton.protocol.errors import InternalError, InvalidRequest
from baton.protocol.request import Request, SamplingParams

VOCAB = 50


def _sequence(params: SamplingParams, prompt: tuple[int, ...] = (1, 2, 3), output: tuple[int, ...] = ()) -> Sequence:
    return Sequence.start(Request("r", prompt, params), output)


def _logits(seed: int, rows: int = 1) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 1000),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 7]),
    top_p=st.sampled_from([1.0, 0.9, 0.3]),
    min_p=st.sampled_from([0.0, 0.05, 0.4]),
)
def test_the_kept_tokens_are_those_of_transformers(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1.0:
        warpers.append(TopPLogitsWarper(top_p))
    if min_p:
        warpers.append(MinPLogitsWarper(min_p))
    logits = _logits(seed)
    expected = warpers(torch.tensor([[1]]), logits.clone())  # type: ignore[arg-type]
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    rows = definition.row_parameters([params], [0], VOCAB)
    values = logits.numpy()
    z = definition.distance(values, values.max(axis=1, keepdims=True), rows[:, [definition.SCALE]].view(np.float32))
    kept = kept_tokens(values, z, rows)
    assert np.array_equal(np.ones((1, VOCAB), bool) if kept is None else kept, torch.isfinite(expected).numpy())


def test_the_repetition_penalty_is_that_of_transformers() -> None:
    logits, tokens = _logits(1), (3, 4, 4, 9)
    expected = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([tokens]), logits.clone())
    got = logits.clone()
    _penalise(got[0], _sequence(SamplingParams(repetition_penalty=1.7), tokens[:2], tokens[2:]))
    assert torch.allclose(got, expected)


def test_biases_come_before_penalties_as_with_transformers_processors() -> None:
    logits, tokens = _logits(2), (3, 4, 9)
    biases = {3: 5.0, 4: -100.0, 20: 1.5}
    bias = SequenceBiasLogitsProcessor({(token,): value for token, value in biases.items()})  # type: ignore[arg-type]
    ids = torch.tensor([tokens])
    expected = RepetitionPenaltyLogitsProcessor(1.7)(ids, bias(ids, logits.clone()))  # type: ignore[arg-type]
    got = torch.cat([logits, logits])
    params = SamplingParams(repetition_penalty=1.7, logit_bias=tuple(biases.items()))
    _adjust(got, [_sequence(params, tokens), _sequence(SamplingParams())], frozenset())
    assert torch.allclose(got[:1], expected)
    assert torch.equal(got[1], logits[0])


def test_a_bias_of_100_decides_and_counts_in_log_probabilities() -> None:
    params = SamplingParams(logit_bias=((7, 100.0),), logprobs=1)
    (token,) = sample(_logits(5), [_sequence(params)], frozenset())
    assert token.token_id == 7
    assert token.logprob == pytest.approx(0.0, abs=1e-6)


def test_a_bias_does_not_lift_a_token_that_would_end_the_sequence_early() -> None:
    params = SamplingParams(logit_bias=((5, 100.0),), min_tokens=1)
    (token,) = sample(_logits(5), [_sequence(params)], frozenset([5]))
    assert token.token_id != 5


@pytest.mark.parametrize(
    ("bias", "sentence"),
    [
        (((VOCAB, 1.0),), "outside the vocabulary"),
        (((-1, 1.0),), "outside the vocabulary"),
        (((1, float("nan")),), "between -100 and 100"),
        (((1, 100.5),), "between -100 and 100"),
        (tuple((1, 0.0) for _ in range(1025)), "at most 1024"),
    ],
)
def test_an_invalid_bias_is_refused(bias: tuple[tuple[int, float], ...], sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        SamplingParams(logit_bias=bias).validate(VOCAB)


def test_presence_and_frequency_count_the_output_only() -> None:
    got = torch.zeros(1, VOCAB)
    params = SamplingParams(presence_penalty=1.0, frequency_penalty=0.5)
    _penalise(got[0], _sequence(params, (7, 7), (4, 4, 5)))
    assert got[0, 7] == 0.0
    assert got[0, 4] == -2.0
    assert got[0, 5] == -1.5


@settings(deadline=None, max_examples=40)
@given(seeds=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=6, unique=True), data=st.integers(0, 100))
def test_the_batch_does_not_change_a_token(seeds: list[int], data: int) -> None:
    sequences = [_sequence(SamplingParams(temperature=1.0, top_p=0.95, seed=seed)) for seed in seeds]
    logits = _logits(data, len(seeds))
    together = [token.token_id for token in sample(logits.clone(), sequences, frozenset())]
    alone = [
        sample(logits[row : row + 1].clone(), [sequence], frozenset())[0].token_id
        for row, sequence in enumerate(sequences)
    ]
    assert together == alone


def test_drawn_tokens_follow_the_probabilities() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2]]))
    counts = [0, 0, 0]
    for seed in range(4000):
        sequence = _sequence(SamplingParams(temperature=1.0, seed=seed), (0,))
        counts[sample(logits.clone(), [sequence], frozenset())[0].token_id] += 1
    for count, share in zip(counts, (0.5, 0.3, 0.2), strict=True):
        assert abs(count / 4000 - share) < 0.03


def test_a_sequence_does_not_end_before_min_tokens() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 5] = 10.0
    params = SamplingParams(min_tokens=2, stop_token_ids=(6,))
    (token,) = sample(logits, [_sequence(params)], frozenset([5]))
    assert token.token_id not in (5, 6)
    assert logits[0, 5] == logits[0, 6] == NEVER


def test_log_probabilities_are_of_the_whole_distribution() -> None:
    logits = _logits(3)
    (token,) = sample(logits.clone(), [_sequence(SamplingParams(logprobs=3, temperature=0.5, seed=1))], frozenset())
    expected = logits[0].log_softmax(-1)
    assert token.logprob == pytest.approx(float(expected[token.token_id]))
    assert [top for top, _ in token.top_logprobs] == expected.topk(3).indices.tolist()


@pytest.mark.parametrize("temperature", [1e-40, 1e-20, 1e-7])
def test_the_coldest_temperatures_are_greedy(temperature: float) -> None:
    logits = _logits(5)
    (token,) = sample(logits.clone(), [_sequence(SamplingParams(temperature=temperature, seed=3))], frozenset())
    assert token.token_id == int(logits.argmax())


def test_greedy_and_sampled_sequences_share_a_batch() -> None:
    logits = _logits(6, 3)
    sequences = [_sequence(SamplingParams(temperature=temperature, seed=8)) for temperature in (0.0, 1.0, 0.0)]
    tokens = [token.token_id for token in sample(logits.clone(), sequences, frozenset())]
    assert tokens[::2] == logits.argmax(dim=1)[::2].tolist()
    assert tokens[1] == sample(logits[1:2].clone(), sequences[1:2], frozenset())[0].token_id


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_logits_without_a_finite_maximum_are_an_error(value: float, temperature: float) -> None:
    logits = torch.cat((_logits(1), torch.full((1, VOCAB), value)))
    sequences = [_sequence(SamplingParams(temperature=temperature, top_p=top_p, logprobs=1)) for top_p in (0.9, 1.0)]
    with pytest.raises(InternalError, match="not finite numbers"):
        sample(logits, sequences, frozenset())
