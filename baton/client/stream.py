"""Streams of tokens, for plain code and for asyncio: both perform the steps of `baton.client.resume`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import grpc.aio

from baton.client.answer import Answer, Token
from baton.client.connection import Metadata
from baton.client.resume import Open, Pause, Ping, Read, Resume, Step
from baton.protocol.errors import Cancelled
from baton.protocol.v1 import inference_pb2


class _Stream:
    """The part without waiting: the history, its current step, and how many tokens the caller has received."""

    def __init__(self, stub: Any, history: Resume, metadata: Metadata) -> None:
        self._stub, self._history, self._metadata = stub, history, metadata
        self._call: Any = None
        self._received = 0
        self._steps = history.steps()
        self._step: Step = next(self._steps)
        self._open(self._step)
        self._step = next(self._steps)

    def _open(self, step: Any) -> None:
        self._call = self._stub.Generate(step.request, timeout=step.timeout_s, metadata=self._metadata)
        if self._history.cancelled:  # Another thread has just cancelled the stream, while there was no call
            self._call.cancel()

    def _ping(self, step: Ping) -> Any:
        model = inference_pb2.GetModelRequest()
        return self._stub.GetModel(model, timeout=step.timeout_s, metadata=self._metadata)

    def _token(self) -> Token | None:
        """The next token that has arrived, if any."""
        if self._received == len(self._history.tokens):
            return None
        self._received += 1
        return self._history.tokens[self._received - 1]

    def cancel(self) -> None:
        """Stop the request; its pages are freed on both workers. Reading on raises `Cancelled`."""
        self._history.cancelled = True
        if self._call is not None:
            self._call.cancel()


class TokenStream(_Stream, Iterator[Token]):
    """Tokens as they are generated; `answer` is complete once the iteration has ended."""

    def __next__(self) -> Token:
        while (token := self._token()) is None:
            try:
                outcome = self._perform(self._step)
            except grpc.RpcError as error:
                self._step = self._steps.throw(error)
            else:
                self._step = self._steps.send(outcome)  # Raises StopIteration at the stream's end
        return token

    def _perform(self, step: Step) -> Any:
        match step:
            case Open():
                self._open(step)
            case Read():
                return next(self._call, None)
            case Ping():
                self._ping(step)
            case Pause(seconds):
                time.sleep(seconds)
            case _:
                raise step.error
        return None

    @property
    def answer(self) -> Answer:
        """The whole answer; reads the rest of the stream first."""
        for _ in self:
            pass
        return self._history.whole_answer


class AsyncTokenStream(_Stream, AsyncIterator[Token]):
    """`TokenStream` for asyncio; `await stream.answer()` for the whole answer."""

    async def __anext__(self) -> Token:
        while (token := self._token()) is None:
            try:
                outcome = await self._perform(self._step)
            except grpc.RpcError as error:
                self._step = self._steps.throw(error)
                continue
            except asyncio.CancelledError:  # Raised by gRPC when the call was cancelled, not only when the reader was
                reader = asyncio.current_task()
                if not self._history.cancelled or (reader is not None and reader.cancelling()):
                    raise
                raise Cancelled("The stream was cancelled.") from None
            try:
                self._step = self._steps.send(outcome)
            except StopIteration:
                raise StopAsyncIteration from None
        return token

    async def _perform(self, step: Step) -> Any:
        match step:
            case Open():
                self._open(step)
            case Read():
                response = await self._call.read()
                return None if response is grpc.aio.EOF else response
            case Ping():
                await self._ping(step)
            case Pause(seconds):
                await asyncio.sleep(seconds)
            case _:
                raise step.error
        return None

    async def answer(self) -> Answer:
        """The whole answer; reads the rest of the stream first."""
        async for _ in self:
            pass
        return self._history.whole_answer
