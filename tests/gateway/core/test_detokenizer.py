"""The text of an output, token by token, is the text of prompt and output beyond the prompt's, for any tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.engine.tokenizer import Tokenizer
from baton.gateway.core.detokenizer import CONTEXT_TOKENS, WINDOW_TOKENS, Detokenizer
from baton.gateway.core.stream import OutputStream
from baton.protocol.gateway_messages import TokenOutput
from baton.protocol.request import FinishReason, Request, SamplingParams
from tests.gateway.vocabularies import KINDS, output_text, token_id, vocabulary


def _ids(tokenizer: Tokenizer, most: int) -> st.SearchStrategy[list[int]]:
    """Ids of any kind, special and unknown ones among them, and texts that could be real ones."""
    any_id = st.integers(0, tokenizer.vocab_size + 3)
    text = st.text("time größer 中🙂\n", max_size=12).map(lambda text: tokenizer.encode(text, add_special_tokens=False))
    bytes_of = st.binary(min_size=1, max_size=6).map(lambda data: [tokenizer.byte_ids[byte] for byte in data])
    parts = [st.lists(any_id, max_size=6), text, *([bytes_of] if tokenizer.byte_ids else [])]
    return st.lists(st.one_of(parts), max_size=most).map(lambda lists: list(chain.from_iterable(lists)))


def _stream(tokenizer: Tokenizer, prompt: Sequence[int], **params: object) -> OutputStream:
    sampling = SamplingParams(max_tokens=1000, **params)  # type: ignore[arg-type]
    return OutputStream(Request("r", tuple(prompt), sampling), tokenizer)


def _outputs(token_ids: Sequence[int], start: int = 0) -> list[TokenOutput]:
    last = len(token_ids) - 1
    return [
        TokenOutput("r", index, token_id, finish=FinishReason.LENGTH if index == last else None)
        for index, token_id in enumerate(token_ids)
        if index >= start
    ]


def _text(stream: OutputStream, outputs: Sequence[TokenOutput]) -> str:
    return "".join(token.text for output in outputs for token in stream.accept(output)) + stream.trailing_text


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=400, deadline=None)
@given(st.data())
def test_the_deltas_are_the_text_beyond_the_prompt(kind: str, data: st.DataObject) -> None:
    tokenizer = vocabulary(kind)
    prompt = data.draw(_ids(tokenizer, 5))
    output = data.draw(_ids(tokenizer, 5).filter(bool))
    assert _text(_stream(tokenizer, prompt), _outputs(output)) == output_text(tokenizer, prompt, output)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_resumed_stream_goes_on_with_the_same_text(kind: str, data: st.DataObject) -> None:
    tokenizer = vocabulary(kind)
    prompt = data.draw(_ids(tokenizer, 3))
    output = data.draw(_ids(tokenizer, 5).filter(bool))
    cut = data.draw(st.integers(0, len(output) - 1))
    stream = _stream(tokenizer, prompt)
    text = "".join(token.text for token in stream.resume(output[:cut])) + _text(stream, _outputs(output, cut))
    assert text == output_text(tokenizer, prompt, output)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_stream_whose_tokens_come_twice_has_its_text_once(kind: str, data: st.DataObject) -> None:
    """After a worker's death its tokens are computed again; some had come."""
    tokenizer = vocabulary(kind)
    prompt = data.draw(_ids(tokenizer, 3))
    output = data.draw(_ids(tokenizer, 5).filter(bool))
    cut = data.draw(st.integers(0, len(output) - 1))
    again = data.draw(st.integers(0, cut))
    outputs = [*_outputs(output)[:cut], *_outputs(output, again)]
    assert _text(_stream(tokenizer, prompt), outputs) == output_text(tokenizer, prompt, output)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None)
@given(st.data())
def test_no_more_than_a_window_is_ever_decoded(kind: str, data: st.DataObject) -> None:
    tokenizer = vocabulary(kind)
    decoded: list[int] = []

    class Counting:
        byte_ids, byte_of, has_text = tokenizer.byte_ids, tokenizer.byte_of, tokenizer.has_text

        def decode(self, token_ids: Sequence[int]) -> str:
            decoded.append(len(token_ids))
            return tokenizer.decode(token_ids)

    detokenizer = Detokenizer(Counting())
    detokenizer.read_prompt([*range(tokenizer.vocab_size)] * 3)
    assert len(decoded) <= 3 * CONTEXT_TOKENS
    output = data.draw(_ids(tokenizer, 20))
    for token in output:
        detokenizer.push(token)
    assert max(decoded) <= WINDOW_TOKENS + 4
    assert len(decoded) <= 3 * CONTEXT_TOKENS + 3 * len(output)


@pytest.mark.parametrize("kind", ["byte fallback", "unigram", "unigram with byte fallback"])
def test_the_first_token_keeps_its_leading_space(kind: str) -> None:
    tokenizer = vocabulary(kind)
    prompt = tokenizer.encode("time a time")
    time = token_id(tokenizer, "▁time")
    assert _text(_stream(tokenizer, prompt), _outputs([time, time])) == " time time"
    assert _text(_stream(tokenizer, [*prompt, *[2] * 10]), _outputs([time])) == " time"  # after special tokens
    assert _text(_stream(tokenizer, []), _outputs([time, time])) == "time time"


@pytest.mark.parametrize("kind", ["byte level", "byte fallback", "unigram with byte fallback"])
def test_a_character_that_begins_in_the_prompt_comes_whole_or_not_at_all(kind: str) -> None:
    tokenizer = vocabulary(kind)

    def spelt(data: bytes) -> list[int]:
        if tokenizer.byte_ids:
            return [tokenizer.byte_ids[byte] for byte in data]
        return [token_id(tokenizer, _letter(byte)) for byte in data]

    smile = "🙂".encode()
    prompt = [*spelt(b"so "), *spelt(smile[:2])]
    assert _text(_stream(tokenizer, prompt), _outputs(spelt(smile[2:] + b"!"))) == "🙂!"
    assert _text(_stream(tokenizer, prompt), _outputs(spelt(b"x!"))) == "x!"
    assert _text(_stream(tokenizer, prompt), _outputs([1])) == ""


def _letter(byte: int) -> str:
    """How byte-level vocabularies write a byte."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return chr(byte) if byte in kept else chr(256 + [other for other in range(256) if other not in kept].index(byte))
