"""A worker's description: identity, load, and address of its pages."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Annotated

from baton.protocol.bounds import Count, Ids, Label, Length, OneOf, Positive, Range, Seconds

MAX_RANKS = 64  # Of one worker


class RoleName(Enum):
    """A worker's current role. It is a policy over the same engine and may change while the worker runs."""

    PREFILL = "prefill"
    DECODE = "decode"
    MIXED = "mixed"


@dataclass(frozen=True, slots=True)
class PageLayout:
    """The shape of a worker's KV pages. Pages move only between workers of equal `fingerprint`.

    Storage is contiguous, `[num_pages, num_kv_heads, num_layers, 2, page_size, head_dim]`: a page is one piece of
    `page_bytes` bytes over all layers, and any run of neighbouring heads is one piece of the page. A worker of several
    ranks keeps the heads of `baton.protocol.head_slices` on each; its layout counts every head once.
    """

    num_pages: Positive
    num_layers: Positive
    page_size: Annotated[int, Range(1, 1 << 16)]  # Tokens
    num_kv_heads: Positive
    head_dim: Positive
    dtype: Annotated[str, OneOf(("float32", "bfloat16", "float16"))]
    model_id: str  # Differs if config or weights differ

    @property
    def head_bytes(self) -> int:
        """Bytes of one KV head of a page, over all layers."""
        itemsize = {"float32": 4, "bfloat16": 2, "float16": 2}[self.dtype]
        return self.num_layers * 2 * self.page_size * self.head_dim * itemsize

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all layers and heads."""
        return self.num_kv_heads * self.head_bytes

    @property
    def shape(self) -> tuple[int, int, int, int, int, int]:
        """The storage's shape."""
        return (self.num_pages, self.num_kv_heads, self.num_layers, 2, self.page_size, self.head_dim)

    @property
    def fingerprint(self) -> str:
        """Everything except the number of pages, as text."""
        return (
            f"{self.model_id}/{self.dtype}/layers={self.num_layers}/page={self.page_size}"
            f"/heads={self.num_kv_heads}x{self.head_dim}"
        )


@dataclass(frozen=True, slots=True)
class RankAddress:
    """Where one rank of a worker keeps the KV of its heads (`baton.protocol.head_slices`)."""

    metadata: Annotated[bytes, Length(4 << 20)] = b""  # The transport's own (NIXL agent metadata)
    base_address: int = 0
    device_id: Count = 0
    pid: Count = 0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address of a worker's pages for its peers. `agent` is the worker's name and incarnation."""

    agent: Label
    layout: PageLayout  # Of the whole worker: all KV heads
    ranks: Annotated[tuple[RankAddress, ...], Length(MAX_RANKS, 1)] = (RankAddress(),)  # In order of rank


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """What a worker registers with."""

    name: str
    incarnation: Label
    role: RoleName
    role_epoch: Count
    endpoint: Endpoint
    chunk_tokens: Annotated[int, Range(1, 1 << 31)]  # Prefill tokens per step
    max_batch: Annotated[int, Range(1, 1 << 31)]  # Sequences per decode step
    mixed_chunk_tokens: Count = 0  # Prefill tokens of a step that also decodes; 0: as chunk_tokens
    host: Label = ""
    pid: Count = 0
    device: Label = "cpu"

    @property
    def num_ranks(self) -> int:
        """The processes that compute each step together (tensor parallelism)."""
        return len(self.endpoint.ranks)

    @property
    def page_size(self) -> int:
        """Token positions per page."""
        return self.endpoint.layout.page_size

    @property
    def num_pages(self) -> int:
        """Pages of the worker."""
        return self.endpoint.layout.num_pages

    @property
    def capacity_tokens(self) -> int:
        """Token positions of all its pages."""
        return self.num_pages * self.page_size

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all layers."""
        return self.endpoint.layout.page_bytes


@dataclass(frozen=True, slots=True)
class StepSample:
    """One measured step, for the latency model: the work it did and its duration. Or the sums of several `steps`.

    `prefill_pairs` counts pairs of a new token and a position it attends to, which is the work of prefill attention: a
    chunk of n tokens after c others has n·(c + n/2). `context_tokens` counts the KV positions that the decoding
    sequences read.
    """

    prefill_tokens: Count
    prefill_pairs: Count
    decodes: Count
    context_tokens: Count
    seconds: Seconds
    steps: Positive = 1

    def __add__(self, other: StepSample) -> StepSample:
        return StepSample(
            self.prefill_tokens + other.prefill_tokens,
            self.prefill_pairs + other.prefill_pairs,
            self.decodes + other.decodes,
            self.context_tokens + other.context_tokens,
            self.seconds + other.seconds,
            self.steps + other.steps,
        )


@dataclass(frozen=True, slots=True)
class WorkerLoad:
    """A worker's state at one moment.

    `request_ids` and `reservation_ids` list what the counts already include, so the router adds only what it has sent
    since. `pages_free` can be allocated at once, `pages_cached` after unreferenced prefix pages are evicted.
    """

    worker: str
    role: RoleName
    role_epoch: Count
    sequence_number: Count
    pages_total: int
    pages_free: Count
    pages_cached: Count
    running: Count = 0  # Sequences decoding
    waiting: Count = 0  # Sequences with prompt tokens left to compute
    pending_prefill_tokens: Count = 0  # Prompt tokens left to compute
    context_tokens: Count = 0  # KV positions of the running sequences
    request_ids: Ids = ()
    reservation_ids: Ids = ()
    swapped: Count = 0  # Waiting sequences that were preempted and whose pages are in host memory
    swap_outs: Count = 0  # Preemptions to host memory since the worker took its role
    recomputes: Count = 0  # Preemptions since then whose pages have to be recomputed
    steps: Annotated[tuple[StepSample, ...], Length(1 << 14)] = ()
    decode_steps: Count = 0  # Since it took its role: each sequence that decodes gains about one token in each

    @property
    def pages_available(self) -> int:
        """Pages that can be allocated, some after an eviction."""
        return self.pages_free + self.pages_cached

    @property
    def pages_in_use(self) -> int:
        """Pages that live sequences and reservations hold."""
        return self.pages_total - self.pages_free - self.pages_cached
