"""Bodies of /v1/chat/completions. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from baton.gateway.chat_prompt import ChatPrompt
from baton.gateway.http.ask import Ask, HttpModel
from baton.gateway.http.common_fields import (
    REFUSED,
    check_known,
    read_counts,
    read_model,
    read_objectives,
    read_prompt_logprobs,
    read_sampling,
    read_stream,
)
from baton.gateway.http.parameters import Fields, parse_object
from baton.http.errors import InvalidField
from baton.protocol.errors import InvalidRequest
from baton.protocol.request import MAX_LOGPROBS

MAX_MESSAGES = 4096
ROLES = ("developer", "system", "user", "assistant", "tool", "function")
_PASSED_ON = ("name", "tool_call_id", "reasoning_content", "reasoning")  # Texts of a message that templates use
_REFUSED = {
    **REFUSED,
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "echo": (False,),
    "best_of": (1,),
    "audio": (),
    "modalities": (["text"],),
    "web_search_options": (),
    "chat_template": (),
    "documents": ([],),
    "mm_processor_kwargs": ({},),
}


def parse_chat(body: bytes, model: HttpModel, headers: Mapping[str, str] | None = None) -> Ask:
    """The checked content of a body; `headers` have lower case names.

    Raises `InvalidRequest` naming the field, and `ModelNotFound`.
    """
    fields = Fields(parse_object(body))
    name = read_model(fields, model)
    check_known(fields, _REFUSED)
    chat = read_conversation(fields)
    stream, include_usage, continuous_usage = read_stream(fields)
    n, best_of = read_counts(fields, 1, stream)
    logprobs = _logprobs(fields)
    prompt_logprobs = read_prompt_logprobs(fields, stream)
    decided = {"max_tokens": _max_tokens(fields, model), "logprobs": logprobs, "prompt_logprobs": prompt_logprobs}
    sampling = read_sampling(fields, model, decided)
    priority, objectives = read_objectives(fields, headers or {})
    return Ask(
        kind="chat",
        model=name,
        prompts=(),
        chat=chat,
        sampling=sampling,
        n=n,
        best_of=best_of,
        stream=stream,
        include_usage=include_usage,
        continuous_usage=continuous_usage,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        add_special_tokens=fields.flag("add_special_tokens", False),
        return_token_ids=fields.flag("return_token_ids", False),
        tokens_as_ids=fields.flag("return_tokens_as_token_ids", False),
        priority=priority,
        objectives=objectives,
        ignored=fields.unread,
    )


def _max_tokens(fields: Fields, model: HttpModel) -> int:
    """The newer field, the older one, the model's default, or the rest of the context."""
    values = [fields.whole(name, 1, 2**31 - 1) for name in ("max_completion_tokens", "max_tokens")]
    given = next((value for value in values if value is not None), None)
    return given if given is not None else int(model.sampling_defaults.get("max_tokens", model.context_tokens))


def _logprobs(fields: Fields) -> int | None:
    """The number of alternatives; None without log-probabilities."""
    wanted, count = fields.flag("logprobs", False), fields.whole("top_logprobs", 0, MAX_LOGPROBS)
    if count and not wanted:
        raise InvalidField("top_logprobs needs logprobs to be true.", "top_logprobs")
    return (count or 0) if wanted else None


def read_conversation(fields: Fields) -> ChatPrompt:
    """The messages and the options of the template; raises `InvalidField`."""
    messages = fields.list_of("messages", dict, "messages", MAX_MESSAGES)
    if not messages:
        raise fields.error("messages", "a list of at least one message")
    options = dict(fields.inner("chat_template_kwargs").values)
    effort = fields.text("reasoning_effort")
    if effort is not None:
        options.setdefault("reasoning_effort", effort)
    continued = fields.flag("continue_final_message", False)
    generation_prompt = fields.flag("add_generation_prompt", not continued)
    if continued and generation_prompt:
        raise InvalidField(
            "continue_final_message and add_generation_prompt are both true: only one may be.", "continue_final_message"
        )
    read = tuple(_message(Fields(message, f"messages[{at}].")) for at, message in enumerate(messages))
    return ChatPrompt(read, generation_prompt, continued, options)


def _message(fields: Fields) -> dict[str, Any]:
    role = fields.text("role")
    if role not in ROLES:
        raise fields.error("role", f"one of {', '.join(ROLES)}")
    message: dict[str, Any] = {"role": role, "content": _content(fields, role)}
    for name in _PASSED_ON:
        text = fields.text(name)
        if text is not None:
            message[name] = text
    calls = fields.list_of("tool_calls", dict, "tool calls", MAX_MESSAGES)
    if calls:
        message["tool_calls"] = [_tool_call(call) for call in calls]
    return message


def _tool_call(call: dict[str, Any]) -> dict[str, Any]:
    """With the arguments as an object: templates write them as JSON themselves."""
    function = call.get("function")
    if type(function) is not dict or type(function.get("arguments")) is not str:
        return call
    try:
        return {**call, "function": {**function, "arguments": parse_object(function["arguments"].encode())}}
    except InvalidRequest:
        return call


def _content(fields: Fields, role: str) -> str:
    """The text of a message. An assistant's may be missing, as beside tool calls."""
    content = fields.get("content")
    if type(content) is str:
        return content
    if content is None and role == "assistant":
        return ""
    parts = fields.list_of("content", dict, "parts, or a text", MAX_MESSAGES)
    if parts is None:
        raise fields.error("content", "a text or a list of text parts")
    return "\n".join(_part(Fields(part, f"{fields.prefix}content[{at}].")) for at, part in enumerate(parts))


def _part(fields: Fields) -> str:
    kind = fields.text("type")
    if kind not in ("text", "refusal"):
        raise fields.error("type", '"text": other parts are not supported')
    text = fields.text(kind)
    if text is None:
        raise fields.error(kind, "a text")
    return text
