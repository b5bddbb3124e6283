"""Clients for a Baton cluster: `Client` for plain code, `AsyncClient` for asyncio. Both have the same methods.

Operators use `baton.Admin`.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, ClassVar, Generic, Self, TypeVar, Unpack

import grpc

from baton.client.answer import Answer, Prompt, given_sampling, make_request
from baton.client.connection import Connection, Credentials
from baton.client.errors import error_from_rpc
from baton.client.resume import GIVE_UP_S, Resume
from baton.client.stream import AsyncTokenStream, TokenStream
from baton.protocol.request import Objectives, SamplingParams
from baton.protocol.v1 import inference_pb2, inference_pb2_grpc

DEFAULT_ADDRESS = "127.0.0.1:50051"
TIMEOUT_S = 30.0  # For calls with a short answer; a stream has the caller's timeout
AnyStream = TypeVar("AnyStream", TokenStream, AsyncTokenStream)


class _Inference(ABC, Generic[AnyStream]):
    """The part of a client without waiting: the connection, and the start of streams."""

    _stream: ClassVar[type]

    def __init__(
        self, address: str | None = None, *, give_up_s: float = GIVE_UP_S, **credentials: Unpack[Credentials]
    ) -> None:
        """Connect to "host:port"; the default is $BATON_ADDRESS, or port 50051 of this machine.

        A stream that breaks off is resumed for up to `give_up_s` seconds without a new token. `token`, `tls_ca`,
        `tls_certificate` and `tls_key` are described at `baton.client.connection.Connection`; their defaults are
        $BATON_TOKEN, $BATON_TLS_CA and so on. Raises `ConfigError` for credentials that cannot be used.
        """
        self.address = address or os.environ.get("BATON_ADDRESS") or DEFAULT_ADDRESS
        self._give_up_s = give_up_s
        connection = Connection(**credentials)
        self._channel, self._metadata = self._connect(connection), connection.metadata
        self._inference = inference_pb2_grpc.InferenceStub(self._channel)

    @abstractmethod
    def _connect(self, connection: Connection) -> Any: ...

    def stream(
        self,
        prompt: Prompt,
        sampling: SamplingParams | None = None,
        *,
        timeout_s: float | None = None,
        request_id: str = "",
        priority: int = 0,
        tenant: str = "",
        objectives: Objectives | None = None,
        add_special_tokens: bool = True,
        **options: Any,
    ) -> AnyStream:
        """Generate from a text, token ids or a conversation (`baton.Chat`); `options` are fields of `SamplingParams`.

        Options that are not given take the served model's defaults (its generation_config.json; without that file
        greedy decoding of up to 256 tokens). A `SamplingParams` sets all of them.

        A request that cannot meet its `objectives` is refused at once (`Overloaded`, with `retry_after_s`).
        `add_special_tokens` puts the model's beginning-of-sequence token before a text. Errors of the cluster
        are raised while the stream is read.
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
        return self._stream(self._inference, history, self._metadata)  # type: ignore[no-any-return]


class Client(_Inference[TokenStream]):
    """A synchronous client.

        with baton.Client() as client:
            for token in client.stream("Once upon a time", max_tokens=40):
                print(token.text, end="", flush=True)

    A call that fails raises an error of the package, such as `baton.NoWorkers`, `InvalidRequest` or `Overloaded`.
    """

    _stream = TokenStream

    def _connect(self, connection: Connection) -> grpc.Channel:
        return connection.channel(self.address)

    def generate(self, prompt: Prompt, sampling: SamplingParams | None = None, **options: Any) -> Answer:
        """The whole answer at once; arguments as for `stream`."""
        return self.stream(prompt, sampling, **options).answer

    def tokenize(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The served model's token ids of a text."""
        request = inference_pb2.TokenizeRequest(text=text, add_special_tokens=add_special_tokens)
        return list(self._call(self._inference.Tokenize, request).ids)

    def model(self) -> inference_pb2.Model:
        """The served model's name, architecture, context length and vocabulary size."""
        return self._call(self._inference.GetModel, inference_pb2.GetModelRequest())  # type: ignore[no-any-return]

    def _call(self, method: Any, request: Any) -> Any:
        try:
            return method(request, timeout=TIMEOUT_S, metadata=self._metadata)
        except grpc.RpcError as error:
            raise error_from_rpc(error, self.address, TIMEOUT_S) from None

    def close(self) -> None:
        """Close the connection; open streams end."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient(_Inference[AsyncTokenStream]):
    """An asyncio client with the methods of `Client`. Construct it in the event loop that uses it."""

    _stream = AsyncTokenStream

    def _connect(self, connection: Connection) -> grpc.aio.Channel:
        return connection.aio_channel(self.address)

    async def generate(self, prompt: Prompt, sampling: SamplingParams | None = None, **options: Any) -> Answer:
        """The whole answer at once; arguments as for `stream`."""
        return await self.stream(prompt, sampling, **options).answer()

    async def tokenize(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The served model's token ids of a text."""
        request = inference_pb2.TokenizeRequest(text=text, add_special_tokens=add_special_tokens)
        return list((await self._call(self._inference.Tokenize, request)).ids)

    async def model(self) -> inference_pb2.Model:
        """The served model's name, architecture, context length and vocabulary size."""
        return await self._call(self._inference.GetModel, inference_pb2.GetModelRequest())  # type: ignore[no-any-return]

    async def _call(self, method: Any, request: Any) -> Any:
        try:
            return await method(request, timeout=TIMEOUT_S, metadata=self._metadata)
        except grpc.RpcError as error:
            raise error_from_rpc(error, self.address, TIMEOUT_S) from None

    async def close(self) -> None:
        """Close the connection; open streams end."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
