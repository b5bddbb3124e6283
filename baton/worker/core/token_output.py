"""Converts sampled tokens to messages for the router."""

from __future__ import annotations

from baton.engine.sequence import Sequence
from baton.engine.step import SampledToken
from baton.protocol.messages import TokenOutput
from baton.protocol.request import FinishReason


def token_output(sequence: Sequence, token: SampledToken, finish: FinishReason | None) -> TokenOutput:
    """The newest token of a sequence as a message; the first one carries the number of cached prompt tokens."""
    request = sequence.request
    index = len(sequence.tokens) - len(request.prompt) - 1
    return TokenOutput(
        request.request_id, index, token.token_id, token.logprob, token.top_logprobs, finish, sequence.cached
    )
