"""Clients for a Baton cluster: `Client` for plain code, `AsyncClient` for asyncio. Both have the same methods.

Operators have a client of their own, `baton.Admin`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from baton.client.answer import Answer, Token, given_sampling, make_request
from baton.client.connection import Connection, Metadata
from baton.client.errors import Cancelled, error_from_rpc
from baton.client.resume import GIVE_UP_S, Resume
from baton.protocol.request import Objectives, SamplingParams
from baton.protocol.v1 import inference_pb2, inference_pb2_grpc

DEFAULT_ADDRESS = "127.0.0.1:50051"
TIMEOUT_S = 30.0  # of the small calls; streams have the caller's own
CANCELLED = "The stream was cancelled."


def _address(address: str | None) -> str:
    return address or os.environ.get("BATON_ADDRESS") or DEFAULT_ADDRESS


class TokenStream(Iterator[Token]):
    """Tokens as they come; `answer` is complete once the iteration has ended."""

    def __init__(self, stub: Any, history: Resume, metadata: Metadata) -> None:
        self._stub, self._history, self._metadata = stub, history, metadata
        self._call: Any = stub.Generate(history.request, timeout=history.timeout_s, metadata=metadata)
        self._ready: list[Token] = []
        self._cancelled = False

    def __next__(self) -> Token:
        while not self._ready:
            try:
                if self._call is None:
                    self._call = self._resumed()
                    if self._cancelled:  # by another thread, which saw no call
                        self._call.cancel()
                response = next(self._call)
            except grpc.RpcError as error:
                pause_s = self._history.pause_s(error, asking=self._call is None)
                self._call = None
                time.sleep(pause_s)
                continue
            self._ready = self._history.absorb(response)[::-1]
        return self._ready.pop()

    def _resumed(self) -> Any:
        """A call for the rest, to a router that has just answered."""
        if self._cancelled:
            raise Cancelled(CANCELLED)
        model = inference_pb2.GetModelRequest()
        self._stub.GetModel(model, timeout=self._history.ask_s, metadata=self._metadata)
        return self._stub.Generate(self._history.rest(), timeout=self._history.remaining_s, metadata=self._metadata)

    @property
    def answer(self) -> Answer:
        """The whole answer, reading the rest of the stream if need be."""
        for _ in self:
            pass
        return self._history.whole_answer

    def cancel(self) -> None:
        """Stop the request; its pages are freed on both workers."""
        self._cancelled = True
        if self._call is not None:
            self._call.cancel()


class Client:
    """A synchronous client.

        with baton.Client() as client:
            for token in client.stream("Once upon a time", max_tokens=40):
                print(token.text, end="", flush=True)

    Failed calls raise an error of the package, such as `baton.NoWorkers`, `InvalidRequest` or `Overloaded`.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        token: str | None = None,
        tls_ca: str | None = None,
        tls_certificate: str | None = None,
        tls_key: str | None = None,
        give_up_s: float = GIVE_UP_S,
    ) -> None:
        """Connect to "host:port"; the default is $BATON_ADDRESS, or this machine's port 50051.

        A stream that breaks off is taken up again for `give_up_s` without a token. The rest as in
        `baton.client.connection.Connection`, with $BATON_TOKEN, $BATON_TLS_CA and so on as defaults.
        """
        self.address, self._give_up_s = _address(address), give_up_s
        connection = Connection(token, tls_ca, tls_certificate, tls_key)
        self._channel, self._metadata = connection.channel(self.address), connection.metadata
        self._inference = inference_pb2_grpc.InferenceStub(self._channel)

    def stream(
        self,
        prompt: str | list[int],
        sampling: SamplingParams | None = None,
        *,
        timeout_s: float | None = None,
        request_id: str = "",
        priority: int = 0,
        tenant: str = "",
        objectives: Objectives | None = None,
        add_special_tokens: bool = True,
        **options: Any,
    ) -> TokenStream:
        """Generate from text or token ids; `options` are fields of `SamplingParams`.

        Options that are not given are the served model's (its generation_config.json; without one: greedy, up to
        256 tokens). A `SamplingParams` gives all of them.

        A request whose `objectives` cannot be met is refused at once (`Overloaded`, with `retry_after_s`).
        Without `add_special_tokens` a text is taken as it is, with no beginning of sequence put before it.
        """
        request = make_request(
            prompt,
            given_sampling(sampling, options),
            request_id=request_id,
            priority=priority,
            tenant=tenant,
            objectives=objectives,
            add_special_tokens=add_special_tokens,
        )
        history = Resume(request, self.address, timeout_s, self._give_up_s)
        return TokenStream(self._inference, history, self._metadata)

    def generate(self, prompt: str | list[int], sampling: SamplingParams | None = None, **options: Any) -> Answer:
        """The whole answer at once; arguments as for `stream`."""
        return self.stream(prompt, sampling, **options).answer

    def tokenize(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text, as the served model sees it."""
        request = inference_pb2.TokenizeRequest(text=text, add_special_tokens=add_special_tokens)
        return list(self._call(self._inference.Tokenize, request).ids)

    def model(self) -> inference_pb2.Model:
        """What is served."""
        return self._call(self._inference.GetModel, inference_pb2.GetModelRequest())  # type: ignore[no-any-return]

    def _call(self, method: Any, request: Any) -> Any:
        try:
            return method(request, timeout=TIMEOUT_S, metadata=self._metadata)
        except grpc.RpcError as error:
            raise error_from_rpc(error, self.address, TIMEOUT_S) from None

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncTokenStream(AsyncIterator[Token]):
    """`TokenStream` for asyncio; `await stream.answer()` for the end."""

    def __init__(self, stub: Any, history: Resume, metadata: Metadata) -> None:
        self._stub, self._history, self._metadata = stub, history, metadata
        self._call: Any = stub.Generate(history.request, timeout=history.timeout_s, metadata=metadata)
        self._ready: list[Token] = []
        self._cancelled = False

    async def __anext__(self) -> Token:
        while not self._ready:
            try:
                if self._call is None:
                    self._call = await self._resumed()
                response = await self._call.read()
            except asyncio.CancelledError:  # so gRPC says that the call was cancelled, not only that the reader was
                reader = asyncio.current_task()
                if not self._cancelled or (reader is not None and reader.cancelling()):
                    raise
                raise Cancelled(CANCELLED) from None
            except grpc.RpcError as error:
                pause_s = self._history.pause_s(error, asking=self._call is None)
                self._call = None
                await asyncio.sleep(pause_s)
                continue
            if response is grpc.aio.EOF:
                raise StopAsyncIteration
            self._ready = self._history.absorb(response)[::-1]
        return self._ready.pop()

    async def _resumed(self) -> Any:
        """A call for the rest, to a router that has just answered."""
        if self._cancelled:
            raise Cancelled(CANCELLED)
        model = inference_pb2.GetModelRequest()
        await self._stub.GetModel(model, timeout=self._history.ask_s, metadata=self._metadata)
        if self._cancelled:
            raise Cancelled(CANCELLED)
        return self._stub.Generate(self._history.rest(), timeout=self._history.remaining_s, metadata=self._metadata)

    async def answer(self) -> Answer:
        """The whole answer, reading the rest of the stream if need be."""
        async for _ in self:
            pass
        return self._history.whole_answer

    def cancel(self) -> None:
        """Stop the request; its pages are freed on both workers."""
        self._cancelled = True
        if self._call is not None:
            self._call.cancel()


class AsyncClient:
    """An asyncio client, with `Client`'s methods."""

    def __init__(
        self,
        address: str | None = None,
        *,
        token: str | None = None,
        tls_ca: str | None = None,
        tls_certificate: str | None = None,
        tls_key: str | None = None,
        give_up_s: float = GIVE_UP_S,
    ) -> None:
        """Connect to "host:port"; the default is $BATON_ADDRESS, or this machine's port 50051.

        A stream that breaks off is taken up again for `give_up_s` without a token. The rest as in
        `baton.client.connection.Connection`, with $BATON_TOKEN, $BATON_TLS_CA and so on as defaults.
        """
        self.address, self._give_up_s = _address(address), give_up_s
        connection = Connection(token, tls_ca, tls_certificate, tls_key)
        self._channel, self._metadata = connection.aio_channel(self.address), connection.metadata
        self._inference = inference_pb2_grpc.InferenceStub(self._channel)

    def stream(
        self,
        prompt: str | list[int],
        sampling: SamplingParams | None = None,
        *,
        timeout_s: float | None = None,
        request_id: str = "",
        priority: int = 0,
        tenant: str = "",
        objectives: Objectives | None = None,
        add_special_tokens: bool = True,
        **options: Any,
    ) -> AsyncTokenStream:
        """Generate from text or token ids; `options` are fields of `SamplingParams`.

        Options that are not given are the served model's (its generation_config.json; without one: greedy, up to
        256 tokens). A `SamplingParams` gives all of them.

        A request whose `objectives` cannot be met is refused at once (`Overloaded`, with `retry_after_s`).
        Without `add_special_tokens` a text is taken as it is, with no beginning of sequence put before it.
        """
        request = make_request(
            prompt,
            given_sampling(sampling, options),
            request_id=request_id,
            priority=priority,
            tenant=tenant,
            objectives=objectives,
            add_special_tokens=add_special_tokens,
        )
        history = Resume(request, self.address, timeout_s, self._give_up_s)
        return AsyncTokenStream(self._inference, history, self._metadata)

    async def generate(self, prompt: str | list[int], sampling: SamplingParams | None = None, **options: Any) -> Answer:
        """The whole answer at once; arguments as for `stream`."""
        return await self.stream(prompt, sampling, **options).answer()

    async def tokenize(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text, as the served model sees it."""
        request = inference_pb2.TokenizeRequest(text=text, add_special_tokens=add_special_tokens)
        return list((await self._call(self._inference.Tokenize, request)).ids)

    async def model(self) -> inference_pb2.Model:
        """What is served."""
        return await self._call(self._inference.GetModel, inference_pb2.GetModelRequest())  # type: ignore[no-any-return]

    async def _call(self, method: Any, request: Any) -> Any:
        try:
            return await method(request, timeout=TIMEOUT_S, metadata=self._metadata)
        except grpc.RpcError as error:
            raise error_from_rpc(error, self.address, TIMEOUT_S) from None

    async def close(self) -> None:
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
