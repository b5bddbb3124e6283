"""From a sampled token to what the router is told of it."""

from __future__ import annotations

from cluster.messages import TokenOutput
from cluster.request import FinishReason
from engine.sequence import Sequence
from engine.step import SampledToken


def token_output(sequence: Sequence, token: SampledToken, finish: FinishReason | None) -> TokenOutput:
    """The newest token of a sequence as a message; prompt tokens that came from the cache are told with the first."""
    return TokenOutput(
        request_id=sequence.request_id,
        index=sequence.num_output - 1,
        token_id=token.token_id,
        logprob=token.logprob,
        top_logprobs=token.top_logprobs,
        finish=finish,
        cached_tokens=sequence.cached,
    )
