"""How clients say what belongs around a text, from each client to what the gateway would submit."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors
from typer.testing import CliRunner

import baton
from baton.access.credentials import Credentials
from baton.cli.main import app
from baton.config.schema import AccessSection
from baton.engine.model_config import model_config
from baton.engine.tokenizer import Tokenizer
from baton.gateway.grpc_service import InferenceService, start_server
from baton.gateway.intake import Intake
from baton.gateway.served_model import ServedModel
from baton.protocol.errors import InvalidRequest
from tests.checkpoints import byte_tokenizer
from tests.fuzz.model_json import CONFIG
from tests.gateway.taken import SAYS, Taken

BOS = 2


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    fast = byte_tokenizer()
    fast.post_processor = processors.TemplateProcessing(single="<pad> $A", special_tokens=[("<pad>", BOS)])
    fast.save(str(tmp_path / "tokenizer.json"))
    return Tokenizer(tmp_path)


def test_every_client_says_whether_special_tokens_are_added(tokenizer: Tokenizer) -> None:
    taken = Taken()
    model = ServedModel("m", "m", model_config({**CONFIG, "vocab_size": 320}), tokenizer, "float32", 1000)
    hi = tuple(tokenizer.encode("hi", add_special_tokens=False))

    every: tuple[dict[str, Any], ...] = ({}, {"add_special_tokens": False})

    def plain_client(address: str) -> list[list[int]]:
        with baton.Client(address) as client:
            for options in every:
                with pytest.raises(InvalidRequest, match=SAYS):
                    client.generate("hi", **options)
            return [client.tokenize("hi"), client.tokenize("hi", add_special_tokens=False), client.tokenize("<pad>hi")]

    def command(address: str) -> None:
        for flags in ([], ["--no-special-tokens"]):
            answer = CliRunner().invoke(app, ["generate", "hi", "--address", address, *flags])
            assert SAYS in str(answer.exception)

    async def everything() -> None:
        service = InferenceService(taken, Intake(model))  # type: ignore[arg-type]
        server, port = await start_server(service, "127.0.0.1:0", Credentials(AccessSection()))
        address = f"127.0.0.1:{port}"
        try:
            assert await asyncio.to_thread(plain_client, address) == [[BOS, *hi], [*hi], [BOS, *hi]]
            await asyncio.to_thread(command, address)
            async with baton.AsyncClient(address) as client:
                for options in every:
                    with pytest.raises(InvalidRequest, match=SAYS):
                        await client.generate("hi", **options)
                assert await client.tokenize("hi") == [BOS, *hi]
                assert await client.tokenize("hi", add_special_tokens=False) == [*hi]
        finally:
            await server.stop(None)

    asyncio.run(everything())
    assert [request.prompt for request in taken.requests] == [(BOS, *hi), hi] * 3
