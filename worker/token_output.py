"""From a sampled token to what the router is told of it."""

from __future__ import annotations

from cluster.messages import TokenOutput
from cluster.request import FinishReason
from engine.sequence import Sequence
from engine.step import SampledToken


def token_output(sequence: Sequence, token: SampledToken, finish: FinishReason | None) -> TokenOutput:
    """The newest token of a sequence as a message; prompt tokens that came from the cache are told with the first."""
    request = sequence.request
    index = len(sequence.tokens) - len(request.prompt) - 1
    return TokenOutput(
        request.request_id, index, token.token_id, token.logprob, token.top_logprobs, finish, sequence.cached
    )
