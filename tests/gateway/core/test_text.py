"""Text from tokens: nothing split, nothing lost, stop strings found wherever they lie."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from baton.gateway.core.detokenizer import WINDOW_TOKENS, Detokenizer, StopStrings
from baton.gateway.core.stream import OutputStream
from baton.protocol.gateway_messages import TokenOutput
from baton.protocol.request import FinishReason, Request, SamplingParams
from tests.plain_vocabulary import BYTES


@given(st.text(max_size=40))
def test_the_increments_are_the_text_and_no_character_is_split(text: str) -> None:
    detokenizer = Detokenizer(BYTES)
    parts = [detokenizer.push(byte) for byte in text.encode()]
    assert "".join(parts) + detokenizer.flush() == text
    assert all("\N{REPLACEMENT CHARACTER}" not in part for part in parts if "\N{REPLACEMENT CHARACTER}" not in text)


@given(st.binary(max_size=60))
def test_invalid_bytes_never_stop_the_text(data: bytes) -> None:
    detokenizer = Detokenizer(BYTES)
    for byte in data:
        detokenizer.push(byte)
    assert len(detokenizer._window) <= WINDOW_TOKENS


@given(st.text("ab.", max_size=30), st.lists(st.text("ab.", min_size=1, max_size=4), min_size=1, max_size=3), st.data())
def test_text_ends_before_the_first_stop_string_or_with_it(text: str, stops: list[str], data: st.DataObject) -> None:
    finder, including = StopStrings(tuple(stops)), StopStrings(tuple(stops), include=True)
    shown, whole, rest, met = "", "", text, False
    while rest and not met:
        size = data.draw(st.integers(1, 5))
        part, rest = rest[:size], rest[size:]
        visible, met = finder.push(part)
        shown += visible
        visible, too = including.push(part)
        whole += visible
        assert met == too
    positions = [text.find(stop) for stop in stops if stop in text]
    if met:
        assert any(text.startswith(shown + stop) for stop in stops)
        assert not any(stop in shown for stop in stops)
        assert whole == shown + min((stop for stop in stops if text.startswith(shown + stop)), key=len)
    else:
        assert not positions
        assert shown + finder.flush() == whole + including.flush() == text


def _stream(**params: object) -> OutputStream:
    return OutputStream(Request("r", (1,), SamplingParams(max_tokens=10, **params)), BYTES)  # type: ignore[arg-type]


@given(st.permutations(list(range(6))), st.lists(st.integers(0, 5), max_size=6))
def test_tokens_in_any_order_and_repeated_come_out_once_in_order(order: list[int], repeats: list[int]) -> None:
    stream = _stream()
    seen = []
    for index in [*order[:3], *repeats, *order[3:], *repeats]:
        finish = FinishReason.LENGTH if index == 5 else None
        seen += stream.accept(TokenOutput("r", index, 97 + index, finish=finish))
    assert [token.index for token in seen] == list(range(6))
    assert "".join(token.text for token in seen) + stream.trailing_text == "abcdef"
    assert stream.finish is FinishReason.LENGTH


def test_a_stop_string_over_three_tokens_ends_the_stream() -> None:
    stream = _stream(stop=("bcd",))
    seen = [token for index in range(6) for token in stream.accept(TokenOutput("r", index, 97 + index))]
    assert stream.stop_string_met
    assert "".join(token.text for token in seen) == "a"
    assert len(seen) == 4


def test_text_held_back_for_a_stop_string_comes_at_the_end() -> None:
    stream = _stream(stop=("bz",))
    stream.accept(TokenOutput("r", 0, 97))
    stream.accept(TokenOutput("r", 1, 98, finish=FinishReason.LENGTH))
    assert stream.trailing_text == "b"


def _streamed(text: str, **params: object) -> tuple[str, OutputStream]:
    """What is shown of a text, a byte per token, the last of which ends it."""
    stream = _stream(**params)
    last = len(text) - 1
    outputs = (
        TokenOutput("r", index, ord(letter), finish=FinishReason.LENGTH if index == last else None)
        for index, letter in enumerate(text)
    )
    return "".join(token.text for output in outputs for token in stream.accept(output)) + stream.trailing_text, stream


def test_a_stop_string_within_the_first_min_tokens_tokens_is_text_like_any_other() -> None:
    text, stream = _streamed("abcabc", stop=("ab",), min_tokens=2)
    assert (text, stream.stop_string_met, len(stream.token_ids)) == ("abc", True, 5)
    text, stream = _streamed("abc", stop=("bc",), min_tokens=3)
    assert (text, stream.stop_string_met, stream.finish) == ("abc", False, FinishReason.LENGTH)


def test_a_stop_string_may_begin_in_the_first_min_tokens_tokens() -> None:
    text, stream = _streamed("abcde", stop=("bcd",), min_tokens=3)
    assert (text, stream.stop_string_met, len(stream.token_ids)) == ("a", True, 4)


@given(st.text("ab", min_size=1, max_size=10), st.lists(st.text("ab", min_size=1, max_size=3), min_size=1), st.data())
def test_the_answer_ends_at_the_first_stop_string_that_ends_after_min_tokens(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    min_tokens = data.draw(st.integers(0, len(text)))
    ends = {
        end: min(end - len(stop) for stop in stops if text[:end].endswith(stop))
        for end in range(min_tokens + 1, len(text) + 1)
        if any(text[:end].endswith(stop) for stop in stops)
    }
    shown, stream = _streamed(text, stop=tuple(stops), min_tokens=min_tokens)
    assert stream.stop_string_met == bool(ends)
    assert shown == (text[: ends[min(ends)]] if ends else text)


def test_tokens_that_came_before_the_end_but_follow_it_are_not_shown() -> None:
    stream = _stream(stop=("b",))
    assert stream.accept(TokenOutput("r", 2, 99)) == [] and stream.has_gap
    assert stream.accept(TokenOutput("r", 1, 98)) == []
    assert [token.index for token in stream.accept(TokenOutput("r", 0, 97))] == [0, 1]
    assert stream.reason is FinishReason.STOP and not stream.has_gap
