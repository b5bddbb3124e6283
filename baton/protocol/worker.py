"""A worker's description: identity, load, and location of its pages."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class RoleName(Enum):
    """A worker's current role: a policy over the same engine, which may change while the worker runs."""

    PREFILL = "prefill"
    DECODE = "decode"
    MIXED = "mixed"


@dataclass(frozen=True, slots=True)
class PageLayout:
    """The shape of a worker's KV pages. Pages move only between workers whose `fingerprint` is equal.

    Storage is `[num_pages, num_layers, 2, page_size, num_kv_heads, head_dim]`, contiguous: one page is one piece of
    `page_bytes` bytes over all layers.
    """

    num_pages: int
    num_layers: int
    page_size: int
    num_kv_heads: int
    head_dim: int
    dtype: str  # "float32", "bfloat16" or "float16"
    model_id: str  # differs when config or weights differ

    @property
    def page_bytes(self) -> int:
        itemsize = {"float32": 4, "bfloat16": 2, "float16": 2}[self.dtype]
        return self.num_layers * 2 * self.page_size * self.num_kv_heads * self.head_dim * itemsize

    @property
    def shape(self) -> tuple[int, int, int, int, int, int]:
        return (self.num_pages, self.num_layers, 2, self.page_size, self.num_kv_heads, self.head_dim)

    @property
    def fingerprint(self) -> str:
        """Everything but the number of pages."""
        return (
            f"{self.model_id}/{self.dtype}/layers={self.num_layers}/page={self.page_size}"
            f"/heads={self.num_kv_heads}x{self.head_dim}"
        )


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address of a worker's pages for its peers. `agent` names the worker and its incarnation."""

    agent: str
    metadata: bytes  # the transport's own (NIXL agent metadata)
    base_address: int
    device_id: int
    layout: PageLayout


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker's facts at registration."""

    name: str
    incarnation: str
    role: RoleName
    role_epoch: int
    endpoint: Endpoint
    chunk_tokens: int  # prefill tokens per step
    max_batch: int  # sequences per decode step
    mixed_chunk_tokens: int = 0  # prefill tokens of a step that also decodes; 0: as chunk_tokens
    host: str = ""
    pid: int = 0
    device: str = "cpu"

    @property
    def page_size(self) -> int:
        return self.endpoint.layout.page_size

    @property
    def num_pages(self) -> int:
        return self.endpoint.layout.num_pages

    @property
    def capacity_tokens(self) -> int:
        return self.num_pages * self.page_size

    @property
    def page_bytes(self) -> int:
        return self.endpoint.layout.page_bytes


@dataclass(frozen=True, slots=True)
class StepSample:
    """One measured step, for the latency model: what it computed and how long it took.

    `prefill_pairs` counts (new token, position it attends to) pairs, the work of prefill attention: a chunk of n tokens
    after c others has n·(c + n/2). `context_tokens` are the KV positions that the decoding sequences read.
    """

    prefill_tokens: int
    prefill_pairs: int
    decodes: int
    context_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class WorkerLoad:
    """A worker's state at one moment.

    `request_ids` and `reservation_ids` name what these counts already include, so the router adds only what it has
    sent since. `pages_free` can be allocated at once, `pages_cached` after evicting unreferenced prefix pages.
    """

    worker: str
    role: RoleName
    role_epoch: int
    sequence_number: int
    pages_total: int
    pages_free: int
    pages_cached: int
    running: int = 0  # sequences decoding
    waiting: int = 0  # sequences with prompt tokens left to compute
    pending_prefill_tokens: int = 0  # prompt tokens left to compute
    context_tokens: int = 0  # KV positions of the running sequences
    request_ids: tuple[str, ...] = ()
    reservation_ids: tuple[str, ...] = ()
    swapped: int = 0  # of those waiting: preempted sequences whose pages are in host memory
    swap_outs: int = 0  # preemptions to host memory since the worker took its role
    recomputes: int = 0  # preemptions whose pages have to be recomputed, since then
    steps: tuple[StepSample, ...] = field(default=())

    @property
    def pages_available(self) -> int:
        return self.pages_free + self.pages_cached

    @property
    def pages_in_use(self) -> int:
        """Pages that live sequences and reservations hold."""
        return self.pages_total - self.pages_free - self.pages_cached
