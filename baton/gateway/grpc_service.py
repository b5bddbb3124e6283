"""A gateway's gRPC service: `baton.v1.Inference`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health

from baton.access.access import GENERATE, Access
from baton.access.credentials import Credentials
from baton.access.grpc_server import serve
from baton.access.hot_reload import HotReload
from baton.access.status_mapping import abort
from baton.gateway.conversation_message import read_conversation
from baton.gateway.driver import GatewayDriver
from baton.gateway.ended_request import RefusedRequest
from baton.gateway.intake import Intake, check_emitted, check_names
from baton.gateway.public_messages import prompt_messages, stream_messages
from baton.gateway.subscription import Subscription
from baton.protocol import conversion
from baton.protocol.errors import BatonError, Cancelled, DeadlineExceeded, InternalError, InvalidRequest
from baton.protocol.request import Objectives, Request, SamplingParams
from baton.protocol.v1 import inference_pb2

DEADLINE_SLACK_S = 0.1  # The client's clock ends a call slightly before this one
T = TypeVar("T")
SERVICE = "baton.v1.Inference"


@dataclass(eq=False)
class InferenceService:
    """Turns messages into requests, and writes their streams."""

    driver: GatewayDriver
    intake: Intake
    tokens: HotReload[Access] | None = None

    async def Generate(self, request_bytes: bytes, context: grpc.aio.ServicerContext) -> None:
        """Stream the answer of a request."""
        request_id = ""
        try:
            message = _parse(inference_pb2.GenerateRequest, request_bytes)
            request_id = message.request_id
            request = await self._request(message, self._tenant(message, context), context)
            emitted = tuple(message.emitted)
            vocab_size = self.intake.model.config.vocab_size
            check_emitted(emitted, message.resume_from, request.sampling.max_tokens, vocab_size)
            trace, traces = None, self.driver.traces
            if traces is not None:
                operation = "chat" if message.WhichOneof("prompt") == "conversation" else "text_completion"
                trace = traces.begin(context.invocation_metadata() or (), operation)
            subscription = self.driver.open(request, emitted, message.resume_from, trace=trace)
        except BatonError as error:
            self.driver.refuse(RefusedRequest(request_id, "grpc", error))
            await abort(context, error)
            raise
        await self._write(subscription, request.prompt, context)

    async def _write(
        self, subscription: Subscription, prompt: Sequence[int], context: grpc.aio.ServicerContext
    ) -> None:
        """Write the stream; closes the subscription at its end, whatever the reason."""
        ended: BatonError = Cancelled("The client disconnected.")
        try:
            end = None
            while end is None:
                tokens, end = await subscription.next()
                scores = prompt_messages(prompt, subscription.take_prompt())
                for message in chain(scores, stream_messages(tokens, end)):
                    subscription.writing_since_s = self.driver.clock()
                    await context.write(message)
                    subscription.writing_since_s = None
                    if subscription.error is not None and end is None:
                        raise subscription.error
            if end.error is not None:
                raise end.error
        except BatonError as error:
            await abort(context, error)
        except asyncio.CancelledError:
            left_s = context.time_remaining()
            if left_s is not None and left_s <= DEADLINE_SLACK_S:
                ended = DeadlineExceeded("The deadline passed before the answer was complete.")
            raise
        except Exception as error:
            ended = InternalError(f"The stream could not be written: {error}.")
            raise
        finally:
            self.driver.close(subscription, ended)

    async def GetModel(self, request_bytes: bytes, context: grpc.aio.ServicerContext) -> inference_pb2.Model:
        """The served model."""
        model = self.intake.model
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
        arrival_s = self.driver.clock()
        check_names(message.request_id, message.tenant)
        match message.WhichOneof("prompt"):
            case "text":
                prompt = await self._encode(message)
            case "token_ids":
                prompt = list(message.token_ids.ids)
            case "conversation":
                chat = read_conversation(message.conversation)
                prompt = await self.intake.encode_chat(chat, message.conversation.ByteSize())
            case _:
                raise InvalidRequest("The prompt is missing: set text, token_ids or conversation.")
        remaining_s = context.time_remaining()
        return self.intake.request(
            prompt,
            conversion.given_fields(SamplingParams, message.sampling),
            arrival_s=arrival_s,
            deadline_s=None if remaining_s is None else self.driver.clock() + remaining_s,
            request_id=message.request_id,
            tenant=tenant,
            priority=message.priority,
            objectives=conversion.from_message(Objectives, message.objectives),
        )

    async def _encode(self, message: inference_pb2.GenerateRequest | inference_pb2.TokenizeRequest) -> list[int]:
        add = not message.HasField("add_special_tokens") or message.add_special_tokens
        return await self.intake.encode(message.text, add)


async def start_server(
    inference: InferenceService,
    address: str,
    credentials: Credentials,
    health_service: health.aio.HealthServicer | None = None,
) -> tuple[grpc.aio.Server, int]:
    """Serve requests on `address` ("host:port", port 0 for any), which other gateways may share.

    Returns the server and its port; raises `ConfigError` if the address cannot be used.
    """
    # Handlers parse requests themselves, so that invalid bytes get a clear status instead of INTERNAL.
    handlers = {
        "Generate": grpc.unary_stream_rpc_method_handler(inference.Generate),  # It writes serialised messages
        "GetModel": grpc.unary_unary_rpc_method_handler(inference.GetModel, None, _serialize),
        "Tokenize": grpc.unary_unary_rpc_method_handler(inference.Tokenize, None, _serialize),
    }
    handler = grpc.method_handlers_generic_handler(SERVICE, handlers)
    return await serve(
        address,
        SERVICE,
        GENERATE,
        credentials,
        lambda server: server.add_generic_rpc_handlers((handler,)),
        health_service=health_service,
        share_port=True,
    )


def _serialize(message: object) -> bytes:
    return message.SerializeToString()  # type: ignore[attr-defined, no-any-return]


def _parse(kind: type[T], request_bytes: bytes) -> T:
    try:
        return kind.FromString(request_bytes)  # type: ignore[attr-defined, no-any-return]
    except DecodeError as error:
        raise InvalidRequest(f"Not a valid {kind.__name__}: {error}. Text must be UTF-8.") from None
