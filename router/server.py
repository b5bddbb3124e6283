"""The gRPC face of the router: inference, administration, health and reflection."""

from __future__ import annotations

import asyncio
import math
import random
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from baton import wire
from baton.v1 import admin_pb2, admin_pb2_grpc, inference_pb2
from cluster.errors import BatonError, Cancelled, InternalError, InvalidRequest, NotFound, Overloaded, PromptTooLong
from cluster.request import Objectives, Request, SamplingParams
from cluster.worker import RoleName
from engine.model_config import ModelConfig
from engine.tokenizer import Tokenizer
from router.driver import Driver
from router.public_messages import explanation_message, finish_message, token_message
from router.record import Completion
from router.stream import TextToken

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
MAX_NAME_BYTES = 256
RETRY_AFTER = "retry-after-ms"  # trailing metadata of a refusal
T = TypeVar("T")
SERVICES = ("baton.v1.Inference", "baton.v1.Admin")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What the router must know of the model: it never loads weights."""

    name: str
    model_id: str
    config: ModelConfig
    tokenizer: Tokenizer
    dtype: str
    context_tokens: int


@dataclass(eq=False)
class InferenceService:
    """Checks and tokenises what comes in, and writes the stream that goes out."""

    driver: Driver
    model: ServedModel
    seeds: random.Random = field(default_factory=random.SystemRandom)

    async def Generate(self, request_bytes: bytes, context: grpc.aio.ServicerContext) -> None:
        try:
            message = _parse(inference_pb2.GenerateRequest, request_bytes)
            request = await self._request(message, context)
            subscription = self.driver.submit(request)
        except BatonError as error:
            await _abort(context, error)
            return
        ended: BatonError = Cancelled("The client went away.")
        try:
            async for response, completion in _responses(subscription.next):
                if completion is not None and completion.error is not None:
                    await _abort(context, completion.error)
                await context.write(response)
        except grpc.aio.AbortError:
            raise
        except asyncio.CancelledError:
            raise
        except Exception as error:
            ended = InternalError(f"The stream could not be written: {error}.")
            raise
        finally:
            self.driver.unsubscribe(subscription, ended)

    async def GetModel(self, request_bytes: bytes, context: grpc.aio.ServicerContext) -> inference_pb2.Model:
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
        try:
            message = _parse(inference_pb2.TokenizeRequest, request_bytes)
            return inference_pb2.TokenizeResponse(ids=await self._encode(message.text))
        except BatonError as error:
            await _abort(context, error)
            raise

    async def _request(self, message: inference_pb2.GenerateRequest, context: grpc.aio.ServicerContext) -> Request:
        if len(message.request_id) > MAX_NAME_BYTES or len(message.tenant) > MAX_NAME_BYTES:
            raise InvalidRequest(f"request_id and tenant may have at most {MAX_NAME_BYTES} characters.")
        match message.WhichOneof("prompt"):
            case "text":
                prompt = tuple(await self._encode(message.text))
            case "token_ids":
                prompt = tuple(message.token_ids.ids)
            case _:
                raise InvalidRequest("The prompt is missing: set text or token_ids.")
        sampling = wire.from_message(SamplingParams, message.sampling)
        now, remaining_s = self.driver.clock(), context.time_remaining()
        request = Request(
            request_id=message.request_id or uuid.uuid4().hex,
            prompt=prompt,
            sampling=sampling,
            arrival_s=now,
            deadline_s=None if remaining_s is None else now + remaining_s,
            priority=message.priority,
            tenant=message.tenant,
            objectives=wire.from_message(Objectives, message.objectives),
        )
        request.validate(self.model.config.vocab_size, self.model.context_tokens)
        room = self.model.context_tokens - len(prompt)
        seed = self.seeds.getrandbits(63) if sampling.seed is None else sampling.seed
        max_tokens = min(sampling.max_tokens, room)
        min_tokens = min(sampling.min_tokens, max_tokens)
        return replace(request, sampling=replace(sampling, seed=seed, max_tokens=max_tokens, min_tokens=min_tokens))

    async def _encode(self, text: str) -> list[int]:
        """Token ids of a text. One that cannot fit the context is refused unread; a long one gets a thread."""
        limit = self.model.context_tokens * self.model.tokenizer.max_token_bytes
        num_bytes = len(text.encode())
        if num_bytes > limit:
            raise PromptTooLong(
                f"The prompt has {num_bytes} bytes; the model's context of {self.model.context_tokens} tokens "
                f"holds at most {limit}."
            )
        if num_bytes > 20_000:
            return await asyncio.to_thread(self.model.tokenizer.encode, text)
        return self.model.tokenizer.encode(text)


@dataclass(eq=False)
class AdminService(admin_pb2_grpc.AdminServicer):
    """What operators ask."""

    driver: Driver
    model: ServedModel
    settings: dict[str, str]
    started_s: float = field(default_factory=time.monotonic)

    async def GetCluster(
        self, request: admin_pb2.GetClusterRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.Cluster:
        core, now = self.driver.core, self.driver.clock()
        cluster = admin_pb2.Cluster(
            model=self.model.name,
            queued_requests=core.queued,
            live_requests=core.live,
            finished_requests=core.finished_requests,
            failed_requests=core.failed_requests,
            refused_requests=core.refused_requests,
            uptime_s=now - self.started_s,
            settings=self.settings,
        )
        for role in RoleName:
            views = core.state.pool(role)
            if not views:
                continue
            pool = cluster.pools.add(role=role.value)
            for view in views:
                load, info = view.load, view.info
                pool.workers.add(
                    name=view.name,
                    host=info.host,
                    pid=info.pid,
                    device=info.device,
                    incarnation=info.incarnation,
                    pages_total=load.pages_total,
                    pages_free=load.pages_free,
                    pages_cached=load.pages_cached,
                    pages_held=load.pages_owned,
                    running=load.running,
                    waiting=load.waiting,
                    uncomputed_tokens=load.uncomputed_tokens,
                    context_tokens=load.context_tokens,
                    reservations=len(load.reservation_ids),
                    last_report_s=now - view.heard_s,
                )
        return cluster

    async def ExplainRequest(
        self, request: admin_pb2.ExplainRequestRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.Explanation:
        found = self.driver.core.explanations.get(request.request_id)
        if found is None:
            error = NotFound(f"No decision is kept for a request {request.request_id!r}: the newest few thousand are.")
            await _abort(context, error)
            raise error
        return explanation_message(request.request_id, found)


async def start_server(inference: InferenceService, admin: AdminService, address: str) -> tuple[grpc.aio.Server, int]:
    """Serve on `address` ("host:port", port 0 for any); returns the server and its port."""
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", MAX_MESSAGE_BYTES), ("grpc.so_reuseport", 0)])
    # Requests are parsed in the handler, so that bytes that are no message get a clear status instead of INTERNAL.
    handlers = {
        "Generate": grpc.unary_stream_rpc_method_handler(inference.Generate, None, _serialize),
        "GetModel": grpc.unary_unary_rpc_method_handler(inference.GetModel, None, _serialize),
        "Tokenize": grpc.unary_unary_rpc_method_handler(inference.Tokenize, None, _serialize),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICES[0], handlers),))
    admin_pb2_grpc.add_AdminServicer_to_server(admin, server)
    health_service = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
    for name in ("", *SERVICES):
        await health_service.set(name, health_pb2.HealthCheckResponse.SERVING)
    reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    port = server.add_insecure_port(address)
    await server.start()
    return server, port


def _serialize(message: object) -> bytes:
    return message.SerializeToString()  # type: ignore[attr-defined, no-any-return]


def _parse(kind: type[T], request_bytes: bytes) -> T:
    try:
        return kind.FromString(request_bytes)  # type: ignore[attr-defined, no-any-return]
    except DecodeError as error:
        raise InvalidRequest(f"Not a valid {kind.__name__}: {error}. Text must be UTF-8.") from None


async def _abort(context: grpc.aio.ServicerContext, error: BatonError) -> None:
    retry_s = error.retry_after_s if isinstance(error, Overloaded) else None
    metadata = ((RETRY_AFTER, str(math.ceil(1000 * retry_s))),) if retry_s is not None else ()
    await context.abort(getattr(grpc.StatusCode, error.grpc_status), error.message, metadata)


Batch = tuple[list[TextToken], Completion | None]


async def _responses(
    next_batch: Callable[[], Awaitable[Batch]],
) -> AsyncIterator[tuple[inference_pb2.GenerateResponse, Completion | None]]:  # type: ignore[no-untyped-def]
    """Messages for the client until the completion, which rides with the last tokens."""
    while True:
        tokens, completion = await next_batch()
        response = inference_pb2.GenerateResponse(tokens=[token_message(token) for token in tokens])
        if completion is not None and completion.error is None:
            response.finish.CopyFrom(finish_message(completion))
        yield response, completion
        if completion is not None:
            return
