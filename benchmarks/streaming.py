"""The latency that the gateway adds to first and later tokens, compared with reading the workers' sockets directly.

Paced workers speak the real worker protocol: they answer a request immediately and then send one token per stream every
20 ms, as a decode worker does. They are read through the gateway (gRPC client → gateway → worker) and by a plain ZeroMQ
socket; client, gateway, router and workers are separate processes. The added latency is a difference of percentiles,
measured where bytes reach the client's socket. Figures with "python_client" include the time of Python's gRPC client.
"""

from __future__ import annotations

import asyncio
import time

import grpc

from baton.client.connection import options
from baton.harness.report import Goal, Report, arguments, progress
from baton.protocol.latency import percentile
from baton.protocol.v1 import inference_pb2, inference_pb2_grpc
from benchmarks.router_measures import STAGGER_S, Setting, read_paced
from benchmarks.router_sides import Child, Side, baton_side
from benchmarks.stream_clients import PROMPT, GrpcClient

GOALS = {"added_ttft_ms_p50": Goal(1.5, at_most=True), "added_per_token_ms_p50": Goal(0.5, at_most=True)}
STEP_S = 0.02
STREAMS = (1, 16, 64)
GIVE_UP_S = 30.0  # Time limit beyond the duration of the paced streams.
Seen = dict[str, list[float]]  # "ttft_": seconds to each first token; "": from a worker's step to each other token


def read_in_python(port: int, worker: Child, streams: int, tokens: int, tag: str) -> Seen:
    """As `read_paced`, with a client on Python's grpc.aio."""
    worker.pace(STEP_S)
    ttft_s, arrived = asyncio.run(_read(port, streams, tokens, tag))
    left = worker.pace(0.0)
    return {"ttft_": ttft_s, "": [arrived[key] - left[key] for key in arrived if key[1] > 0]}


async def _read(port: int, streams: int, tokens: int, tag: str) -> tuple[list[float], dict[tuple[str, int], float]]:
    ttft_s: list[float] = []
    arrived: dict[tuple[str, int], float] = {}

    async def read_one(stub: inference_pb2_grpc.InferenceStub, name: str, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        ids, sampling = inference_pb2.TokenIds(ids=[5] * PROMPT), inference_pb2.SamplingParams(max_tokens=tokens)
        sent = time.monotonic()
        async for response in stub.Generate(
            inference_pb2.GenerateRequest(request_id=name, token_ids=ids, sampling=sampling)
        ):
            now = time.monotonic()
            for token in response.tokens:
                if token.index == 0:
                    ttft_s.append(now - sent)
                arrived[name, token.index] = now

    address = f"127.0.0.1:{port}"
    async with asyncio.timeout(streams * STAGGER_S + tokens * STEP_S + GIVE_UP_S):
        async with grpc.aio.insecure_channel(address, options(address)) as channel:
            stub = inference_pb2_grpc.InferenceStub(channel)
            await stub.GetModel(inference_pb2.GetModelRequest())
            await asyncio.gather(*(read_one(stub, f"{tag}-{n}", n * STAGGER_S) for n in range(streams)))
    return ttft_s, arrived


def measure(side: Side, streams: int, tokens: int) -> dict[str, float]:
    """Added latencies in milliseconds at one number of concurrent streams."""
    setting = Setting(0, 0.0, 0.0, 1, tokens, STEP_S)
    client = side.direct(streams, True)
    direct = read_paced(client, side.direct_worker, streams, setting, f"direct-{streams}")
    client.close()
    client = side.routed(streams, True)
    assert isinstance(client, GrpcClient)
    routed = read_paced(client, side.routed_worker, streams, setting, f"socket-{streams}")
    client.close()
    in_python = read_in_python(client.port, side.routed_worker, streams, tokens, f"python-{streams}")
    return {
        f"added_{title}_ms_{name}{reader}_{streams}_streams": 1000
        * (percentile(those[kind], share) - percentile(direct[kind], share))
        for reader, those in (("", routed), ("_python_client", in_python))
        for kind, title in (("ttft_", "ttft"), ("", "per_token"))
        for share, name in ((0.5, "p50"), (0.99, "p99"))
    }


def main() -> None:
    args = arguments(__doc__, "python -m benchmarks.streaming --quick --json streaming.json").parse_args()
    tokens = args.pick(256, 64, 12)
    report = Report("streaming", GOALS)
    with baton_side() as side, progress(len(STREAMS)) as step:
        for streams in STREAMS:
            step(f"{streams} streams")
            report.figures |= measure(side, streams, tokens)
    for name in ("ttft_ms_p50", "per_token_ms_p50"):
        report.figures[f"added_{name}"] = report.figures[f"added_{name}_16_streams"]
    report.setting = {"tokens_per_stream": tokens, "step_ms": 1000 * STEP_S, "seed": args.seed}
    report.publish(args)


if __name__ == "__main__":
    main()
