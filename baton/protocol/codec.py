"""Protobuf messages ⇄ the cluster's own types: the one place that reads message fields.

A dataclass and its message have the same field names, so one rule converts both ways; the table below pairs them.
A field the sender left out takes the dataclass's default; a message that lacks what has none is refused.
`StepOutput` is written by hand because it is sent once per decode step.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import cache
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from baton.protocol import handoff, messages, request, worker
from baton.protocol.errors import InternalError, InvalidRequest
from baton.protocol.v1 import inference_pb2, worker_pb2

T = TypeVar("T")

_MESSAGES: dict[type, type[Message]] = {
    request.SamplingParams: inference_pb2.SamplingParams,
    request.Objectives: inference_pb2.Objectives,
    request.Request: worker_pb2.WorkRequest,
    worker.PageLayout: worker_pb2.PageLayout,
    worker.Endpoint: worker_pb2.Endpoint,
    worker.WorkerInfo: worker_pb2.WorkerInfo,
    worker.WorkerLoad: worker_pb2.WorkerLoad,
    worker.StepSample: worker_pb2.StepSample,
    handoff.Reservation: worker_pb2.Reservation,
    handoff.HandoffReport: inference_pb2.Handoff,
    handoff.HandoffNotice: worker_pb2.HandoffNotice,
    handoff.PageChecksum: worker_pb2.PageChecksum,
    messages.TokenOutput: worker_pb2.TokenOutput,
    messages.DetachedSequence: worker_pb2.DetachedSequence,
}

_ENUMS: dict[type[Enum], dict[Enum, int]] = {
    request.FinishReason: {
        request.FinishReason.STOP: inference_pb2.FINISH_REASON_STOP,
        request.FinishReason.LENGTH: inference_pb2.FINISH_REASON_LENGTH,
    },
    worker.RoleName: {
        worker.RoleName.PREFILL: worker_pb2.ROLE_PREFILL,
        worker.RoleName.DECODE: worker_pb2.ROLE_DECODE,
        worker.RoleName.MIXED: worker_pb2.ROLE_MIXED,
    },
    handoff.HandoffOutcome: {
        handoff.HandoffOutcome.DELIVERED: worker_pb2.HANDOFF_OUTCOME_DELIVERED,
        handoff.HandoffOutcome.FAILED: worker_pb2.HANDOFF_OUTCOME_FAILED,
        handoff.HandoffOutcome.DRAINED: worker_pb2.HANDOFF_OUTCOME_DRAINED,
    },
}


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")


_TO_WORKER = {kind: _snake(kind.__name__) for kind in typing.get_args(messages.RouterMessage)}
_TO_ROUTER = {kind: _snake(kind.__name__) for kind in typing.get_args(messages.WorkerMessage)}
_MESSAGES.update({kind: getattr(worker_pb2, kind.__name__) for kind in (*_TO_WORKER, *_TO_ROUTER)})


def to_message(value: Any) -> Message:
    """The protobuf message of one of the paired dataclasses."""
    kind: type = type(value)
    return partial_message(kind, {name: getattr(value, name) for name, _, _ in _plan(kind)})


def partial_message(kind: type, values: Mapping[str, Any]) -> Message:
    """The protobuf message of one of the paired dataclasses with only these of its fields."""
    message = _MESSAGES[kind]()
    for name, write, _ in _plan(kind):
        if name in values:
            write(message, name, values[name])
    return message


def from_message(kind: type[T], message: Message) -> T:
    """The dataclass of a message; raises `InvalidRequest` when a field without default is missing or unknown."""
    try:
        return kind(**given_fields(kind, message))
    except TypeError as error:
        raise InvalidRequest(f"A {kind.__name__} message lacks a field: {error}.") from None


def given_fields(kind: type, message: Message) -> dict[str, Any]:
    """The fields of a message that its sender set (and those that have no presence on the wire), by name."""
    values = {}
    for name, _, read in _plan(kind):
        present, value = read(message, name)
        if present:
            values[name] = value
    return values


_Writer = Callable[[Any, str, Any], None]
_Reader = Callable[[Any, str], tuple[bool, Any]]


@cache
def _plan(kind: type) -> tuple[tuple[str, _Writer, _Reader], ...]:
    """How each field of a dataclass is written and read, derived once from its type hints."""
    hints = typing.get_type_hints(kind)
    descriptor = _MESSAGES[kind].DESCRIPTOR
    plan = []
    for field in dataclasses.fields(kind):
        wire_field = descriptor.fields_by_name.get(field.name)
        if wire_field is None:
            raise InternalError(f"{descriptor.full_name} has no field {field.name}.")
        plan.append((field.name, *_converters(hints[field.name], wire_field)))
    return tuple(plan)


def _converters(hint: Any, wire_field: Any) -> tuple[_Writer, _Reader]:
    if isinstance(hint, types.UnionType):
        (hint,) = [arm for arm in typing.get_args(hint) if arm is not type(None)]
    if typing.get_origin(hint) is tuple:
        return _repeated(typing.get_args(hint)[0], wire_field)
    if dataclasses.is_dataclass(hint):
        return _nested(hint)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _enum(hint)
    return _scalar(wire_field.has_presence)


def _scalar(has_presence: bool) -> tuple[_Writer, _Reader]:
    def write(message: Any, name: str, value: Any) -> None:
        if value is not None:
            setattr(message, name, value)

    def read(message: Any, name: str) -> tuple[bool, Any]:
        return not has_presence or message.HasField(name), getattr(message, name)

    return write, read


def _nested(hint: Any) -> tuple[_Writer, _Reader]:
    def write(message: Any, name: str, value: Any) -> None:
        if value is not None:
            getattr(message, name).CopyFrom(to_message(value))

    def read(message: Any, name: str) -> tuple[bool, Any]:
        present = message.HasField(name)
        return present, from_message(hint, getattr(message, name)) if present else None

    return write, read


def _enum(hint: type[Enum]) -> tuple[_Writer, _Reader]:
    numbers = _ENUMS[hint]
    names = {number: value for value, number in numbers.items()}

    def write(message: Any, name: str, value: Any) -> None:
        if value is not None:
            setattr(message, name, numbers[value])

    def read(message: Any, name: str) -> tuple[bool, Any]:
        value = names.get(getattr(message, name))
        return value is not None, value

    return write, read


def _repeated(item: Any, wire_field: Any) -> tuple[_Writer, _Reader]:
    """Tuples of scalars, of dataclasses, or of plain tuples (a message's fields in their order)."""
    encode: Callable[[Any], Any] | None = None
    decode: Callable[[Any], Any] | None = None
    if dataclasses.is_dataclass(item):
        kind: Any = item
        encode, decode = to_message, lambda message: from_message(kind, message)
    elif typing.get_origin(item) is tuple:
        names = [field.name for field in wire_field.message_type.fields]
        make = getattr(worker_pb2, wire_field.message_type.name, None) or getattr(
            inference_pb2, wire_field.message_type.name
        )
        encode = lambda value: make(**dict(zip(names, value, strict=True)))  # noqa: E731
        decode = lambda message: tuple(getattr(message, name) for name in names)  # noqa: E731

    def write(message: Any, name: str, value: Any) -> None:
        getattr(message, name).extend(map(encode, value) if encode else value)

    def read(message: Any, name: str) -> tuple[bool, Any]:
        values = getattr(message, name)
        return True, tuple(map(decode, values) if decode else values)

    return write, read


def encode_to_worker(batch: list[messages.RouterMessage]) -> bytes:
    """One frame for a worker's link."""
    frame = worker_pb2.ToWorker()
    for item in batch:
        getattr(frame.messages.add(), _TO_WORKER[type(item)]).CopyFrom(to_message(item))
    return frame.SerializeToString()


def decode_to_worker(frame: bytes) -> list[messages.RouterMessage]:
    """The router's messages; raises `InvalidRequest` for invalid bytes."""
    return _messages(_parse(worker_pb2.ToWorker, frame), _TO_WORKER)


def encode_to_router(batch: Sequence[messages.WorkerMessage], incarnation: str) -> bytes:
    """One frame for the router's link: messages of one incarnation of a worker."""
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
    """Incarnation and messages of a worker; raises `InvalidRequest` for invalid bytes."""
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
            raise InvalidRequest(f"A {parsed.DESCRIPTOR.name} message has a kind this version does not know.")
        if name == "step_output":
            batch.append(_read_step_output(slot.step_output))
        else:
            batch.append(from_message(kinds[name], getattr(slot, name)))
    return batch


def _write_step_output(message: worker_pb2.StepOutput, output: messages.StepOutput) -> None:
    """Field by field, and only non-default ones: as arguments of `add` they take four times as long."""
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
                _FINISHES.get(token.finish),
                token.cached_tokens,
            )
            for token in message.tokens
        )
    )


_FINISHES: dict[int, request.FinishReason] = {
    number: reason
    for reason, number in _ENUMS[request.FinishReason].items()
    if isinstance(reason, request.FinishReason)
}


def finish_number(reason: request.FinishReason) -> Any:
    """The wire's number of a finish reason."""
    return _ENUMS[request.FinishReason][reason]


def finish_reason(number: int) -> request.FinishReason:
    """The finish reason of a number on the wire; raises `InvalidRequest` for one this version does not know."""
    if number not in _FINISHES:
        raise InvalidRequest(f"Unknown finish reason {number}.")
    return _FINISHES[number]


def encode_notice(notice: handoff.HandoffNotice) -> bytes:
    """The payload of a final write's notification."""
    return to_message(notice).SerializeToString()


def decode_notice(payload: bytes) -> handoff.HandoffNotice:
    """A peer's notification; raises `InvalidRequest` for invalid bytes."""
    try:
        return from_message(handoff.HandoffNotice, worker_pb2.HandoffNotice.FromString(payload))
    except DecodeError as error:
        raise InvalidRequest(f"Not a handoff notice: {error}.") from None
