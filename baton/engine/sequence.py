"""A sequence: one request's tokens, the pages that hold its KV, and how far it has been computed."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

from baton.protocol.request import FinishReason, Request, SamplingParams


def page_ids(pages: Iterable[int]) -> array[int]:
    """A page table: int32, so that a step's tables are joined by copying memory (`baton.engine.step_arrays`)."""
    return array("i", pages)


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens of one request on one worker.

        tokens:  [ prompt ............ | output .... ]
                 0      computed ^     prompt_len    len(tokens)

    `computed` positions have their KV in `page_table` (page i holds positions i·page_size …). The step that computes
    the last known token samples the next one. Counts are derived, never stored twice.
    """

    request: Request
    tokens: list[int]
    computed: int = 0
    cached: int = 0  # Positions of `computed` that came from the prefix cache.
    page_table: array[int] = field(default_factory=lambda: page_ids(()))
    page_hashes: list[bytes] = field(default_factory=list)  # Hashes of the leading full pages, computed on demand.
    score_until: int = 0  # Positions before it are computed here: log-probabilities of the prompt need their logits.
    chunk_ends_s: list[float] = field(default_factory=list)  # When each of the first chunks was computed.
    committed: int = 0  # Number of leading pages that other sequences can match.
    _distinct: array[int] = field(default_factory=lambda: array("q"))  # Each of the first `_looked_at` tokens once.
    _known: set[int] = field(default_factory=set)
    _looked_at: int = 0

    @classmethod
    def start(cls, request: Request, emitted: tuple[int, ...] = ()) -> Sequence:
        """A sequence that continues after `emitted` output tokens (none for a new request)."""
        scored = request.sampling.prompt_logprobs is not None and not emitted  # Before the first token
        return cls(request, [*request.prompt, *emitted], score_until=len(request.prompt) - 1 if scored else 0)

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def sampling(self) -> SamplingParams:
        return self.request.sampling

    @property
    def prompt_len(self) -> int:
        return len(self.request.prompt)

    @property
    def num_output(self) -> int:
        """Number of output tokens."""
        return len(self.tokens) - self.prompt_len

    @property
    def uncomputed(self) -> int:
        """Number of tokens whose KV has not been computed."""
        return len(self.tokens) - self.computed

    def distinct_tokens(self) -> array[int]:
        """Each of `tokens` once, as 64-bit integers. A call looks only at tokens added since the last one."""
        for token in self.tokens[self._looked_at :]:
            if token not in self._known:
                self._known.add(token)
                self._distinct.append(token)
        self._looked_at = len(self.tokens)
        return self._distinct

    @property
    def decoding(self) -> bool:
        """Whether the only uncomputed token is one that the model produced: the steady state of decode."""
        known = len(self.tokens)  # Not through other properties: this runs for every sequence in every step.
        return known == self.computed + 1 and known > len(self.request.prompt)

    def finish_reason(self, eos_token_ids: frozenset[int], context_tokens: int) -> FinishReason | None:
        """Why the newest output token ends the sequence, or None. Gateways find stop strings, which need text."""
        tokens, request = self.tokens, self.request  # Without properties: it is called for every token
        last, sampling, num_output = tokens[-1], request.sampling, len(tokens) - len(request.prompt)
        ends = last in sampling.stop_token_ids or (last in eos_token_ids and not sampling.ignore_eos)
        if ends and num_output >= sampling.min_tokens:
            return FinishReason.STOP
        if num_output >= sampling.max_tokens or len(tokens) >= context_tokens:
            return FinishReason.LENGTH
        return None
