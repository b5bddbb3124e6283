"""Frames of the links between router, workers and gateways: bytes to messages and back.

A received message is refused as a whole if a field is missing or outside its bounds (`baton.protocol.bounds`), or if
its sender may not send its kind. `StepOutput` is converted by hand because it is sent once per decode step; the gateway
checks its tokens.
"""

from __future__ import annotations

import typing
from collections.abc import Collection, Iterable
from typing import Any

from google.protobuf.message import DecodeError

from baton.protocol import bounds, gateway_messages, handoff, messages
from baton.protocol.conversion import FINISH_REASONS, LINK_MESSAGES, fill, finish_number, from_message, to_message
from baton.protocol.errors import InvalidRequest
from baton.protocol.v1 import worker_pb2


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")


_NAMES = {kind: _snake(kind.__name__) for kind in LINK_MESSAGES}
_KINDS = {name: kind for kind, name in _NAMES.items()}

FROM_ROUTER_TO_WORKER = frozenset(typing.get_args(messages.RouterMessage))
FROM_ROUTER_TO_GATEWAY = frozenset(typing.get_args(gateway_messages.ToGateway))
FROM_WORKER = frozenset(typing.get_args(messages.WorkerMessage))
FROM_GATEWAY = frozenset(typing.get_args(gateway_messages.GatewayMessage))
TO_ROUTER = FROM_WORKER | FROM_GATEWAY
FROM_WORKER_TO_GATEWAY = frozenset(typing.get_args(gateway_messages.TokenMessage))
FROM_GATEWAY_TO_WORKER = frozenset((gateway_messages.AttachStreams,))


def kind_name(kind: type) -> str:
    """The name of a kind of messages in the wire format."""
    return _NAMES[kind]


def encode_frame(batch: Iterable[Any], incarnation: str = "") -> bytes:
    """One frame of messages in this order; `incarnation` is the sender's, if it is a worker or a gateway."""
    frame = worker_pb2.Frame(incarnation=incarnation)
    for item in batch:
        slot = frame.messages.add()
        if isinstance(item, gateway_messages.StepOutput):
            slot.step_output.SetInParent()
            _write_step_output(slot.step_output, item)
        else:
            message = getattr(slot, _NAMES[type(item)])
            message.SetInParent()
            fill(message, item)
    return frame.SerializeToString()


def decode_frame(frame: bytes, kinds: Collection[type]) -> tuple[str, list[Any]]:
    """The sender's incarnation and the messages of a frame; raises `InvalidRequest` for invalid bytes or values, or a
    message whose kind is not among `kinds`."""
    parsed = _parse(worker_pb2.Frame, frame)
    batch: list[Any] = []
    for slot in parsed.messages:
        name = slot.WhichOneof("kind")
        if name is None:
            raise InvalidRequest("A frame has a message of an unknown kind: use one version everywhere.")
        kind = _KINDS[name]
        if kind not in kinds:
            raise InvalidRequest(f"A frame has a message that its sender may not send: {kind.__name__}.")
        if kind is gateway_messages.StepOutput:
            batch.append(_read_step_output(slot.step_output))
        else:
            message: Any = from_message(kind, getattr(slot, name))
            bounds.check(message)
            batch.append(message)
    return parsed.incarnation, batch


def work_of(payload: messages.Payload) -> messages.Work:
    """The work in a payload; raises `InvalidRequest` for invalid bytes or values."""
    if isinstance(payload, messages.Work):
        return payload
    work = from_message(messages.Work, _parse(worker_pb2.Work, payload))
    bounds.check(work)
    return work


def _parse(envelope: type[Any], frame: bytes) -> Any:
    try:
        return envelope.FromString(frame)
    except DecodeError as error:
        raise InvalidRequest(f"Not a {envelope.DESCRIPTOR.name} message: {error}.") from None


def _write_step_output(message: worker_pb2.StepOutput, output: gateway_messages.StepOutput) -> None:
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


def _read_step_output(message: worker_pb2.StepOutput) -> gateway_messages.StepOutput:
    return gateway_messages.StepOutput(
        tuple(
            gateway_messages.TokenOutput(
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
