"""What the router benchmark measures at one side: requests per second, added latency, and CPU time."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from baton.protocol.latency import percentile
from benchmarks.router_sides import Child, Side, baton_side
from benchmarks.stream_clients import DRAIN_S, StreamClient, drain

TOKENS = 64
SATURATING = 64
STAGGER_S = 0.005
KINDS = {"": ((0.5, "p50"), (0.99, "p99")), "ttft_": ((0.5, "p50"),)}
MIN_REQUESTS = 4
PROMPTS = (100, 10_000)  # Tokens, for the cost of a request by the length of its prompt.
Figures = dict[str, float]
Watched = dict[str, list[psutil.Process]]


@dataclass(frozen=True, slots=True)
class Setting:
    """The amount of work in a run."""

    turns_flat_out: int
    window_s: float
    warm_up_s: float
    turns_paced: int
    paced_tokens: int
    step_s: float = 0.04
    steady_tokens: int = 100  # Per stream, in the measurement of streams that only decode.
    by_prompt: int = 200  # Requests in the measurement by length of prompt.
    streams: tuple[int, ...] = (1, 16, 64, 256)


def saturate(client: StreamClient, watched: Watched, setting: Setting, tag: str) -> Figures:
    """Requests per second of a closed loop, and CPU time of each watched process per request.

    Raises `RuntimeError` when tokens are missing.
    """
    begun, names, ended = 0, [], 0

    def begin() -> None:
        nonlocal begun
        names.append(f"{tag}-{begun}")
        begun += 1
        client.start(names[-1], TOKENS)

    for _ in range(SATURATING):
        begin()
    now = time.monotonic()
    opens, closes = now + setting.warm_up_s, now + setting.warm_up_s + setting.window_s
    opened: tuple[float, int, dict[str, float]] | None = None
    while now < closes:
        for _ in client.read(0.05):
            ended += 1
            begin()
        now = time.monotonic()
        if opened is None and now >= opens:
            opened = now, ended, _cpu_s(watched)
    assert opened is not None
    count, seconds, spent = ended - opened[1], now - opened[0], _cpu_s(watched)
    drain(client, begun - ended)
    seen = sum(1 for _ in client.tokens())
    if seen != begun * TOKENS:
        raise RuntimeError(f"{begun} streams of {TOKENS} tokens yielded {seen} tokens.")
    figures = {"requests_per_s": count / seconds, "messages_per_request": client.messages / begun}
    return figures | {f"{name}_cpu_ms_per_request": 1000 * (spent[name] - opened[2][name]) / count for name in watched}


def _cpu_s(processes: Watched) -> dict[str, float]:
    """CPU seconds so far, by the kernel's scheduler, which counts nanoseconds where `cpu_times` counts ticks."""
    return {name: sum(map(_of_process, group)) for name, group in processes.items()}


def _of_process(process: psutil.Process) -> float:
    threads = Path(f"/proc/{process.pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


def _front(figures: Figures, unit: str) -> Figures:
    """With the sum over the processes between client and workers, which a peer's single router is compared with."""
    parts = [figures[key] for key in (f"gateway_cpu_{unit}", f"router_cpu_{unit}") if key in figures]
    return figures | {f"front_cpu_{unit}": sum(parts)}


def read_paced(client: StreamClient, worker: Child, streams: int, setting: Setting, tag: str) -> dict[str, list[float]]:
    """Seconds from sending a request to its first token ("ttft_"), and from a worker's step to each other token ("").

    At most `streams` requests run at once, but at least `MIN_REQUESTS` run in total, to have several first tokens.
    """
    requests = max(streams, MIN_REQUESTS)
    tokens = setting.paced_tokens * streams // requests
    _warm_up(client, streams, tag)
    worker.pace(setting.step_s)
    begin = time.monotonic() + 0.01
    due = [(begin + index * STAGGER_S, f"{tag}-{index}") for index in range(requests)]
    deadline = begin + requests * STAGGER_S + setting.paced_tokens * setting.step_s + DRAIN_S
    sent: dict[str, float] = {}
    ended = 0
    while ended < requests:
        now = time.monotonic()
        while due and now >= due[0][0] and len(sent) - ended < streams:
            name = due.pop(0)[1]
            sent[name] = time.monotonic()
            client.start(name, tokens)
        ended += len(client.read(min(0.05, max(0.0, due[0][0] - now)) if due else 0.05))
        if now > deadline:
            raise RuntimeError(f"{requests - ended} of {requests} streams did not end in time.")
    left = worker.pace(0.0)
    seen: dict[str, list[float]] = {"ttft_": [], "": []}
    for name, index, arrived in client.tokens():
        if name in sent and index == 0:
            seen["ttft_"].append(arrived - sent[name])
        elif name in sent:
            seen[""].append(arrived - left[name, index])
    if len(seen[""]) != requests * (tokens - 1):
        raise RuntimeError(f"Tokens are missing: {len(seen[''])} arrived on {requests} streams.")
    return seen


def _warm_up(client: StreamClient, streams: int, tag: str) -> None:
    """Send a stream over every connection before the timed ones."""
    for index in range(streams):
        client.start(f"{tag}-warm-{index}", 2)
    drain(client, streams)


def measure_saturation(setting: Setting, side: Side, tag: str) -> Figures:
    """Closed-loop figures through the router, and the rate of workers and client without a router."""
    workers = psutil.Process(side.routed_worker.process.pid)
    watched = {**side.processes, "workers": [workers], "client": [psutil.Process(os.getpid())]}
    client = side.routed(SATURATING, False)
    figures = saturate(client, watched, setting, f"s{tag}")
    client.close()
    client = side.direct(SATURATING, False)
    direct = saturate(client, {}, setting, f"d{tag}")
    client.close()
    figures = _front(figures, "ms_per_request")
    return figures | {"requests_per_s_without_router": direct["requests_per_s"]}


def measure_added(streams: int, setting: Setting, side: Side, tag: str) -> Figures:
    """Added milliseconds at one number of streams, and the CPU time per token for 64 streams or more."""
    seen, spent = list[dict[str, list[float]]](), dict[str, float]()
    for way, worker in ((side.direct, side.direct_worker), (side.routed, side.routed_worker)):
        client, before = way(streams, True), _cpu_s(side.processes)
        seen.append(read_paced(client, worker, streams, setting, f"{tag}-{streams}-{len(seen)}"))
        spent = {name: after - before[name] for name, after in _cpu_s(side.processes).items()}
        client.close()
    direct, routed = seen
    figures = {
        f"added_{kind}ms_{name}_{streams}": 1000 * (percentile(routed[kind], share) - percentile(direct[kind], share))
        for kind, shares in KINDS.items()
        for share, name in shares
    }
    if streams >= 64:  # With fewer, the CPU time is below the resolution of its clock.
        tokens, unit = sum(map(len, routed.values())) + 2 * streams, f"us_per_token_{streams}"
        figures |= _front({f"{name}_cpu_{unit}": 1e6 * cpu_s / tokens for name, cpu_s in spent.items()}, unit)
    return figures


def measure_steady(setting: Setting, side: Side, tag: str) -> Figures:
    """CPU per token while paced streams only decode: from the last first token to the first end."""
    client = side.routed(SATURATING, True)
    side.routed_worker.pace(setting.step_s)
    begin, stream_s = time.monotonic(), setting.steady_tokens * setting.step_s  # No stream ends earlier than after this
    for index in range(SATURATING):
        client.start(f"steady-{tag}-{index}", setting.steady_tokens)
    read_until(client, begin + 0.25 * stream_s)
    opened, before = time.monotonic(), _cpu_s(side.processes)
    read_until(client, begin + 0.85 * stream_s)
    seconds = time.monotonic() - opened
    spent = {name: after - before[name] for name, after in _cpu_s(side.processes).items()}
    drain(client, SATURATING)
    side.routed_worker.pace(0.0)
    client.close()
    tokens = SATURATING * seconds / setting.step_s
    return _front({f"{name}_cpu_us_per_token": 1e6 * cpu_s / tokens for name, cpu_s in spent.items()}, "us_per_token")


def read_until(client: StreamClient, until_s: float) -> None:
    """Read what arrives until this time; raises `RuntimeError` when a stream ends."""
    while (left_s := until_s - time.monotonic()) > 0:
        if client.read(min(0.05, left_s)):
            raise RuntimeError("A stream ended while streams were to decode only.")


def measure_prompts(setting: Setting, side: Side, tag: str) -> Figures:
    """CPU per request by the length of its prompt, in a closed loop of 8 streams of 4 tokens."""
    figures: Figures = {}
    for length in PROMPTS:
        client, ended, begun = side.routed(8, False), 0, 0
        before = _cpu_s(side.processes)
        while ended < setting.by_prompt:
            while begun < min(setting.by_prompt, ended + 8):
                client.start(f"prompt-{tag}-{length}-{begun}", 4, length)
                begun += 1
            ended += len(client.read(0.05))
        spent = {name: after - before[name] for name, after in _cpu_s(side.processes).items()}
        client.close()
        unit = f"ms_per_request_of_{length}"
        figures |= {f"{name}_cpu_{unit}": 1000 * cpu_s / ended for name, cpu_s in spent.items()}
    return figures


def measure_gateways(setting: Setting) -> Figures:
    """Requests per second of two gateways on a core each, over those of one gateway on one core."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    figures: Figures = {}
    for count in (1, 2):
        with baton_side("", count, cores) as side:
            figures[f"requests_per_s_{count}_gateways_grpc"] = saturate(
                side.routed(SATURATING, False), {}, setting, f"g{count}"
            )["requests_per_s"]
    one, two = (figures[f"requests_per_s_{count}_gateways_grpc"] for count in (1, 2))
    return figures | {"two_gateways_ratio_grpc": two / one}
