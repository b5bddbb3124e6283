"""The accuracy of predicted output lengths over a recorded trace, against the running median of all answers.

The trace is replayed as a router sees it: a length is predicted when a request arrives, and observed when its answer is
complete, later by the time of its tokens. The error is that of the predicted median, the coverage that of quantiles.
"""

from __future__ import annotations

import heapq
import time
from bisect import insort
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from baton.harness.report import Goal, Report, arguments, progress
from baton.router.policy.output_length import OutputLength, Prediction, chain_nodes
from baton.simulator.trace import TraceRequest, read_trace

GOALS = {"mae_ratio_to_median": Goal(0.88, at_most=True), "miss_of_p90": Goal(0.02, at_most=True)}
TOKEN_S = 0.02
MAX_TOKENS = 4096
SHARES = (0.5, 0.75, 0.9)
FIRST_MEDIAN = 256  # The running median before any answer is complete.


def replay(trace: Sequence[TraceRequest]) -> tuple[np.ndarray, float]:
    """A row per request (length, running median, predicted quantiles), and the seconds per prediction."""
    predictor = OutputLength()
    running: list[tuple[float, int, Prediction]] = []
    completed: list[int] = []
    rows, seconds = [], 0.0
    for number, request in enumerate(trace):
        while running and running[0][0] <= request.arrival_s:
            _, ended, prediction = heapq.heappop(running)
            predictor.observe(prediction, trace[ended].output_tokens)
            insort(completed, trace[ended].output_tokens)
        median = completed[len(completed) // 2] if completed else FIRST_MEDIAN
        nodes = chain_nodes(request.blocks[: request.prompt_tokens // request.block_tokens], request.block_tokens)
        started = time.perf_counter()
        prediction = predictor.predict(nodes, request.tenant, request.prompt_tokens, MAX_TOKENS)
        seconds += time.perf_counter() - started
        quantiles = [prediction.distribution.quantile(share) for share in SHARES]
        rows.append([request.output_tokens, median, *quantiles])
        heapq.heappush(running, (request.arrival_s + TOKEN_S * request.output_tokens, number, prediction))
    return np.array(rows), seconds / len(rows)


def main() -> None:
    parser = arguments(__doc__, "python -m benchmarks.output_length --trace conversation.jsonl --json lengths.json")
    parser.add_argument("--trace", type=Path, required=True, metavar="FILE", help="a Mooncake JSONL or an Azure CSV")
    options = parser.parse_args()
    trace = read_trace(options.trace)
    trace = trace[: options.pick(len(trace), 10_000, 200)]
    with progress(1) as step:
        step(f"replaying {len(trace)} requests")
        rows, seconds = replay(trace)
    truth, median, *quantiles = rows.T
    error = float(np.abs(quantiles[0] - truth).mean())
    of_median = float(np.abs(median - truth).mean())
    report = Report("output_length", GOALS, setting={"trace": options.trace.name, "requests": len(trace)})
    report.figures["mae_ratio_to_median"] = error / of_median
    report.figures["mae_tokens"] = error
    report.figures["mae_tokens_of_median"] = of_median
    for share, quantile in zip(SHARES, quantiles, strict=True):
        report.figures[f"coverage_p{round(100 * share)}"] = float((truth <= quantile).mean())
    report.figures["miss_of_p90"] = abs(report.figures["coverage_p90"] - 0.9)
    report.figures["prediction_us"] = 1e6 * seconds
    report.publish(options)


if __name__ == "__main__":
    main()
