"""Answers as server-sent events. Pure.

A stream has an event per `write`: what is the same in all of a sequence's events is serialised once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import orjson

from baton.gateway.core.commands import StreamEnd
from baton.gateway.core.stream import TextToken
from baton.gateway.http.answer import Answer, completion_logprobs, named_texts
from baton.gateway.http.ask import TokenLogprobs
from baton.gateway.http.token_words import chat_logprobs
from baton.http.errors import DONE

_PLAIN = b',"logprobs":null,"finish_reason":null}]'


@dataclass(slots=True, eq=False)
class EventStream:
    """The events of an answer; a kind of answer says how its choices look."""

    answer: Answer
    object_name: str
    before_index: bytes = field(init=False)
    after_choices: bytes = field(init=False)  # Without continuous usage
    started: set[int] = field(default_factory=set)  # Sequences that have sent events

    def __post_init__(self) -> None:
        head = orjson.dumps(self.answer.head(self.object_name))
        self.before_index = b"data: " + head[:-1] + b',"choices":[{"index":'
        self.after_choices = b',"usage":null}\n\n' if self.answer.ask.include_usage else b"}\n\n"

    def prompt_logprobs(self, prompt: int, logprobs: Sequence[TokenLogprobs]) -> None:
        """As `Renderer.prompt_logprobs`."""
        self.answer.prompt_logprobs[prompt] = logprobs

    def close(self) -> bytes:
        """The usage if it is asked for, and the end."""
        if not self.answer.ask.include_usage:
            return DONE
        last = {**self.answer.head(self.object_name), "choices": [], "usage": self.answer.usage(ended=True)}
        return b"data: " + orjson.dumps(last) + b"\n\n" + DONE

    def ending(self) -> bytes:
        """What follows the choices of an event."""
        if not self.answer.ask.continuous_usage:
            return self.after_choices
        return b',"usage":' + orjson.dumps(self.answer.usage(ended=False)) + b"}\n\n"

    def token_ids(self, tokens: list[TextToken]) -> bytes:
        """The member `token_ids` of a choice, if it is asked for."""
        if not self.answer.ask.return_token_ids:
            return b""
        return b',"token_ids":' + orjson.dumps([token.token_id for token in tokens])

    def prompt_token_ids(self, sequence: int) -> bytes:
        """The member `prompt_token_ids` of a sequence's first event, if it is asked for."""
        if not self.answer.ask.return_token_ids:
            return b""
        prompt = self.answer.ask.prompt_of(sequence)[0]
        return b',"prompt_token_ids":' + orjson.dumps(list(self.answer.prompts[prompt]))


@dataclass(slots=True, eq=False)
class CompletionStream(EventStream):
    """Events of /v1/completions: the last one has the last text and the reason of the end."""

    _heads: dict[int, bytes] = field(default_factory=dict)  # By sequence, until the text
    _offsets: dict[int, int] = field(default_factory=dict)  # By sequence: characters of text so far
    _plain_end: bytes | None = field(init=False)  # What follows the text, if it is always the same

    def __post_init__(self) -> None:
        EventStream.__post_init__(self)
        ask = self.answer.ask
        varying = ask.continuous_usage or ask.logprobs is not None or ask.return_token_ids or ask.echo
        self._plain_end = None if varying else _PLAIN + self.after_choices

    def write(self, sequence: int, tokens: list[TextToken], end: StreamEnd | None) -> bytes:
        """As `Renderer.write`."""
        if not tokens and end is None:
            return b""
        self.answer.count(sequence, tokens, end)
        head = self._heads.get(sequence)
        if head is None:
            head = self._heads[sequence] = self.before_index + b'%d,"text":' % sequence
        if end is None and self._plain_end is not None:
            text = tokens[0].text if len(tokens) == 1 else "".join([token.text for token in tokens])
            return head + orjson.dumps(text) + self._plain_end
        return head + self._rest(sequence, tokens, end)

    def _rest(self, sequence: int, tokens: list[TextToken], end: StreamEnd | None) -> bytes:
        """An event from its text on."""
        ask = self.answer.ask
        first = sequence not in self.started
        self.started.add(sequence)
        shown = [] if ask.prompt_only else tokens
        named, text = named_texts(shown), "".join([token.text for token in shown])
        prompt = ask.prompt_of(sequence)[0]
        if first and ask.echo:
            text = self.answer.echo_text(prompt) + text
            named = self.answer.echo_tokens(prompt) + named if ask.logprobs is not None else named
        if end is not None and not ask.prompt_only:
            text += end.trailing_text
        logprobs = b"null"
        if ask.logprobs is not None:
            offset = self._offsets.get(sequence, 0)
            self._offsets[sequence] = offset + len(text)
            logprobs = orjson.dumps(completion_logprobs(self.answer.names, named, offset, ask.logprobs))
        ids = (self.prompt_token_ids(sequence) if first else b"") + self.token_ids(shown)
        reason = reason_json(end)
        return b'%b,"logprobs":%b,"finish_reason":%b%b}]' % (orjson.dumps(text), logprobs, reason, ids) + self.ending()


@dataclass(slots=True, eq=False)
class ChatStream(EventStream):
    """Events of /v1/chat/completions: the role with the first tokens, then text, then the reason of the end."""

    _heads: dict[int, bytes] = field(default_factory=dict)  # By sequence, until the text
    _plain_end: bytes | None = field(init=False)  # What follows the text, if it is always the same

    def __post_init__(self) -> None:
        EventStream.__post_init__(self)
        ask = self.answer.ask
        varying = ask.continuous_usage or ask.logprobs is not None or ask.return_token_ids
        self._plain_end = None if varying else b"}" + _PLAIN + self.after_choices

    def write(self, sequence: int, tokens: list[TextToken], end: StreamEnd | None) -> bytes:
        """As `Renderer.write`."""
        if not tokens and end is None:
            return b""
        self.answer.count(sequence, tokens, end)
        head = self._heads.get(sequence)
        role = b""
        if head is None:
            head = self._heads[sequence] = self.before_index + b'%d,"delta":' % sequence
            ids = self.prompt_token_ids(sequence)
            role = head + b'{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]' + ids
            role += self.ending()
        text = tokens[0].text if len(tokens) == 1 else "".join([token.text for token in tokens])
        if end is None and self._plain_end is not None:
            return role + head + b'{"content":' + orjson.dumps(text) + self._plain_end
        return role + self._last(head, text, tokens, end)

    def _last(self, head: bytes, text: str, tokens: list[TextToken], end: StreamEnd | None) -> bytes:
        """Text with all that belongs to its tokens, and the end in an event without text."""
        ask, ending = self.answer.ask, self.ending()
        text += end.trailing_text if end is not None else ""
        events = b""
        if tokens or text:
            logprobs = b"null"
            if ask.logprobs is not None:
                pairs = [(token.token_id, (token.logprob, token.top_logprobs)) for token in tokens]
                logprobs = orjson.dumps(chat_logprobs(self.answer.names, pairs))
            events = b'%b{"content":%b},"logprobs":%b,"finish_reason":null%b}]' % (
                head,
                orjson.dumps(text),
                logprobs,
                self.token_ids(tokens),
            )
            events += ending
        if end is not None:
            events += head + b'{},"logprobs":null,"finish_reason":' + reason_json(end) + b"}]" + ending
        return events


def reason_json(end: StreamEnd | None) -> bytes:
    """`finish_reason`, in JSON."""
    return b"null" if end is None or end.reason is None else b'"' + end.reason.value.encode() + b'"'
