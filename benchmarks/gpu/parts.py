"""The parts in their order, and how long each may take. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.gpu.results import Failure, PartResult


@dataclass(frozen=True, slots=True)
class PartPlan:
    """A part, run by `run(part)` of its module. It is not begun with less than `least_s` of the budget left, and
    ended after `most_s`."""

    name: str
    module: str
    least_s: float
    most_s: float


PARTS = (
    PartPlan("compile", "benchmarks.gpu.compiling", 20, 560),
    PartPlan("correctness", "benchmarks.gpu.correctness", 20, 120),
    PartPlan("decode", "benchmarks.gpu.decode", 25, 130),
    PartPlan("prefill", "benchmarks.gpu.prefill", 20, 80),
    PartPlan("handoff", "benchmarks.gpu.handoff", 25, 90),
    PartPlan("serving", "benchmarks.gpu.serving", 60, 220),
    PartPlan("kernels", "benchmarks.gpu.kernels", 20, 150),
    PartPlan("sampling", "benchmarks.gpu.sampling", 20, 60),
)


def skipped(plan: PartPlan, left_s: float, expected: list[str]) -> PartResult:
    """The result of a part for which no time is left."""
    why = f"{left_s:.0f} s of the budget were left, it needs {plan.least_s:.0f} at least"
    return PartResult(skipped=dict.fromkeys(expected, why), doing="")


def broken_off(result: PartResult, plan: PartPlan, how: str, log_tail: str, expected: list[str]) -> PartResult:
    """The result of a part whose process did not come to its end; what it had measured stays."""
    owed = [name for name in expected if name not in result.figures and name not in result.skipped]
    named = {name for failure in result.failures for name in failure.figures}
    owed = [name for name in owed if name not in named]
    result.failures.append(Failure(plan.name, owed, f"{how} during: {result.doing}", log_tail))
    result.doing = ""
    return result
