"""The router's public gRPC server: inference. Administration has its own server (admin_server.py)."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

import grpc
from google.protobuf.message import DecodeError

from baton.access.access import GENERATE, Access
from baton.access.credentials import Credentials
from baton.access.grpc_server import serve
from baton.access.hot_reload import HotReload
from baton.access.status_mapping import abort
from baton.config.schema import AccessSection
from baton.engine.model_config import ModelConfig
from baton.engine.tokenizer import Tokenizer
from baton.gateway.core.stream import TextToken
from baton.gateway.encoding import EncodingPool
from baton.gateway.public_messages import finish_message, token_message
from baton.protocol import conversion
from baton.protocol.errors import BatonError, Cancelled, DeadlineExceeded, InternalError, InvalidRequest, PromptTooLong
from baton.protocol.request import Objectives, Request, SamplingParams
from baton.protocol.sampling import SamplingDefaults, with_defaults
from baton.protocol.v1 import inference_pb2
from baton.router.core.completion import Completion
from baton.router.core.limits import TenantStreams, check_prompt, most_prompt_tokens
from baton.router.driver import Driver, Subscription

MAX_NAME_BYTES = 256
DEADLINE_SLACK_S = 0.1  # The client's clock ends a call slightly before this one
MAX_TOKENS_PER_MESSAGE = 1000  # About 300 KiB with log-probabilities; most gRPC clients accept 4 MiB
T = TypeVar("T")
SERVICE = "baton.v1.Inference"


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The facts of the model that the router needs; it loads no weights."""

    name: str
    model_id: str
    config: ModelConfig
    tokenizer: Tokenizer
    dtype: str
    context_tokens: int
    sampling_defaults: SamplingDefaults = field(default_factory=dict)  # The model's, for parameters a request omits


@dataclass(eq=False)
class InferenceService:
    """Validates and tokenises requests, and writes their streams."""

    driver: Driver
    model: ServedModel
    access: AccessSection = field(default_factory=AccessSection)
    tokens: HotReload[Access] | None = None
    seeds: random.Random = field(default_factory=random.SystemRandom)
    streams: TenantStreams = field(init=False)
    encoding: EncodingPool = field(init=False)

    def __post_init__(self) -> None:
        self.streams = TenantStreams(self.access.max_streams_per_tenant)
        self.encoding = EncodingPool(self.model.tokenizer.encode)

    async def Generate(self, request_bytes: bytes, context: grpc.aio.ServicerContext) -> None:
        """Stream the answer of a request."""
        try:
            message = _parse(inference_pb2.GenerateRequest, request_bytes)
            tenant = self._tenant(message, context)
            with self.streams.one_of(tenant):
                request = await self._request(message, tenant, context)
                emitted = _emitted(message, request, self.model.config.vocab_size)
                subscription = self.driver.submit(request, emitted, message.resume_from)
                await self._write(subscription, message.resume_from, context)
        except BatonError as error:
            await abort(context, error)

    async def _write(self, subscription: Subscription, first: int, context: grpc.aio.ServicerContext) -> None:
        """Write the stream; unsubscribes at its end, whatever the reason."""
        ended: BatonError = Cancelled("The client disconnected.")
        try:
            async for response, completion in _responses(subscription.next, first):
                if completion is not None and completion.error is not None:
                    await abort(context, completion.error)
                subscription.writing_since_s = self.driver.clock()
                await context.write(response)
                subscription.writing_since_s = None
                if subscription.error is not None and completion is None:
                    raise subscription.error
        except BatonError as error:
            await abort(context, error)
        except grpc.aio.AbortError:
            raise
        except asyncio.CancelledError:
            left_s = context.time_remaining()
            if left_s is not None and left_s <= DEADLINE_SLACK_S:
                ended = DeadlineExceeded("The deadline passed before the answer was complete.")
            raise
        except Exception as error:
            ended = InternalError(f"The stream could not be written: {error}.")
            raise
        finally:
            self.driver.unsubscribe(subscription, ended)

    async def GetModel(self, request_bytes: bytes, context: grpc.aio.ServicerContext) -> inference_pb2.Model:
        """The served model."""
        model = self.model
        return inference_pb2.Model(
            name=model.name,
            model_id=model.model_id,
            architecture=model.config.architecture,
            context_tokens=model.context_tokens,
            vocab_size=model.config.vocab_size,
            dtype=model.dtype,
            eos_token_ids=sorted(model.config.eos_token_ids),
        )

    async def Tokenize(self, request_bytes: bytes, context: grpc.aio.ServicerContext) -> inference_pb2.TokenizeResponse:
        """Token ids of a text."""
        try:
            message = _parse(inference_pb2.TokenizeRequest, request_bytes)
            return inference_pb2.TokenizeResponse(ids=await self._encode(message))
        except BatonError as error:
            await abort(context, error)
            raise

    def _tenant(self, message: inference_pb2.GenerateRequest, context: grpc.aio.ServicerContext) -> str:
        """The request's tenant: that of its token if tokens are configured, else the one it names."""
        if self.tokens is None:
            return message.tenant
        return self.tokens.value.identify(context.invocation_metadata() or ()).tenant_for(message.tenant)

    async def _request(
        self, message: inference_pb2.GenerateRequest, tenant: str, context: grpc.aio.ServicerContext
    ) -> Request:
        arrival_s = self.driver.clock()  # Time for tokenisation counts towards the time to the first token
        if len(message.request_id) > MAX_NAME_BYTES or len(message.tenant) > MAX_NAME_BYTES:
            raise InvalidRequest(f"request_id and tenant may have at most {MAX_NAME_BYTES} characters.")
        match message.WhichOneof("prompt"):
            case "text":
                prompt = tuple(await self._encode(message))
            case "token_ids":
                prompt = tuple(message.token_ids.ids)
            case _:
                raise InvalidRequest("The prompt is missing: set text or token_ids.")
        given = conversion.given_fields(SamplingParams, message.sampling)
        sampling = with_defaults(given, self.model.sampling_defaults)
        now, remaining_s = self.driver.clock(), context.time_remaining()
        request = Request(
            request_id=message.request_id or uuid.uuid4().hex,
            prompt=prompt,
            sampling=sampling,
            arrival_s=arrival_s,
            deadline_s=None if remaining_s is None else now + remaining_s,
            priority=message.priority,
            tenant=tenant,
            objectives=conversion.from_message(Objectives, message.objectives),
        )
        check_prompt(self.access, len(prompt))
        request.validate(self.model.config.vocab_size, self.model.context_tokens)
        room = self.model.context_tokens - len(prompt)
        seed = self.seeds.getrandbits(63) if sampling.seed is None else sampling.seed
        max_tokens = min(sampling.max_tokens, room)
        min_tokens = min(sampling.min_tokens, max_tokens)
        # A special token has no text that a stop string could match. A tokenizer may have more tokens than the model.
        special_ids = self.model.tokenizer.special_ids(sampling.stop)
        known = (token_id for token_id in special_ids if token_id < self.model.config.vocab_size)
        stop_token_ids = (*sampling.stop_token_ids, *known)
        sampling = replace(sampling, stop_token_ids=tuple(dict.fromkeys(stop_token_ids)))
        return replace(request, sampling=replace(sampling, seed=seed, max_tokens=max_tokens, min_tokens=min_tokens))

    async def _encode(self, message: inference_pb2.GenerateRequest | inference_pb2.TokenizeRequest) -> list[int]:
        """Token ids of a message's text; a text that is certainly too long is refused without tokenising it."""
        text, add = message.text, not message.HasField("add_special_tokens") or message.add_special_tokens
        tokens = most_prompt_tokens(self.access, self.model.context_tokens)
        limit_bytes, num_bytes = tokens * self.model.tokenizer.max_token_bytes, len(text.encode())
        if num_bytes > limit_bytes:
            raise PromptTooLong(
                f"The prompt has {num_bytes} bytes; the maximum of {tokens} tokens holds at most {limit_bytes}."
            )
        return await self.encoding.encode(text, num_bytes, add)


async def start_server(
    inference: InferenceService, address: str, credentials: Credentials
) -> tuple[grpc.aio.Server, int]:
    """Serve requests on `address` ("host:port", port 0 for any); returns the server and its port."""
    # Handlers parse requests themselves, so that invalid bytes get a clear status instead of INTERNAL.
    handlers = {
        "Generate": grpc.unary_stream_rpc_method_handler(inference.Generate, None, _serialize),
        "GetModel": grpc.unary_unary_rpc_method_handler(inference.GetModel, None, _serialize),
        "Tokenize": grpc.unary_unary_rpc_method_handler(inference.Tokenize, None, _serialize),
    }
    handler = grpc.method_handlers_generic_handler(SERVICE, handlers)
    return await serve(
        address, SERVICE, GENERATE, credentials, lambda server: server.add_generic_rpc_handlers((handler,))
    )


def _serialize(message: object) -> bytes:
    return message.SerializeToString()  # type: ignore[attr-defined, no-any-return]


def _parse(kind: type[T], request_bytes: bytes) -> T:
    try:
        return kind.FromString(request_bytes)  # type: ignore[attr-defined, no-any-return]
    except DecodeError as error:
        raise InvalidRequest(f"Not a valid {kind.__name__}: {error}. Text must be UTF-8.") from None


def _emitted(message: inference_pb2.GenerateRequest, request: Request, vocab_size: int) -> tuple[int, ...]:
    """The output tokens that a resuming client has; raises `InvalidRequest` if they are invalid."""
    emitted, resume_from = tuple(message.emitted), message.resume_from
    if not 0 <= resume_from <= request.sampling.max_tokens or len(emitted) not in (0, resume_from):
        raise InvalidRequest(
            f"resume_from is {resume_from} with {len(emitted)} emitted token ids: give the number of received output "
            f"tokens, at most max_tokens, and either all their ids or none."
        )
    if emitted and not (min(emitted) >= 0 and max(emitted) < vocab_size):
        raise InvalidRequest(f"An emitted token id is outside the vocabulary of {vocab_size}.")
    return emitted


Batch = tuple[list[TextToken], Completion | None]


async def _responses(
    next_batch: Callable[[], Awaitable[Batch]], first: int = 0
) -> AsyncIterator[tuple[inference_pb2.GenerateResponse, Completion | None]]:  # type: ignore[no-untyped-def]
    """Messages for the client from token index `first` on; the completion is in the message of the last tokens.

    Messages have a bounded size, because a slow or resuming client may have many unread tokens.
    """
    while True:
        tokens, completion = await next_batch()
        shown = [token for token in tokens if token.index >= first]
        if not shown and completion is None:
            continue
        while len(shown) > MAX_TOKENS_PER_MESSAGE:
            yield _tokens_message(shown[:MAX_TOKENS_PER_MESSAGE]), None
            shown = shown[MAX_TOKENS_PER_MESSAGE:]
        response = _tokens_message(shown)
        if completion is not None and completion.error is None:
            response.finish.CopyFrom(finish_message(completion))
        yield response, completion
        if completion is not None:
            return


def _tokens_message(tokens: list[TextToken]) -> inference_pb2.GenerateResponse:
    return inference_pb2.GenerateResponse(tokens=map(token_message, tokens))
