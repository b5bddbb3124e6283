"""Checks and measures the GPU path, each part in its own process, within 8 minutes on one GPU.

It builds everything that it needs (random weights in the shape of Llama-3.1-8B, bf16), and needs neither a network nor
Ray. Figures are written after every part and printed as a table. The table reports failed parts; the others still run.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from baton.harness import provenance
from baton.harness.forked import forked
from benchmarks.gpu.child import measure
from benchmarks.gpu.figures import EXPECTED, goals
from benchmarks.gpu.parts import PARTS, PartPlan, broken_off, skipped
from benchmarks.gpu.results import PartResult, read_json, rows, write_json
from benchmarks.gpu.sizes import SIZES, Sizes, chosen_sizes

BUDGET_S = 470.0
LOG_TAIL_CHARS = 4000
TABLE_WIDTH = 120
ON_CPU = "measured on a CPU: these figures are not a GPU's, and no goal is judged"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; exits with code 2 and a message for an unknown part or decode point."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        epilog="examples:\n"
        "  python -m benchmarks.gpu --out gpu.json --only preflight,correctness,decode --points b1_1k,b64_1k\n"
        "  python -m benchmarks.gpu --only serving --keep gpu.json     (a call of its own: it takes 3 minutes)\n"
        "  python -m benchmarks.gpu --device cpu --shape tiny",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [plan.name for plan in PARTS]
    usual = ",".join(plan.name for plan in PARTS if not plan.asked_for)
    parser.add_argument("--only", default=usual, metavar="PART,…", help=f"parts: {', '.join(names)} (default: {usual})")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument(
        "--shape", choices=list(SIZES), default="llama-8b", help="model shape; tiny is for --device cpu"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON file (default: $OUT/gpu.json, or ./gpu.json)")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="JSON of an earlier run, to keep parts not run now")
    parser.add_argument("--budget-s", type=float, default=BUDGET_S, help="skip parts that would exceed this time")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="folder for 16 GB (default: /dev/shm if they fit)")
    parser.add_argument("--kernels", choices=["fa2", "fa3", "auto"], default="auto", help="prefill kernels")
    parser.add_argument(
        "--points", default="", metavar="POINT,…", help="decode points, such as b1_1k,b64_1k (default: all)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of random numbers")
    args = parser.parse_args(arguments)
    args.only = args.only.split(",")
    unknown = sorted(set(args.only) - set(names))
    if unknown:
        parser.error(f"--only: unknown part {', '.join(unknown)}; parts are {', '.join(names)}")
    try:
        chosen_sizes(args.shape, _split(args.points))
    except ValueError as error:
        parser.error(str(error))
    if args.out is None:
        args.out = Path(os.environ.get("OUT", ".")) / "gpu.json"
    args.out = args.out.resolve()
    return args


def _split(points: str) -> tuple[str, ...]:
    return tuple(filter(None, points.split(",")))


def sizes_of(args: argparse.Namespace) -> Sizes:
    """The sizes that the options choose."""
    return chosen_sizes(args.shape, _split(args.points))


def run_part(plan: PartPlan, args: argparse.Namespace, limit_s: float) -> PartResult:
    """Run one part in its own process group, and kill the whole group at the end."""
    path, log = args.out.with_name(f"{args.out.stem}-{plan.name}.json"), args.out.with_suffix(".log")
    path.unlink(missing_ok=True)
    begin = log.stat().st_size if log.exists() else 0
    options = {name: getattr(args, name) for name in ("device", "shape", "seed", "scratch", "kernels")}
    process = forked(measure, plan, {**options, "points": _split(args.points), "result": path, "log": log})
    process.daemon = False  # it has children
    how = f"it took longer than {limit_s:.0f} s"
    try:
        process.start()
        process.join(limit_s)
        if process.exitcode is not None:
            how = f"its process ended with code {process.exitcode}" if process.exitcode else ""
    except (OSError, EOFError) as error:  # of the fork server
        how = f"its process could not be started: {error}"
    finally:
        if process.pid:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()  # for one that had no group yet
            process.join()
    values = read_json(path)
    path.unlink(missing_ok=True)
    result = PartResult.from_json(values) if values else PartResult()
    if result.doing:  # The part has not finished.
        tail = log.read_bytes()[begin:].decode(errors="replace")[-LOG_TAIL_CHARS:]
        result = broken_off(result, plan, how or "its process ended", tail, EXPECTED[plan.name](sizes_of(args)))
    return result


def setting_of(args: argparse.Namespace, results: dict[str, PartResult]) -> dict[str, Any]:
    """The setting of the figures."""
    setting: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "shape": args.shape,
        "seed": args.seed,
        "python": sys.version.split()[0],
        "cores": len(os.sched_getaffinity(0)),
    }
    for result in results.values():
        setting |= result.facts
    return setting


def publish(args: argparse.Namespace, results: dict[str, PartResult], earlier: list[str]) -> None:
    """Print the table, the notes and the setting."""
    sizes = sizes_of(args)
    judged = goals(sizes) if args.device == "cuda" else {}
    columns = ("figure", "value", "goal", "")
    table = Table(*columns, title="benchmarks.gpu", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name, result in results.items():
        when = ", earlier run" if name in earlier else ""
        table.add_section()
        table.add_row(f"[bold]{name}[/bold]", f"({result.seconds:.0f} s{when})", "", "")
        for row in rows(result, EXPECTED[name](sizes), judged):
            table.add_row(*(cell.replace("[", r"\[") for cell in row))
    console = Console(width=TABLE_WIDTH)
    console.print(table)
    for name, result in results.items():
        for note in result.notes:
            console.print(f"{name}: {note}", style="dim", markup=False)
    console.print(", ".join(f"{key}={value}" for key, value in setting_of(args, results).items()), markup=False)
    if args.device == "cpu":
        console.print(ON_CPU, style="bold")
    console.print(
        f"JSON: {args.out}; output of libraries and processes: {args.out.with_suffix('.log').name}", markup=False
    )


def save(args: argparse.Namespace, results: dict[str, PartResult]) -> None:
    """Write the JSON file with all results so far."""
    figures = {name: value for result in results.values() for name, value in result.figures.items()}
    commit, dirty = provenance.commit()
    setting = setting_of(args, results)
    values: dict[str, Any] = {
        "name": "gpu",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": commit,
        "dirty": dirty,
        "figures": figures,
        "goals": {name: asdict(goal) for name, goal in goals(sizes_of(args)).items() if name in figures},
        "machine": {**provenance.machine(), "gpu": setting.get("gpu", "none")},
        "setting": setting,
        "parts": {name: result.to_json() for name, result in results.items()},
    }
    if args.device == "cpu":
        values["warning"] = ON_CPU
    write_json(args.out, values)


def earlier_parts(args: argparse.Namespace) -> dict[str, PartResult]:
    """Results from `--keep` of parts that are not run now; none from another device or shape."""
    found = read_json(args.keep) if args.keep else {}
    setting = found.get("setting", {})
    if (setting.get("device"), setting.get("shape")) != (args.device, args.shape):
        return {}
    return {name: PartResult.from_json(values) for name, values in found["parts"].items() if name not in args.only}


def has_cuda() -> bool:
    """Whether torch sees a GPU."""
    import torch

    return torch.cuda.is_available()


def _end(number: int, frame: object) -> None:
    sys.exit(128 + number)  # Unwinds, which ends the running part too.


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 when no part failed, whatever the figures are."""
    started = time.monotonic()
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # The table must be printed even on a terminal without Unicode.
    args = parse(arguments)
    if args.device == "cuda" and not has_cuda():
        print("torch sees no CUDA device here. With --device cpu --shape tiny the same script runs on the CPU.")
        return 2
    signal.signal(signal.SIGTERM, _end)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".log").write_bytes(b"")
    kept = earlier_parts(args)
    results: dict[str, PartResult] = {}
    for plan in PARTS:
        if plan.name in kept:
            results[plan.name] = kept[plan.name]
        elif plan.name in args.only:
            left_s = args.budget_s - (time.monotonic() - started)
            expected = EXPECTED[plan.name](sizes_of(args))
            enough = left_s >= plan.least_s
            results[plan.name] = (
                run_part(plan, args, min(plan.most_s, left_s)) if enough else skipped(plan, left_s, expected)
            )
            save(args, results)
    publish(args, results, list(kept))
    return 1 if any(result.failures for result in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
