"""Dataclasses to protobuf messages and back, field by field; the one place that reads message fields.

A dataclass and its message have the same field names, so one rule converts both ways. A field that the sender left out
takes the dataclass's default; a message without a required field is refused.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache
from typing import Any, TypeVar

from google.protobuf.message import Message

from baton.protocol import gateway_messages, handoff, messages, request, session_messages, worker
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
    messages.Work: worker_pb2.Work,
    gateway_messages.TokenOutput: worker_pb2.TokenOutput,
    gateway_messages.GatewayInfo: worker_pb2.GatewayInfo,
    gateway_messages.StreamPosition: worker_pb2.StreamPosition,
    session_messages.DetachedSequence: worker_pb2.DetachedSequence,
}
LINK_MESSAGES: tuple[type, ...] = tuple(
    dict.fromkeys(
        (
            *typing.get_args(messages.RouterMessage),
            *typing.get_args(messages.WorkerMessage),
            *typing.get_args(gateway_messages.GatewayMessage),
            *typing.get_args(gateway_messages.ToGateway),
            *typing.get_args(gateway_messages.TokenMessage),
            gateway_messages.AttachStreams,
        )
    )
)
"""Every message of a link, by kind."""

_MESSAGES.update({kind: getattr(worker_pb2, kind.__name__) for kind in LINK_MESSAGES})

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


def to_message(value: Any) -> Message:
    """The protobuf message of a dataclass."""
    kind: type = type(value)
    return partial_message(kind, {name: getattr(value, name) for name, _, _ in _schema(kind)})


def partial_message(kind: type, values: Mapping[str, Any]) -> Message:
    """The protobuf message of a dataclass with some of its fields; the others stay unset."""
    message = _MESSAGES[kind]()
    for name, write, _ in _schema(kind):
        if name in values:
            write(message, name, values[name])
    return message


def from_message(kind: type[T], message: Message) -> T:
    """The dataclass of a message; raises `InvalidRequest` if a required field is missing."""
    try:
        return kind(**given_fields(kind, message))
    except TypeError as error:
        raise InvalidRequest(f"A {kind.__name__} message lacks a field: {error}.") from None


def given_fields(kind: type, message: Message) -> dict[str, Any]:
    """The fields that the sender set, by name, with those that have no presence in the wire format."""
    values = {}
    for name, _, read in _schema(kind):
        present, value = read(message, name)
        if present:
            values[name] = value
    return values


_Writer = Callable[[Any, str, Any], None]
_Reader = Callable[[Any, str], tuple[bool, Any]]


@cache
def _schema(kind: type) -> tuple[tuple[str, _Writer, _Reader], ...]:
    """Name, writer and reader of each field of a dataclass, derived once from its type hints."""
    hints = typing.get_type_hints(kind)
    descriptor = _MESSAGES[kind].DESCRIPTOR
    fields = []
    for field in dataclasses.fields(kind):
        wire_field = descriptor.fields_by_name.get(field.name)
        if wire_field is None:
            raise InternalError(f"{descriptor.full_name} has no field {field.name}.")
        fields.append((field.name, *_converters(hints[field.name], wire_field)))
    return tuple(fields)


def _converters(hint: Any, wire_field: Any) -> tuple[_Writer, _Reader]:
    if hint == messages.Payload:
        return _payload()
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


def _payload() -> tuple[_Writer, _Reader]:
    """Work as bytes: it is decoded where it is used (`codec.work_of`)."""

    def write(message: Any, name: str, value: messages.Payload) -> None:
        setattr(message, name, value if isinstance(value, bytes) else to_message(value).SerializeToString())

    def read(message: Any, name: str) -> tuple[bool, Any]:
        return True, getattr(message, name)

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
    """Tuples of scalars, of dataclasses, or of plain tuples (a message's fields in their order, or a map's entries)."""
    if wire_field.message_type is not None and wire_field.message_type.GetOptions().map_entry:
        return _map()
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


def _map() -> tuple[_Writer, _Reader]:
    """Pairs of key and value, read in ascending order."""

    def write(message: Any, name: str, value: Any) -> None:
        getattr(message, name).update(value)

    def read(message: Any, name: str) -> tuple[bool, Any]:
        return True, tuple(sorted(getattr(message, name).items()))

    return write, read


FINISH_REASONS: dict[int, request.FinishReason] = {
    number: reason
    for reason, number in _ENUMS[request.FinishReason].items()
    if isinstance(reason, request.FinishReason)
}


def finish_number(reason: request.FinishReason) -> Any:
    """A finish reason as a number of the protobuf enum."""
    return _ENUMS[request.FinishReason][reason]


def finish_reason(number: int) -> request.FinishReason:
    """The finish reason of a protobuf enum's number; raises `InvalidRequest` for an unknown number."""
    if number not in FINISH_REASONS:
        raise InvalidRequest(f"Unknown finish reason {number}.")
    return FINISH_REASONS[number]
