"""Messages of a stream for gRPC clients: tokens and the end of an answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from baton.gateway.core.commands import StreamEnd
from baton.gateway.core.stream import TextToken
from baton.protocol import conversion
from baton.protocol.prompt_logprobs import PromptLogprobs
from baton.protocol.v1 import inference_pb2

MAX_TOKENS_PER_MESSAGE = 1000  # About 300 KiB with log-probabilities; most gRPC clients accept 4 MiB


def stream_messages(tokens: list[TextToken], end: StreamEnd | None) -> Iterator[bytes]:
    """Serialised `GenerateResponse` messages; the end of an answer is in the message of the last tokens.

    Messages have a bounded size, because a slow or resuming client may have many unread tokens.
    """
    answer = end if end is not None and end.error is None else None
    while len(tokens) > MAX_TOKENS_PER_MESSAGE:
        yield _message(tokens[:MAX_TOKENS_PER_MESSAGE], None)
        tokens = tokens[MAX_TOKENS_PER_MESSAGE:]
    if tokens or answer is not None:
        yield _message(tokens, answer)


def prompt_messages(prompt: Sequence[int], parts: Iterable[PromptLogprobs]) -> Iterator[bytes]:
    """Serialised `GenerateResponse` messages of bounded size with log-probabilities of a prompt's tokens."""
    for part in parts:
        stop = part.first + len(part)
        for start in range(part.first, stop, MAX_TOKENS_PER_MESSAGE):
            message = inference_pb2.GenerateResponse()
            if start == 1:
                message.prompt_tokens.add(index=0, id=prompt[0])
            for index, logprob, likely in part.part(start, start + MAX_TOKENS_PER_MESSAGE).entries():
                written = message.prompt_tokens.add(index=index, id=prompt[index], logprob=logprob)
                for token_id, likely_logprob in likely:
                    written.top_logprobs.add(id=token_id, logprob=likely_logprob)
            yield message.SerializeToString()


def _message(tokens: list[TextToken], end: StreamEnd | None) -> bytes:
    """Fields are set one by one, because passing them to `add` takes four times as long."""
    message = inference_pb2.GenerateResponse()
    add = message.tokens.add
    for token in tokens:
        written = add()
        written.index = token.index
        written.id = token.token_id
        written.text = token.text
        if token.logprob is not None:
            written.logprob = token.logprob
            for token_id, logprob in token.top_logprobs:
                written.top_logprobs.add(id=token_id, logprob=logprob)
    if end is not None:
        message.finish.CopyFrom(finish_message(end))
    return message.SerializeToString()


def finish_message(end: StreamEnd) -> inference_pb2.Finish:
    """The end of an answer: usage, timings and route."""
    latency = end.latency
    finish = inference_pb2.Finish(
        reason=conversion.finish_number(end.reason),  # type: ignore[arg-type]
        usage=inference_pb2.Usage(
            prompt_tokens=end.prompt_tokens, output_tokens=end.output_tokens, cached_tokens=end.cached_tokens
        ),
        timings=inference_pb2.Timings(
            queue_s=latency.queue_s, ttft_s=latency.ttft_s or 0.0, tpot_s=latency.tpot_s, total_s=latency.total_s
        ),
        route=inference_pb2.Route(
            prefill_worker=end.prefill_worker,
            decode_worker=end.decode_worker,
            attempts=end.attempts,
            migrations=end.migrations,
        ),
        request_id=end.request_id,
        trailing_text=end.trailing_text,
    )
    if end.handoff is not None:
        finish.route.handoff.CopyFrom(conversion.to_message(end.handoff))  # type: ignore[arg-type]
    return finish
