"""However a request ends, its status is clear and both workers release every page."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import grpc
import pytest
import torch
import transformers

import baton
from baton.client.errors import Cancelled, DeadlineExceeded, InvalidRequest
from baton.protocol.v1 import inference_pb2, inference_pb2_grpc
from tests.live.conftest import CONTEXT_TOKENS, Live

pytestmark = pytest.mark.ray

LONG: dict[str, Any] = {"max_tokens": 150, "ignore_eos": True}


def test_a_client_that_disconnects_frees_its_pages(split: Live) -> None:
    async def leave() -> None:
        async with split.async_client() as client:
            streams = [client.stream([7 + index] * 60, **LONG) for index in range(12)]
            for stream in streams:
                await anext(stream)
            for stream in streams:
                stream.cancel()

    asyncio.run(leave())
    split.wait_idle()


def test_a_client_that_leaves_before_the_first_token_frees_its_pages(split: Live) -> None:
    channel = grpc.insecure_channel(split.address)
    stub = inference_pb2_grpc.InferenceStub(channel)
    request = inference_pb2.GenerateRequest(token_ids=inference_pb2.TokenIds(ids=[9] * 200))
    calls = [stub.Generate(request) for _ in range(8)]
    channel.close()
    for call in calls:
        assert call.code() is grpc.StatusCode.CANCELLED
    split.wait_idle()


def test_a_deadline_that_passes_is_reported_and_frees_its_pages(split: Live) -> None:
    with split.client() as client, pytest.raises(DeadlineExceeded):
        client.stream([8] * 100, timeout_s=0.05, **LONG).answer  # noqa: B018 - reading it is the call
    split.wait_idle()


def test_a_single_token_needs_no_handoff(split: Live) -> None:
    with split.client() as client:
        answer = client.generate([4] * 100, max_tokens=1)
    assert answer.output_tokens == 1
    assert answer.finish_reason in ("length", "stop")
    assert answer.handoff is None
    assert answer.tpot_s is None
    split.wait_idle()


def test_an_end_of_sequence_as_first_token_ends_the_request(split: Live) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(split.folder, dtype=torch.float32)
    prompts = torch.randint(3, 320, (4000, 3), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        first = model(prompts).logits[:, -1].argmax(-1)
    (prompt, *_) = prompts[first == model.config.eos_token_id].tolist()
    with split.client() as client:
        answer = client.generate(prompt, max_tokens=20)
        longer = client.generate(prompt, max_tokens=5, min_tokens=5)
    assert answer.finish_reason == "stop"
    assert answer.output_tokens == 1
    assert answer.text == ""
    assert answer.handoff is None
    assert longer.output_tokens == 5
    split.wait_idle()


def test_a_stop_string_across_tokens_ends_the_text_before_it(split: Live) -> None:
    with split.client() as client:
        for start in range(3, 300):
            whole = client.generate([start, start + 1, start + 2], max_tokens=40, ignore_eos=True)
            stop = _plain_pair(whole.text)
            if stop is not None:
                break
        assert stop is not None
        cut = client.generate([start, start + 1, start + 2], max_tokens=40, ignore_eos=True, stop=[stop])
    assert cut.finish_reason == "stop"
    assert cut.text == whole.text[: whole.text.index(stop)]
    split.wait_idle()


def _plain_pair(text: str) -> str | None:
    """Two complete characters in the middle of a text: at least two tokens of one byte each."""
    pairs = (text[at : at + 2] for at in range(5, len(text) - 1))
    return next((pair for pair in pairs if pair.isascii() and pair.isprintable()), None)


def test_the_context_is_filled_to_its_last_token(split: Live) -> None:
    with split.client() as client:
        answer = client.generate([5] * (CONTEXT_TOKENS - 4), max_tokens=100, ignore_eos=True)
    assert answer.output_tokens == 4
    assert answer.finish_reason == "length"
    split.wait_idle()


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a prompt longer than the context": ({"prompt": [5] * (CONTEXT_TOKENS + 1)}, "context"),
    "an empty prompt": ({"prompt": []}, "empty"),
    "an empty text": ({"prompt": ""}, "empty"),
    "a token id out of the vocabulary": ({"prompt": [5, 320]}, "320"),
    "a negative token id": ({"prompt": [-1]}, "-1"),
    "a negative temperature": ({"temperature": -0.5}, "temperature"),
    "a temperature that is no number": ({"temperature": math.nan}, "temperature"),
    "a top_p of zero": ({"top_p": 0.0}, "top_p"),
    "an infinite penalty": ({"presence_penalty": math.inf}, "presence_penalty"),
    "a negative top_k": ({"top_k": -1}, "top_k"),
    "no output tokens": ({"max_tokens": 0}, "max_tokens"),
    "too many log-probabilities": ({"logprobs": 1000}, "logprobs"),
    "an empty stop string": ({"stop": [""]}, "stop string"),
    "a stop token out of the vocabulary": ({"stop_token_ids": [400]}, "400"),
    "ten megabytes of text": ({"prompt": "x" * 10_000_000}, "bytes"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_a_clear_status(split: Live, name: str) -> None:
    options, word = BAD[name]
    with split.client() as client, pytest.raises(InvalidRequest, match=word):
        client.generate(**({"prompt": [5]} | options))
    split.wait_idle()


@pytest.mark.parametrize("body", [b"\x12\x02\xff\xfe", b"\xff\xff\xff", b"\x12\x7fshort"])
def test_bytes_that_are_not_a_request_get_a_clear_status(split: Live, body: bytes) -> None:
    with grpc.insecure_channel(split.address) as channel:
        call = channel.unary_stream("/baton.v1.Inference/Generate")(body)
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "UTF-8" in caught.value.details()


def test_a_request_id_in_use_is_refused_and_the_first_request_continues(split: Live) -> None:
    with split.client() as client:
        first = client.stream([6] * 30, request_id="twice", **LONG)
        next(first)
        with pytest.raises(InvalidRequest, match="twice"):
            client.generate([6], request_id="twice")
        assert first.answer.output_tokens == LONG["max_tokens"]
    split.wait_idle()


def test_an_address_where_nothing_listens_is_reported() -> None:
    with baton.Client("127.0.0.1:9") as client, pytest.raises(baton.BatonError, match="baton up"):
        client.model()


def test_cancelling_is_its_own_error(split: Live) -> None:
    with split.client() as client:
        stream = client.stream([6] * 30, **LONG)
        next(stream)
        stream.cancel()
        with pytest.raises(Cancelled):
            stream.answer  # noqa: B018 - reading it is the call
    split.wait_idle()


def test_a_special_token_among_the_stop_strings_ends_the_answer(split: Live) -> None:
    """Special tokens have no text; at a high temperature this model samples each of them now and then."""
    names = {0: "<unk>", 1: "<eos>", 2: "<pad>"}
    with split.client() as client:
        for seed in range(50):
            options: dict[str, Any] = {"temperature": 50.0, "seed": seed, "ignore_eos": True}
            ids = client.generate([9, 8, 7], max_tokens=100, **options).token_ids
            at = next((index for index, token_id in enumerate(ids) if token_id in names), None)
            if at is not None and at + 1 < len(ids):
                break
        assert at is not None
        answer = client.generate([9, 8, 7], max_tokens=100, stop=[names[ids[at]]], **options)
        assert (answer.token_ids, answer.finish_reason) == (ids[: at + 1], "stop")
        none = client.generate([9, 8, 7], max_tokens=at + 1, stop=["no such text"], **options)
        assert (none.token_ids, none.finish_reason) == (ids[: at + 1], "length")
    split.wait_idle()
