"""An inference server without a cluster: each call of Generate plays a scripted part."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc

from baton.protocol.v1 import inference_pb2, inference_pb2_grpc

Part = Callable[["FakeInference", inference_pb2.GenerateRequest, grpc.ServicerContext], Iterator[int]]


def tokens(*ids: int) -> Part:
    """These tokens, then the end of the stream."""

    def play(
        fake: FakeInference, request: inference_pb2.GenerateRequest, context: grpc.ServicerContext
    ) -> Iterator[int]:
        yield from ids

    return play


def breaks_after(*ids: int) -> Part:
    """These tokens, then a broken connection."""

    def play(
        fake: FakeInference, request: inference_pb2.GenerateRequest, context: grpc.ServicerContext
    ) -> Iterator[int]:
        yield from ids
        context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    return play


def slow(every_s: float, *ids: int) -> Part:
    """A token every `seconds`."""

    def play(
        fake: FakeInference, request: inference_pb2.GenerateRequest, context: grpc.ServicerContext
    ) -> Iterator[int]:
        for token_id in ids:
            if fake.over.wait(every_s):
                return
            yield token_id

    return play


@dataclass
class FakeInference(inference_pb2_grpc.InferenceServicer):
    """Plays `parts` in order and repeats the last one; records the requests."""

    parts: list[Part]
    asked: list[inference_pb2.GenerateRequest] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def Generate(  # noqa: N802
        self, request: inference_pb2.GenerateRequest, context: grpc.ServicerContext
    ) -> Iterator[inference_pb2.GenerateResponse]:
        part = self.parts[min(len(self.asked), len(self.parts) - 1)]
        self.asked.append(request)
        index = request.resume_from
        for index, token_id in enumerate(part(self, request, context), request.resume_from):
            token = inference_pb2.Token(index=index, id=token_id, text=f"{token_id} ")
            yield inference_pb2.GenerateResponse(tokens=[token])
        finish = inference_pb2.Finish(reason=inference_pb2.FINISH_REASON_LENGTH, request_id=request.request_id)
        yield inference_pb2.GenerateResponse(finish=finish)

    def GetModel(self, request: object, context: grpc.ServicerContext) -> inference_pb2.Model:  # noqa: N802
        return inference_pb2.Model(name="fake")

    def Tokenize(self, request: inference_pb2.TokenizeRequest, context: object) -> inference_pb2.TokenizeResponse:  # noqa: N802
        return inference_pb2.TokenizeResponse(ids=[len(request.text)])


@contextmanager
def serving(fake: FakeInference) -> Iterator[tuple[str, grpc.Server]]:
    """Start the server; yields its address and the server itself, which a test may stop early."""
    server = grpc.server(futures.ThreadPoolExecutor(4))
    inference_pb2_grpc.add_InferenceServicer_to_server(fake, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", server
    finally:
        fake.over.set()
        server.stop(0).wait()


@contextmanager
def silent_port(port: int = 0) -> Iterator[str]:
    """An address that accepts connections and never answers, like a stopped process."""
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", port))
        listening.listen(64)
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def dead_port() -> str:
    """An address where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"
