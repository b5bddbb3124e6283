"""Prompts are tokenised beside the event loop, a bounded amount at a time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from baton.engine.model_config import model_config
from baton.engine.tokenizer import Tokenizer
from baton.gateway.chat_prompt import ChatPrompt
from baton.gateway.encoding import SHORT_BYTES, EncodingPool, Lane
from baton.gateway.grpc_service import InferenceService
from baton.gateway.intake import Intake
from baton.gateway.served_model import ServedModel
from baton.protocol.errors import Overloaded
from baton.protocol.v1 import inference_pb2
from tests.checkpoints import byte_tokenizer
from tests.fuzz.model_json import CONFIG

BIG = "time " * 4_000


class _Gated:
    """Encodes when it is let; remembers on which threads, and of what."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.threads: set[int] = set()
        self.texts: list[str] = []

    def encode(self, text: str | ChatPrompt, add_special_tokens: bool) -> list[int]:
        assert isinstance(text, str)
        self.threads.add(threading.get_ident())
        self.texts.append(text)
        assert self.open.wait(60)
        return [len(text)]


async def _until(met: Callable[[], bool]) -> None:
    while not met():
        await asyncio.sleep(0)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    fast = byte_tokenizer()
    fast.save(str(tmp_path / "tokenizer.json"))
    return Tokenizer(tmp_path)


def _service(tokenizer: Tokenizer) -> InferenceService:
    model = ServedModel("m", "m", model_config({**CONFIG, "vocab_size": 320}), tokenizer, "float32", 100_000)
    return InferenceService(SimpleNamespace(clock=lambda: 0.0), Intake(model))  # type: ignore[arg-type]


def test_no_text_however_short_is_encoded_on_the_event_loop(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    encode = Tokenizer.encode

    def observed(self: Tokenizer, text: str, add_special_tokens: bool = True) -> list[int]:
        threads.append(threading.get_ident())
        return encode(self, text, add_special_tokens)

    monkeypatch.setattr(Tokenizer, "encode", observed)
    service = _service(tokenizer)
    context = SimpleNamespace(time_remaining=lambda: None)

    async def ask() -> None:
        for text in ("a", "some words", BIG):
            generate = inference_pb2.GenerateRequest(text=text)
            request = await service._request(generate, "", context)  # type: ignore[arg-type]
            answer = await service.Tokenize(inference_pb2.TokenizeRequest(text=text).SerializeToString(), None)  # type: ignore[arg-type]
            assert list(request.prompt) == list(answer.ids) == tokenizer.encode(text)

    asyncio.run(ask())
    here = threading.get_ident()
    assert len(threads) == 9
    assert [thread == here for thread in threads].count(True) == 3  # the comparisons above


def test_the_event_loop_goes_on_while_many_big_texts_wait() -> None:
    gated = _Gated()
    pool = Lane(gated.encode, num_threads=2)

    async def ask() -> None:
        waiting = [asyncio.ensure_future(pool.encode(BIG, len(BIG), True)) for _ in range(200)]
        await _until(lambda: len(gated.texts) == 2)
        for _ in range(1_000):  # rounds of the loop, in which every other stream has its turn
            await asyncio.sleep(0)
        assert len(gated.texts) == 2
        assert not any(future.done() for future in waiting)
        gated.open.set()
        assert await asyncio.gather(*waiting) == [[len(BIG)]] * 200

    asyncio.run(ask())
    assert len(gated.threads) <= 2
    assert pool.waiting_bytes == 0


def test_a_text_more_than_may_wait_is_refused_with_when_to_retry() -> None:
    gated = _Gated()
    pool = Lane(gated.encode, num_threads=1, max_waiting_bytes=100)

    async def ask() -> None:
        huge = asyncio.ensure_future(pool.encode("h" * 500, 500, True))  # alone any size is taken
        await _until(lambda: len(gated.texts) == 1)
        with pytest.raises(Overloaded, match="500 bytes of text are waiting") as refused:
            await pool.encode("x", 1, True)
        assert refused.value.retry_after_s
        gated.open.set()
        await huge
        gated.open.clear()
        waiting = [asyncio.ensure_future(pool.encode("w" * 25, 25, True)) for _ in range(4)]
        await _until(lambda: pool.waiting_bytes == 100)
        with pytest.raises(Overloaded):
            await pool.encode("x", 1, True)
        gated.open.set()
        await asyncio.gather(*waiting)
        assert await pool.encode("x", 1, True) == [1]

    asyncio.run(ask())


def test_a_text_whose_caller_has_left_is_not_encoded_and_makes_room() -> None:
    gated = _Gated()
    pool = Lane(gated.encode, num_threads=1)

    async def ask() -> None:
        first = asyncio.ensure_future(pool.encode("first", 5, True))
        await _until(lambda: gated.texts == ["first"])
        left = asyncio.ensure_future(pool.encode("left", 4, True))
        last = asyncio.ensure_future(pool.encode("last", 4, True))
        await _until(lambda: pool.waiting_bytes == 13)
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
        assert pool.waiting_bytes == 9
        gated.open.set()
        await asyncio.gather(first, last)

    asyncio.run(ask())
    assert gated.texts == ["first", "last"]


def test_a_text_counts_until_its_thread_has_ended_even_if_its_caller_leaves() -> None:
    gated = _Gated()
    pool = Lane(gated.encode, num_threads=1, max_waiting_bytes=100)

    async def ask() -> None:
        for _ in range(3):  # a caller that sends and leaves, again and again, must not fill the memory
            begun = asyncio.ensure_future(pool.encode("b" * 80, 80, True))
            await _until(lambda: bool(gated.texts))
            begun.cancel()
            await asyncio.gather(begun, return_exceptions=True)
            assert pool.waiting_bytes == 80
            with pytest.raises(Overloaded):
                await pool.encode("c" * 80, 80, True)
            gated.open.set()
            await _until(lambda: pool.waiting_bytes == 0)
            gated.open.clear()
            gated.texts.clear()

    asyncio.run(ask())


def test_a_short_text_does_not_wait_behind_long_ones() -> None:
    gated = _Gated()

    def encode(text: str | ChatPrompt, add_special_tokens: bool) -> list[int]:
        assert isinstance(text, str)
        return gated.encode(text, add_special_tokens) if len(text) > SHORT_BYTES else [1]

    pool = EncodingPool(encode)

    async def ask() -> None:
        long = [asyncio.ensure_future(pool.encode(BIG, len(BIG), True)) for _ in range(20)]
        await _until(lambda: len(gated.texts) == pool.long.num_threads)
        assert await pool.encode("short", 5, True) == [1]
        gated.open.set()
        await asyncio.gather(*long)

    asyncio.run(ask())


def test_a_special_token_that_the_model_does_not_have_never_reaches_a_worker(tokenizer: Tokenizer) -> None:
    service = _service(tokenizer)
    message = inference_pb2.GenerateRequest(text="a")
    message.sampling.stop.extend(["<pad>", "<eos>"])
    ids = tokenizer.special_ids(["<pad>", "<eos>"])
    config = model_config({**CONFIG, "vocab_size": max(ids), "eos_token_id": 0})  # the tokenizer has one id more
    small = replace(service.intake.model, config=config)
    tokens = [1]
    service = InferenceService(service.driver, Intake(small))
    service.intake.encoding = EncodingPool(lambda text, add_special_tokens: tokens)
    context = SimpleNamespace(time_remaining=lambda: None)
    request = asyncio.run(service._request(message, "", context))  # type: ignore[arg-type]
    assert request.sampling.stop_token_ids == tuple(token_id for token_id in ids if token_id < max(ids))
    assert len(ids) == 2


def test_a_special_token_among_the_stop_strings_stops_as_a_token(tokenizer: Tokenizer) -> None:
    message = inference_pb2.GenerateRequest(text="a")
    message.sampling.stop.extend(["<pad>", "b", "<eos>"])
    message.sampling.stop_token_ids.extend([7, 1])
    service, context = _service(tokenizer), SimpleNamespace(time_remaining=lambda: None)
    request = asyncio.run(service._request(message, "", context))  # type: ignore[arg-type]
    assert request.sampling.stop_token_ids == (7, 1, 2)
    assert request.sampling.stop == ("<pad>", "b", "<eos>")


def test_a_text_is_taken_as_it_is_where_the_caller_says_so(tokenizer: Tokenizer) -> None:
    added: list[bool] = []

    def encode(text: str | ChatPrompt, add_special_tokens: bool) -> list[int]:
        added.append(add_special_tokens)
        return [1]

    service = _service(tokenizer)
    service.intake.encoding = EncodingPool(encode)

    async def ask() -> None:
        for kind in (inference_pb2.GenerateRequest, inference_pb2.TokenizeRequest):
            for message in (kind(text="a"), kind(text="a", add_special_tokens=True)):
                await service._encode(message)
            await service._encode(kind(text="a", add_special_tokens=False))

    asyncio.run(ask())
    assert added == [True, True, False] * 2
