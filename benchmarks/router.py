"""Baton's router against sglang-router and its successor smg, each in front of workers without a model.

All serve one prefill and one decode worker that stream 64 tokens per request. Requests per second are measured in a
closed loop of concurrent streams, with workers that step as fast as they can. Added latencies are measured with paced
workers (a token per stream and step): the latency through the router minus that of reading the worker directly. Clients
only timestamp bytes; client, router and workers are separate processes. The sides alternate, and ratios are medians
over the turns.

Under load a router may merge waiting tokens into one write. `messages_per_request` shows how far tokens were merged;
`router_cpu_us_per_token_N` is the cost of a token at N paced streams, where tokens arrive one by one.

An open loop follows: requests arrive at random times at a common rate and at shares of each side's closed-loop peak
(`open_*`). `kept_per_s` is the highest rate at which requests end as fast as they arrive and 99 of 100 tokens arrive
within 100 ms; the closed loop's peak is the highest rate tried.

    pip install "baton[benchmarks]"    # both peers; a peer that is not installed is skipped
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import psutil

from baton.harness.report import Report, arguments, median_ratio, progress
from baton.router.core.completion import percentile
from benchmarks.open_loop import OpenSetting, measure_kept, measure_open
from benchmarks.router_peers import PEERS, find_peer, peer_side
from benchmarks.router_sides import Child, Side, baton_side
from benchmarks.stream_clients import DRAIN_S, StreamClient, drain

TOKENS = 64
SATURATING = 64
STAGGER_S = 0.005
KINDS = {"": ((0.5, "p50"), (0.99, "p99")), "ttft_": ((0.5, "p50"),)}
MIN_REQUESTS = 4
FLOOR = 0.1  # In ms. Smaller differences are noise and are raised to this before a division.
COMPARED = ("requests_per_s", "router_cpu", "added_", "kept_per_s")
RATIOS = {"requests_per_s": "requests_ratio", "kept_per_s": "kept_ratio"}
Figures = dict[str, float]
Measurement = Callable[[Side, str], Figures]


@dataclass(frozen=True, slots=True)
class Setting:
    """The amount of work in a run."""

    turns_flat_out: int
    window_s: float
    warm_up_s: float
    turns_paced: int
    paced_tokens: int
    step_s: float = 0.04
    streams: tuple[int, ...] = (1, 16, 64, 256)


QUICK = Setting(1, 0.8, 0.3, 1, 16, streams=(16, 64))
SMALLEST = Setting(1, 0.2, 0.1, 1, 4, step_s=0.01, streams=(2,))
FULL = Setting(5, 2.0, 0.5, 3, TOKENS)
OPEN_QUICK = OpenSetting(1, 0.5, TOKENS, 0.01, 20.0, (0.5,), 2, 0.4, 1, False)
OPEN_SMALLEST = OpenSetting(1, 0.3, 4, 0.01, 20.0, (0.5,), 1, 0.3, 1, True)
OPEN_FULL = OpenSetting(2, 3.0, TOKENS, 0.02, 20.0, (0.25, 0.5, 0.8), 5, 2.0, 2, True)


def saturate(client: StreamClient, watched: dict[str, psutil.Process], setting: Setting, tag: str) -> Figures:
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


def _cpu_s(processes: dict[str, psutil.Process]) -> dict[str, float]:
    return {name: sum(process.cpu_times()[:2]) for name, process in processes.items()}


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
    watched = {"router": side.router, "workers": workers, "client": psutil.Process(os.getpid())}
    client = side.routed(SATURATING, False)
    figures = saturate(client, watched, setting, f"s{tag}")
    client.close()
    client = side.direct(SATURATING, False)
    direct = saturate(client, {}, setting, f"d{tag}")
    client.close()
    return figures | {"requests_per_s_without_router": direct["requests_per_s"]}


def measure_added(streams: int, setting: Setting, side: Side, tag: str) -> Figures:
    """Added milliseconds at one number of streams, and the router's CPU time per token for 64 streams or more."""
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
    if streams >= 64:  # With fewer, the CPU time is below the resolution of its clock.
        figures[f"router_cpu_us_per_token_{streams}"] = 1e6 * spent / (sum(map(len, routed.values())) + 2 * streams)
    return figures


def figures_of(rounds: list[list[Figures]], names: list[str]) -> Figures:
    """Medians per side, and the medians of the rounds' ratios: Baton's figure over each peer's.

    `names` are the suffixes of the sides' figures, Baton's first. Figures at shares of a side's own peak are not
    compared.
    """
    figures: Figures = {}
    for figure in rounds[0][0]:
        for index, side in enumerate(names):
            figures[figure + side] = median(each[index][figure] for each in rounds)
        compared = figure.startswith(COMPARED) or (figure.startswith("open_added_") and figure.endswith("_per_s"))
        for index, peer in enumerate(names[1:], 1):
            if compared and not figure.endswith("_without_router"):
                pairs = [(max(FLOOR, each[0][figure]), max(FLOOR, each[index][figure])) for each in rounds]
                figures[f"{RATIOS.get(figure, f'{figure}_ratio')}_to{peer}"] = median_ratio(pairs)
    return figures


def in_turn(
    measurement: Measurement, turns: int, sides: list[Side], title: str, step: Callable[[str], None]
) -> Figures:
    """The figures of all sides, measured one after the other, in alternating order."""
    rounds: list[list[Figures]] = []
    for turn in range(turns):
        found = {}
        for side in sides[:: -1 if turn % 2 else 1]:
            step(f"{title}, turn {turn + 1}{side.name}")
            found[side.name] = measurement(side, f"{turn}")
        rounds.append([found[side.name] for side in sides])
    return figures_of(rounds, [side.name for side in sides])


def measure(sides: list[Side], setting: Setting, open_setting: OpenSetting) -> Figures:
    """Every figure; the open loop's rates are derived from the closed loop's peaks."""
    turns = setting.turns_flat_out + len(setting.streams) * setting.turns_paced
    turns += len(open_setting.labels()) * open_setting.turns + 1
    with progress(len(sides) * turns) as step:
        figures = in_turn(partial(measure_saturation, setting), setting.turns_flat_out, sides, "flat out", step)
        peaks = {side.name: figures[f"requests_per_s{side.name}"] for side in sides}
        for streams in setting.streams:
            added = partial(measure_added, streams, setting)
            figures |= in_turn(added, setting.turns_paced, sides, f"{streams} streams", step)
        for label, share in open_setting.labels().items():
            rates = {name: open_setting.common_per_s if share is None else share * peak for name, peak in peaks.items()}
            opened = partial(measure_open, label, rates, open_setting)
            figures |= in_turn(opened, open_setting.turns, sides, f"open loop {label}", step)
        figures |= in_turn(partial(measure_kept, peaks, open_setting), 1, sides, "highest rate kept", step)
    return figures


def run(pythons: dict[str, str | None], setting: Setting, open_setting: OpenSetting) -> Report:
    """Measure Baton and the installed peers; `pythons` has the interpreters of peers that are not in this one."""
    report = Report("router")
    with ExitStack() as stack:
        sides = [stack.enter_context(baton_side())]
        for peer in PEERS:
            command = find_peer(peer, pythons.get(peer.name))
            if command is None:
                print(f'Skipping {peer.package}: not installed (pip install "baton[benchmarks]", or --{peer.name}).')
            else:
                sides.append(stack.enter_context(peer_side(peer, command)))
        report.figures = measure(sides, setting, open_setting)
    report.setting = {
        "tokens_per_request": TOKENS,
        "streams_flat_out": SATURATING,
        "paced_tokens": setting.paced_tokens,
        "step_ms": 1000 * setting.step_s,
        "turns_flat_out": setting.turns_flat_out,
        "turns_paced": setting.turns_paced,
        "open_window_s": open_setting.window_s,
        "open_step_ms": 1000 * open_setting.step_s,
        "open_turns": open_setting.turns,
        "seed": open_setting.seed,
    }
    return report


def main() -> None:
    parser = arguments(__doc__, "python -m benchmarks.router --quick --json router.json", full_s=1800.0)
    for peer in PEERS:
        parser.add_argument(
            f"--{peer.name}", metavar="PYTHON", help=f"a Python with {peer.package} (default: this one)"
        )
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))  # HTTP clients need a connection per stream.
    setting, open_setting = args.pick((FULL, OPEN_FULL), (QUICK, OPEN_QUICK), (SMALLEST, OPEN_SMALLEST))
    pythons = {peer.name: getattr(args, peer.name) for peer in PEERS}
    run(pythons, setting, replace(open_setting, seed=args.seed)).publish(args)


if __name__ == "__main__":
    main()
