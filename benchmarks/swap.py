"""The time from free pages to a preempted sequence's next token: swapped in from host memory, or recomputed.

First, one sequence on one engine is preempted for lack of a page and resumed with an empty prefix cache. Both methods
alternate in one run, with one thread and the Llama of benchmarks.engine. Then a worker serves twelve requests of
240 + 80 tokens with pages for seven and a half of them at full length, and with its prefix cache in use.
"""

from __future__ import annotations

import random
import time
from statistics import median

import torch

from baton.decode_worker.role import DecodeRole
from baton.engine.batch import StepBudget
from baton.engine.executor import TorchExecutor
from baton.engine.host_pages import HostPages
from baton.engine.kv_pages import PagePool
from baton.engine.model_config import model_config
from baton.harness.random_weights import random_weights
from baton.harness.report import Goal, Report, arguments, median_ratio, progress
from baton.protocol.messages import Prefill, Work
from baton.protocol.request import Request, SamplingParams
from baton.protocol.worker import RoleName
from baton.worker.core.role import SwapIn, SwapOut
from baton.worker.core.state import WorkerState
from benchmarks.engine import BATCH, CHUNK_TOKENS, PAGE_SIZE, SHAPE, build_executor

CONTEXTS = (128, 512, 960)  # Positions computed before the preemption.
GOALS = {"resume_ratio_swap_to_recompute_960": Goal(0.5, at_most=True)}


class ShortOfPages:
    """A mixed worker with too few pages, so that its sequences are preempted and resumed."""

    def __init__(self, executor: TorchExecutor, host_pages: int, num_pages: int | None = None) -> None:
        self.pool = PagePool(num_pages or executor.layout.num_pages, PAGE_SIZE)
        budget = StepBudget(CHUNK_TOKENS, BATCH)
        state = WorkerState("benchmark", "m", frozenset(), 1024, budget, self.pool, host_pages=host_pages)
        self.role = DecodeRole(state, RoleName.MIXED)
        self.executor, self.host = executor, HostPages(executor.pages, host_pages)
        self.copy_s: dict[type, float] = {}

    def forget_pages(self) -> None:
        """Empty the prefix cache."""
        self.pool.release(self.pool.allocate(self.pool.num_available))

    def turn(self) -> bool:
        """Do the copies and the step that the role plans; returns whether there was a step."""
        copies, plan = self.role.plan(0.0)
        for command in copies:
            started = time.perf_counter()
            match command:
                case SwapOut(pages, slots):
                    self.host.copy_out(pages, slots)
                case SwapIn(slots, pages):
                    self.host.copy_in(slots, pages)
            self.copy_s[type(command)] = time.perf_counter() - started
        if plan is None:
            return False
        self.role.absorb(plan, self.executor.execute(plan), 0.0)
        return True

    def _ask(self, request: Request) -> None:
        self.role.on_message(Prefill(request.request_id, Work(request), "", False, 0), 0.0)

    def resume_s(self, prompt: list[int]) -> float:
        """Seconds from free pages to the next token of a sequence that was preempted after `prompt` and one token."""
        # The prompt fills its last page, so the second token needs a page that is not available.
        self._ask(Request("r", tuple(prompt), SamplingParams(max_tokens=3)))
        wanted = len(prompt) // PAGE_SIZE
        taken = self.pool.allocate(self.pool.num_available - wanted)
        while self.turn():
            pass
        waiting = self.role.occupancy()
        assert (waiting.running, waiting.waiting) == (0, 1)
        self.pool.release(taken)
        self.forget_pages()
        started = time.perf_counter()
        while not self.role.occupancy().running:
            assert self.turn()
        seconds = time.perf_counter() - started
        while self.turn():
            pass
        self.forget_pages()
        return seconds

    def serve_s(self, prompts: list[list[int]], new_tokens: int) -> float:
        """Seconds until every prompt has its answer."""
        for index, prompt in enumerate(prompts):
            self._ask(Request(f"r{index}", tuple(prompt), SamplingParams(max_tokens=new_tokens)))
        started = time.perf_counter()
        while self.turn():
            pass
        return time.perf_counter() - started


def serving(
    executor: TorchExecutor, rounds: int, requests: int, new_tokens: int, rng: random.Random
) -> dict[str, float]:
    """Serving time with swapping over that with recomputation, for a worker that is always short of pages."""
    pairs, swap_outs, recomputes = [], 0, 0
    for _ in range(rounds):
        prompts = [[rng.randrange(3, executor.config.vocab_size) for _ in range(240)] for _ in range(requests)]
        swapping, recomputing = ShortOfPages(executor, 200, 150), ShortOfPages(executor, 0, 150)
        pairs.append((swapping.serve_s(prompts, new_tokens), recomputing.serve_s(prompts, new_tokens)))
        swap_outs += swapping.role.occupancy().swap_outs
        recomputes += recomputing.role.occupancy().recomputes
    return {
        "serving_time_ratio_swap_to_recompute": median_ratio(pairs),
        "serving_swap_outs": swap_outs / rounds,
        "serving_recomputes": recomputes / rounds,
    }


def main() -> None:
    options = arguments(__doc__, "python -m benchmarks.swap --quick").parse_args()
    rounds = options.pick(7, 2, 1)
    torch.set_num_threads(1)
    config = model_config(SHAPE)
    executor = build_executor(config, random_weights(config, torch.float32, "cpu", seed=0), "float32")
    swapping, recomputing = ShortOfPages(executor, 100), ShortOfPages(executor, 0)
    rng = random.Random(options.seed)
    figures: dict[str, float] = {}
    with progress(len(CONTEXTS) + 1) as step:
        for context in CONTEXTS:
            step(f"{context} positions")
            pairs, out_s, in_s = [], [], []
            for _ in range(rounds + 1):
                prompt = [rng.randrange(3, config.vocab_size) for _ in range(context)]
                pairs.append((swapping.resume_s(prompt), recomputing.resume_s(prompt)))
                out_s.append(swapping.copy_s[SwapOut])
                in_s.append(swapping.copy_s[SwapIn])
            pairs = pairs[1:]  # The first one is a warm-up.
            figures[f"resume_ratio_swap_to_recompute_{context}"] = median_ratio(pairs)
            figures[f"resume_by_swap_ms_{context}"] = 1000 * median(swap for swap, _ in pairs)
            figures[f"resume_by_recompute_ms_{context}"] = 1000 * median(again for _, again in pairs)
            gib = context // PAGE_SIZE * executor.layout.page_bytes / (1 << 30)
            figures[f"swap_out_gib_s_{context}"] = gib / median(out_s[1:])
            figures[f"swap_in_gib_s_{context}"] = gib / median(in_s[1:])
        step("serving short of pages")
        figures |= serving(executor, *options.pick((5, 12, 80), (1, 12, 80), (1, 12, 8)), rng)
    report = Report("swap", GOALS, figures, {"threads": 1, "page_bytes": executor.layout.page_bytes})
    report.publish(options)


if __name__ == "__main__":
    main()
