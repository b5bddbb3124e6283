"""From logits to tokens. A token depends on its sequence's logits, parameters and position: never on the batch."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import torch

from cluster.errors import InternalError
from cluster.request import SamplingParams
from engine.noise import uniform
from engine.sequence import Sequence
from engine.step import SampledToken

NEVER = float("-inf")
COLDEST = 1e-6  # a lower temperature is as good as greedy


def sample(logits: torch.Tensor, sequences: Seq[Sequence], eos_token_ids: frozenset[int]) -> list[SampledToken]:
    """The next token of each sequence. `logits` is `[n, vocab]` float32 and may be changed.

    Raises `InternalError` when a row is not a number.
    """
    _forbid_ending(logits, sequences, eos_token_ids)
    _penalise(logits, sequences)
    best = logits.max(dim=-1)
    if not torch.isfinite(best.values).all():
        raise InternalError("The model computed logits that are not numbers.")
    chosen: list[int] = best.indices.tolist()
    noisy = [row for row, sequence in enumerate(sequences) if not sequence.sampling.greedy]
    if noisy:
        drawn = _draw(logits[noisy], [sequences[row] for row in noisy])
        for row, token in zip(noisy, drawn, strict=True):
            chosen[row] = token
    return _with_logprobs(logits, sequences, chosen)


def _forbid_ending(logits: torch.Tensor, sequences: Seq[Sequence], eos_token_ids: frozenset[int]) -> None:
    """Until min_tokens are out, no token may end the sequence."""
    for row, sequence in enumerate(sequences):
        if sequence.num_output < sequence.sampling.min_tokens:
            logits[row, list(eos_token_ids | set(sequence.sampling.stop_token_ids))] = NEVER


def _penalise(logits: torch.Tensor, sequences: Seq[Sequence]) -> None:
    """Repetition penalty over prompt and output (Keskar et al. 2019), presence and frequency over the output."""
    for row, sequence in enumerate(sequences):
        sampling = sequence.sampling
        if not sampling.penalised:
            continue
        scores = logits[row]
        if sampling.repetition_penalty != 1.0:
            seen = torch.tensor(sorted(set(sequence.tokens)))
            values = scores[seen]
            factor = sampling.repetition_penalty
            scores[seen] = torch.where(values > 0, values / factor, values * factor)
        output = sequence.tokens[sequence.prompt_len :]
        if output and (sampling.presence_penalty or sampling.frequency_penalty):
            tokens, counts = torch.tensor(output).unique(return_counts=True)
            scores[tokens] -= sampling.presence_penalty + sampling.frequency_penalty * counts


def _draw(logits: torch.Tensor, sequences: Seq[Sequence]) -> list[int]:
    """Inverse transform sampling: one uniform number per token, over the kept probabilities in vocabulary order."""
    params = [sequence.sampling for sequence in sequences]
    temperature = torch.tensor([max(item.temperature, COLDEST) for item in params]).unsqueeze(1)
    # The likeliest token is moved to 0 first, so that a small temperature cannot overflow.
    scaled = (logits - logits.max(dim=-1, keepdim=True).values) / temperature
    kept = _truncate(scaled, params)
    cumulative = torch.softmax(kept, dim=-1, dtype=torch.float64).cumsum(dim=-1)
    noise = [uniform(item.sampling.seed or 0, len(item.tokens)) for item in sequences]
    threshold = torch.tensor(noise, dtype=torch.float64).unsqueeze(1) * cumulative[:, -1:]
    drawn = torch.searchsorted(cumulative, threshold, right=True).squeeze(1)
    return drawn.clamp_(max=logits.shape[-1] - 1).tolist()


def _truncate(scaled: torch.Tensor, params: Seq[SamplingParams]) -> torch.Tensor:
    """Keep top-k, of those top-p, of those min-p; everything else becomes minus infinity."""
    vocab = scaled.shape[-1]
    if all(item.top_k == 0 and item.top_p == 1.0 and item.min_p == 0.0 for item in params):
        return scaled
    ordered, order = scaled.sort(dim=-1, descending=True, stable=True)
    top_k = torch.tensor([item.top_k or vocab for item in params]).unsqueeze(1)
    ordered = ordered.masked_fill(torch.arange(vocab) >= top_k, NEVER)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    top_p = torch.tensor([item.top_p for item in params]).unsqueeze(1)
    min_p = torch.tensor([item.min_p for item in params]).unsqueeze(1)
    dropped = ((before >= top_p) & (top_p < 1.0)) | (probabilities < min_p * probabilities[:, :1])
    dropped[:, 0] = False
    ordered = ordered.masked_fill(dropped, NEVER)
    return torch.full_like(scaled, NEVER).scatter_(1, order, ordered)


def _with_logprobs(logits: torch.Tensor, sequences: Seq[Sequence], chosen: list[int]) -> list[SampledToken]:
    """Log-probabilities, for the sequences that asked, of the distribution after penalties and before temperature."""
    tokens = []
    for row, (sequence, token) in enumerate(zip(sequences, chosen, strict=True)):
        count = sequence.sampling.logprobs
        if count is None:
            tokens.append(SampledToken(token))
            continue
        logprobs = logits[row].log_softmax(dim=-1)
        top = logprobs.topk(count)
        best = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
        tokens.append(SampledToken(token, float(logprobs[token]), best))
    return tokens
