"""The parts in their order, and their time limits. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.gpu.results import Failure, PartResult


@dataclass(frozen=True, slots=True)
class PartPlan:
    """A part, run by `run(part)` of its module.

    It is skipped with less than `least_s` of the budget left, and ended after `most_s`. A part that is `asked_for` runs
    only if it is named.
    """

    name: str
    module: str
    least_s: float
    most_s: float
    asked_for: bool = False


PARTS = (
    PartPlan("preflight", "benchmarks.gpu.preflight", 10, 60),
    PartPlan("compile", "benchmarks.gpu.compiling", 20, 90),
    PartPlan("correctness", "benchmarks.gpu.correctness", 20, 120),
    PartPlan("decode", "benchmarks.gpu.decode", 25, 130),
    PartPlan("handoff", "benchmarks.gpu.handoff", 25, 90),
    PartPlan("prefill", "benchmarks.gpu.prefill", 20, 80),
    PartPlan("kernels", "benchmarks.gpu.kernels", 20, 60),
    PartPlan("sampling", "benchmarks.gpu.sampling", 20, 60),
    PartPlan("serving", "benchmarks.gpu.serving", 60, 225),
    # The profiler can hang on recorded steps, so it is the last part.
    PartPlan("profile", "benchmarks.gpu.profile", 20, 60, asked_for=True),
)


def skipped(plan: PartPlan, left_s: float, expected: list[str]) -> PartResult:
    """The result of a part without enough time left."""
    why = f"{left_s:.0f} s of the budget were left, it needs at least {plan.least_s:.0f} s"
    return PartResult(skipped=dict.fromkeys(expected, why), doing="")


def broken_off(result: PartResult, plan: PartPlan, how: str, log_tail: str, expected: list[str]) -> PartResult:
    """The result of a part whose process did not finish, with the figures measured before."""
    owed = [name for name in expected if name not in result.figures and name not in result.skipped]
    named = {name for failure in result.failures for name in failure.figures}
    owed = [name for name in owed if name not in named]
    result.failures.append(Failure(plan.name, owed, f"{how} during: {result.doing}", log_tail))
    result.doing = ""
    return result
