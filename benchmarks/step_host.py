"""The host's cost of a decode step: everything that a worker does for it except the model's computation.

A worker's session over synthetic sequences is driven as a worker's loop drives it: plan, flat arrays, metadata into the
staging buffer of the recorded steps (up to the call of FlashInfer's plan), absorb, a load report and the encoded
frames. Random tokens replace a model's. Figures are CPU time of the one thread, the median of many steps; page
boundaries are spread evenly over the steps. Every step sends a load report, more often than a worker does.
"""

from __future__ import annotations

import itertools
import random
import time
from dataclasses import dataclass, fields
from statistics import median

import torch

from baton.engine.batch import StepBudget
from baton.engine.decode_staging import DecodeStaging
from baton.engine.graph_sizes import graph_sizes
from baton.engine.kv_pages import PagePool
from baton.engine.step import SampledToken, StepPlan, StepResult
from baton.engine.step_arrays import step_arrays
from baton.harness.report import Goal, Report, arguments, progress
from baton.protocol.codec import encode_frame
from baton.protocol.gateway_messages import AttachStreams
from baton.protocol.messages import Prefill, Work
from baton.protocol.request import Request, SamplingParams
from baton.protocol.session_messages import GatewayJoined, RegisterAck
from baton.protocol.worker import Endpoint, PageLayout, RoleName, WorkerInfo
from baton.worker.core.reports import LOAD_EVERY_S
from baton.worker.core.role import SendToGateway
from baton.worker.core.state import WorkerState
from baton.worker.session import WorkerSession

POINTS = {
    "b1_1k": (1, 1024),
    "b16_1k": (16, 1024),
    "b64_1k": (64, 1024),
    "b256_1k": (256, 1024),
    "b64_4k": (64, 4096),
    "b256_4k": (256, 4096),
}
GATEWAYS = ("gateway-0", "gateway-1")
MAX_BATCH, PAGE_SIZE, CHUNK_TOKENS, CONTEXT_TOKENS, VOCAB = 256, 16, 8192, 8192, 128_256
WARM_STEPS = 2 * PAGE_SIZE
GOALS = {"host_ms_before_launch_b256_1k": Goal(1.2, at_most=True)}


@dataclass(frozen=True, slots=True)
class Stages:
    """Milliseconds of CPU time of one step."""

    plan: float
    flat_batch: float
    staging: float
    absorb: float
    report: float

    @property
    def before_launch(self) -> float:
        """Time from the plan to the launch."""
        return self.plan + self.flat_batch + self.staging

    @property
    def after(self) -> float:
        """Time after the step."""
        return self.absorb + self.report


class Host:
    """A decode worker's host side, with `batch` decoding sequences of about `context` positions each."""

    def __init__(self, batch: int, context: int, steps: int, seed: int) -> None:
        self._rng = random.Random(seed)
        pages_each = (context + steps) // PAGE_SIZE + 2
        self._pool = PagePool(batch * pages_each, PAGE_SIZE)
        state = WorkerState(
            "worker:1", "model", frozenset({2}), CONTEXT_TOKENS, StepBudget(CHUNK_TOKENS, MAX_BATCH), self._pool
        )
        layout = PageLayout(self._pool.num_pages, 1, PAGE_SIZE, 1, 1, "float32", "model")
        info = WorkerInfo("worker", "1", RoleName.MIXED, 0, Endpoint("worker:1", layout), CHUNK_TOKENS, MAX_BATCH)
        self._session = WorkerSession(info, state, lambda: "2")
        self._session.on_transport(info.endpoint, 0.0)
        self._session.on_message(RegisterAck("router", 0.5, "1"), 0.0)
        for name in GATEWAYS:
            self._session.on_message(GatewayJoined(name, "1", f"tcp://{name}:1"), 0.0)
            self._session.on_gateway_link(name, True, 0.0)
            self._session.on_gateway_message(name, AttachStreams(()), 0.0)
        self._staging = DecodeStaging(
            torch.device("cpu"), graph_sizes(MAX_BATCH), CONTEXT_TOKENS // PAGE_SIZE, self._pool.num_pages
        )
        self._now = 0.0
        sampling = SamplingParams(max_tokens=CONTEXT_TOKENS)
        for index in range(batch):
            length = (
                context - steps // 2 - index % PAGE_SIZE
            )  # Each step fills the last pages of 1/16 of the sequences.
            prompt = tuple(self._rng.randrange(3, VOCAB) for _ in range(length))
            request = Request(f"{self._rng.getrandbits(64):016x}", prompt, sampling)
            gateway = GATEWAYS[index % len(GATEWAYS)]
            order = Prefill(request.request_id, Work(request), gateway, False, 0)
            self._session.on_message(order, 0.0)
        while self._session.role.occupancy().pending_prefill_tokens:
            _, plan = self._session.plan(0.0)
            assert plan is not None
            self._session.absorb(plan, self._sampled(plan), 0.0)

    def step(self) -> Stages:
        """One decode step of all sequences."""
        self._now += LOAD_EVERY_S
        moments = [_cpu_ms()]
        _, plan = self._session.plan(self._now)
        moments.append(_cpu_ms())
        assert plan is not None
        token_ids, _, layout = step_arrays(plan, PAGE_SIZE).tensors()
        moments.append(_cpu_ms())
        self._staging.put(token_ids, layout)
        moments.append(_cpu_ms())
        result = self._sampled(plan)
        moments.append(_cpu_ms())
        self._session.outbox = []
        commands = self._session.absorb(plan, result, self._now)
        moments.append(_cpu_ms())
        self._session.on_step(plan.sample(LOAD_EVERY_S))
        self._session.tick(self._now, idle=False)
        encode_frame(self._session.outbox, "incarnation")
        for command in commands:
            if isinstance(command, SendToGateway):
                encode_frame([command.message], "incarnation")
        moments.append(_cpu_ms())
        plan_ms, flat_ms, staging_ms, _, absorb_ms, report_ms = (
            after - before for before, after in itertools.pairwise(moments)
        )
        return Stages(plan_ms, flat_ms, staging_ms, absorb_ms, report_ms)

    def _sampled(self, plan: StepPlan) -> StepResult:
        return StepResult([SampledToken(self._rng.randrange(3, VOCAB)) for _ in plan.sampling])


def _cpu_ms() -> float:
    return 1000 * time.thread_time()


def measure(batch: int, context: int, repeats: int, seed: int) -> list[Stages]:
    """`repeats` steps after a warm-up, the middle one at about `context` positions."""
    host = Host(batch, context, WARM_STEPS + repeats, seed)
    return [host.step() for _ in range(WARM_STEPS + repeats)][WARM_STEPS:]


def figures_of(point: str, steps: list[Stages]) -> dict[str, float]:
    """Medians of the stages and of their sums."""
    stages = {f"{item.name}_ms_{point}": median(getattr(step, item.name) for step in steps) for item in fields(Stages)}
    return {
        f"host_ms_before_launch_{point}": median(step.before_launch for step in steps),
        f"host_ms_after_{point}": median(step.after for step in steps),
        **stages,
    }


def least_of(steps: list[Stages]) -> dict[str, float]:
    """The minimum of each stage, which other work on the machine disturbed least."""
    return {name: min(getattr(step, name) for step in steps) for name in (*Stages.__slots__, "before_launch", "after")}


def main() -> None:
    options = arguments(__doc__, "python -m benchmarks.step_host --quick").parse_args()
    repeats = options.pick(400, 100, 3)
    torch.set_num_threads(1)
    report = Report("step_host", GOALS)
    with progress(len(POINTS)) as step:
        for point, (batch, context) in POINTS.items():
            step(f"batch {batch}, context {context}")
            steps = measure(batch, context, repeats, options.seed)
            report.figures |= figures_of(point, steps)
            report.details[point] = least_of(steps)
    report.setting = {"steps": repeats, "page_size": PAGE_SIZE, "max_batch": MAX_BATCH, "seed": options.seed}
    report.publish(options)


if __name__ == "__main__":
    main()
