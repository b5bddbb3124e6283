"""The unread output of one client's stream, between the driver and the task that writes it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from baton.gateway.core.commands import StreamEnd
from baton.gateway.core.stream import TextToken
from baton.protocol.errors import BatonError
from baton.protocol.prompt_logprobs import PromptLogprobs
from baton.protocol.request import Request
from baton.tracing.request_trace import RequestTrace


@dataclass(slots=True, eq=False)
class Subscription:
    """At most `max_tokens` tokens, and the end. One task reads it.

    All that comes in one turn of the event loop is read at once, so a stream costs one task switch per turn.
    """

    request: Request
    api: str  # "grpc" or "http"
    resumed: bool = False  # The client had tokens before
    trace: RequestTrace | None = None
    tokens: list[TextToken] = field(default_factory=list)
    end: StreamEnd | None = None
    error: BatonError | None = None  # If set, the stream ends with it
    prompt: list[PromptLogprobs] = field(default_factory=list)  # Unread log-probabilities of the prompt
    writing_since_s: float | None = None  # Since when a message waits for the client to read
    _reader: asyncio.Future[None] | None = None

    @property
    def request_id(self) -> str:
        return self.request.request_id

    async def next(self) -> tuple[list[TextToken], StreamEnd | None]:
        """The tokens since the last call, and the end after the last one; waits for either.

        Raises `Cancelled` if another client has taken over the stream or this client does not read it.
        """
        if not self.tokens and self.end is None and self.error is None:
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        if self.error is not None:
            raise self.error
        tokens, self.tokens = self.tokens, []
        return tokens, self.end

    def show_prompt(self, part: PromptLogprobs) -> None:
        """Add log-probabilities of the prompt."""
        self.prompt.append(part)

    def take_prompt(self) -> list[PromptLogprobs]:
        """The log-probabilities of the prompt since the last call; with the first token all are there."""
        prompt, self.prompt = self.prompt, []
        return prompt

    def show(self, tokens: list[TextToken]) -> None:
        """Add tokens."""
        self.tokens += tokens
        self._wake()

    def finish(self, end: StreamEnd) -> None:
        """Add the end; nothing follows."""
        self.end = end
        self._wake()

    def fail(self, error: BatonError) -> None:
        """End the stream with an error and drop its unread tokens."""
        self.error = error
        self.tokens, self.prompt = [], []
        self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
