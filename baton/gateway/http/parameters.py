"""Values from a JSON body, checked. Pure.

Every error is a sentence that names the field. `null` is the same as a field that is not given.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import orjson

from baton.http.errors import InvalidField
from baton.http.response import MAX_BODY_BYTES, BodyTooLarge
from baton.protocol.errors import InvalidRequest

MAX_DEPTH = 64  # Of objects and lists in each other
MAX_SHOWN = 60  # Characters of a wrong value or name in a message
MAX_UNKNOWN = 16  # Names of unknown fields that are kept


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a body; raises `InvalidRequest` for anything else, and for keys that are given twice."""
    if len(body) > MAX_BODY_BYTES:
        raise BodyTooLarge(f"The body has {len(body)} bytes; at most {MAX_BODY_BYTES} are accepted.")
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"The body is not valid JSON in UTF-8: {error.args[0][:200]}.") from None
    if not isinstance(value, dict):
        raise InvalidRequest(f"The body is {shown(value)}: it must be a JSON object.")
    num_keys = len(value) if body.count(b"{") == 1 else _count_keys(value)
    if num_keys != _written_keys(body):
        _refuse_repeated_key(body)
    return value


def _written_keys(body: bytes) -> int:
    """The keys in valid JSON, counted with repetitions: a colon follows the string."""
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")  # Then every quotation mark begins or ends a string
    return sum(1 for after in body.split(b'"')[2::2] if after[:1] == b":" or after.lstrip()[:1] == b":")


def _count_keys(value: dict[str, Any]) -> int:
    """The keys of all objects in a value; raises `InvalidField` if it is too deep."""
    num_keys = 0
    for name, top in value.items():
        waiting = [top] if isinstance(top, dict | list) else []
        depth = 0
        while waiting:
            depth += 1
            if depth > MAX_DEPTH:
                raise InvalidField(f"{short(name)} is nested more than {MAX_DEPTH} deep.", short(name))
            num_keys += sum(len(node) for node in waiting if isinstance(node, dict))
            items = (node.values() if isinstance(node, dict) else node for node in waiting)
            waiting = [item for values in items for item in values if isinstance(item, dict | list)]
    return num_keys + len(value)


def _refuse_repeated_key(body: bytes) -> None:
    def unique(pairs: list[tuple[str, Any]]) -> None:
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise InvalidField(f"{short(name)} is given twice in one object.", short(name))
            seen.add(name)

    json.loads(body, object_pairs_hook=unique)
    raise InvalidRequest("A key is given twice in one object.")


@dataclass(eq=False)
class Fields:
    """The fields of an object. Those that are never read are unknown."""

    values: Mapping[str, Any]
    prefix: str = ""  # In names: "messages[2]."
    _read: set[str] = field(default_factory=set)

    def get(self, name: str) -> Any:
        """A value of any type; None if it is not given."""
        self._read.add(name)
        return self.values.get(name)

    def error(self, name: str, must: str) -> InvalidField:
        """The error for a wrong value of a field, which `must` be something else."""
        full = self.prefix + name
        if self.values.get(name) is None:
            return InvalidField(f"{full} is missing: it must be {must}.", full)
        return InvalidField(f"{full} is {shown(self.values[name])}: it must be {must}.", full)

    def whole(self, name: str, low: int, high: int) -> int | None:
        """A whole number from `low` to `high`."""
        value = self.get(name)
        if type(value) is float and value.is_integer():
            value = int(value)
        if value is not None and not (type(value) is int and low <= value <= high):
            raise self.error(name, f"a whole number from {low} to {high}")
        return value

    def number(self, name: str, low: float, high: float) -> float | None:
        """A number from `low` to `high`."""
        value = self.get(name)
        if value is not None and not (type(value) in (int, float) and low <= value <= high):
            raise self.error(name, f"a number from {low:g} to {high:g}")
        return None if value is None else float(value)

    def flag(self, name: str, default: bool) -> bool:
        """A truth value."""
        value = self.get(name)
        if value is not None and type(value) is not bool:
            raise self.error(name, "true or false")
        return default if value is None else value

    def text(self, name: str) -> str | None:
        """A text."""
        value = self.get(name)
        if value is not None and type(value) is not str:
            raise self.error(name, "a text")
        return value

    def inner(self, name: str) -> Fields:
        """The fields of an object; empty if it is not given."""
        value = self.get(name)
        if value is not None and type(value) is not dict:
            raise self.error(name, "an object")
        return Fields(value or {}, f"{self.prefix}{name}.")

    def list_of(self, name: str, kind: type, word: str, max_items: int) -> list[Any] | None:
        """A list of at most `max_items` values of one type."""
        value = self.get(name)
        if value is not None and not (type(value) is list and set(map(type, value)) <= {kind}):
            raise self.error(name, f"a list of {word}")
        if value is not None and len(value) > max_items:
            raise InvalidField(
                f"{self.prefix}{name} has {len(value)} items; at most {max_items} are accepted.", self.prefix + name
            )
        return value

    def refuse(self, refused: Mapping[str, tuple[object, ...]]) -> None:
        """Raise `InvalidField` for fields that would change the answer, unless they have one of the given values."""
        for name in filter(refused.__contains__, self.values):
            value = self.get(name)
            if value is not None and value not in refused[name]:
                full = self.prefix + name
                raise InvalidField(f"{full} is not supported. Leave it out.", full)

    @property
    def unread(self) -> tuple[str, ...]:
        """The first names of unknown fields."""
        unknown = (name for name, value in self.values.items() if value is not None and name not in self._read)
        return tuple(short(name) for name in islice(unknown, MAX_UNKNOWN))


def short(text: str) -> str:
    """A text of the client for a message or a log line."""
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def shown(value: object) -> str:
    """A value of the client for a message."""
    match value:
        case dict():
            return "an object"
        case list():
            return f"a list of {len(value)}"
        case str():
            return repr(short(value))
        case bool():
            return "true" if value else "false"
    return "null" if value is None else short(repr(value))
