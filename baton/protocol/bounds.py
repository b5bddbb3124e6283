"""Bounds on the fields of messages: `role_epoch: Count` declares one, and `check` refuses a value outside it.

A bound here is a fact of the field alone. What depends on other fields, or on what the receiver has, is checked by the
receiver (`router/core/peer_frames.py`).
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

from baton.protocol.errors import InvalidRequest

MAX_ID = 1024  # Characters of an id
MAX_IDS = 1 << 16  # Ids of a list
_MAX_TEXT = 1 << 16
_MAX_COUNT = 1 << 48
_MAX_SECONDS = 1e6

Fault = Callable[[Any], str]  # What is wrong with a value, as the end of a sentence; "" if nothing is


@dataclass(frozen=True, slots=True)
class Range:
    """A number from `low` to `high`; `above`: `low` itself is outside. NaN is outside every range."""

    low: float
    high: float
    above: bool = False

    def fault(self, value: float) -> str:
        if self.low <= value <= self.high and not (self.above and value == self.low):
            return ""
        low = f"above {self.low}" if self.above else f"at least {self.low}"
        return f"is {value}: it must be {low} and at most {self.high}"


@dataclass(frozen=True, slots=True)
class Length:
    """A text, bytes or a tuple of at most `high` items, and at least `low`."""

    high: int
    low: int = 0

    def fault(self, value: typing.Sized) -> str:
        length = len(value)
        if self.low <= length <= self.high:
            return ""
        if self.low == self.high:
            return f"has length {length}: it must be {self.high}"
        least = f"at least {self.low} and " if self.low else ""
        return f"has length {length}: it must be {least}at most {self.high}"


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of a few texts."""

    values: tuple[str, ...]

    def fault(self, value: str) -> str:
        return "" if value in self.values else f"is {value!r}: it must be one of {', '.join(self.values)}"


@dataclass(frozen=True, slots=True)
class Printable:
    """A text without control characters, so that it may stand in a log."""

    def fault(self, value: str) -> str:
        return "" if value.isprintable() else f"is {value!r}: it must not have control characters"


Count = Annotated[int, Range(0, _MAX_COUNT)]
Positive = Annotated[int, Range(1, 1 << 26)]
Seconds = Annotated[float, Range(0.0, _MAX_SECONDS)]
WallClock = Annotated[float, Range(0.0, 2.0**36)]  # Seconds since 1970
PositiveSeconds = Annotated[float, Range(0.0, _MAX_SECONDS, above=True)]
Id = Annotated[str, Length(MAX_ID)]
Ids = Annotated[tuple[Id, ...], Length(MAX_IDS)]
Label = Annotated[str, Length(MAX_ID), Printable()]
Text = Annotated[str, Length(_MAX_TEXT)]


def check(message: Any) -> None:
    """Raise `InvalidRequest` for the first field of a message, or of a dataclass in it, that is outside its bounds."""
    kind: type = type(message)
    for name, fault_of in _bounded_fields(kind):
        if fault := fault_of(getattr(message, name)):
            raise InvalidRequest(f"{kind.__name__}.{name} {fault}.")


@cache
def _bounded_fields(kind: type) -> tuple[tuple[str, Fault], ...]:
    """The fields of a dataclass that have bounds, derived once from its type hints."""
    hints = typing.get_type_hints(kind, include_extras=True)
    faults = {field.name: _fault_of(hints[field.name]) for field in dataclasses.fields(kind)}
    return tuple((name, fault) for name, fault in faults.items() if fault is not None)


def _fault_of(hint: Any) -> Fault | None:
    if typing.get_origin(hint) is Annotated:
        inner, *bounds = typing.get_args(hint)
        return _first([bound.fault for bound in bounds], _fault_of(inner))
    if typing.get_origin(hint) in (types.UnionType, typing.Union):  # `X | None` is the latter if X is Annotated
        arms = [_fault_of(arm) for arm in typing.get_args(hint) if arm is not type(None)]
        return _unless_none(arms[0]) if len(arms) == 1 and arms[0] is not None else None
    if typing.get_origin(hint) is tuple:
        item = _fault_of(typing.get_args(hint)[0])
        return item and _each(item)
    if dataclasses.is_dataclass(hint) and _bounded_fields(typing.cast(type, hint)):
        return _nested
    return None


def _first(faults: list[Fault], inner: Fault | None) -> Fault:
    """The first fault of several checks; a tuple's length is checked before its items."""
    checks = [*faults, *([inner] if inner else [])]
    if len(checks) == 1:
        return checks[0]
    return lambda value: next((fault for fault_of in checks if (fault := fault_of(value))), "")


def _unless_none(inner: Fault) -> Fault:
    return lambda value: "" if value is None else inner(value)


def _each(item: Fault) -> Fault:
    def fault_of(values: Any) -> str:
        for value in values:
            if fault := item(value):
                return fault
        return ""

    return fault_of


def _nested(value: Any) -> str:
    check(value)
    return ""
