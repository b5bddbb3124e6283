"""The workers' figures as columns, so that one request is weighed against a thousand workers at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from baton.protocol.worker import RoleName, WorkerInfo
from baton.router.policy.latency_model import StepCosts

ALL = slice(None)
CHUNKS_AHEAD = 2  # steps of prompt work per worker: enough to stay busy over a round trip
LOCAL_HANDICAP = 1.25  # a decode worker must be so much faster to get a prompt, because prefill slows its decodes
TPOT_MARGIN = 0.9  # share of an objective that a predicted step may take
HEADROOM_PAGES = 8  # kept free per worker so that running sequences can grow (one page each, at most this many)
LOAD_COLUMNS = ("pending_prefill", "decodes", "context", "pages_available")
OFFER_COLUMNS = ("prompt_chunk", "spare_tokens", "decode_now_s", "base_step_s", "has_room")


@dataclass(eq=False)
class WorkerTable:
    """A row per worker; rows of workers that left have no role and are reused."""

    names: list[str] = field(default_factory=list)
    backlog_ends_s: np.ndarray = field(default_factory=lambda: np.zeros(0))
    context: np.ndarray = field(default_factory=lambda: np.zeros(0))
    tpot_s: np.ndarray = field(default_factory=lambda: np.zeros(0))  # the tightest objective among its sequences
    step_s: np.ndarray = field(default_factory=lambda: np.zeros(0))
    prefill_token_s: np.ndarray = field(default_factory=lambda: np.zeros(0))
    prefill_pair_s: np.ndarray = field(default_factory=lambda: np.zeros(0))
    decode_s: np.ndarray = field(default_factory=lambda: np.zeros(0))
    context_token_s: np.ndarray = field(default_factory=lambda: np.zeros(0))
    pending_prefill: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    pages_available: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    decodes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    sequences: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    chunk: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    mixed_chunk: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    max_batch: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    capacity: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # tokens
    page_size: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    bit: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # in the prefix index
    is_prefill: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    is_decode: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    mixed: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    all_state_tpot: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))  # every sequence has an objective
    half_pair_s: np.ndarray = field(default_factory=lambda: np.zeros(0))  # of `prefill_pair_s`
    handicap: np.ndarray = field(default_factory=lambda: np.zeros(0))  # of a prompt's time there
    serves_locally: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    # What a worker offers follows from its other figures. `offer` brings these columns up to date.
    prompt_chunk: np.ndarray = field(default_factory=lambda: np.zeros(0))  # prompt tokens of a step beside its decodes
    spare_tokens: np.ndarray = field(default_factory=lambda: np.zeros(0))  # that fit in its pages
    decode_now_s: np.ndarray = field(default_factory=lambda: np.zeros(0))  # its decode step
    base_step_s: np.ndarray = field(default_factory=lambda: np.zeros(0))  # a step before its prompt tokens
    promised_s: np.ndarray = field(default_factory=lambda: np.zeros(0))  # the longest that meets its objectives
    unbound_tokens: np.ndarray = field(default_factory=lambda: np.zeros(0))  # to compute, of an unbound request
    has_room: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))  # it can take work now
    _stale: set[int] = field(default_factory=set)  # rows whose offer is not up to date
    any_prefill: bool = False  # a row has the role
    any_decode: bool = False
    any_mixed: bool = False
    _free: list[int] = field(default_factory=list)
    _bit_bytes: int = 1  # that hold every bit in use

    def add(self, info: WorkerInfo, bit: int) -> int:
        """A row for a worker that registered."""
        if not self._free:
            self._grow()
        row = self._free.pop()
        self.names[row] = info.name
        self.chunk[row] = info.chunk_tokens
        self.mixed_chunk[row] = info.mixed_chunk_tokens or info.chunk_tokens
        self.max_batch[row] = info.max_batch
        self.page_size[row] = info.page_size
        self.capacity[row] = info.capacity_tokens
        self.decodes[row] = self.context[row] = self.sequences[row] = 0
        self.tpot_s[row], self.all_state_tpot[row] = np.inf, True
        self.set_bit(row, bit)
        self.touch(row)
        return row

    def decode_step_s(
        self,
        extra_sequences: int | np.ndarray = 0,
        extra_tokens: int | np.ndarray = 0,
        rows: slice | int | np.ndarray = ALL,
    ) -> np.ndarray:
        """Predicted decode steps of workers, each with so many sequences more, of so many tokens."""
        sequences, tokens = self.decodes[rows] + extra_sequences, self.context[rows] + extra_tokens
        step_s: np.ndarray = self.step_s[rows] + self.decode_s[rows] * sequences + self.context_token_s[rows] * tokens
        return step_s

    def touch(self, row: int) -> None:
        """A figure of the row has changed."""
        self._stale.add(row)

    def offer(self) -> None:
        """Bring what workers offer up to date. Few rows have changed since the last call, so each is a few floats."""
        for row in self._stale:
            self.offer_of(row)
        self._stale.clear()

    def offer_of(self, row: int) -> None:
        """Bring up to date what one worker offers."""
        is_prefill, is_decode = self.is_prefill.item(row), self.is_decode.item(row)
        decodes, mixed_chunk, tpot_s = self.decodes.item(row), self.mixed_chunk.item(row), self.tpot_s.item(row)
        step_s, pages = self.step_s.item(row), self.pages_available.item(row)
        decode_now_s = (
            step_s + self.decode_s.item(row) * decodes + self.context_token_s.item(row) * self.context.item(row)
        )
        chunk = self.chunk.item(row) if is_prefill or not decodes else mixed_chunk
        promised_s = TPOT_MARGIN * tpot_s
        local = is_decode and pages > 0
        if local and self.any_prefill:
            local = decode_now_s + self.prefill_token_s.item(row) * mixed_chunk <= promised_s
        may = is_prefill or decodes < self.max_batch.item(row)
        self.prompt_chunk[row], self.decode_now_s[row], self.promised_s[row] = chunk, decode_now_s, promised_s
        self.base_step_s[row] = step_s if is_prefill else decode_now_s
        self.spare_tokens[row] = (pages - min(decodes, HEADROOM_PAGES)) * self.page_size.item(row) if may else 0
        # What a request without an objective may have to compute beside sequences with one.
        bound = tpot_s < np.inf and self.all_state_tpot.item(row)
        self.unbound_tokens[row] = np.inf if bound else mixed_chunk
        takes = is_prefill or local or self.mixed.item(row)
        self.has_room[row] = takes and self.pending_prefill.item(row) < CHUNKS_AHEAD * chunk

    def branch(self) -> WorkerTable:
        """A table whose columns of load are its own: what would be, once decisions are carried out."""
        other = WorkerTable.__new__(WorkerTable)
        vars(other).update(vars(self))
        for name in (*LOAD_COLUMNS, *OFFER_COLUMNS):
            setattr(other, name, getattr(self, name).copy())
        return other

    def set_bit(self, row: int, bit: int) -> None:
        """The number of the worker's bit in the prefix index."""
        self.bit[row] = bit
        self._bit_bytes = max(self._bit_bytes, bit // 8 + 1)

    def remove(self, row: int) -> None:
        self.names[row] = ""
        self.set_role(row, None)
        self._free.append(row)

    def _grow(self) -> None:
        old, new = len(self.names), max(16, 2 * len(self.names))
        for name, column in vars(self).items():
            if isinstance(column, np.ndarray):
                setattr(self, name, np.concatenate([column, np.zeros(new - old, column.dtype)]))
        self.names += [""] * (new - old)
        self.page_size[old:] = 1
        self.chunk[old:] = self.mixed_chunk[old:] = self.prompt_chunk[old:] = self.handicap[old:] = 1
        self._free = list(range(new - 1, old - 1, -1))

    def set_role(self, row: int, role: RoleName | None) -> None:
        """None: the worker gets no new work."""
        self.is_prefill[row] = role is RoleName.PREFILL
        self.is_decode[row] = role is RoleName.DECODE
        self.mixed[row] = role is RoleName.MIXED
        self.serves_locally[row] = role in (RoleName.DECODE, RoleName.MIXED)
        self.handicap[row] = LOCAL_HANDICAP if role is RoleName.DECODE else 1.0
        any_prefill, self.any_prefill = self.any_prefill, bool(self.is_prefill.any())
        self._stale.update([row] if any_prefill is self.any_prefill else range(len(self.names)))
        self.any_decode = bool(self.is_decode.any())
        self.any_mixed = bool(self.mixed.any())

    def set_costs(self, row: int, costs: StepCosts) -> None:
        self.step_s[row] = costs.step_s
        self.prefill_token_s[row] = costs.prefill_token_s
        self.prefill_pair_s[row] = costs.prefill_pair_s
        self.half_pair_s[row] = costs.prefill_pair_s / 2
        self.decode_s[row] = costs.decode_s
        self.context_token_s[row] = costs.context_token_s
        self.touch(row)

    def cached_tokens(self, matches: Sequence[list[tuple[int, int]]], num_tokens: int | np.ndarray) -> np.ndarray:
        """Leading tokens each row has cached, for every prompt of a prefix index's `match`: [n, rows].

        At most all but the last token of each prompt; `num_tokens` is [n, 1], or the same for all.
        """
        pages = np.zeros((len(matches), len(self.names)), np.int64)
        found = [(index, depth, holders) for index, match in enumerate(matches) for depth, holders in match]
        if found:
            data = b"".join([holders.to_bytes(self._bit_bytes, "little") for _, _, holders in found])
            packed = np.frombuffer(data, np.uint8).reshape(len(found), -1)
            has = np.unpackbits(packed, axis=1, bitorder="little")[:, self.bit].view(bool)
            for (index, depth, _), rows in zip(found, has, strict=True):
                np.copyto(pages[index], depth, where=rows)
        return np.asarray(np.minimum(pages, (num_tokens - 1) // self.page_size) * self.page_size)
