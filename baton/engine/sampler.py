"""Samples tokens from logits. A token depends on its sequence's logits, parameters and position, never on the batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch

from baton.engine.host_copies import beside, fetch, like
from baton.engine.race.definition import GREEDY, KIND, row_parameters
from baton.engine.race.draw import draw_rows
from baton.engine.sequence import Sequence
from baton.engine.step import SampledToken
from baton.protocol.errors import InternalError
from baton.protocol.request import SamplingParams

NEVER = float("-inf")


@dataclass(frozen=True, slots=True)
class RowLogprobs:
    """Log-probabilities of one sequence: of the chosen token `[1]` and of the likeliest tokens `[count]`."""

    chosen: torch.Tensor
    best: torch.Tensor
    best_ids: torch.Tensor


@dataclass(frozen=True, slots=True)
class SampledOnDevice:
    """Sampled tokens on the logits' device, where the computation may still be running."""

    token_ids: torch.Tensor  # [n] int64
    finite: torch.Tensor  # [n] bool: the row's largest logit is a finite number.
    logprobs: tuple[RowLogprobs | None, ...]

    def fetch(self) -> SampledOnDevice:
        """Queue copies to host memory; the result is valid once the device has completed them."""
        fetched = tuple(
            row and RowLogprobs(fetch(row.chosen), fetch(row.best), fetch(row.best_ids)) for row in self.logprobs
        )
        return SampledOnDevice(fetch(self.token_ids), fetch(self.finite), fetched)


def sample(logits: torch.Tensor, sequences: Seq[Sequence], eos_token_ids: frozenset[int]) -> list[SampledToken]:
    """The next token of each sequence. `logits` is `[n, vocab]` float32 and may be changed.

    Raises `InternalError` when a row's largest logit is not a finite number.
    """
    return read(sample_on_device(logits, sequences, eos_token_ids))


def sample_on_device(logits: torch.Tensor, sequences: Seq[Sequence], eos_token_ids: frozenset[int]) -> SampledOnDevice:
    """As `sample`, without waiting for the device."""
    _adjust(logits, sequences, eos_token_ids)
    token_ids, finite = _choose(logits, sequences)
    wanted = [sequence.sampling.logprobs for sequence in sequences]
    logprobs = tuple(
        None if count is None else _logprobs(logits[row], token_ids[row : row + 1], count)
        for row, count in enumerate(wanted)
    )
    return SampledOnDevice(token_ids, finite, logprobs)


def read(drawn: SampledOnDevice) -> list[SampledToken]:
    """The chosen tokens as Python values; raises `InternalError` when a row's largest logit is not a finite number."""
    if not drawn.finite.all():
        raise InternalError("The model computed logits that are not finite numbers.")
    tokens = []
    for token, row in zip(drawn.token_ids.tolist(), drawn.logprobs, strict=True):
        if row is None:
            tokens.append(SampledToken(token))
        else:
            best = tuple(zip(row.best_ids.tolist(), row.best.tolist(), strict=True))
            tokens.append(SampledToken(token, row.chosen.item(), best))
    return tokens


def _choose(logits: torch.Tensor, sequences: Seq[Sequence]) -> tuple[torch.Tensor, torch.Tensor]:
    """The token of each row `[n]` int64, as defined in race/definition.py, and whether its largest logit is finite."""
    params = [sequence.sampling for sequence in sequences]
    if all(item.greedy for item in params):
        best = logits.max(dim=-1)
        return best.indices, torch.isfinite(best.values)
    rows = row_parameters(params, [len(sequence.tokens) for sequence in sequences], logits.shape[1])
    if logits.is_cuda:
        from baton.engine.race import gpu  # Needs Triton, which only torch for GPUs brings.

        return gpu.draw_rows(logits, beside(logits, torch.from_numpy(rows)), rows)
    best = logits.max(dim=-1)
    token_ids, finite = best.indices, torch.isfinite(best.values)
    (drawn,) = np.nonzero((rows[:, KIND] != GREEDY) & finite.numpy())
    token_ids.numpy()[drawn] = draw_rows(logits.numpy()[drawn], rows[drawn])
    return token_ids, finite


def _adjust(logits: torch.Tensor, sequences: Seq[Sequence], eos_token_ids: frozenset[int]) -> None:
    """Change each row as its request asks: no early end, then the biases, then the penalties."""
    for row, sequence in enumerate(sequences):
        sampling = sequence.request.sampling
        if sampling.min_tokens and sequence.num_output < sampling.min_tokens:
            _forbid_ending(logits[row], sampling, eos_token_ids)
        if sampling.logit_bias:
            token_ids, biases = zip(*sampling.logit_bias, strict=True)
            logits[row].index_add_(0, like(logits, token_ids, torch.int64), like(logits, biases, torch.float32))
        if sampling.penalised:
            _penalise(logits[row], sequence)


def _forbid_ending(scores: torch.Tensor, sampling: SamplingParams, eos_token_ids: frozenset[int]) -> None:
    """Exclude the tokens that would end the sequence."""
    ending = eos_token_ids | set(sampling.stop_token_ids)
    scores.index_fill_(0, like(scores, sorted(ending), torch.int64), NEVER)


def _penalise(scores: torch.Tensor, sequence: Sequence) -> None:
    """Repetition penalty over prompt and output (Keskar et al. 2019), presence and frequency over the output."""
    sampling = sequence.sampling
    if sampling.repetition_penalty != 1.0:
        # A copy, because the sequence's own array must be able to grow.
        distinct = torch.frombuffer(sequence.distinct_tokens(), dtype=torch.int64).clone()
        seen = beside(scores, distinct)
        values = scores[seen]
        factor = sampling.repetition_penalty
        scores[seen] = torch.where(values > 0, values / factor, values * factor)
    output = sequence.tokens[sequence.prompt_len :]
    if output and (sampling.presence_penalty or sampling.frequency_penalty):
        counted = Counter(output)
        tokens, counts = like(scores, list(counted)), like(scores, list(counted.values()))
        scores[tokens] -= sampling.presence_penalty + sampling.frequency_penalty * counts


def _logprobs(logits: torch.Tensor, token_id: torch.Tensor, count: int) -> RowLogprobs:
    """Log-probabilities of the distribution after biases and penalties, and before temperature."""
    logprobs = logits.log_softmax(dim=-1)
    top = logprobs.topk(count)
    return RowLogprobs(logprobs.index_select(0, token_id), top.values, top.indices)
