"""Chat templates give the text that transformers' `apply_chat_template` gives, within bounds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from baton.builtin_model import CHECKPOINT
from baton.gateway import chat_template
from baton.gateway.chat_prompt import ChatPrompt
from baton.gateway.chat_template import ChatTemplate
from baton.gateway.template_files import read_chat_template
from baton.protocol.errors import ConfigError, InvalidRequest, ModelError, PromptTooLong
from tests.checkpoints import byte_tokenizer
from tests.gateway.chat_templates import CHATML, LLAMA_2, NAMED, TEMPLATES

TOKENS = {"bos_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
ROOMY = 1 << 20
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Wetter <b>&amp;</b> 天気",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = {"type": "function", "id": "c1", "function": {"name": "weather", "arguments": {"city": "Zürich", "days": 3}}}
SYSTEM = {"role": "system", "content": "Be brief.\nBe kind."}
USER = {"role": "user", "content": "  Where is the baton? "}
ASSISTANT = {"role": "assistant", "content": "In the exchange zone.\n"}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one message": [USER],
    "a system message": [SYSTEM, USER],
    "several turns": [SYSTEM, USER, ASSISTANT, USER, ASSISTANT, USER],
    "an answer to continue": [USER, ASSISTANT],
    "empty contents": [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}, USER],
    "unicode": [{"role": "user", "content": "Größe 🏃‍♀️ 走る \u202e {{ 7 * 7 }} {% raw %} <|im_end|> '\"\\"}],
    "a tool call": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}],
    "a tool's answer": [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": '{"degrees": 21}'},
    ],
    "two tool calls": [USER, {"role": "assistant", "tool_calls": [CALL, CALL]}],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]}],
    "reasoning": [USER, {"role": "assistant", "content": "</think>Yes", "reasoning": "hm\n"}],
    "roles in a wrong order": [ASSISTANT, SYSTEM, USER, USER],
    "a turn without a role": [{"content": "x"}],
}
OPTIONS: tuple[dict[str, Any], ...] = (
    {"add_generation_prompt": True},
    {"add_generation_prompt": False},
    {"add_generation_prompt": False, "continue_final_message": True},
    {"add_generation_prompt": True, "tools": [TOOL]},
    {"add_generation_prompt": True, "enable_thinking": False, "date_string": "1 Feb 2026", "mood": "glad"},
    {"add_generation_prompt": False, "documents": [{"title": "Relay", "text": "A race."}], "mood": None},
)
_FIELDS = ("add_generation_prompt", "continue_final_message")


def prompt(messages: list[dict[str, Any]], options: dict[str, Any]) -> ChatPrompt:
    lists: dict[str, Any] = {name: tuple(options[name]) for name in ("tools", "documents") if name in options}
    variables = {name: value for name, value in options.items() if name not in (*_FIELDS, *lists)}
    flags = {name: options[name] for name in _FIELDS if name in options}
    return ChatPrompt(tuple(messages), template_options=variables, **flags, **lists)


def _truth(source: Any, messages: list[dict[str, Any]], options: dict[str, Any]) -> str | None:
    """The text by transformers; None where it raises an error."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(), **TOKENS)
    tokenizer.chat_template = source
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
    except Exception:  # noqa: BLE001 - of jinja2 and of transformers
        return None


def _ours(source: Any, messages: list[dict[str, Any]], options: dict[str, Any]) -> str | None:
    template = ChatTemplate(source if isinstance(source, dict) else {"default": source}, TOKENS)
    try:
        return template.render(prompt(messages, options), ROOMY)
    except InvalidRequest:
        return None


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_gives_the_text_of_transformers(name: str) -> None:
    rendered = 0
    for (kind, messages), options in product(CONVERSATIONS.items(), OPTIONS):
        truth = _truth(TEMPLATES[name], messages, options)
        assert _ours(TEMPLATES[name], messages, options) == truth, (kind, options)
        rendered += truth is not None
    assert rendered >= 15


def test_a_refused_conversation_names_the_templates_reason() -> None:
    template = ChatTemplate({"default": LLAMA_2}, TOKENS)
    with pytest.raises(InvalidRequest, match=r"refuses the conversation: Roles must alternate .*assistant/"):
        template.render(ChatPrompt((ASSISTANT,)), ROOMY)
    with pytest.raises(InvalidRequest, match="'dict object' has no attribute 'content'"):
        template.render(ChatPrompt(({"role": "user"},)), ROOMY)
    with pytest.raises(InvalidRequest, match="chat_template_kwargs cannot set messages"):
        template.render(ChatPrompt((USER,), template_options={"messages": []}), ROOMY)
    with pytest.raises(InvalidRequest, match="no messages"):
        template.render(ChatPrompt(()), ROOMY)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__init__.__globals__ }}",
        "{% set ns = namespace(__class__=1) %}",
        "{{ namespace.__init__ }}{{ namespace().__class__.__mro__[1] }}",
        "{% include 'x' %}",
        "{{ 1 / 0 }}",
        "{{ messages | nothing }}",
        "{% for %}",
        "{{ range(10000000) | list }}",
    ],
)
def test_a_template_that_breaks_out_or_fails_is_an_invalid_request(source: str) -> None:
    with pytest.raises(InvalidRequest):
        ChatTemplate({"default": source}, {}).render(ChatPrompt((USER,)), ROOMY)


def test_a_text_beyond_the_limit_is_refused_before_it_is_complete() -> None:
    template = ChatTemplate({"default": CHATML}, TOKENS)
    text = template.render(ChatPrompt((USER,)), ROOMY)
    assert template.render(ChatPrompt((USER,)), len(text.encode())) == text
    with pytest.raises(PromptTooLong):
        template.render(ChatPrompt((USER,)), len(text.encode()) - 1)
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}"
    with pytest.raises(PromptTooLong):
        ChatTemplate({"default": endless}, {}).render(ChatPrompt((USER,)), 1000)


def test_a_rendering_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "RENDER_LIMIT_S", 0.05)
    quadratic = "{% for a in messages %}{% for b in messages %}{% set x = a.role %}{% endfor %}{% endfor %}"
    with pytest.raises(InvalidRequest, match="took more than"):
        ChatTemplate({"default": quadratic}, {}).render(ChatPrompt((USER,) * 4096), ROOMY)


def test_deeply_nested_values_are_refused() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(InvalidRequest):
        ChatTemplate({"default": "{{ messages | tojson }}"}, {}).render(ChatPrompt(({**USER, "x": deep},)), ROOMY)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    yield tmp_path


def _write(folder: Path, **config: Any) -> None:
    plain = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": {"content": "<eos>", "__type": "AddedToken"}}
    (folder / "tokenizer_config.json").write_text(json.dumps({**plain, **config}))


def _as_transformers(folder: Path, **options: Any) -> str:
    """The text by both, which is the same."""
    found = read_chat_template(folder)
    assert found is not None
    ours = found.render(prompt([USER, ASSISTANT], options), ROOMY)
    truth = PreTrainedTokenizerFast.from_pretrained(folder)
    assert ours == truth.apply_chat_template([USER, ASSISTANT], tokenize=False, **options)
    return ours


def test_templates_are_found_where_transformers_finds_them(folder: Path) -> None:
    _write(folder)
    assert read_chat_template(folder) is None
    _write(folder, chat_template="config{{ eos_token }}")
    assert _as_transformers(folder) == "config<eos>"
    _write(folder, chat_template=[{"name": name, "template": text} for name, text in NAMED.items()])
    assert _as_transformers(folder).startswith("user:")
    assert _as_transformers(folder, tools=[TOOL]).startswith("[{")
    (folder / "special_tokens_map.json").write_text('{"bos_token": "<pad>"}')
    (folder / "chat_template.jinja").write_text("file{{ bos_token }}\n")
    assert _as_transformers(folder, tools=[TOOL]) == "file<pad>"
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    assert (_as_transformers(folder), _as_transformers(folder, tools=[TOOL])) == ("file<pad>", "tools")
    given = read_chat_template(folder, "given{{ eos_token }}")
    assert given is not None
    assert given.render(ChatPrompt((USER,)), ROOMY) == "given<eos>"


def test_templates_that_cannot_be_used_are_errors_with_a_name(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.chat_template: .*cannot be compiled"):
        read_chat_template(folder, "{% if %}")
    for wrong in (7, [7], [{"name": "default"}], [{"name": "default", "template": 7}]):
        _write(folder, chat_template=wrong)
        with pytest.raises(ModelError, match="cannot be read"):
            read_chat_template(folder)
    _write(folder, chat_template=[{"name": "rag", "template": "x"}])
    found = read_chat_template(folder)
    assert found is not None
    with pytest.raises(InvalidRequest, match="templates named rag, but no default"):
        found.render(ChatPrompt((USER,)), ROOMY)


def test_the_built_in_model_joins_messages() -> None:
    found = read_chat_template(CHECKPOINT)
    assert found is not None
    messages = ({"role": "user", "content": "add 17 + 38 ="}, {"role": "assistant", "content": " 55"}, USER)
    assert found.render(ChatPrompt(messages), ROOMY) == f"add 17 + 38 = 55<eos>{USER['content']}"
