"""The memory that a cluster needs on a machine, and its division into weights, pages and swap. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from baton.config.schema import EngineSection
from baton.protocol.errors import ConfigError

MIB = 1 << 20
GIB = 1 << 30
# Memory of the processes themselves, rounded up. Measured with the built-in model: a worker before its weights and
# pages (Python, PyTorch, NIXL) 195 MiB; Ray's processes, the router and the starting command at most 420 MiB; a gateway
# 130 MiB.
PROCESS_BYTES = 250 * MIB
CLUSTER_BYTES = 450 * MIB
GATEWAY_BYTES = 150 * MIB
# Default maximum of a worker's swap. A worker on a GPU pins its swap at start, which takes half a second per GiB, and
# it may run on another machine than the measured one.
MAX_SWAP_BYTES = 8 * GIB


@dataclass(frozen=True, slots=True)
class Free:
    """Memory that is free for the cluster, on the machine or under a container's limit."""

    bytes: int
    limit_bytes: int = 0  # Of the container; 0: no limit

    @property
    def words(self) -> str:
        """The free memory as text."""
        limit = f" under the limit of {_mib(self.limit_bytes)}" if self.limit_bytes else ""
        return f"{_mib(self.bytes)} free{limit}"


@dataclass(frozen=True, slots=True)
class WorkerMemory:
    """The most that one worker uses of the machine's own memory, in bytes; all its ranks together."""

    process: int
    weights: int
    buffers: int
    kv: int = 0
    swap: int = 0
    ranks: int = 1

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return self.process + self.weights + self.buffers + self.kv + self.swap

    @property
    def words(self) -> str:
        """Total and parts as text."""
        parts = (
            (self.weights, "weights"),
            (self.kv, "KV pages"),
            (self.swap, "host swap"),
            (self.buffers, "buffers"),
            (self.process, "process" if self.ranks == 1 else f"for {self.ranks} processes"),
        )
        return f"{_mib(self.total)} ({', '.join(f'{_rounded(size)} {name}' for size, name in parts)})"


def fixed_memory(parameters: int, step_values: int, itemsize: int, ranks: int) -> WorkerMemory:
    """A worker's memory before any page; at most `step_values` numbers are in use on each rank in its largest step."""
    return WorkerMemory(ranks * PROCESS_BYTES, parameters * itemsize, ranks * step_values * itemsize, ranks=ranks)


@dataclass(frozen=True, slots=True)
class Room:
    """Memory for the pages and the swap of a worker."""

    left_bytes: int
    share_bytes: int

    @property
    def kv_bytes(self) -> int:
        """Bytes for KV pages by default: a quarter of the worker's share of the machine, if that much is left."""
        return min(self.share_bytes // 4, self.left_bytes * 2 // 3)

    @property
    def swap_bytes(self) -> int:
        """Bytes for swapped pages by default: an eighth of the worker's share of the machine."""
        return min(self.share_bytes // 8, self.left_bytes, MAX_SWAP_BYTES)

    def without(self, taken_bytes: int) -> Room:
        """The room that remains after an allocation."""
        return Room(max(self.left_bytes - taken_bytes, 0), self.share_bytes)


def memory_for_pages(free: Free, fixed: Sequence[WorkerMemory], gateways: int) -> Room:
    """Memory that the processes and their weights leave to each worker, given by `fixed`; 0 if not even they fit."""
    left_bytes = free.bytes - cluster_bytes(fixed, gateways)
    return Room(max(left_bytes // len(fixed), 0), free.bytes // len(fixed))


def kv_pages(
    engine: EngineSection, gpu: bool, page_bytes: int, useful: int, context_tokens: int, memory_bytes: int
) -> int:
    """Pages of a worker, at most `useful`, in `memory_bytes`; 0: as many as fit on its GPU.

    Raises `ConfigError` if the configured pages hold less than one full-length request.
    """
    needed = -(-context_tokens // engine.page_size) + 1
    if engine.num_pages != "auto":
        num_pages = engine.num_pages
    elif engine.kv_memory_gib != "auto":
        num_pages = min(useful, int(engine.kv_memory_gib * GIB) // page_bytes)
    elif gpu:
        return 0
    else:
        return max(min(useful, memory_bytes // page_bytes), needed)
    if num_pages < needed:
        raise ConfigError(
            f"{num_pages} pages hold less than one request of {context_tokens} tokens, which needs {needed}: "
            "raise engine.num_pages or engine.kv_memory_gib, or lower model.context_tokens."
        )
    return num_pages


def swap_pages(engine: EngineSection, page_bytes: int, num_pages: int, memory_bytes: int) -> int:
    """A worker's pages of host memory for preempted sequences, in `memory_bytes`.

    Raises `ConfigError` if the configured memory holds less than one page.
    """
    if engine.swap_memory_gib == "auto":
        # More slots than pages would stay unused: a swapped page was in a page before.
        return min(num_pages, memory_bytes // page_bytes)
    slots = int(engine.swap_memory_gib * GIB) // page_bytes
    if engine.swap_memory_gib and not slots:
        raise ConfigError(
            f"engine.swap_memory_gib is {engine.swap_memory_gib:g}, less than one page of {page_bytes} bytes: "
            "raise it, or set it to 0 so that preempted sequences are recomputed."
        )
    return slots


def cluster_bytes(workers: Sequence[WorkerMemory], gateways: int) -> int:
    """Bytes of a cluster of these workers, `gateways`, Ray and the router."""
    return _front_bytes(gateways) + sum(worker.total for worker in workers)


def _front_bytes(gateways: int) -> int:
    return CLUSTER_BYTES + gateways * GATEWAY_BYTES


def cluster_words(workers: Sequence[WorkerMemory], gateways: int, free: Free) -> str:
    """The memory of all processes of the cluster, as a setting to print."""
    size = _mib(cluster_bytes(workers, gateways))
    return f"{size} for {_workers(len(workers))}, {_gateways(gateways)}Ray and the router, of {free.words}"


def check_memory(workers: Sequence[WorkerMemory], gateways: int, free: Free, context_tokens: int) -> None:
    """Raise `ConfigError` if the cluster needs more than is free: the kernel would kill one of its processes."""
    needed_bytes = cluster_bytes(workers, gateways)
    if needed_bytes > free.bytes:
        front = f"{_gateways(gateways)}Ray and the router ({_rounded(_front_bytes(gateways))})"
        each = " and ".join(f"{_workers(len([*equal]))} of {worker.words}" for worker, equal in groupby(workers))
        raise ConfigError(
            f"{each} with {front} need {_mib(needed_bytes)} of memory, and there are "
            f"{free.words}: start fewer workers, or lower model.context_tokens (now {context_tokens}), "
            "engine.num_pages or engine.swap_memory_gib."
        )


def check_more_memory(worker: WorkerMemory, workers: int, free: Free) -> None:
    """Raise `ConfigError` if additional workers of a running cluster need more than is free."""
    if workers * worker.total > free.bytes:
        raise ConfigError(
            f"{_workers(workers)} more of {worker.words} need {_mib(workers * worker.total)} of memory, and there are "
            f"{free.words}: start fewer workers, or restart the cluster with fewer pages (engine.num_pages)."
        )


def _workers(count: int) -> str:
    return f"{count} worker{'s' * (count != 1)}"


def _gateways(count: int) -> str:
    return f"{count} gateway{'s' * (count != 1)}, " if count else ""


def _mib(size: int) -> str:
    return f"{_rounded(size)} MiB"


def _rounded(size: int) -> int:
    return -(-size // MIB)
