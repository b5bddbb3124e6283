"""What the router adds to the first token and to every other, against reading the worker's socket directly.

A paced worker speaks the real worker protocol: it answers a request at once and then sends one token per stream every
20 ms, as a decode worker does. It is read once through the router (gRPC client → router → worker) and once by a plain
ZeroMQ socket; each of client, router and worker is a process of its own. Added is the difference of the medians, taken
where bytes reach the client's socket; the figures with "python_client" include what Python's gRPC client spends.
"""

from __future__ import annotations

import asyncio
import multiprocessing as mp
import os
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import grpc
import zmq

from baton import wire
from baton.v1 import inference_pb2, inference_pb2_grpc
from benchmarks.http2_reader import Http2Reader
from benchmarks.report import Goal, Report, arguments, progress
from builtin_model import CHECKPOINT
from cluster.latency import percentile
from cluster.messages import Cancel, LoadReport, Prefill, Register, StepOutput, TokenOutput
from cluster.plan import RouterPlan
from cluster.request import FinishReason, Request, SamplingParams
from cluster.worker import Endpoint, PageLayout, RoleName, WorkerInfo, WorkerLoad

GOALS = {"added_ttft_ms_p50": Goal(1.5, at_most=True), "added_per_token_ms_p50": Goal(0.5, at_most=True)}
STEP_S = 0.02
PROMPT = [5] * 32
STREAMS = (1, 16, 64)


def paced_worker(router_address: str, pipe: Connection) -> None:
    """Answers `Prefill` at once, then one token per live stream and step; on exit sends when each token left."""
    layout = PageLayout(100_000, 1, 16, 1, 1, "float32", "paced")
    endpoint = Endpoint("paced:1", b"", 0, 0, layout)
    info = WorkerInfo("paced", "1", RoleName.MIXED, 0, endpoint, 1 << 20, 1 << 20, pid=os.getpid())
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.IDENTITY, b"paced")
    socket.connect(router_address)
    socket.send(wire.encode_to_router([Register(info)], info.incarnation))
    load = WorkerLoad("paced", RoleName.MIXED, 0, 1, 100_000, 100_000, 0)
    live: dict[str, tuple[int, int]] = {}  # request id → (next index, tokens in all)
    left: dict[tuple[str, int], float] = {}
    next_step = next_report = time.monotonic()
    while not pipe.poll():
        now = time.monotonic()
        if now >= next_report:
            socket.send(wire.encode_to_router([LoadReport(load)], info.incarnation))
            next_report = now + 0.5
        if now >= next_step:
            next_step = max(next_step + STEP_S, now)
            _emit(socket, live, list(live), left)
        if socket.poll(max(0, int(1000 * (next_step - time.monotonic())))):
            for message in wire.decode_to_worker(socket.recv()):
                if isinstance(message, Prefill):
                    request = message.request
                    live[request.request_id] = (0, request.sampling.max_tokens)
                    _emit(socket, live, [request.request_id], left)
                elif isinstance(message, Cancel):
                    live.pop(message.request_id, None)
    pipe.send(left)
    context.destroy(linger=0)


def _emit(socket: Any, live: dict[str, tuple[int, int]], names: list[str], left: dict[tuple[str, int], float]) -> None:
    outputs = []
    for name in names:
        index, total = live[name]
        finish = FinishReason.LENGTH if index + 1 == total else None
        outputs.append(TokenOutput(name, index, 40 + index % 50, finish=finish))
        live[name] = (index + 1, total)
        if finish:
            del live[name]
    if outputs:
        now = time.monotonic()
        left.update({(output.request_id, output.index): now for output in outputs})
        socket.send(wire.encode_to_router([StepOutput(tuple(outputs))], "1"))


def router_process(pipe: Connection) -> None:
    """A real router, until told to stop."""
    from router.assembly import start_router

    async def serve() -> None:
        folder = str(CHECKPOINT)
        plan = RouterPlan(folder, "paced", "float32", 4096, "127.0.0.1", 0, "127.0.0.1", 4096, 60.0)
        running = await start_router(plan)
        pipe.send((running.worker_address, running.port, running.admin_port))
        while not pipe.poll():
            await asyncio.sleep(0.05)
        await running.stop(0.0)
        pipe.send(None)

    asyncio.run(serve())


@dataclass(slots=True)
class Seen:
    """What a reader saw: seconds from sending a request to its first token, and when each token arrived."""

    ttft_s: list[float]
    arrived: dict[tuple[str, int], float]


def read_over_grpc(address: str, streams: int, tokens: int, tag: str) -> Seen:
    """`streams` concurrent requests through the router."""

    async def go() -> Seen:
        seen = Seen([], {})
        async with grpc.aio.insecure_channel(address) as channel:
            stub = inference_pb2_grpc.InferenceStub(channel)
            await stub.GetModel(inference_pb2.GetModelRequest())

            async def one(name: str, delay_s: float) -> None:
                await asyncio.sleep(delay_s)
                request = inference_pb2.GenerateRequest(
                    request_id=name,
                    token_ids=inference_pb2.TokenIds(ids=PROMPT),
                    sampling=inference_pb2.SamplingParams(max_tokens=tokens),
                )
                sent = time.monotonic()
                async for response in stub.Generate(request):
                    now = time.monotonic()
                    for token in response.tokens:
                        if token.index == 0:
                            seen.ttft_s.append(now - sent)
                        seen.arrived[name, token.index] = now

            await asyncio.gather(*(one(f"{tag}-{index}", index * STEP_S / 7) for index in range(streams)))
        return seen

    return asyncio.run(go())


def read_at_the_socket(port: int, streams: int, tokens: int, tag: str) -> Seen:
    """The same requests, read by a client that only stamps bytes."""
    reader = Http2Reader(port, "/baton.v1.Inference/Generate")
    begin = time.monotonic()
    due = [(begin + 0.05 + index * STEP_S / 7, f"{tag}-{index}") for index in range(streams)]
    sent: dict[int, tuple[str, float]] = {}
    end = begin + 0.05 + streams * STEP_S / 7 + (tokens + 2) * STEP_S + 0.5
    while (now := time.monotonic()) < end:
        while due and time.monotonic() >= due[0][0]:
            name = due.pop(0)[1]
            message = inference_pb2.GenerateRequest(
                request_id=name,
                token_ids=inference_pb2.TokenIds(ids=PROMPT),
                sampling=inference_pb2.SamplingParams(max_tokens=tokens),
            ).SerializeToString()
            moment = time.monotonic()
            sent[reader.request(message)] = (name, moment)
        reader.read(max(0.0005, min(end, due[0][0] if due else end) - now))
    seen = Seen([], {})
    for stream, arrived, body in reader.messages():
        name, moment = sent[stream]
        for token in inference_pb2.GenerateResponse.FromString(body).tokens:
            if token.index == 0:
                seen.ttft_s.append(arrived - moment)
            seen.arrived[name, token.index] = arrived
    reader.close()
    return seen


def read_directly(streams: int, tokens: int, tag: str) -> tuple[Seen, dict[tuple[str, int], float]]:
    """The same requests over a plain ZeroMQ socket; also returns when the worker sent each token."""
    context = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    ours, theirs = mp.get_context("spawn").Pipe()
    worker = mp.get_context("spawn").Process(target=paced_worker, args=(f"tcp://127.0.0.1:{port}", theirs))
    worker.start()
    socket.recv_multipart()
    seen, sent = Seen([], {}), {}
    begin = time.monotonic()
    due = [(begin + index * STEP_S / 7, f"{tag}-{index}") for index in range(streams)]
    expected = streams * tokens
    while len(seen.arrived) < expected:
        while due and time.monotonic() >= due[0][0]:
            name = due.pop(0)[1]
            request = Request(name, tuple(PROMPT), SamplingParams(max_tokens=tokens))
            sent[name] = time.monotonic()
            socket.send_multipart([b"paced", wire.encode_to_worker([Prefill(request, (), False, 0)])])
        if not socket.poll(1):
            continue
        frame = socket.recv_multipart()[1]
        now = time.monotonic()
        for message in wire.decode_to_router(frame)[1]:
            if isinstance(message, StepOutput):
                for token in message.tokens:
                    if token.index == 0:
                        seen.ttft_s.append(now - sent[token.request_id])
                    seen.arrived[token.request_id, token.index] = now
    left = _stop(ours, worker)
    context.destroy(linger=0)
    return seen, left


def _stop(pipe: Connection, process: Any) -> Any:
    pipe.send(None)
    result = pipe.recv() if pipe.poll(5) else None
    process.join(5)
    return result


def _delays(seen: Seen, left: dict[tuple[str, int], float]) -> list[float]:
    return [seen.arrived[key] - left[key] for key in seen.arrived if key[1] > 0]


def measure(streams: int, tokens: int) -> dict[str, float]:
    """Added latencies at one number of streams, in milliseconds."""
    context = mp.get_context("spawn")
    direct, direct_left = read_directly(streams, tokens, "direct")
    router_pipe, theirs = context.Pipe()
    router = context.Process(target=router_process, args=(theirs,))
    router.start()
    worker_address, port, admin_port = router_pipe.recv()
    worker_pipe, theirs = context.Pipe()
    worker = context.Process(target=paced_worker, args=(worker_address, theirs))
    worker.start()
    address = f"127.0.0.1:{port}"
    _wait_registered(f"127.0.0.1:{admin_port}")
    read_over_grpc(address, min(streams, 8), 8, "warm-up")
    at_socket = read_at_the_socket(port, streams, tokens, "socket")
    in_python = read_over_grpc(address, streams, tokens, "python")
    left = _stop(worker_pipe, worker)
    _stop(router_pipe, router)
    added: dict[str, Any] = {}
    for share, name in ((0.5, "p50"), (0.99, "p99")):
        for seen, reader in ((at_socket, ""), (in_python, "_python_client")):
            ttft = percentile(seen.ttft_s, share) - percentile(direct.ttft_s, share)
            token = percentile(_delays(seen, left), share) - percentile(_delays(direct, direct_left), share)
            added |= {f"ttft_ms_{name}{reader}": 1000 * ttft, f"per_token_ms_{name}{reader}": 1000 * token}
    return added


def _wait_registered(admin_address: str) -> None:
    import baton

    with baton.Admin(admin_address) as admin:
        while not admin.cluster().pools:
            time.sleep(0.05)


def main() -> None:
    args = arguments(__doc__, "python -m benchmarks.streaming --quick --json streaming.json").parse_args()
    tokens = 64 if args.quick else 256
    report = Report("streaming", GOALS)
    with progress(len(STREAMS)) as step:
        for streams in STREAMS:
            step(f"{streams} streams")
            added = measure(streams, tokens)
            report.figures |= {f"added_{name}_{streams}_streams": value for name, value in added.items()}
    for name in ("ttft_ms_p50", "per_token_ms_p50"):
        report.figures[f"added_{name}"] = report.figures[f"added_{name}_16_streams"]
    report.setting = {"tokens_per_stream": tokens, "step_ms": 1000 * STEP_S, "seed": args.seed}
    report.publish(args.json)


if __name__ == "__main__":
    main()
