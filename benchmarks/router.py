"""Baton's gateway and router against sglang-router and its successor smg, each in front of workers without a model.

All serve one prefill and one decode worker that stream 64 tokens per request. Requests per second are measured in a
closed loop of concurrent streams, with workers that step as fast as they can. Added latencies are measured with paced
workers (a token per stream and step): the latency through the front minus that of reading the worker directly. Clients
only timestamp bytes; client, gateway, router and workers are separate processes. The sides alternate, and ratios are
medians over the turns. Figures end with _grpc or _http, or with a peer's name.

Under load tokens that wait are merged into one write. `messages_per_request` shows how far tokens were merged;
`gateway_cpu_us_per_token_N` is the cost of a token at N paced streams, where tokens arrive one by one.
`router_cpu_us_per_token` is the router's CPU while streams only decode. A peer's router does the work of both, so
ratios compare it with `front_cpu`, which is gateway and router together.

An open loop follows: requests arrive at random times at a common rate and at shares of each side's closed-loop peak
(`open_*`). `kept_per_s` is the highest rate at which requests end as fast as they arrive and 99 of 100 tokens arrive
within 100 ms; the closed loop's peak is the highest rate tried. Last, two gateways on a core each are compared with one
on one core.

    pip install "baton[benchmarks]"    # both peers; a peer that is not installed is skipped
"""

from __future__ import annotations

import resource
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import product
from statistics import median

from baton.harness.report import Goal, Report, arguments, median_ratio, progress
from benchmarks.open_loop import OpenSetting, measure_kept, measure_open
from benchmarks.router_measures import (
    SATURATING,
    TOKENS,
    Figures,
    Setting,
    measure_added,
    measure_gateways,
    measure_prompts,
    measure_saturation,
    measure_steady,
)
from benchmarks.router_peers import PEERS, find_peer, peer_side
from benchmarks.router_sides import Side, baton_side

FLOOR = 0.1  # In ms. Smaller differences are noise and are raised to this before a division.
BATON = ("_grpc", "_http")
GOALS = {
    "gateway_cpu_us_per_token_64_http": Goal(60.0, at_most=True),
    "front_cpu_us_per_token_64_ratio_http_to_smg": Goal(1.0, at_most=True),
    "added_ms_p50_64_http": Goal(1.0, at_most=True),
    "added_ms_p99_64_http": Goal(4.0, at_most=True),
    "requests_ratio_http_to_smg": Goal(0.5),
}
PEER_NAMES = frozenset(f"_{peer.name}" for peer in PEERS)
COMPARED = ("requests_per_s", "front_cpu", "added_", "kept_per_s")
RATIOS = {"requests_per_s": "requests_ratio", "kept_per_s": "kept_ratio"}
Measurement = Callable[[Side, str], Figures]
QUICK = Setting(1, 0.8, 0.3, 1, 16, steady_tokens=60, by_prompt=60, streams=(16, 64))
SMALLEST = Setting(1, 0.2, 0.1, 1, 4, 0.01, 100, 3, streams=(2,))
FULL = Setting(5, 2.0, 0.5, 3, TOKENS)
OPEN_QUICK = OpenSetting(1, 0.5, TOKENS, 0.01, 20.0, (0.5,), 2, 0.4, 1, False)
OPEN_SMALLEST = OpenSetting(1, 0.3, 4, 0.01, 20.0, (0.5,), 1, 0.3, 1, True)
OPEN_FULL = OpenSetting(2, 3.0, TOKENS, 0.02, 20.0, (0.25, 0.5), 5, 2.0, 2, True)


def figures_of(rounds: list[list[Figures]], names: list[str]) -> Figures:
    """Medians per side, and the medians of the rounds' ratios: the figures of Baton's sides over each peer's.

    `names` are the suffixes of the sides' figures. Figures at shares of a side's own peak are not compared.
    """
    figures: Figures = {}
    for index, side in enumerate(names):
        for figure in rounds[0][index]:
            figures[figure + side] = median(each[index][figure] for each in rounds)
    for figure in rounds[0][0]:
        compared = figure.startswith(COMPARED) or (figure.startswith("open_added_") and figure.endswith("_per_s"))
        for own, index in product(range(len(names)), repeat=2):
            ours, peer = names[own], names[index]
            if not compared or ours in PEER_NAMES or peer not in PEER_NAMES or figure not in rounds[0][index]:
                continue
            if not figure.endswith("_without_router"):
                pairs = [(max(FLOOR, each[own][figure]), max(FLOOR, each[index][figure])) for each in rounds]
                figures[f"{RATIOS.get(figure, f'{figure}_ratio')}{ours}_to{peer}"] = median_ratio(pairs)
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
    turns += len(open_setting.labels()) * open_setting.turns + 2
    with progress(len(sides) * turns + 1) as step:
        figures = in_turn(partial(measure_saturation, setting), setting.turns_flat_out, sides, "flat out", step)
        peaks = {side.name: figures[f"requests_per_s{side.name}"] for side in sides}
        figures |= in_turn(partial(measure_steady, setting), 1, sides, "decoding only", step)
        figures |= in_turn(partial(measure_prompts, setting), 1, sides[: len(BATON)], "long prompts", step)
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
    report = Report("router", GOALS)
    with ExitStack() as stack:
        sides = [stack.enter_context(baton_side(name, http=name == "_http")) for name in BATON]
        for peer in PEERS:
            command = find_peer(peer, pythons.get(peer.name))
            if command is None:
                print(f'Skipping {peer.package}: not installed (pip install "baton[benchmarks]", or --{peer.name}).')
            else:
                sides.append(stack.enter_context(peer_side(peer, command)))
        report.figures = measure(sides, setting, open_setting)
    report.figures |= measure_gateways(setting)
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
