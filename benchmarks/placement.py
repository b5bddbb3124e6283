"""Placement decisions per second with 10, 100 and 1,000 workers, and the size of the router's prefix index.

One decision is `decide` for one queued request plus the ledger's entries for it and their removal, as the router does
them for every request. Half of the workers prefill. Prompts have 12,000 tokens in pages of 16: a system prefix that
every worker has, a conversation that some have, and a new turn. Decode workers run 16 sequences each.
"""

from __future__ import annotations

import gc
import random
import time
from statistics import median

import numpy as np
import psutil

from baton.harness.report import Goal, Report, arguments, progress
from baton.protocol.prefix_hash import KEY_BYTES, KEY_SHIFT
from baton.protocol.request import Objectives
from baton.protocol.session_messages import PagesChanged
from baton.protocol.worker import Endpoint, PageLayout, RoleName, WorkerInfo
from baton.router.policy.cluster_state import ClusterState, RunningSequence
from baton.router.policy.output_length import NUM_BINS, LengthDistribution
from baton.router.policy.placement import Place, PlacementInput
from baton.router.policy.predicted_latency import PredictedLatency

GOALS = {
    "decisions_per_s_100": Goal(5000),
    "decisions_per_s_1000": Goal(2500),
    "bytes_per_cached_page": Goal(90, at_most=True),
}
PAGE_SIZE, PROMPT_TOKENS = 16, 12_000
PROMPT_PAGES = PROMPT_TOKENS // PAGE_SIZE
SYSTEM_PAGES, TURN_PAGES = 64, 60  # A prompt's first pages, which all workers have, and its last, which none has.
CONVERSATION_PAGES = PROMPT_PAGES - SYSTEM_PAGES - TURN_PAGES
CONVERSATIONS, HOLDERS = 200, 3  # Number of conversations, and of workers that have the pages of each.
SEQUENCES = 16


def fresh_pages(rng: np.random.Generator, count: int) -> list[int]:
    """New random page keys."""
    keys: list[int] = rng.integers(0, 1 << (8 * KEY_BYTES - KEY_SHIFT), count).tolist()
    return keys


def output(rng: np.random.Generator) -> LengthDistribution:
    """A new predicted length, as the router makes one per request."""
    shares = rng.random(NUM_BINS) * np.exp(-np.arange(NUM_BINS) / 40)
    return LengthDistribution(shares / shares.sum(), 4096)


class Workload:
    """A cluster of busy workers with full caches, and its requests."""

    def __init__(self, workers: int, pages: int, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.state = ClusterState()
        self.pages = pages
        self.names = [f"{'prefill' if number % 2 else 'decode'}-{number:04}" for number in range(workers)]
        system = fresh_pages(self.rng, SYSTEM_PAGES)
        conversations = [fresh_pages(self.rng, CONVERSATION_PAGES) for _ in range(CONVERSATIONS)]
        self.prompts = [tuple(system + one + fresh_pages(self.rng, TURN_PAGES)) for one in conversations]
        chooser = random.Random(seed)
        held: dict[str, list[int]] = {name: list(system) for name in self.names}
        for conversation in conversations:
            for name in chooser.sample(self.names, min(HOLDERS, workers)):
                held[name] += conversation
        self._held = held

    def register(self) -> None:
        """Register every worker, with running sequences on decode workers."""
        layout = PageLayout(max(self.pages, 8 * PROMPT_PAGES * SEQUENCES), 1, PAGE_SIZE, 1, 1, "bfloat16", "model")
        for name in self.names:
            role = RoleName(name.split("-")[0])
            info = WorkerInfo(name, "1", role, 0, Endpoint(name, layout), 8192, 256, 512)
            self.state.register(info, 0.0)
            if role is RoleName.DECODE:
                for number in range(SEQUENCES):
                    sequence = RunningSequence(int(self.rng.integers(500, PROMPT_TOKENS)), output(self.rng), 0.05)
                    self.state.expect(name, f"{name}/{number}", sequence)

    def fill(self) -> int:
        """Report every worker's pages to the router's state; returns the number of entries in the index."""
        for name in self.names:
            own = self._held.pop(name)
            number = 1
            self.state.on_pages(name, PagesChanged(number, tuple(own), (), snapshot=True))
            for start in range(len(own), self.pages, 10_000):
                number += 1
                stored = tuple(fresh_pages(self.rng, min(10_000, self.pages - start)))
                self.state.on_pages(name, PagesChanged(number, stored, ()))
        return len(self.state.prefix_index)

    def request(self, number: int, now: float) -> PlacementInput:
        """A queued request about one of the conversations."""
        keys = self.prompts[number % CONVERSATIONS]
        objectives = Objectives(5.0, 0.05)
        return PlacementInput(f"r{number}", PROMPT_TOKENS, keys, output(self.rng), objectives, now)


def decide(workload: Workload, count: int) -> float:
    """Seconds of CPU time per decision, over `count` decisions."""
    state, policy = workload.state, PredictedLatency()
    requests = [workload.request(number, 1.0) for number in range(count)]
    started = time.process_time()
    for item in requests:
        (verdict,) = policy.decide([item], state, 1.0)
        assert isinstance(verdict, Place)
        worker = verdict.decision.prefill
        state.assign(worker, item.request_id, item.num_tokens, item.page_keys, 1.0)
        target = verdict.decision.decode or worker
        state.expect(target, item.request_id, RunningSequence(item.num_tokens, item.output, 0.05))
        state.unassign(worker, item.request_id, 1.0)
        state.forget(target, item.request_id)
    return (time.process_time() - started) / count


def match(workload: Workload) -> float:
    """Seconds of CPU time to match one prompt against every worker."""
    index = workload.state.prefix_index
    started = time.process_time()
    for keys in workload.prompts:
        index.match(keys)
    return (time.process_time() - started) / CONVERSATIONS


def main() -> None:
    parser = arguments(__doc__, "python -m benchmarks.placement --pages 100000 --json placement.json", full_s=1800.0)
    parser.add_argument("--pages", type=int, help="cached pages per worker (100000; 1,000 workers then take 9 GB)")
    parser.add_argument("--workers", type=int, nargs="+", default=[10, 100, 1000])
    options = parser.parse_args()
    pages = options.pages or options.pick(100_000, 5_000, 1_000)
    report = Report("placement", GOALS, setting={"pages_per_worker": pages, "prompt_tokens": PROMPT_TOKENS})
    process = psutil.Process()
    with progress(2 * len(options.workers)) as step:
        for workers in options.workers:
            step(f"filling the caches of {workers} workers")
            workload = Workload(workers, pages, options.seed)
            workload.register()
            gc.collect()
            before = process.memory_info().rss
            entries = workload.fill()
            gc.collect()
            grown = process.memory_info().rss - before
            step(f"deciding among {workers} workers")
            gc.freeze()
            count, repeats = options.pick((1000, 5), (200, 5), (20, 1))
            seconds = median(decide(workload, count) for _ in range(repeats))
            report.figures[f"decisions_per_s_{workers}"] = 1 / seconds
            report.figures[f"match_us_{workers}"] = 1e6 * median(match(workload) for _ in range(repeats))
            report.figures[f"bytes_per_cached_page_{workers}"] = grown / (workers * pages)
            report.setting["cached_pages"] = workers * pages
            report.setting["distinct_pages"] = entries
            del workload
            gc.unfreeze()
    report.figures["bytes_per_cached_page"] = report.figures[f"bytes_per_cached_page_{options.workers[-1]}"]
    report.publish(options)


if __name__ == "__main__":
    main()
