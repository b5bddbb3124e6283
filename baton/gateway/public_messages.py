"""Messages of a stream for clients: tokens and the end of an answer."""

from __future__ import annotations

from baton.gateway.core.stream import TextToken
from baton.protocol import conversion
from baton.protocol.v1 import inference_pb2
from baton.router.core.completion import Completion


def token_message(token: TextToken) -> inference_pb2.Token:
    """One token."""
    message = inference_pb2.Token(index=token.index, id=token.token_id, text=token.text)
    if token.logprob is not None:
        message.logprob = token.logprob
        message.top_logprobs.extend(
            inference_pb2.TokenLogprob(id=id, logprob=logprob) for id, logprob in token.top_logprobs
        )
    return message


def finish_message(completion: Completion) -> inference_pb2.Finish:
    """The end of an answer: usage, timings and route."""
    latency, route = completion.latency, completion
    finish = inference_pb2.Finish(
        reason=conversion.finish_number(completion.reason),  # type: ignore[arg-type]
        usage=inference_pb2.Usage(
            prompt_tokens=completion.prompt_tokens,
            output_tokens=completion.output_tokens,
            cached_tokens=completion.cached_tokens,
        ),
        timings=inference_pb2.Timings(
            queue_s=latency.queue_s, ttft_s=latency.ttft_s or 0.0, tpot_s=latency.tpot_s, total_s=latency.total_s
        ),
        route=inference_pb2.Route(
            prefill_worker=route.prefill_worker,
            decode_worker=route.decode_worker,
            attempts=route.attempts,
            migrations=route.migrations,
        ),
        request_id=completion.request_id,
        trailing_text=completion.trailing_text,
    )
    if completion.handoff is not None:
        finish.route.handoff.CopyFrom(conversion.to_message(completion.handoff))  # type: ignore[arg-type]
    return finish
