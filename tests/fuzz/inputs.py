"""Inputs that no client would send on purpose: bytes, JSON and messages, random or mutated."""

from __future__ import annotations

import json
import random
from copy import deepcopy
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

MAX_BYTES = 1 << 14
NUMBERS = (0, 1, -1, 2, 3, 7, 255, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1, -(2**63), 2**64)
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-300, 1e300, float("inf"), float("-inf"), float("nan"))
TEXTS = ("", "r0", "r1", "r0/1", "r1/1", "decode-0", "prefill-0", "probe/op-1/decode-0", "ä\u0000", "x" * 300, "1", "2")
LIKELY = {
    "request_id": ("r0", "r1"),
    "reservation_id": ("r0/1", "r1/1", "r0/2"),
    "worker": ("decode-0", "prefill-0"),
    "name": ("decode-0", "decode-1"),
    "incarnation": ("1", "2"),
    "agent": ("decode-0:1", "decode-1:1"),
}
VALUES: tuple[Any, ...] = (None, True, False, *NUMBERS, *FLOATS, *TEXTS, [], {}, [[]], [1, "a"], {"a": 1}, "\ud800")


def mutated_bytes(rng: random.Random, data: bytes) -> bytes:
    """A few bytes changed, lost, doubled or put in."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        at, length = rng.randint(0, len(out)), rng.choice((1, 1, 2, 8, 40))
        match rng.randrange(5):
            case 0:
                out[at : at + length] = rng.randbytes(len(out[at : at + length]))
            case 1:
                del out[at : at + length]
            case 2:
                out[at:at] = out[at : at + length]
            case 3:
                out[at:at] = rng.choice(
                    (b"\x00", b"\xff" * 8, b'"', b"{", b"[" * 3000, b"\xc3\x28", b"9" * 5000, b"\n")
                )
            case _:
                del out[at:]
    return bytes(out[:MAX_BYTES])


def mutated_json(rng: random.Random, value: Any) -> Any:
    """A copy with a value somewhere replaced, or a key lost."""
    copy = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 2, 5))):
        if not isinstance(copy, dict | list) or rng.random() < 0.02:
            return deepcopy(rng.choice(VALUES))
        node: Any = copy
        while True:
            keys: list[Any] = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(node[key], dict | list) and rng.random() < 0.7:
                node = node[key]
                continue
            if rng.random() < 0.2:
                del node[key]
            else:
                node[key] = deepcopy(rng.choice(VALUES))
            break
    return copy


def json_bytes(value: Any) -> bytes:
    return json.dumps(value).encode()


def fill(rng: random.Random, message: Message, depth: int = 0) -> Message:
    """Give a message any values its fields can have."""
    chosen = {oneof.name: rng.choice([*oneof.fields]).name for oneof in message.DESCRIPTOR.oneofs}
    sparse = rng.choice((0.0, 0.1, 0.5))
    for one in message.DESCRIPTOR.fields:
        oneof = one.containing_oneof
        alone = oneof is not None and len(oneof.fields) > 1
        if oneof is not None and alone and chosen[oneof.name] != one.name:
            continue
        if depth > 5 or (not alone and rng.random() < sparse):
            continue
        if one.is_repeated:
            items = getattr(message, one.name)
            for _ in range(rng.choice((0, 1, 1, 2, 5))):
                if one.message_type is not None and one.message_type.GetOptions().map_entry:
                    key, value = one.message_type.fields  # A map of scalars
                    items[_scalar(rng, key)] = _scalar(rng, value)
                elif one.message_type is not None:
                    fill(rng, items.add(), depth + 1)
                else:
                    items.append(_scalar(rng, one))
        elif one.message_type is not None:
            sub = getattr(message, one.name)
            sub.SetInParent()
            fill(rng, sub, depth + 1)
        else:
            setattr(message, one.name, _scalar(rng, one))
    return message


def _scalar(rng: random.Random, one: Any) -> Any:
    match one.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING if one.type == FieldDescriptor.TYPE_BYTES:
            return rng.randbytes(rng.choice((0, 1, 16)))
        case FieldDescriptor.CPPTYPE_STRING:
            return rng.choice(LIKELY[one.name] if one.name in LIKELY and rng.random() < 0.7 else TEXTS)
        case FieldDescriptor.CPPTYPE_BOOL:
            return rng.random() < 0.5
        case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
            return rng.choice(FLOATS)
        case FieldDescriptor.CPPTYPE_ENUM:
            return rng.randrange(5)
        case FieldDescriptor.CPPTYPE_INT32:
            return rng.choice([n for n in NUMBERS if -(2**31) <= n < 2**31])
        case FieldDescriptor.CPPTYPE_INT64:
            return rng.choice([n for n in NUMBERS if -(2**63) <= n < 2**63])
        case FieldDescriptor.CPPTYPE_UINT32:
            return rng.choice([n for n in NUMBERS if 0 <= n < 2**32])
        case _:
            return rng.choice([n for n in NUMBERS if 0 <= n < 2**64])
