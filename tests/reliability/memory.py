"""Resident memory of processes over time, and how fast it grows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import psutil

from baton.config.ray_names import GATEWAY, ROUTER

MIB = 1 << 20
DISCARDED = 0.2  # Share of the time at the beginning, in which caches fill and allocators settle.

Sample = tuple[float, float]  # (seconds, MiB)


def mib_per_hour(samples: Sequence[Sample]) -> float:
    """The slope by least squares, without the first fifth of the time; 0 for fewer than two samples after it."""
    begin, end = (samples[0][0], samples[-1][0]) if samples else (0.0, 0.0)
    kept = [sample for sample in samples if sample[0] >= begin + DISCARDED * (end - begin)]
    if len(kept) < 2:
        return 0.0
    mean_s, mean_mib = (sum(column) / len(kept) for column in zip(*kept, strict=True))
    spread = sum((seconds - mean_s) ** 2 for seconds, _ in kept)
    slope = sum((seconds - mean_s) * (mib - mean_mib) for seconds, mib in kept) / spread
    return 3600 * slope


@dataclass(eq=False)
class Memory:
    """Samples of processes by name."""

    pids: Mapping[str, int]
    samples: dict[str, list[Sample]] = field(default_factory=dict)

    def sample(self) -> None:
        """Raises `psutil.NoSuchProcess` when a process has ended, which ends the measurement."""
        now = time.monotonic()
        for name, pid in self.pids.items():
            mib = psutil.Process(pid).memory_info().rss / MIB
            self.samples.setdefault(name, []).append((now, mib))

    @asynccontextmanager
    async def sampled(self, every_s: float) -> AsyncIterator[None]:
        """Sample during the block."""

        async def repeat() -> None:
            while True:
                self.sample()
                await asyncio.sleep(every_s)

        async with asyncio.TaskGroup() as group:
            task = group.create_task(repeat())
            yield
            task.cancel()

    def slopes(self) -> dict[str, float]:
        """MiB per hour by process."""
        return {name: mib_per_hour(samples) for name, samples in self.samples.items()}

    def grown_mib(self) -> dict[str, float]:
        """The largest sample less the first one, by process."""
        return {name: max(mib for _, mib in samples) - samples[0][1] for name, samples in self.samples.items()}


def of_workers(values: Mapping[str, float]) -> list[float]:
    """Those of the processes that compute."""
    return [value for name, value in values.items() if name != ROUTER and not name.startswith(GATEWAY)]
