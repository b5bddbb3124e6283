"""Every message survives encoding and decoding, and invalid bytes are refused."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Collection
from enum import Enum
from functools import partial
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.protocol import codec, messages, session_messages
from baton.protocol.bounds import Length, OneOf, Printable, Range
from baton.protocol.errors import InvalidRequest
from baton.protocol.gateway_messages import RequestEnded
from baton.protocol.handoff import HandoffNotice, HandoffOutcome, HandoffReport


def _values(hint: Any) -> st.SearchStrategy[Any]:
    """Any value of a field's type that is within its bounds."""
    if typing.get_origin(hint) is Annotated:
        inner, *bounds = typing.get_args(hint)
        return _bounded(inner, bounds)
    if hint == messages.Payload:
        return st.binary(max_size=8)
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return st.one_of(*(_values(arm) for arm in typing.get_args(hint)))
    if hint is type(None):
        return st.none()
    if typing.get_origin(hint) is tuple:
        arms = typing.get_args(hint)
        if typing.get_origin(arms[0]) is tuple:  # A map's entries: each key once, in ascending order
            pairs = st.dictionaries(*map(_values, typing.get_args(arms[0])), max_size=4)
            return pairs.map(lambda entries: tuple(sorted(entries.items())))
        if arms[-1] is Ellipsis:
            return st.lists(_values(arms[0]), max_size=4).map(tuple)
        return st.tuples(*map(_values, arms))
    if dataclasses.is_dataclass(hint):
        return _instances(hint)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return st.sampled_from(list(hint))
    return {
        int: st.integers(0, 2**31 - 1),
        float: st.floats(width=32, allow_nan=False),
        str: st.text(max_size=8),
        bytes: st.binary(max_size=8),
        bool: st.booleans(),
    }[hint]


def _bounded(hint: Any, bounds: list[Any]) -> st.SearchStrategy[Any]:
    match bounds:
        case [Range(low, high, above)] if isinstance(low, float):
            return st.floats(low, high, width=32, exclude_min=above, allow_subnormal=False)
        case [Range(low, high)]:
            return st.integers(int(low), int(min(high, 2**31 - 1)))
        case [Length(high, low)] if low == high:
            return st.binary(min_size=low, max_size=high)
        case [Length(_, 1)]:
            return _values(hint).filter(len)
        case [OneOf(values)]:
            return st.sampled_from(values)
        case [*_, Printable()]:
            return st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=8)
    return _values(hint)


def _instances(kind: Any) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return st.builds(kind, **{field.name: _values(hints[field.name]) for field in dataclasses.fields(kind)})


LINKS = {  # The kinds of each direction
    "router to worker": codec.FROM_ROUTER_TO_WORKER,
    "router to gateway": codec.FROM_ROUTER_TO_GATEWAY,
    "to the router": codec.TO_ROUTER,
    "worker to gateway": codec.FROM_WORKER_TO_GATEWAY,
    "gateway to worker": codec.FROM_GATEWAY_TO_WORKER,
}


def _batches(kinds: Collection[type]) -> st.SearchStrategy[list[Any]]:
    """Messages of these kinds; a payload is bytes, as it is after a link."""
    return st.lists(st.one_of(*(_instances(kind) for kind in sorted(kinds, key=codec.kind_name))), max_size=4)


@pytest.mark.parametrize("link", LINKS)
def test_messages_of_every_link_round_trip(link: str) -> None:
    @settings(deadline=None, max_examples=100, database=None)
    @given(_batches(LINKS[link]))
    def round_trip(batch: list[Any]) -> None:
        assert codec.decode_frame(codec.encode_frame(batch, "life"), LINKS[link]) == ("life", batch)

    round_trip()


@settings(deadline=None)
@given(_instances(messages.Work))
def test_work_round_trips_as_a_payload(work: messages.Work) -> None:
    (order,) = codec.decode_frame(
        codec.encode_frame([messages.Prefill("r0", work, "gateway-0", True, 0)]), codec.FROM_ROUTER_TO_WORKER
    )[1]
    assert isinstance(order.work, bytes)
    assert codec.work_of(order.work) == work == codec.work_of(work)


def test_a_message_that_its_sender_may_not_send_is_refused() -> None:
    frame = codec.encode_frame([session_messages.Alive(), messages.Cancel("r0")])
    with pytest.raises(InvalidRequest, match="may not send: Cancel"):
        codec.decode_frame(frame, codec.TO_ROUTER)


@settings(deadline=None)
@given(_instances(HandoffNotice))
def test_a_handoff_notice_round_trips(notice: HandoffNotice) -> None:
    assert codec.decode_notice(codec.encode_notice(notice)) == notice


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_refused(data: bytes) -> None:
    frames = [partial(codec.decode_frame, kinds=kinds) for kinds in LINKS.values()]
    decoders: list[Callable[[bytes], object]] = [*frames, codec.decode_notice, codec.work_of]
    for decode in decoders:
        try:
            decode(data)
        except InvalidRequest as error:
            assert error.message


@pytest.mark.parametrize("field", ["pages_sent", "transfer_s"])
def test_a_message_with_a_field_outside_its_bounds_is_refused(field: str) -> None:
    """The part of a message has bounds too, and the error names the field and its value."""
    ended = messages.HandoffEnded("r0", "r0/1", HandoffOutcome.DELIVERED, HandoffReport(**{field: -1}))
    with pytest.raises(InvalidRequest, match=rf"^HandoffReport.{field} is -1(\.0)?: it must be at least 0"):
        codec.decode_frame(codec.encode_frame([ended], "life"), codec.TO_ROUTER)


def test_a_field_that_may_be_open_has_bounds_too() -> None:
    for ended in (RequestEnded("r0", retry_after_s=-1.0), RequestEnded("r0", retry_after_s=float("nan"))):
        with pytest.raises(InvalidRequest, match=r"^RequestEnded.retry_after_s is (-1\.0|nan): it must be at least 0"):
            codec.decode_frame(codec.encode_frame([ended]), codec.FROM_ROUTER_TO_GATEWAY)
    open_field = RequestEnded("r0")
    assert codec.decode_frame(codec.encode_frame([open_field]), codec.FROM_ROUTER_TO_GATEWAY) == ("", [open_field])


def test_a_message_without_a_required_part_is_refused() -> None:
    from baton.protocol.v1 import worker_pb2

    frame = worker_pb2.Frame(messages=[worker_pb2.LinkMessage(register=worker_pb2.Register())])
    with pytest.raises(InvalidRequest, match="Register"):
        codec.decode_frame(frame.SerializeToString(), codec.TO_ROUTER)
