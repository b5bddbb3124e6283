"""Random and mutated bytes for every parser of external input, for a given time.

Anything but the refusals that a parser promises is a failure. It is shown with its seed and input.
"""

from __future__ import annotations

import random
import resource
import time
from dataclasses import dataclass, field
from typing import Any

from baton.harness import report
from baton.harness.report import Goal, Report, arguments
from tests.fuzz.targets import TARGETS, Target

TURN_S = 1.0  # for one target, before the next one
SLOW_S = 5.0  # an input that takes longer counts as a hang


@dataclass
class Tally:
    """The results of one target's inputs."""

    inputs: int = 0
    read: int = 0
    longest_s: float = 0.0
    failures: dict[str, str] = field(default_factory=dict)  # kind of failure → its first input
    failed: int = 0


def feed(target: Target, tally: Tally, seed: int, until_s: float) -> None:
    """Inputs of one target until `until_s` on the monotonic clock; each has its own seed, to be repeated alone."""
    while time.monotonic() < until_s:
        number = f"{seed}/{target.name}/{tally.inputs}"
        started = time.monotonic()
        try:
            tally.read += target.try_one(random.Random(number))
        except Exception as error:  # noqa: BLE001 (any exception but a refusal is a finding)
            tally.failed += 1
            kind = f"{type(error).__name__}: {str(error)[:80]}"
            tally.failures.setdefault(kind, f"seed {number!r}: {' '.join(getattr(error, '__notes__', []))}")
        tally.inputs += 1
        tally.longest_s = max(tally.longest_s, time.monotonic() - started)


def run(minutes: float, seed: int) -> dict[str, Tally]:
    """All targets, one after the other, until the time is over."""
    tallies = {target.name: Tally() for target in TARGETS}
    rounds = max(1, round(60 * minutes / (TURN_S * len(TARGETS))))
    turn_s = 60 * minutes / (rounds * len(TARGETS))
    with report.progress(rounds * len(TARGETS)) as step:
        for _ in range(rounds):
            for target in TARGETS:
                step(target.name)
                feed(target, tallies[target.name], seed, time.monotonic() + turn_s)
    return tallies


def main() -> None:
    parser = arguments(__doc__, "python -m tests.reliability.fuzz --minutes 10 --seed 1", full_s=300.0)
    parser.add_argument("--minutes", type=float, default=2.0, help="duration of the run")
    options = parser.parse_args()
    tallies = run(options.pick(options.minutes, 0.4, 0.05), options.seed)
    result = Report("fuzz", setting={"seed": options.seed})
    for name, tally in tallies.items():
        slug = name.replace(" ", "_")
        result.figures |= {f"inputs_{slug}": tally.inputs, f"inputs_read_{slug}": tally.read}
        result.figures |= {f"failures_{slug}": tally.failed, f"longest_s_{slug}": tally.longest_s}
        result.goals[f"inputs_{slug}"] = Goal(1)
    result.figures |= {
        "inputs": sum(tally.inputs for tally in tallies.values()),
        "inputs_read": sum(tally.read for tally in tallies.values()),
        "failures": sum(tally.failed for tally in tallies.values()),
        "longest_s": max(tally.longest_s for tally in tallies.values()),
        "memory_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    result.goals |= {"failures": Goal(0, at_most=True), "longest_s": Goal(SLOW_S, at_most=True)}
    failures: dict[str, Any] = {name: tally.failures for name, tally in tallies.items() if tally.failures}
    result.details["failures"] = failures
    result.publish(options)
    for name, kinds in failures.items():
        for kind, example in kinds.items():
            print(f"{name}: {kind}\n    {example}")
    raise SystemExit(1 if failures else 0)


if __name__ == "__main__":
    main()
