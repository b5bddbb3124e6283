"""How an answer is written: as a stream or as one body. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from baton.gateway.http.answer import Answer
from baton.gateway.http.ask import Ask, Renderer, Words
from baton.gateway.http.streamed import ChatStream, CompletionStream
from baton.gateway.http.whole import WholeAnswer


def renderer(ask: Ask, answer_id: str, created_s: int, prompts: Sequence[Sequence[int]], words: Words) -> Renderer:
    """The renderer for a body's answer; `prompts` are token ids, a chat has one, and `created_s` is Unix time."""
    answer = Answer(ask, answer_id, created_s, prompts, words)
    if not ask.stream:
        return WholeAnswer(answer)
    if ask.kind == "chat":
        return ChatStream(answer, "chat.completion.chunk")
    return CompletionStream(answer, "text_completion")
