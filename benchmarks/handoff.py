"""The handoff path against raw NIXL and memcpy of the same bytes, and the stall it leaves before the first decode step.

Path: pages are pushed chunk by chunk through NixlTransport, the last chunk with the notice, as a prefill worker does.
Raw: one prepared NIXL transfer of the same pages, with a notification. Both end when the sender sees completion.
Descriptors per GB: how many pieces NIXL moves for 10^9 bytes of these pages, between workers of so many ranks each.

Stall: live prefill and decode workers behind a router serve one request at a time, with a prompt of many chunks. The
stall is the gap between first and second token minus one decode step; the ratio divides it by one decode step plus the
raw transfer time of the last chunk.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing as mp
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

import numpy as np
import torch

from baton.builtin_model import CHECKPOINT
from baton.harness.answer import answer
from baton.harness.forked import forked
from baton.harness.process_cluster import ProcessCluster, plans
from baton.harness.report import Goal, Report, arguments, median_ratio, progress
from baton.kv_transfer.nixl import NixlTransport
from baton.kv_transfer.transport import WriteDone, WriteFailed
from baton.protocol.codec import encode_notice
from baton.protocol.errors import HandoffFailed
from baton.protocol.handoff import HandoffNotice
from baton.protocol.head_slices import pieces
from baton.protocol.request import Request, SamplingParams
from baton.protocol.worker import PageLayout

GOALS = {"ratio_to_raw_nixl": Goal(0.9), "stall_ratio": Goal(1.0, at_most=True)}
MIB = 1 << 20
CHUNK_PAGES = 32  # 512 tokens
LARGE_BYTES = 64 * MIB
WARM_UP = 2  # Requests before the measured ones.
MOST_S = 20.0  # Limit for one round of pages, which takes milliseconds over shared memory or CUDA IPC.


def layout_of(num_bytes: int) -> PageLayout:
    """As many pages of 64 KiB as fit `num_bytes`: 4 layers of 16 tokens and 2 heads of 64, in float32."""
    layout = PageLayout(1, 4, 16, 2, 64, "float32", "benchmark")
    return PageLayout(num_bytes // layout.page_bytes, 4, 16, 2, 64, "float32", "benchmark")


def descriptors_per_gb(layout: PageLayout, source_ranks: int, target_ranks: int) -> float:
    """Descriptors of the writes that hand 10^9 bytes over, of all source ranks together."""
    per_rank = [pieces(layout.num_kv_heads, source_ranks, rank, target_ranks) for rank in range(source_ranks)]
    num_bytes = layout.head_bytes * sum(piece.num_heads for found in per_rank for piece in found)
    return 1e9 * sum(map(len, per_rank)) / num_bytes


def receiver(num_bytes: int, pipe: Connection) -> None:
    """A peer that polls as an idle decode worker does; sends the number of received notices when told to stop."""
    layout = layout_of(num_bytes)
    transport = NixlTransport(torch.ones(layout.shape), layout, "receiver:1")
    pipe.send(transport.endpoint)
    transport.connect(pipe.recv())
    notices = 0
    while not pipe.poll():
        notices += len(transport.poll())
        time.sleep(0.0005)
    transport.close()
    pipe.send(notices)


@dataclass(slots=True)
class Sender:
    """Times ways to send the same pages. A round that takes longer than `most_s` ends with `TimeoutError`."""

    transport: NixlTransport
    agent: str
    source: torch.Tensor
    chunk_pages: int = CHUNK_PAGES
    most_s: float = MOST_S

    def path(self, pages: list[int], targets: list[int]) -> float:
        """Seconds of the handoff path; raises `HandoffFailed` when a write fails."""
        notice = HandoffNotice("r/1", "r", len(pages) * 16, (1,), tuple(range(len(pages))))
        started = time.perf_counter()
        for first in range(0, len(pages), self.chunk_pages):
            last = first + self.chunk_pages >= len(pages)
            part = slice(first, first + self.chunk_pages)
            payload = encode_notice(notice) if last else None
            transfer = self.transport.write(self.agent, pages[part], targets[part], payload)
            while not self._done(transfer):
                self._check(started, len(pages))
        return time.perf_counter() - started

    def _done(self, transfer: int) -> bool:
        for event in self.transport.poll():
            if isinstance(event, WriteFailed):
                raise HandoffFailed(f"A write to {self.agent} ended with: {event.reason}.")
            if isinstance(event, WriteDone) and event.transfer_id == transfer:
                return True
        return False

    def _check(self, started: float, count: int) -> None:
        if time.perf_counter() - started > self.most_s:
            size = count * self.transport.endpoint.layout.page_bytes // MIB
            raise TimeoutError(
                f"{size} MiB have not arrived at {self.agent} within {self.most_s:g} s: UCX uses a slow transport, "
                "which UCX_PROTO_INFO=y shows."
            )

    def raw(self, pages: list[int], targets: list[int]) -> float:
        """Seconds of one raw NIXL transfer over prepared descriptors."""
        agent, (link,) = self.transport._agent, self.transport._peers[self.agent].links
        indices = np.array(pages, dtype=np.int32), np.array(targets, dtype=np.int32)
        started = time.perf_counter()
        handle = agent.make_prepped_xfer("WRITE", link.source, indices[0], link.target, indices[1], b"raw")
        state = agent.transfer(handle)
        while state == "PROC":
            self._check(started, len(pages))
            state = agent.check_xfer_state(handle)
        seconds = time.perf_counter() - started
        handle.release()
        assert state == "DONE"
        return seconds

    def memcpy(self, count: int, target: torch.Tensor) -> float:
        """Seconds of copying `count` pages within this process."""
        started = time.perf_counter()
        target[:count].copy_(self.source[:count])
        return time.perf_counter() - started


def measure_path(sizes: list[int], repeats: int, report: Report, step: Any) -> None:
    """Path, raw and memcpy in turn for each size; the ratio is the worst of the large sizes."""
    largest = max(sizes)
    layout = layout_of(largest)
    ours, theirs = mp.Pipe()
    process = forked(receiver, largest, theirs)
    process.start()
    source, target = torch.rand(layout.shape), torch.zeros(layout.shape)
    transport = NixlTransport(source, layout, "sender:1")
    endpoint = ours.recv()
    transport.connect(endpoint)
    ours.send(transport.endpoint)
    sender = Sender(transport, endpoint.agent, source)
    generator = np.random.default_rng(0)
    worst = float("inf")
    for size in sizes:
        step(f"{size // MIB} MiB")
        count = size // layout.page_bytes
        pages = generator.permutation(layout.num_pages)[:count].tolist()
        targets = generator.permutation(layout.num_pages)[:count].tolist()
        sender.path(pages, targets), sender.raw(pages, targets), sender.memcpy(count, target)
        runs = [
            (sender.path(pages, targets), sender.raw(pages, targets), sender.memcpy(count, target))
            for _ in range(repeats)
        ]
        ratio = median_ratio([(raw, path) for path, raw, _ in runs])
        if size >= LARGE_BYTES:
            worst = min(worst, ratio)
        report.figures |= {
            f"path_gb_per_s_{size // MIB}_mib": size / median(path for path, _, _ in runs) / 1e9,
            f"ratio_to_raw_nixl_{size // MIB}_mib": ratio,
            f"ratio_to_memcpy_{size // MIB}_mib": median_ratio([(copy, path) for path, _, copy in runs]),
        }
    report.figures["ratio_to_raw_nixl"] = worst
    ours.send(None)
    ours.recv()
    process.join(10)
    transport.close()


async def measure_stall(requests: int, seed: int) -> tuple[float, float]:
    """(median stall ratio, median stall in ms) of requests with several chunks through live workers."""
    router_config, worker_config = plans(CHECKPOINT, 4096, 1200, policy="least_loaded", chunk_tokens=512)
    worker_config = replace(worker_config, engine=worker_config.engine.changed(checksum_every=16))
    async with ProcessCluster(router_config, worker_config, {"prefill": 1, "decode": 1}) as cluster:
        await asyncio.sleep(1.0)
        generator = np.random.default_rng(seed)
        ratios, stalls = [], []
        for index in range(requests):
            prompt = tuple(int(token) for token in generator.integers(3, 256, 512 * 3))
            request = Request(f"stall-{index}", prompt, SamplingParams(max_tokens=24, ignore_eos=True, seed=0))
            moments, end = await answer(cluster.gateway.driver, request)
            if index < WARM_UP:
                continue
            assert end.handoff is not None
            gaps, report = [after - before for before, after in itertools.pairwise(moments)], end.handoff
            decode_step = median(gaps[1:])
            last_chunk_s = CHUNK_PAGES * report.transfer_s / max(1, report.pages_sent)
            stall = max(0.0, gaps[0] - decode_step)
            ratios.append(stall / (decode_step + last_chunk_s))
            stalls.append(1000 * stall)
        return median(ratios), median(stalls)


def main() -> None:
    args = arguments(__doc__, "python -m benchmarks.handoff --quick --json handoff.json").parse_args()
    torch.set_num_threads(1)
    few = [MIB, 16 * MIB, 64 * MIB]
    sizes = args.pick([MIB, 4 * MIB, 16 * MIB, 64 * MIB, 256 * MIB], few, few)
    report = Report("handoff", GOALS)
    with progress(len(sizes) + 1) as step:
        measure_path(sizes, args.pick(25, 9, 2), report, step)
        step("stall")
        ratio, stall_ms = asyncio.run(measure_stall(WARM_UP + args.pick(28, 6, 1), args.seed))
    report.figures |= {"stall_ratio": ratio, "stall_ms": stall_ms}
    report.figures["descriptors_per_gb"] = descriptors_per_gb(layout_of(MIB), 1, 1)
    for source, target in ((1, 2), (2, 1), (4, 1)):
        report.figures[f"descriptors_per_gb_{source}_to_{target}"] = descriptors_per_gb(layout_of(MIB), source, target)
    report.setting = {"page_bytes": layout_of(MIB).page_bytes, "chunk_pages": CHUNK_PAGES, "seed": args.seed}
    report.publish(args)


if __name__ == "__main__":
    main()
