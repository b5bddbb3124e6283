"""The load of reliability runs and benchmarks: requests from many clients at a time, each answer checked.

A load sends in one of two ways. `clients` is a fixed number of clients that each send a request as soon as their last
one has ended. `arrivals` sends at random moments at a given rate, whatever becomes of earlier requests.
"""

from __future__ import annotations

import asyncio
import random
import time
from array import array
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import baton
from baton.client.client import AsyncTokenStream
from baton.client.errors import BatonError, Cancelled

BACK_OFF_S = 0.5  # a client waits so long after an error
FRESH_TOKEN_IDS = range(3, 250)  # every model here has these


@dataclass(eq=False, slots=True)
class Sent:
    """One request as its client sees it. Tokens are checked when it ends, and not kept."""

    request_id: str
    begun_s: float  # like all times here: of time.monotonic()
    stream: AsyncTokenStream | None  # None once the request has ended
    shown_s: array[float] = field(default_factory=lambda: array("d"))  # when each token arrived
    ended_s: float | None = None
    left: bool = False  # cancelled by its client before its end
    error: BatonError | None = None
    wrong: int = 0  # tokens that differ from the undisturbed answer
    missing: int = 0
    repeated: int = 0
    ttft_s: float | None = None
    tpot_s: float | None = None
    migrations: int = 0

    @property
    def done(self) -> bool:
        """Whether it has a complete answer, right or wrong."""
        return self.ended_s is not None and not self.left and self.error is None

    @property
    def fault(self) -> str:
        """What is wrong with it, as a sentence; empty when nothing is."""
        if self.error is not None:
            return f"{self.request_id}: {type(self.error).__name__}: {self.error.message}"
        if self.wrong or self.missing or self.repeated:
            return f"{self.request_id}: {self.wrong} tokens wrong, {self.missing} missing, {self.repeated} repeated."
        return ""

    def absorb(self, answer: baton.Answer, expected: Sequence[int] | None) -> None:
        """Check the answer: each index once, and the expected tokens where they are known."""
        indices = {token.index for token in answer.tokens}
        wanted = set(range(max(indices, default=-1) + 1 if expected is None else len(expected)))
        self.repeated = len(answer.tokens) - len(indices)
        self.missing = len(wanted - indices)
        self.wrong = len(indices - wanted)
        if expected is not None:
            self.wrong += sum(token.id != expected[token.index] for token in answer.tokens if token.index in wanted)
        self.ttft_s, self.tpot_s, self.migrations = answer.ttft_s, answer.tpot_s, answer.migrations


@dataclass(eq=False)
class Load:
    """Sends requests through one connection and keeps what became of each."""

    client: baton.AsyncClient
    options: Mapping[str, Any]  # of every request, as for `AsyncClient.stream`
    prompts: Sequence[list[int]] = ()  # sent again and again, each with its place as the seed; `learn` their answers
    fresh_tokens: tuple[int, int] | None = None  # lengths of random prompts: half of all requests beside `prompts`
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    expected: list[list[int]] = field(default_factory=list)  # the undisturbed answers to `prompts`
    ended: list[Sent] = field(default_factory=list)
    _open: dict[int, Sent] = field(default_factory=dict)  # by client or arrival
    _tasks: set[asyncio.Task[Sent]] = field(default_factory=set)
    _answered: asyncio.Event = field(default_factory=asyncio.Event)
    _count: int = 0

    @property
    def live(self) -> dict[str, Sent]:
        """Open requests by id."""
        return {sent.request_id: sent for sent in self._open.values()}

    @property
    def done(self) -> list[Sent]:
        return [sent for sent in self.ended if sent.done]

    @property
    def left(self) -> list[Sent]:
        return [sent for sent in self.ended if sent.left]

    @property
    def wrong(self) -> list[str]:
        """A sentence for each request that failed or has a wrong, missing or repeated token."""
        return [sent.fault for sent in self.ended if sent.fault]

    def tokens_between(self, start_s: float, end_s: float) -> int:
        """Tokens that reached any client in the interval."""
        return sum(start_s <= moment < end_s for sent in (*self.ended, *self._open.values()) for moment in sent.shown_s)

    async def learn(self) -> None:
        """OperationSpec for the undisturbed answers, one after the other."""
        for seed, prompt in enumerate(self.prompts):
            answer = await self.client.generate(prompt, seed=seed, **self.options)
            self.expected.append(answer.token_ids)

    @asynccontextmanager
    async def clients(self, width: int) -> AsyncIterator[None]:
        """`width` clients during the block; at its end they wait for their last answers."""
        stopping = asyncio.Event()

        async def serve(place: int) -> None:
            while not stopping.is_set():
                sent = await self._send(place)
                if sent.error is not None:
                    await asyncio.sleep(BACK_OFF_S)

        async with asyncio.TaskGroup() as group:
            for place in range(width):
                group.create_task(serve(place))
            await asyncio.sleep(0)  # each has sent its first request when the block begins
            yield
            stopping.set()

    async def arrivals(self, per_s: float, seconds: float, max_open: int | None = None) -> int:
        """Requests at random moments. Returns how many were left out because `max_open` were open.

        Requests that are open at the end go on; `settled` waits for them.
        """
        left_out, next_s = 0, time.monotonic()
        end_s = next_s + seconds
        while (next_s := next_s + self.rng.expovariate(per_s)) < end_s:
            await asyncio.sleep(max(0.0, next_s - time.monotonic()))
            if max_open is not None and len(self._open) >= max_open:
                left_out += 1
                continue
            task = asyncio.create_task(self._send(self._count))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return left_out

    async def settled(self) -> None:
        """Wait until every arrival has its end."""
        await asyncio.gather(*self._tasks)

    async def leave(self, share: float, within_s: float) -> None:
        """This share of the clients cancel what they read, each at a random moment within that time."""

        async def cancel(place: int) -> None:
            await asyncio.sleep(self.rng.uniform(0.0, within_s))
            sent = self._open.get(place)
            if sent is not None and sent.stream is not None:
                sent.left = True
                sent.stream.cancel()

        places = sorted(self._open)
        await asyncio.gather(*(cancel(place) for place in self.rng.sample(places, int(share * len(places)))))

    async def next_answer(self, timeout_s: float) -> bool:
        """Wait for the next complete answer; False if there was none in time."""
        self._answered.clear()
        try:
            await asyncio.wait_for(self._answered.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    def _next_prompt(self) -> tuple[int | None, list[int]]:
        """A prompt and its place among `prompts`, None for a fresh one."""
        if self.fresh_tokens is not None and (not self.prompts or self.rng.random() < 0.5):
            return None, self.rng.choices(FRESH_TOKEN_IDS, k=self.rng.randint(*self.fresh_tokens))
        index = self.rng.randrange(len(self.prompts))
        return index, self.prompts[index]

    async def _send(self, place: int) -> Sent:
        """One request, from its first to its last token."""
        index, prompt = self._next_prompt()
        self._count += 1
        request_id = f"load-{self._count}"
        seed = self._count if index is None else index
        stream = self.client.stream(prompt, seed=seed, request_id=request_id, **self.options)
        sent = self._open[place] = Sent(request_id, time.monotonic(), stream)
        try:
            async for _ in stream:
                sent.shown_s.append(time.monotonic())
            sent.absorb(await stream.answer(), None if index is None else self.expected[index])
            sent.left = False
            self._answered.set()
        except BatonError as error:
            if not (sent.left and isinstance(error, Cancelled)):
                sent.left, sent.error = False, error
        finally:
            sent.ended_s, sent.stream = time.monotonic(), None
            del self._open[place]
            self.ended.append(sent)
        return sent
