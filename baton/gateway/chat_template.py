"""Renders conversations with a checkpoint's chat template, as transformers' `apply_chat_template` does.

Templates run in jinja2's immutable sandbox. They are the operator's, messages are the clients': the size of the text
and the processor time of a rendering are bounded.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from baton.gateway.chat_prompt import ChatPrompt
from baton.protocol.errors import InvalidRequest, PromptTooLong

RENDER_LIMIT_S = 5.0  # Processor time; a usual conversation takes less than a millisecond
STEPS_PER_CHECK = 64  # Attributes, items and calls of a template between two looks at the clock
MAX_REASON_CHARACTERS = 500
NO_TEMPLATE = (
    "The model has no chat template: send a prompt, or give the cluster a template (baton up --chat-template FILE)."
)
_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
_REASONING = ("reasoning_content", "thinking", "reasoning")
_ARGUMENTS = frozenset(("messages", "tools", "documents", "add_generation_prompt", "continue_final_message"))
# What a template can raise beside jinja2's own errors, when it does not expect a message.
_WRONG = (
    *(ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError),
    jinja2.TemplateError,
)


class ChatTemplate:
    """The chat templates of a model by name; `default` and `tool_use` have a meaning. Safe to use from several threads.

    `special_tokens` are variables of the template, such as `bos_token`.
    """

    def __init__(self, sources: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        self._sources, self._special_tokens = dict(sources), dict(special_tokens)
        self._environment = _Environment()
        self._compiled: dict[str, jinja2.Template] = {}

    def source(self, with_tools: bool = False) -> str:
        """The text of the template that is used; raises `InvalidRequest` if none of the named ones is."""
        if with_tools and "tool_use" in self._sources:
            return self._sources["tool_use"]
        if "default" not in self._sources:
            names = ", ".join(sorted(self._sources))
            raise InvalidRequest(f"The model has chat templates named {names}, but no default one.")
        return self._sources["default"]

    def compiled(self, source: str) -> jinja2.Template:
        """The template of a text; raises `InvalidRequest` for invalid syntax."""
        if source not in self._compiled:
            try:
                self._compiled[source] = self._environment.from_string(source)
            except (jinja2.TemplateError, RecursionError) as error:
                raise InvalidRequest(f"The model's chat template cannot be compiled: {_reason(error)}.") from None
        return self._compiled[source]

    def render(self, chat: ChatPrompt, limit_bytes: int) -> str:
        """The text of a conversation, with the model's special tokens.

        Raises `InvalidRequest` for a conversation that the template refuses, `PromptTooLong` for a text of more than
        `limit_bytes` bytes.
        """
        source = self.source(chat.tools is not None)
        template = self.compiled(source)
        messages = _messages(chat)
        final = _marked(messages, source) if chat.continue_final_message else None
        variables = {
            **self._special_tokens,
            **_options(chat),
            "messages": messages,
            "tools": None if chat.tools is None else list(chat.tools),
            "documents": None if chat.documents is None else list(chat.documents),
            "add_generation_prompt": chat.add_generation_prompt,
        }
        try:
            text = _rendered(template, variables, limit_bytes)
        except _Refused as error:
            raise InvalidRequest(f"The chat template refuses the conversation: {_reason(error)}.") from None
        except _WRONG as error:
            raise InvalidRequest(f"The chat template cannot render the conversation: {_reason(error)}.") from None
        return text if final is None else _cut(text, final)


class _Refused(jinja2.TemplateError):
    """Raised by `raise_exception` in a template."""


class _Budget:
    """The processor time that is left to one rendering."""

    def __init__(self) -> None:
        self._steps, self._until_s = 0, time.thread_time() + RENDER_LIMIT_S

    def spend(self) -> None:
        """Count a step; raises `InvalidRequest` when the time is spent."""
        self._steps += 1
        if self._steps % STEPS_PER_CHECK == 0 and time.thread_time() > self._until_s:
            raise InvalidRequest(f"The chat template took more than {RENDER_LIMIT_S:g} s: send a shorter conversation.")


_budget: ContextVar[_Budget] = ContextVar("budget")


class _Environment(ImmutableSandboxedEnvironment):
    """What transformers gives to templates, with a bound on their time."""

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.filters["tojson"] = _tojson
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "dict": _Dict(),
            "namespace": _Namespace,
        }

    def getattr(self, obj: Any, attribute: str) -> Any:
        _budget.get().spend()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        _budget.get().spend()
        return super().getitem(obj, argument)

    def call(self, __context: Any, __obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        _budget.get().spend()
        return super().call(__context, __obj, *args, **kwargs)


class _Generation(Extension):
    """`{% generation %}` blocks, which mark the assistant's words for training; here they are just text."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_text"), [], [], body).set_lineno(line)

    def _text(self, caller: Any) -> Any:
        return caller()


class _Dict:
    """`dict` for templates, without the class behind it."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """`namespace` for templates, which keeps out names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # As jinja2's own, so that a variable may be named `self`
        self, given = args[0], dict(*args[1:], **kwargs)
        for name in given:
            _check_name(name)
        Namespace.__init__(self, given)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"{name} begins with an underscore")


def _raise_exception(message: str) -> None:
    raise _Refused(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike jinja2's own filter it leaves `<`, `>` and `&` as they are."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _rendered(template: jinja2.Template, variables: dict[str, Any], limit_bytes: int) -> str:
    budget, pieces, num_bytes = _Budget(), list[str](), 0
    token = _budget.set(budget)
    try:
        for piece in template.generate(variables):
            budget.spend()
            pieces.append(piece)
            num_bytes += len(piece.encode())
            if num_bytes > limit_bytes:
                raise PromptTooLong(f"The conversation has more than {limit_bytes} bytes of text, the most that fits.")
    finally:
        _budget.reset(token)
    return "".join(pieces)


def _messages(chat: ChatPrompt) -> list[dict[str, Any]]:
    """Copies of the messages without empty fields; reasoning stands under every name that templates read."""
    if not chat.messages:
        raise InvalidRequest("The conversation has no messages.")
    messages = []
    for given in chat.messages:
        message = {name: value for name, value in given.items() if value is not None}
        reasoning = next((message[name] for name in _REASONING if name in message), None)
        if reasoning is not None:
            message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
        messages.append(message)
    return messages


def _options(chat: ChatPrompt) -> dict[str, Any]:
    taken = _ARGUMENTS.intersection(chat.template_options)
    if taken:
        raise InvalidRequest(f"chat_template_kwargs cannot set {min(taken)}: it has a field of its own.")
    if not all(type(name) is str for name in chat.template_options):
        raise InvalidRequest("chat_template_kwargs has a name that is not a text.")
    return dict(chat.template_options)


def _marked(messages: list[dict[str, Any]], source: str) -> str:
    """Put a mark behind the text of the final message, where the prompt is to end; returns that text."""
    content = messages[-1].get("content")
    if "content" not in source:
        raise InvalidRequest("The chat template has no content that continue_final_message could continue.")
    if isinstance(content, str):
        messages[-1]["content"] = content + _TAG
        return content
    parts = [dict(part) if isinstance(part, dict) else part for part in content] if isinstance(content, list) else []
    for part in reversed(parts):
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            text: str = part["text"]
            part["text"] += _TAG
            messages[-1]["content"] = parts
            return text
    raise InvalidRequest("continue_final_message is set, and the final message has no text to continue.")


def _cut(text: str, final: str) -> str:
    """The text up to the mark; where the template strips contents, the end is stripped too."""
    mark = _TAG.strip()
    if final.strip() not in text or mark not in text:
        raise InvalidRequest("continue_final_message is set, and the chat template leaves out the final message.")
    at = text.rindex(mark)
    return text[:at] if text[at : at + len(_TAG)] == _TAG else text[:at].rstrip()


def _reason(error: BaseException) -> str:
    words = str(error).strip() or type(error).__name__
    return words[:MAX_REASON_CHARACTERS].rstrip(".:")
