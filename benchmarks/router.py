"""Baton's router against sglang-router, each in front of workers without a model.

Both serve one prefill and one decode worker that stream 64 tokens per request. Requests per second are those of a
closed loop of streams at once, the workers stepping as fast as they can; added latencies are those of paced workers (a
token per stream and step), through the router less directly from the worker. Clients only stamp bytes; client, router
and workers are processes of their own. The sides take turns, and ratios are medians over the turns.

Under a flood both routers may put what has piled up into one write; `messages_per_request` tells how far tokens were
merged into messages, `router_cpu_us_per_token_N` what a token costs at N paced streams, where they come one by one.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from statistics import median

import psutil

from benchmarks.report import Report, arguments, median_ratio, progress
from benchmarks.router_sides import Child, Side, baton_side, find_sglang, sglang_side
from benchmarks.stream_clients import StreamClient
from cluster.latency import percentile

TOKENS = 64
STREAMS = (1, 16, 64, 256)
SATURATING = 64
STAGGER_S = 0.005
KINDS = {"": ((0.5, "p50"), (0.99, "p99")), "ttft_": ((0.5, "p50"),)}
MIN_REQUESTS = 4
FLOOR = 0.1  # ms; smaller differences are noise, and no divisor
COMPARED = ("requests_per_s", "router_cpu", "added_")
Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Setting:
    """How much is measured."""

    turns_flat_out: int
    window_s: float
    warm_up_s: float
    turns_paced: int
    paced_tokens: int
    step_s: float = 0.04


def saturate(client: StreamClient, watched: dict[str, psutil.Process], setting: Setting, tag: str) -> Figures:
    """Requests per second of a closed loop, and what each watched process spent on one; every token is counted."""
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
    while ended < begun:
        ended += len(client.read(0.05))
    seen = sum(1 for _ in client.tokens())
    if seen != begun * TOKENS:
        raise RuntimeError(f"{begun} streams of {TOKENS} tokens gave {seen} tokens.")
    figures = {"requests_per_s": count / seconds, "messages_per_request": client.messages / begun}
    return figures | {f"{name}_cpu_ms_per_request": 1000 * (spent[name] - opened[2][name]) / count for name in watched}


def _cpu_s(processes: dict[str, psutil.Process]) -> dict[str, float]:
    return {name: sum(process.cpu_times()[:2]) for name, process in processes.items()}


def read_paced(client: StreamClient, worker: Child, streams: int, setting: Setting, tag: str) -> dict[str, list[float]]:
    """Seconds from sending a request to its first token, and from a worker's step to the arrival of its tokens.

    `streams` at once; one alone is asked several times, so that there is more than one first token.
    """
    requests = max(streams, MIN_REQUESTS)
    tokens = setting.paced_tokens * streams // requests
    _warm_up(client, streams, tag)
    worker.pace(setting.step_s)
    begin = time.monotonic() + 0.01
    due = [(begin + index * STAGGER_S, f"{tag}-{index}") for index in range(requests)]
    deadline = begin + requests * STAGGER_S + setting.paced_tokens * setting.step_s + 30.0
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
        raise RuntimeError(f"Tokens are missing: {len(seen[''])} came of {requests} streams.")
    return seen


def _warm_up(client: StreamClient, streams: int, tag: str) -> None:
    """Every connection has carried a stream before one is timed."""
    for index in range(streams):
        client.start(f"{tag}-warm-{index}", 2)
    ended = 0
    while ended < streams:
        ended += len(client.read(0.05))


def measure_saturation(side: Side, setting: Setting, tag: str) -> Figures:
    """Through the router, and what the workers and the client manage without one."""
    workers = psutil.Process(side.routed_worker.process.pid)
    watched = {"router": side.router, "workers": workers, "client": psutil.Process(os.getpid())}
    client = side.routed(SATURATING, False)
    figures = saturate(client, watched, setting, f"s{tag}")
    client.close()
    client = side.direct(SATURATING, False)
    direct = saturate(client, {}, setting, f"d{tag}")
    client.close()
    return figures | {"requests_per_s_without_router": direct["requests_per_s"]}


def measure_added(streams: int, side: Side, setting: Setting, tag: str) -> Figures:
    """Added milliseconds at one number of streams."""
    seen, spent = list[dict[str, list[float]]](), 0.0
    for way, worker in ((side.direct, side.direct_worker), (side.routed, side.routed_worker)):
        client, before = way(streams, True), _cpu_s({"": side.router})[""]
        seen.append(read_paced(client, worker, streams, setting, f"{tag}-{streams}-{len(seen)}"))
        spent = _cpu_s({"": side.router})[""] - before
        client.close()
    direct, routed = seen
    figures = {
        f"added_{kind}ms_{name}_{streams}": 1000 * (percentile(routed[kind], share) - percentile(direct[kind], share))
        for kind, shares in KINDS.items()
        for share, name in shares
    }
    if streams >= 64:  # less is below the clock of a process's CPU time
        figures[f"router_cpu_us_per_token_{streams}"] = 1e6 * spent / (sum(map(len, routed.values())) + 2 * streams)
    return figures


def figures_of(rounds: list[list[Figures]], sides: list[Side]) -> Figures:
    """Medians per side, and the medians of the rounds' ratios: Baton's figure over sglang-router's."""
    figures: Figures = {}
    for name in rounds[0][0]:
        for index, side in enumerate(sides):
            figures[name + side.name] = median(each[index][name] for each in rounds)
        if len(sides) == 2 and name.startswith(COMPARED):
            pairs = [(max(FLOOR, each[0][name]), max(FLOOR, each[1][name])) for each in rounds]
            figures[_ratio_name(name)] = median_ratio(pairs)
    return figures


def measure(sides: list[Side], setting: Setting) -> Figures:
    """Every figure, the sides in turn: who goes first changes each time."""
    figures: Figures = {}
    kinds = [(setting.turns_flat_out, "flat out", measure_saturation)]
    for streams in STREAMS:
        kinds.append((setting.turns_paced, f"{streams} streams", partial(measure_added, streams)))
    with progress(len(sides) * sum(turns for turns, _, _ in kinds)) as step:
        for turns, title, measurement in kinds:
            rounds: list[list[Figures]] = []
            for turn in range(turns):
                found = {}
                for side in sides[:: -1 if turn % 2 else 1]:
                    step(f"{title}, turn {turn + 1}{side.name}")
                    found[side.name] = measurement(side, setting, f"{turn}")
                rounds.append([found[side.name] for side in sides])
            figures |= figures_of(rounds, sides)
    return figures


def _ratio_name(name: str) -> str:
    return "requests_ratio_to_sglang" if name == "requests_per_s" else f"{name}_ratio_to_sglang"


def main() -> None:
    parser = arguments(__doc__, "python -m benchmarks.router --quick --json router.json")
    parser.add_argument("--sglang", metavar="PATH", help="the sglang-router program (default: this interpreter's)")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    setting = Setting(2, 1.0, 0.3, 1, 36) if args.quick else Setting(5, 2.0, 0.5, 3, TOKENS)
    command = find_sglang(args.sglang)
    if command is None:
        print('sglang-router is not installed (pip install "baton[benchmarks]", or --sglang): Baton is measured alone.')
    report = Report("router")
    with ExitStack() as stack:
        sides = [stack.enter_context(baton_side())]
        if command is not None:
            sides.append(stack.enter_context(sglang_side(command)))
        report.figures = measure(sides, setting)
    report.setting = {
        "tokens_per_request": TOKENS,
        "streams_flat_out": SATURATING,
        "paced_tokens": setting.paced_tokens,
        "step_ms": 1000 * setting.step_s,
        "turns_flat_out": setting.turns_flat_out,
        "turns_paced": setting.turns_paced,
        "seed": args.seed,
    }
    report.publish(args.json)


if __name__ == "__main__":
    main()
