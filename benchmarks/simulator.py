"""The speed of the simulator: a whole trace on one core, and whether an event costs more in a longer trace."""

from __future__ import annotations

import time
from pathlib import Path

from baton.harness.report import Goal, Report, arguments, progress
from baton.simulator.setup import Pools, Setup, page_size_for
from baton.simulator.trace import read_trace, scale_arrivals

GOALS = {"wall_s": Goal(180, at_most=True), "event_cost_ratio_to_first_quarter": Goal(1.25, at_most=True)}


def main() -> None:
    parser = arguments(__doc__, "python -m benchmarks.simulator --trace mooncake_conversation.jsonl")
    parser.add_argument("--trace", type=Path, required=True, help="a Mooncake JSONL or an Azure CSV trace")
    parser.add_argument("--scale", type=float, default=1.0, help="arrival-rate multiplier")
    options = parser.parse_args()
    trace = scale_arrivals(read_trace(options.trace), options.scale)
    trace = trace[: options.pick(len(trace), len(trace) // 6, 80)]
    setup = Setup("llama-3.1-8b", "h100", page_size=page_size_for(trace, None), seed=options.seed)
    costs = []
    with progress(2) as step:
        for name, part in (("first quarter", trace[: len(trace) // 4]), ("whole trace", trace)):
            step(name)
            begun_s = time.perf_counter()
            result = setup.simulate(Pools(8, 8), part)
            wall_s = time.perf_counter() - begun_s
            costs.append(wall_s / result.events)
    report = Report("simulator", GOALS)
    report.figures = {
        "wall_s": wall_s,
        "events_per_s": 1.0 / costs[-1],
        "event_cost_ratio_to_first_quarter": costs[-1] / costs[0],
        "events": result.events,
        "requests": len(trace),
        "output_tokens": sum(outcome.output_tokens for outcome in result.outcomes),
        "simulated_s": result.simulated_s,
    }
    report.setting = {"trace": options.trace.name, "scale": options.scale, "seed": options.seed}
    report.publish(options)


if __name__ == "__main__":
    main()
