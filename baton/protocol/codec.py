"""Frames of the links between router and workers: bytes to messages and back.

A received message is refused as a whole if a field is missing or outside its bounds (`baton.protocol.bounds`).
`StepOutput` is converted by hand because it is sent once per decode step; the router checks its tokens.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import Any

from google.protobuf.message import DecodeError

from baton.protocol import bounds, handoff, messages
from baton.protocol.conversion import FINISH_REASONS, finish_number, from_message, to_message
from baton.protocol.errors import InvalidRequest
from baton.protocol.v1 import worker_pb2


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")


_TO_WORKER = {kind: _snake(kind.__name__) for kind in typing.get_args(messages.RouterMessage)}
_TO_ROUTER = {kind: _snake(kind.__name__) for kind in typing.get_args(messages.WorkerMessage)}


def encode_to_worker(batch: list[messages.RouterMessage]) -> bytes:
    """One frame for a worker, of messages in this order."""
    frame = worker_pb2.ToWorker()
    for item in batch:
        getattr(frame.messages.add(), _TO_WORKER[type(item)]).CopyFrom(to_message(item))
    return frame.SerializeToString()


def decode_to_worker(frame: bytes) -> list[messages.RouterMessage]:
    """The router's messages in a frame; raises `InvalidRequest` for invalid bytes or values."""
    return _messages(_parse(worker_pb2.ToWorker, frame), _TO_WORKER)


def encode_to_router(batch: Sequence[messages.WorkerMessage], incarnation: str) -> bytes:
    """One frame for the router: messages of one incarnation of a worker."""
    frame = worker_pb2.ToRouter(incarnation=incarnation)
    for item in batch:
        slot = frame.messages.add()
        if isinstance(item, messages.StepOutput):
            slot.step_output.SetInParent()
            _write_step_output(slot.step_output, item)
        else:
            getattr(slot, _TO_ROUTER[type(item)]).CopyFrom(to_message(item))
    return frame.SerializeToString()


def decode_to_router(frame: bytes) -> tuple[str, list[messages.WorkerMessage]]:
    """A worker's incarnation and messages in a frame; raises `InvalidRequest` for invalid bytes or values."""
    parsed = _parse(worker_pb2.ToRouter, frame)
    return parsed.incarnation, _messages(parsed, _TO_ROUTER)


def _parse(envelope: type[Any], frame: bytes) -> Any:
    try:
        return envelope.FromString(frame)
    except DecodeError as error:
        raise InvalidRequest(f"Not a {envelope.DESCRIPTOR.name} message: {error}.") from None


def _messages(parsed: Any, names: dict[type, str]) -> list[Any]:
    kinds = {name: kind for kind, name in names.items()}
    batch = []
    for slot in parsed.messages:
        name = slot.WhichOneof("kind")
        if name is None:
            raise InvalidRequest(f"A {parsed.DESCRIPTOR.name} message has an unknown kind: use one version everywhere.")
        if name == "step_output":
            batch.append(_read_step_output(slot.step_output))
        else:
            message: Any = from_message(kinds[name], getattr(slot, name))
            bounds.check(message)
            batch.append(message)
    return batch


def _write_step_output(message: worker_pb2.StepOutput, output: messages.StepOutput) -> None:
    """Sets non-default fields one by one: passing them to `add` takes four times as long."""
    add = message.tokens.add
    for token in output.tokens:
        written = add()
        written.request_id = token.request_id
        written.index = token.index
        written.token_id = token.token_id
        if token.cached_tokens:
            written.cached_tokens = token.cached_tokens
        if token.finish is not None:
            written.finish = finish_number(token.finish)
        if token.logprob is not None:
            written.logprob = token.logprob
        for token_id, logprob in token.top_logprobs:
            written.top_logprobs.add(id=token_id, logprob=logprob)


def _read_step_output(message: worker_pb2.StepOutput) -> messages.StepOutput:
    return messages.StepOutput(
        tuple(
            messages.TokenOutput(
                token.request_id,
                token.index,
                token.token_id,
                token.logprob if token.HasField("logprob") else None,
                tuple((top.id, top.logprob) for top in token.top_logprobs) if token.top_logprobs else (),
                FINISH_REASONS.get(token.finish),
                token.cached_tokens,
            )
            for token in message.tokens
        )
    )


def encode_notice(notice: handoff.HandoffNotice) -> bytes:
    """A notice as the payload of the final write's notification."""
    return to_message(notice).SerializeToString()


def decode_notice(payload: bytes) -> handoff.HandoffNotice:
    """The notice in a peer's notification; raises `InvalidRequest` for invalid bytes or values."""
    try:
        notice = from_message(handoff.HandoffNotice, worker_pb2.HandoffNotice.FromString(payload))
    except DecodeError as error:
        raise InvalidRequest(f"Not a handoff notice: {error}.") from None
    bounds.check(notice)
    return notice
