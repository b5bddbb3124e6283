"""Log-probabilities of prompt tokens, computed beside the prefill of their prompt.

The logits at a position give the log-probabilities of the next token. Logits of a whole chunk would take gigabytes, so
they are computed for a few positions at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch

from baton.engine.host_copies import fetch, like
from baton.engine.models.decoder import Decoder
from baton.engine.step import Slice, StepPlan
from baton.protocol.errors import InternalError
from baton.protocol.prompt_logprobs import PromptLogprobs

MAX_LOGITS = 1 << 23  # Logits computed at a time: less memory than those of a large batch's sampled tokens


@dataclass(frozen=True, slots=True)
class ScoresOnDevice:
    """Log-probabilities of the prompt tokens that follow one slice's positions: `[n]` and of the likeliest `[n, k]`."""

    part: Slice
    first: int  # Index of the first of these tokens in the prompt
    own: torch.Tensor
    likely: torch.Tensor
    likely_ids: torch.Tensor

    def fetch(self) -> ScoresOnDevice:
        """Queue copies to host memory; the result is valid once the device has completed them."""
        return ScoresOnDevice(self.part, self.first, fetch(self.own), fetch(self.likely), fetch(self.likely_ids))


def score_on_device(
    model: Decoder, hidden: torch.Tensor, scored: Seq[range], plan: StepPlan
) -> tuple[ScoresOnDevice, ...]:
    """Scores of each slice of the plan that has `scored` positions, in order, without waiting for the device.

    `hidden` is `[tokens, n]`, the model's output for the plan's tokens; `scored` are the slices' rows of it.
    """
    return tuple(_score(model, hidden, rows, part) for rows, part in zip(scored, plan.scoring, strict=True))


def follow_scores(model: Decoder, hidden: torch.Tensor, scored: Seq[range]) -> None:
    """Another rank's share of `score_on_device`."""
    for rows in scored:
        for _ in _logits(model, hidden, rows):
            pass


def _logits(model: Decoder, hidden: torch.Tensor, rows: range) -> Iterator[torch.Tensor]:
    """Logits of a few of the rows at a time."""
    at_once = max(1, MAX_LOGITS // model.config.vocab_size)
    for piece in hidden[rows.start : rows.stop].split(at_once):
        yield model.logits(piece)


def read_scores(scores: Seq[ScoresOnDevice]) -> tuple[PromptLogprobs, ...]:
    """The scores in host memory; raises `InternalError` for logits that are not finite numbers."""
    read = []
    for item in scores:
        if not torch.isfinite(item.own).all():
            raise InternalError("The model computed logits that are not finite numbers.")
        arrays = _bytes(item.own, "<f4"), _bytes(item.likely_ids, "<i4"), _bytes(item.likely, "<f4")
        read.append(PromptLogprobs(item.part.sequence.request_id, item.first, item.likely.shape[1], *arrays))
    return tuple(read)


def _bytes(tensor: torch.Tensor, kind: str) -> bytes:
    return tensor.numpy().astype(kind).tobytes()


def _score(model: Decoder, hidden: torch.Tensor, rows: range, part: Slice) -> ScoresOnDevice:
    sequence, first = part.sequence, part.scored.start + 1
    count = sequence.sampling.prompt_logprobs or 0
    targets = like(hidden, sequence.tokens[first : first + len(rows)], torch.int64)
    pieces = []
    begin = 0
    for logits in _logits(model, hidden, rows):
        tokens = targets[begin : begin + len(logits)]
        begin += len(logits)
        total = logits.logsumexp(dim=-1, keepdim=True)
        top = logits.topk(count)
        pieces.append((logits.gather(1, tokens[:, None])[:, 0] - total[:, 0], top.values - total, top.indices))
    own, likely, likely_ids = (torch.cat(column) for column in zip(*pieces, strict=True))
    return ScoresOnDevice(part, first, own, likely, likely_ids.int())
