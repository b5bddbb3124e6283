"""Dataclasses to protobuf messages and back, field by field; the one place that reads message fields.

A dataclass and its message have the same field names, so one rule converts both ways. A field that the sender left out
takes the dataclass's default; a message without a required field is refused.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from operator import attrgetter
from typing import Any, TypeVar

from google.protobuf.message import Message

from baton.protocol import gateway_messages, handoff, messages, request, session_messages, trace_context, worker
from baton.protocol.errors import InternalError, InvalidRequest
from baton.protocol.v1 import inference_pb2, worker_pb2

T = TypeVar("T")

_MESSAGES: dict[type, type[Message]] = {
    request.SamplingParams: inference_pb2.SamplingParams,
    request.Objectives: inference_pb2.Objectives,
    request.Request: worker_pb2.WorkRequest,
    worker.PageLayout: worker_pb2.PageLayout,
    worker.RankAddress: worker_pb2.RankAddress,
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
    trace_context.TraceContext: worker_pb2.TraceContext,
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
    message = _MESSAGES[type(value)]()
    fill(message, value)
    return message


def fill(message: Message, value: Any) -> None:
    """Write a dataclass into an empty message of its kind; what is None, or the wire format's default, stays unset."""
    kind: type = type(value)
    for name, has_presence, write in _writers(kind):
        field = getattr(value, name)
        if field or (has_presence and field is not None):
            write(message, name, field)


def partial_message(kind: type, values: Mapping[str, Any]) -> Message:
    """The protobuf message of a dataclass with some of its fields; the others stay unset."""
    message = _MESSAGES[kind]()
    for name, _, write in _writers(kind):
        if values.get(name) is not None:
            write(message, name, values[name])
    return message


def from_message(kind: type[T], message: Message) -> T:
    """The dataclass of a message; raises `InvalidRequest` if a required field is missing."""
    schema: type = kind
    return kind(*[read(message) for read in _readers(schema)])


def given_fields(kind: type, message: Message) -> dict[str, Any]:
    """The fields that the sender set, by name, with those that have no presence in the wire format."""
    return {
        name: field.read(message)
        for name, field in _schema(kind).items()
        if field.given is None or field.given(message)
    }


@dataclass(frozen=True, slots=True)
class _Field:
    """How a field of a dataclass is written, and read where it is `given` (None: it always is)."""

    has_presence: bool
    write: Callable[[Any, str, Any], None]
    read: Callable[[Any], Any]
    given: Callable[[Any], bool] | None


@cache
def _schema(kind: type) -> dict[str, _Field]:
    """The fields of a dataclass by name, derived once from its type hints."""
    hints = typing.get_type_hints(kind)
    descriptor = _MESSAGES[kind].DESCRIPTOR
    fields = {}
    for field in dataclasses.fields(kind):
        wire_field = descriptor.fields_by_name.get(field.name)
        if wire_field is None:
            raise InternalError(f"{descriptor.full_name} has no field {field.name}.")
        fields[field.name] = _field(hints[field.name], wire_field)
    return fields


@cache
def _writers(kind: type) -> tuple[tuple[str, bool, Callable[[Any, str, Any], None]], ...]:
    return tuple((name, field.has_presence, field.write) for name, field in _schema(kind).items())


@cache
def _readers(kind: type) -> tuple[Callable[[Any], Any], ...]:
    """What reads each argument of a dataclass; a field that is not given takes its default."""
    schema = _schema(kind)
    return tuple(_or_default(kind, field, schema[field.name]) for field in dataclasses.fields(kind))


def _or_default(kind: type, field: dataclasses.Field[Any], wire: _Field) -> Callable[[Any], Any]:
    if wire.given is None:
        return wire.read
    given, read, default, factory = wire.given, wire.read, field.default, field.default_factory

    def read_given(message: Any) -> Any:
        if given(message):
            return read(message)
        if factory is not dataclasses.MISSING:
            return factory()
        if default is dataclasses.MISSING:
            raise InvalidRequest(f"A {kind.__name__} message lacks its field {field.name}.")
        return default

    return read_given


def _field(hint: Any, wire_field: Any) -> _Field:
    name, has_presence = wire_field.name, wire_field.has_presence
    read = attrgetter(name)
    given: Callable[[Any], bool] | None = (lambda message: message.HasField(name)) if has_presence else None
    if hint == messages.Payload:
        return _Field(False, _write_payload, read, None)
    if isinstance(hint, types.UnionType):
        (hint,) = [arm for arm in typing.get_args(hint) if arm is not type(None)]
    if typing.get_origin(hint) is tuple:
        return _repeated(typing.get_args(hint)[0], wire_field)
    if dataclasses.is_dataclass(hint):
        kind: Any = hint
        return _Field(True, _write_nested, lambda message: from_message(kind, getattr(message, name)), given)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _enum(hint, name)
    return _Field(has_presence, setattr, read, given)


def _write_payload(message: Any, name: str, value: messages.Payload) -> None:
    """Work as bytes: it is decoded where it is used (`codec.work_of`)."""
    setattr(message, name, value if isinstance(value, bytes) else to_message(value).SerializeToString())


def _write_nested(message: Any, name: str, value: Any) -> None:
    nested = getattr(message, name)
    nested.SetInParent()
    fill(nested, value)


def _enum(hint: type[Enum], name: str) -> _Field:
    numbers = _ENUMS[hint]
    names = {number: value for value, number in numbers.items()}
    return _Field(
        False,
        lambda message, name, value: setattr(message, name, numbers[value]),
        lambda message: names[getattr(message, name)],
        lambda message: getattr(message, name) in names,
    )


def _repeated(item: Any, wire_field: Any) -> _Field:
    """Tuples of scalars, of dataclasses, or of plain tuples (a message's fields in their order, or a map's entries)."""
    field_name = wire_field.name
    if wire_field.message_type is not None and wire_field.message_type.GetOptions().map_entry:
        return _map(field_name)
    if dataclasses.is_dataclass(item):
        kind: Any = item

        def write_nested(message: Any, name: str, values: Any) -> None:
            add = getattr(message, name).add
            for value in values:
                fill(add(), value)

        def read_nested(message: Any) -> tuple[Any, ...]:
            return tuple([from_message(kind, nested) for nested in getattr(message, field_name)])

        return _Field(False, write_nested, read_nested, None)
    if typing.get_origin(item) is tuple:
        names = [field.name for field in wire_field.message_type.fields]

        def write_tuples(message: Any, name: str, values: Any) -> None:
            add = getattr(message, name).add
            for value in values:
                add(**dict(zip(names, value, strict=True)))

        read_item = attrgetter(*names)
        return _Field(False, write_tuples, lambda message: tuple(map(read_item, getattr(message, field_name))), None)

    def write(message: Any, name: str, values: Any) -> None:
        getattr(message, name).extend(values)

    return _Field(False, write, lambda message: tuple(getattr(message, field_name)), None)


def _map(name: str) -> _Field:
    """Pairs of key and value, read in ascending order."""

    def write(message: Any, name: str, values: Any) -> None:
        getattr(message, name).update(values)

    return _Field(False, write, lambda message: tuple(sorted(getattr(message, name).items())), None)


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
