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

from baton.answer import Answer, Token, given_sampling, make_request, read_answer, read_tokens
from baton.connection import Connection
from baton.errors import Cancelled, InternalError, error_from_rpc
from baton.resume import Resume
from baton.v1 import inference_pb2, inference_pb2_grpc
from cluster.request import Objectives, SamplingParams

DEFAULT_ADDRESS = "127.0.0.1:50051"


def _address(address: str | None) -> str:
    return address or os.environ.get("BATON_ADDRESS") or DEFAULT_ADDRESS


class TokenStream(Iterator[Token]):
    """Tokens as they come; `answer` is complete once the iteration has ended."""

    def __init__(self, generate: Any, resume: Resume, address: str, metadata: Any) -> None:
        self._generate, self._resume, self._address, self._metadata = generate, resume, address, metadata
        self._call = generate(resume.request, timeout=resume.timeout_s, metadata=metadata)
        self._tokens: list[Token] = []
        self._ready: list[Token] = []
        self._answer: Answer | None = None

    def __next__(self) -> Token:
        while not self._ready:
            try:
                response = next(self._call)
            except grpc.RpcError as error:
                wait_s = self._resume.wait_s(error)
                if wait_s is None:
                    raise error_from_rpc(error, self._address) from None
                time.sleep(wait_s)
                request, remaining_s = self._resume.again(self._tokens), self._resume.remaining_s
                self._call = self._generate(request, timeout=remaining_s, wait_for_ready=True, metadata=self._metadata)
                continue
            self._resume.on_tokens()
            self._ready = read_tokens(response)
            self._tokens += self._ready
            self._ready.reverse()
            if response.HasField("finish"):
                self._answer = read_answer(self._tokens, response.finish)
        return self._ready.pop()

    @property
    def answer(self) -> Answer:
        """The whole answer, reading the rest of the stream if need be."""
        for _ in self:
            pass
        if self._answer is None:
            raise InternalError("The stream ended without its last message.")
        return self._answer

    def cancel(self) -> None:
        """Stop the request; its pages are freed on both workers."""
        self._call.cancel()


class Client:
    """A synchronous client.

        with baton.Client() as client:
            for token in client.stream("Once upon a time", max_tokens=40):
                print(token.text, end="", flush=True)

    Failed calls raise an error of `baton.errors`, such as `InvalidRequest` or `Overloaded`.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        token: str | None = None,
        tls_ca: str | None = None,
        tls_certificate: str | None = None,
        tls_key: str | None = None,
    ) -> None:
        """Connect to "host:port"; the default is $BATON_ADDRESS, or this machine's port 50051.

        The rest as in `baton.connection.Connection`, with $BATON_TOKEN, $BATON_TLS_CA and so on as defaults.
        """
        self.address = _address(address)
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
        return TokenStream(self._inference.Generate, Resume(request, timeout_s), self.address, self._metadata)

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
            return method(request, timeout=30, metadata=self._metadata)
        except grpc.RpcError as error:
            raise error_from_rpc(error, self.address) from None

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

    def __init__(self, generate: Any, resume: Resume, address: str, metadata: Any) -> None:
        self._generate, self._resume, self._address, self._metadata = generate, resume, address, metadata
        self._call = generate(resume.request, timeout=resume.timeout_s, metadata=metadata)
        self._tokens: list[Token] = []
        self._ready: list[Token] = []
        self._answer: Answer | None = None
        self._cancelled = False

    async def __anext__(self) -> Token:
        while not self._ready:
            try:
                response = await self._call.read()
            except asyncio.CancelledError:  # so gRPC says that the call was cancelled, not only that the reader was
                reader = asyncio.current_task()
                if not self._cancelled or (reader is not None and reader.cancelling()):
                    raise
                raise Cancelled("The stream was cancelled.") from None
            except grpc.RpcError as error:
                wait_s = self._resume.wait_s(error)
                if wait_s is None:
                    raise error_from_rpc(error, self._address) from None
                await asyncio.sleep(wait_s)
                request, remaining_s = self._resume.again(self._tokens), self._resume.remaining_s
                self._call = self._generate(request, timeout=remaining_s, wait_for_ready=True, metadata=self._metadata)
                continue
            if response is grpc.aio.EOF:
                raise StopAsyncIteration
            self._resume.on_tokens()
            self._ready = read_tokens(response)
            self._tokens += self._ready
            self._ready.reverse()
            if response.HasField("finish"):
                self._answer = read_answer(self._tokens, response.finish)
        return self._ready.pop()

    async def answer(self) -> Answer:
        """The whole answer, reading the rest of the stream if need be."""
        async for _ in self:
            pass
        if self._answer is None:
            raise InternalError("The stream ended without its last message.")
        return self._answer

    def cancel(self) -> None:
        """Stop the request; its pages are freed on both workers."""
        self._cancelled = True
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
    ) -> None:
        """Connect to "host:port"; the default is $BATON_ADDRESS, or this machine's port 50051.

        The rest as in `baton.connection.Connection`, with $BATON_TOKEN, $BATON_TLS_CA and so on as defaults.
        """
        self.address = _address(address)
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
        return AsyncTokenStream(self._inference.Generate, Resume(request, timeout_s), self.address, self._metadata)

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
            return await method(request, timeout=30, metadata=self._metadata)
        except grpc.RpcError as error:
            raise error_from_rpc(error, self.address) from None

    async def close(self) -> None:
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
