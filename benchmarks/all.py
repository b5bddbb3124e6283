"""Every benchmark and reliability run, one after the other, each in its own process; a failure does not stop the rest.

    python -m benchmarks.all --smoke                       # check that everything runs (3 minutes)
    python -m benchmarks.all --traces DIR --publish        # full runs, kept in benchmarks/results (hours)
    python -m benchmarks.all --only engine,router --quick  # some benchmarks

Recorded data (mooncake_conversation.jsonl, azure_2023_conversation.csv, the folder profiles) are looked for in
--traces; without them quick and smoke runs read synthetic ones, and full runs that need recorded ones are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from baton.harness.results import Result, read_result
from benchmarks.catalog import BENCHMARKS, BY_NAME, PROFILES, RECORDINGS, Benchmark
from benchmarks.made_up_profiles import write_profiles
from benchmarks.made_up_trace import write_trace

ROOT = Path(__file__).resolve().parents[1]
LAST_LINES = 3  # Lines of a failed benchmark's output that the table shows.


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one benchmark, or why there is none."""

    name: str
    seconds: float
    result: Result | None
    why: str  # why there is no result; empty when there is one

    @property
    def verdict(self) -> str:
        """Goals that were met and missed, or why there is no result."""
        if self.result is None:
            return self.why
        missed = [name for name, goal in self.result.goals.items() if not goal.met(self.result.figures[name])]
        met = f"{len(self.result.goals) - len(missed)} of {len(self.result.goals)} goals met"
        return f"{met}; missed: {', '.join(missed)}" if missed else met if self.result.goals else "no goals"


def command(one: Benchmark, size: str, recording: Path | None, keep: bool, result: Path) -> list[str]:
    """The command line of a benchmark; `recording` replaces the recorded data in its arguments."""
    words = one.arguments.split()
    if size != "full":
        words = [RECORDINGS[one.recording], one.recording] if one.recording is not None else []
    words = [str(recording) if word == one.recording else word for word in words]
    words += [f"--{size}"] if size != "full" else []
    words += ["--publish", one.name] if keep else []
    return [sys.executable, "-m", one.module_name, *words, "--json", str(result)]


def run(one: Benchmark, words: Sequence[str], folder: Path) -> Outcome:
    """Run it to its end, which its own deadline bounds, and read its result."""
    result, log = folder / f"{one.name}.json", folder / f"{one.name}.log"
    result.unlink(missing_ok=True)
    begun_s = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(words, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)  # it then takes down what it has started
            process.wait()
            raise
    seconds = time.monotonic() - begun_s
    last = " ".join(log.read_text(errors="replace").split("\n")[-LAST_LINES - 1 :]).strip()
    if not result.exists():
        return Outcome(one.name, seconds, None, f"failed with code {code}: {last}; see {log}")
    return Outcome(one.name, seconds, read_result(result), "")


def chosen(only: str | None) -> list[Benchmark]:
    """The benchmarks to run; exits with a message when a name is unknown."""
    names = list(BY_NAME) if only is None else only.split(",")
    unknown = [name for name in names if name not in BY_NAME]
    if unknown:
        raise SystemExit(f"--only: unknown benchmark {', '.join(unknown)}; there are {', '.join(BY_NAME)}.")
    return [one for one in BENCHMARKS if one.name in names]


def recording_for(one: Benchmark, size: str, traces: Path | None, folder: Path) -> Path | None:
    """The data to read: recorded, or synthetic for smaller runs; None when a full run has no recorded ones."""
    recorded = traces / one.recording if traces is not None and one.recording is not None else None
    if recorded is not None and recorded.exists():
        return recorded.resolve()
    if size == "full":
        return None
    if one.recording == PROFILES:
        return write_profiles(folder / "made_up_profiles")
    return write_trace(folder / "made_up.jsonl", requests=200 if size == "smoke" else 2000)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 when every benchmark produced figures, whatever they are."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.all", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", dest="size", action="store_const", const="quick", help="less precise figures")
    size.add_argument("--smoke", dest="size", action="store_const", const="smoke", help="only check that all run")
    parser.set_defaults(size="full")
    parser.add_argument("--only", metavar="NAME,…", help=f"benchmarks to run: {', '.join(BY_NAME)}")
    parser.add_argument("--traces", type=Path, metavar="DIR", help="folder of the recorded data")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for JSON and logs (default: new, in /tmp)")
    parser.add_argument("--publish", action="store_true", help="keep each full run in benchmarks/results")
    options = parser.parse_args(arguments)
    if options.publish and options.size != "full":
        parser.error("--publish keeps full runs only: leave --quick and --smoke out")
    console, outcomes, picked = Console(), list[Outcome](), chosen(options.only)
    folder = options.out or Path(tempfile.mkdtemp(prefix="baton-benchmarks-"))
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    for number, one in enumerate(picked, 1):
        console.print(f"{number} of {len(picked)}  {one.name}: {one.title}", markup=False)
        recording = recording_for(one, options.size, options.traces, folder) if one.recording is not None else None
        if one.recording is not None and recording is None:
            outcomes.append(Outcome(one.name, 0.0, None, f"skipped: {one.recording} is not in --traces"))
            continue
        words = command(one, options.size, recording, options.publish, folder / f"{one.name}.json")
        outcomes.append(run(one, words, folder))
        console.print(f"    {outcomes[-1].seconds:.0f} s, {outcomes[-1].verdict}", markup=False)
    table = Table("benchmark", "seconds", "", title=f"JSON and logs: {folder}", title_justify="left")
    for outcome in outcomes:
        table.add_row(outcome.name, f"{outcome.seconds:.0f}", outcome.verdict.replace("[", r"\["))
    console.print(table)
    return 0 if all(outcome.result is not None for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
