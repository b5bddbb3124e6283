"""Generates the sequences of a body and writes them to its client: as events while they come, or as one response."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from baton.gateway.core.commands import StreamEnd
from baton.gateway.core.stream import TextToken
from baton.gateway.driver import GatewayDriver
from baton.gateway.http.ask import Ask, Renderer, TokenLogprobs
from baton.gateway.public_messages import MAX_TOKENS_PER_MESSAGE
from baton.gateway.siblings import Siblings
from baton.gateway.subscription import Subscription
from baton.http.exchange import Exchange
from baton.http.response import JSON, HttpResponse
from baton.protocol.errors import BatonError, Cancelled
from baton.protocol.prompt_logprobs import PromptLogprobs
from baton.protocol.request import Request
from baton.tracing.request_trace import RequestTrace

LEFT = "The client disconnected."


@dataclass(eq=False)
class LiveAnswer:
    """The answer to one body. When its client leaves or a sequence fails, all of its sequences are stopped."""

    driver: GatewayDriver
    exchange: Exchange
    ask: Ask
    renderer: Renderer
    trace: RequestTrace | None = None  # None: without tracing
    subscriptions: list[Subscription] = field(default_factory=list)

    async def run(self, requests: Sequence[Request]) -> None:
        """Generate and write; raises the `BatonError` of a sequence, and `Cancelled` when the client has left."""
        stopped: BatonError = Cancelled(LEFT)
        watch = asyncio.ensure_future(self.exchange.gone())
        watch.add_done_callback(self._on_gone)
        try:
            await self._write_all(requests)
            if self.ask.stream:
                await self.exchange.end(self.renderer.close())
            else:
                await self.exchange.respond(HttpResponse(200, {"content-type": JSON}, self.renderer.close()))
        except BatonError as error:
            stopped = error
            raise
        finally:
            watch.cancel()
            for subscription in self.subscriptions:
                self.driver.close(subscription, stopped)

    def _on_gone(self, watch: asyncio.Future[None]) -> None:
        if not watch.cancelled():
            self.fail(Cancelled(LEFT))

    def fail(self, error: BatonError) -> None:
        """End the answer with an error."""
        for subscription in self.subscriptions:
            if subscription.end is None:
                subscription.fail(error)

    async def _write_all(self, requests: Sequence[Request]) -> None:
        siblings = Siblings(self.ask.best_of)
        if len(requests) == 1:
            await self._write(0, requests[0], siblings)
            return
        writers = [asyncio.ensure_future(self._write(*one, siblings)) for one in enumerate(requests)]
        try:
            await asyncio.gather(*writers)
        finally:
            for writer in writers:
                writer.cancel()

    async def _write(self, sequence: int, request: Request, siblings: Siblings) -> None:
        """Write a sequence to its end: what is ready in one turn of the event loop is one write."""
        await siblings.turn(sequence)
        trace, traces = self.trace, self.driver.traces
        if trace is not None and traces is not None and self.ask.num_sequences > 1:
            trace = traces.child(trace)
        subscription = self.driver.open(request, api="http", trace=trace)
        self.subscriptions.append(subscription)
        self.exchange.streams = True
        tokens, end = await subscription.next()
        siblings.begun(sequence)
        if request.sampling.prompt_logprobs is not None:  # All are there with the first token
            scores = prompt_scores(subscription.take_prompt())
            self.renderer.prompt_logprobs(self.ask.prompt_of(sequence)[0], scores)
        while True:
            while len(tokens) > MAX_TOKENS_PER_MESSAGE and self.ask.stream:
                await self._show(sequence, tokens[:MAX_TOKENS_PER_MESSAGE], None)
                tokens = tokens[MAX_TOKENS_PER_MESSAGE:]
            if end is not None and end.error is not None:
                await self._show(sequence, tokens, None)
                raise end.error
            await self._show(sequence, tokens, end)
            if end is not None:
                return
            tokens, end = await subscription.next()

    async def _show(self, sequence: int, tokens: list[TextToken], end: StreamEnd | None) -> None:
        events = self.renderer.write(sequence, tokens, end)
        if events:
            await self.exchange.write(events)


def prompt_scores(parts: Sequence[PromptLogprobs]) -> list[TokenLogprobs]:
    """The log-probabilities of a prompt's tokens in order; the first has none."""
    entries = [entry for part in parts for entry in part.entries()]
    first: TokenLogprobs = (None, ())
    return [first, *((logprob, likely) for _, logprob, likely in sorted(entries))]
