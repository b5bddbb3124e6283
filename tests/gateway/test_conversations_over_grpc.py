"""Conversations from each client to what the gateway would submit."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import baton
from baton.access.credentials import Credentials
from baton.cli.main import app
from baton.config.schema import AccessSection
from baton.engine.model_config import model_config
from baton.engine.tokenizer import Tokenizer
from baton.gateway.chat_template import ChatTemplate
from baton.gateway.conversation_message import MAX_MESSAGES, read_conversation
from baton.gateway.grpc_service import InferenceService, start_server
from baton.gateway.intake import Intake
from baton.gateway.served_model import ServedModel
from baton.protocol.errors import InvalidRequest, PromptTooLong
from baton.protocol.v1 import inference_pb2
from tests.checkpoints import byte_tokenizer
from tests.fuzz.model_json import CONFIG
from tests.gateway.chat_templates import CHATML, NAMED
from tests.gateway.taken import SAYS, Taken

HI = [{"role": "user", "content": "hi <eos>"}]
CALL = {"function": {"name": "f", "arguments": {"z": 1, "a": "ß"}}}


@pytest.fixture
def model(tmp_path: Path) -> ServedModel:
    byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    config = model_config({**CONFIG, "vocab_size": 320})
    template = ChatTemplate({"default": CHATML, "tool_use": NAMED["tool_use"]}, {"eos_token": "<eos>"})
    return ServedModel("m", "m", config, Tokenizer(tmp_path), "float32", 300, template=template)


async def _asked(model: ServedModel, ask: Any) -> list[str]:
    """The rendered prompts of what `ask` sends to an address."""
    taken = Taken()
    service = InferenceService(taken, Intake(model))  # type: ignore[arg-type]
    server, port = await start_server(service, "127.0.0.1:0", Credentials(AccessSection()))
    try:
        await asyncio.to_thread(ask, f"127.0.0.1:{port}")
    finally:
        await server.stop(None)
    return [
        "".join(model.tokenizer.token_bytes(token_id).decode("latin-1") for token_id in request.prompt)
        for request in taken.requests
    ]


def test_a_conversation_becomes_the_templates_text_and_nothing_is_added(model: ServedModel) -> None:
    def ask(address: str) -> None:
        with baton.Client(address) as client:
            for chat in (
                baton.Chat(HI),
                baton.Chat([*HI, {"role": "assistant", "content": "Well"}], continue_final_message=True),
                baton.Chat(HI, add_generation_prompt=False),
                baton.Chat([{"role": "user", "content": [{"type": "text", "text": "part"}]}]),
                baton.Chat([{"role": "assistant", "tool_calls": [CALL], "content": None}], tools=[CALL]),
            ):
                with pytest.raises(InvalidRequest, match=SAYS):
                    client.generate(chat)
        answer = CliRunner().invoke(app, ["generate", "--chat", "hi", "--address", address])
        assert SAYS in str(answer.exception)

    system = "<|im_start|>system\nYou help.<|im_end|>\n"
    start = "<|im_start|>assistant\n"
    calls = '[{"function": {"name": "f", "arguments": {"z": 1, "a": "ß"}}}]'
    tools = '[{"function": {"arguments": {"a": "\\u00df", "z": 1}, "name": "f"}}]'
    assert asyncio.run(_asked(model, ask)) == [
        f"{system}<|im_start|>user\nhi <eos><|im_end|>\n{start}",
        f"{system}<|im_start|>user\nhi <eos><|im_end|>\n{start}Well",
        f"{system}<|im_start|>user\nhi <eos><|im_end|>\n",
        f"{system}<|im_start|>user\npart<|im_end|>\n{start}",
        (tools + '{"role": "assistant", "content": "", "tool_calls": ' + calls + "}\n").encode().decode("latin-1"),
        f"{system}<|im_start|>user\nhi<|im_end|>\n{start}",
    ]


def test_what_cannot_be_rendered_is_refused_with_a_sentence(model: ServedModel) -> None:
    def ask(address: str) -> None:
        with baton.Client(address) as client:
            with pytest.raises(PromptTooLong):
                client.generate(baton.Chat([{"role": "user", "content": "x" * 100_000}]))
            with pytest.raises(InvalidRequest, match="1 to 4096"):
                client.generate(baton.Chat([]))

    def ask_without(address: str) -> None:
        with baton.Client(address) as client, pytest.raises(InvalidRequest, match="no chat template: send a prompt"):
            client.generate(baton.Chat(HI))

    assert asyncio.run(_asked(model, ask)) == []
    assert asyncio.run(_asked(replace(model, template=None), ask_without)) == []


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"messages": [inference_pb2.ChatMessage(content="x")]}, r"messages\[0\]\.role is empty"),
        (
            {"messages": [inference_pb2.ChatMessage(role="user", fields="[")]},
            r"\[0\]\.fields is not valid JSON",
        ),
        (
            {"messages": [inference_pb2.ChatMessage(role="user", fields="[]")]},
            r"\[0\]\.fields is not a JSON object",
        ),
        ({"messages": [inference_pb2.ChatMessage(role="user")] * (MAX_MESSAGES + 1)}, "has 4097 messages"),
        ({"tools": "{}"}, "tools is not a JSON list of objects"),
        ({"documents": "[1]"}, "documents is not a JSON list of objects"),
        ({"template_options": "NaN"}, "template_options is not valid JSON"),
        ({"template_options": "7"}, "template_options is not a JSON object"),
        ({"tools": "[" * 100_000}, "tools is not valid JSON"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "only one may be"),
    ],
)
def test_a_wrong_field_of_a_conversation_is_named(changed: dict[str, Any], says: str) -> None:
    given: dict[str, Any] = {"messages": [inference_pb2.ChatMessage(role="user", content="x")], **changed}
    with pytest.raises(InvalidRequest, match=says):
        read_conversation(inference_pb2.Conversation(**given))
