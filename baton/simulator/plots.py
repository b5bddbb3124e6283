"""The figures of a simulation and of a plan, as PNG files. Needs matplotlib (the extra `plots`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from baton.protocol.errors import ConfigError
from baton.simulator.result import SimulationResult
from baton.simulator.search import SplitResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 30  # of a time axis
COLOURS = {"prefill": "#c05621", "decode": "#2b6cb0", "mixed": "#2f855a"}


def prepare_plots(folder: Path) -> None:
    """Raise `ConfigError` when no plot could be written to the folder, which is made if need be."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise ConfigError(
            "Plots need matplotlib: install it with pip install '.[plots]' in Baton's checkout."
        ) from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"The folder {folder} for plots cannot be made: {error}.") from None


def plot_simulation(folder: Path, result: SimulationResult) -> list[Path]:
    """Latencies, attainment and utilisation of one run; returns the files."""
    return [
        _save(folder / "latency.png", lambda figure: _latency(figure, result), width=9.0),
        _save(folder / "attainment.png", lambda figure: _attainment(figure, result)),
        _save(folder / "utilisation.png", lambda figure: _utilisation(figure, result)),
    ]


def plot_plan(folder: Path, splits: Sequence[SplitResult], attainment: float) -> list[Path]:
    """Goodput of every split that was tried, and how attainment falls with load; returns the files."""
    return [
        _save(folder / "goodput.png", lambda figure: _goodput(figure, splits)),
        _save(folder / "load.png", lambda figure: _load(figure, splits, attainment)),
    ]


def _save(path: Path, draw: Callable[[Figure], None], width: float = 6.0) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 3.6), layout="constrained")
    draw(figure)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise ConfigError(f"The plot {path} cannot be written: {error}.") from None
    return path


def _latency(figure: Figure, result: SimulationResult) -> None:
    """Share of requests that were at least as fast."""
    ttft = [one.ttft_s for one in result.outcomes if one.ttft_s is not None]
    tpot = [1000 * one.tpot_s for one in result.outcomes if one.tpot_s is not None]
    panels: Any = figure.subplots(1, 2)
    for axes, values, label in ((panels[0], ttft, "TTFT (s)"), (panels[1], tpot, "TPOT (ms)")):
        if values:
            axes.ecdf(values, color=COLOURS["decode"])
        axes.set(xlabel=label, ylabel="share of requests", ylim=(0, 1.02))


def _attainment(figure: Figure, result: SimulationResult) -> None:
    """By the moment of arrival."""
    width_s = result.span_s / BINS
    bins: list[list[bool]] = [[] for _ in range(BINS)]
    for outcome in result.outcomes:
        bins[min(int(outcome.arrival_s / width_s), BINS - 1)].append(outcome.good)
    filled = [(index, good) for index, good in enumerate(bins) if good]
    axes: Any = figure.subplots()
    times = [(index + 0.5) * width_s for index, _ in filled]
    axes.plot(times, [sum(good) / len(good) for _, good in filled], color=COLOURS["decode"], marker=".")
    axes.axhline(result.attainment, color="grey", linestyle=":", label=f"all: {100 * result.attainment:.1f} %")
    axes.set(xlabel="arrival (s)", ylabel="share that met its objectives", ylim=(0, 1.02))
    axes.legend(loc="lower left")


def _utilisation(figure: Figure, result: SimulationResult) -> None:
    """Share of time each pool computed; a step counts when it ends."""
    axes: Any = figure.subplots()
    edges = np.linspace(0.0, result.simulated_s, BINS + 1)
    times = [0.0, *(moment.time_s for moment in result.busy)]
    for role in dict.fromkeys(role for moment in result.busy for role in moment.present_s):
        busy_s = [0.0, *(moment.busy_s.get(role, 0.0) for moment in result.busy)]
        present_s = [0.0, *(moment.present_s.get(role, 0.0) for moment in result.busy)]
        busy, present = (np.diff(np.interp(edges, times, values)) for values in (busy_s, present_s))
        shares = np.minimum(busy / np.maximum(present, 1e-9), 1.0)
        axes.stairs(shares, edges, label=role.value, color=COLOURS[role.value], baseline=None)
    axes.set(xlabel="time (s)", ylabel="share of time computing", ylim=(0, 1.05))
    axes.legend(loc="lower left")


def _goodput(figure: Figure, splits: Sequence[SplitResult]) -> None:
    ordered = sorted(splits, key=lambda one: (one.pools.mixed, one.pools.prefill))
    axes: Any = figure.subplots()
    names = [f"{one.pools.prefill}:{one.pools.decode}" if not one.pools.mixed else "mixed" for one in ordered]
    colours = [COLOURS["mixed" if one.pools.mixed else "decode"] for one in ordered]
    axes.bar(names, [one.goodput for one in ordered], color=colours)
    axes.set(xlabel="prefill : decode workers", ylabel="goodput (requests/s)")


def _load(figure: Figure, splits: Sequence[SplitResult], attainment: float) -> None:
    axes: Any = figure.subplots()
    for one in splits:
        rates = [probe.requests_per_s for probe in one.probes]
        axes.plot(rates, [probe.attainment for probe in one.probes], marker=".", label=str(one.pools))
    axes.axhline(attainment, color="grey", linestyle=":")
    axes.set(xlabel="load (requests/s)", ylabel="share that met its objectives", ylim=(0, 1.02), xscale="log")
    axes.legend(fontsize="x-small")
