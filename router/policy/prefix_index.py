"""Which worker has which prefix pages: one table for the cluster, updated by the workers' messages.

    page key ──► set of workers, as the bits of one integer (equal sets are, mostly, one object)

A worker registers under a new bit, so nothing of an earlier incarnation counts. Bits of removed workers are
masked at once and swept out of the table little by little. Messages are numbered: after a gap the worker's pages do
not count until its snapshot arrives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from baton.protocol.session_messages import PagesChanged

STRIDE = 16  # pages skipped at a time where the set does not change
Match = list[tuple[int, int]]
WATCHED = 1 << 12  # keys of earlier matches that are watched at least before they are dropped
MAX_SETS = 1 << 16  # sets kept for reuse; they are not reference-counted, so their number is bounded


@dataclass(slots=True, eq=False)
class _Holder:
    """A worker's place in the table."""

    bit: int
    last_number: int | None = None  # of its messages; None: a snapshot is awaited


@dataclass(eq=False)
class PrefixIndex:
    """Longest-prefix match over every worker at once."""

    _holders: dict[str, _Holder] = field(default_factory=dict)
    _bits_in_use: int = 0  # of live workers and of those not yet swept
    _live: int = 0
    _table: dict[int, int] = field(default_factory=dict)
    _sets: dict[int, int] = field(default_factory=dict)  # the one object of each set made lately
    _unswept: list[int] = field(default_factory=list)
    _sweeping: int = 0  # bits the present sweep removes
    _matched_keys: Sequence[int] | None = None  # of the latest match, None when anything has changed since
    _matched: Match = field(default_factory=list)
    _kept: dict[int, tuple[Sequence[int], Match]] = field(default_factory=dict)  # id of a chain → the chain, its match
    _watched: set[int] = field(default_factory=set)  # keys that those matches depend on, and some more
    _watch_most: int = 0  # of those, before they are collected from the matches again
    _touched: set[int] = field(default_factory=set)  # watched keys that have changed since

    def __len__(self) -> int:
        return len(self._table)

    def bit(self, worker: str) -> int | None:
        """The number of the worker's bit in the sets of `match`."""
        holder = self._holders.get(worker)
        return None if holder is None else holder.bit

    def add(self, worker: str) -> None:
        """A worker registered (again): it has no pages until it reports some."""
        self.remove(worker)
        bit = (~self._bits_in_use & (self._bits_in_use + 1)).bit_length() - 1
        self._bits_in_use |= 1 << bit
        self._live |= 1 << bit
        self._holders[worker] = _Holder(bit)

    def remove(self, worker: str) -> None:
        """A worker is gone: its pages no longer count."""
        self._matched_keys = None
        self._kept.clear()
        holder = self._holders.pop(worker, None)
        if holder is not None:
            self._live &= ~(1 << holder.bit)

    def on_change(self, worker: str, change: PagesChanged) -> bool:
        """Apply a worker's message; False if an earlier one was lost, so that a snapshot must be requested."""
        holder = self._holders.get(worker)
        if holder is None:
            return True
        self._matched_keys = None
        if change.snapshot:
            if holder.last_number is not None:
                self.add(worker)
                holder = self._holders[worker]
        elif holder.last_number is None or change.sequence_number != holder.last_number + 1:
            if holder.last_number is not None:
                self.add(worker)
            return False
        holder.last_number = change.sequence_number
        mask, valid = 1 << holder.bit, self._live | self._sweeping
        self._drop(change.evicted, mask)
        self._store(change.stored, mask, valid)
        self._touch(change.evicted, change.stored)
        return True

    def _store(self, keys: tuple[int, ...], mask: int, valid: int) -> None:
        """A worker has these pages too; of their other holders only `valid` ones are kept."""
        table, shared = self._table, self._sets_to_share().setdefault
        befores = list(map(table.get, keys))
        if keys and befores.count(befores[0]) == len(keys):  # the pages of a chain mostly have the same holders
            holders = (befores[0] or 0) & valid | mask
            table.update(dict.fromkeys(keys, shared(holders, holders)))
            return
        last, holders = -1, 0
        for key, before in zip(keys, befores, strict=True):
            before = before or 0
            if before is not last:
                holders = before & valid | mask
                last, holders = before, shared(holders, holders)
            table[key] = holders

    def _touch(self, *changed: tuple[int, ...]) -> None:
        """Matches of chains with these keys no longer hold."""
        if self._kept:
            for keys in changed:
                self._touched |= self._watched.intersection(keys)

    def _drop(self, keys: Sequence[int], mask: int) -> None:
        """These workers no longer have the pages."""
        table, shared = self._table, self._sets_to_share().setdefault
        last, holders = -1, 0
        for key in keys:
            before = table.get(key)
            if before is None:
                continue
            if before is not last:
                holders = before & ~mask
                last, holders = before, shared(holders, holders)
            if holders:
                table[key] = holders
            else:
                del table[key]

    def _sets_to_share(self) -> dict[int, int]:
        """The one object of each set, as long as it is remembered."""
        if len(self._sets) >= MAX_SETS:
            self._sets.clear()
        return self._sets

    def match(self, keys: Sequence[int]) -> Match:
        """For each depth at which workers stop: (pages they have, set of workers that have at least so many).

        Depths rise, sets shrink; workers that have no page are in none. A page that a worker has without the page
        before it does not count, unless both lie between two others, STRIDE apart, that the very same workers have:
        chains are evicted from their end, and looking at every page of a long one would miss the processor's caches for
        each. The latest result is cached: placing a request calls this twice.
        """
        if keys is not self._matched_keys:
            known = self._kept.get(id(keys))
            fresh = known is not None and self._holds(known[1], keys, self._touched)
            self._matched, self._matched_keys = known[1] if known and fresh else self._match(keys), keys
        return self._matched

    def match_many(self, chains: Sequence[Sequence[int]]) -> list[Match]:
        """The match of each chain; kept until a page of the chain changes, or it is left out of a later call."""
        before, touched, fresh = self._kept, self._touched, list[tuple[Sequence[int], Match]]()
        self._kept, self._touched = {}, set()
        for keys in chains:
            known = before.get(id(keys))
            if known is None or (touched and not self._holds(known[1], keys, touched)):
                known = keys, self.match(keys)
                fresh.append(known)
            self._kept[id(keys)] = known
        self._watch(fresh)
        return [self._kept[id(keys)][1] for keys in chains]

    def _watch(self, fresh: list[tuple[Sequence[int], Match]]) -> None:
        """Note changes of keys that new matches depend on: all up to the first page that no worker had."""
        for keys, match in fresh:
            self._watched.update(keys[: _depth(match) + 1])
        if len(self._watched) > self._watch_most:
            self._watched = {key for keys, match in self._kept.values() for key in keys[: _depth(match) + 1]}
            self._watch_most = 2 * len(self._watched) + WATCHED

    @staticmethod
    def _holds(match: Match, keys: Sequence[int], touched: set[int]) -> bool:
        """Whether a match still holds: nothing has changed up to the first page that no worker had."""
        return not touched or touched.isdisjoint(keys[: _depth(match) + 1])

    def _match(self, keys: Sequence[int]) -> Match:
        found: Match = []
        holders, before, depth, get = self._live, None, 0, self._table.get
        while depth < len(keys):
            if before is not None and depth + STRIDE <= len(keys) and get(keys[depth + STRIDE - 1]) == before:
                depth += STRIDE
                continue
            for key in keys[depth : depth + STRIDE]:
                before = get(key)
                following = holders & (before or 0)
                if following != holders:
                    if depth:
                        found.append((depth, holders))
                    if not following:
                        return found
                    holders = following
                depth += 1
        if depth and holders:
            found.append((depth, holders))
        return found

    def pages_of(self, worker: str, matches: Match) -> int:
        """How many leading pages `worker` has, of a `match`."""
        holder = self._holders.get(worker)
        if holder is None:
            return 0
        return next((depth for depth, holders in reversed(matches) if holders >> holder.bit & 1), 0)

    def sweep(self, limit: int = 20_000) -> None:
        """Remove pages of workers that are gone, at most `limit` entries a call. Their bits are free afterwards."""
        if not self._sweeping:
            self._sweeping = self._bits_in_use & ~self._live
            if not self._sweeping:
                if len(self._sets) > 2 * len(self._table) + 1024:
                    self._sets = {one: one for one in set(self._table.values())}
                return
            self._unswept = list(self._table)
        get, sweeping = self._table.get, self._sweeping
        self._drop([key for key in self._unswept[-limit:] if get(key, 0) & sweeping], sweeping)
        del self._unswept[-limit:]
        if not self._unswept:
            self._bits_in_use &= ~self._sweeping
            self._sweeping = 0
            self._sets.clear()


def _depth(match: Match) -> int:
    """How many leading pages some worker has."""
    return match[-1][0] if match else 0
