"""The schedule of one pass: what starts, what waits for which worker, and what gives way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from baton.router.policy.cluster_state import ClusterState, RunningSequence
from baton.router.policy.decode_target import decode_target
from baton.router.policy.picture import Picture
from baton.router.policy.placement import Place, PlacementInput
from baton.router.policy.prices import Prices
from baton.router.policy.routing import Candidate, RoutingDecision

PARTITIONED = 256  # workers above which the few best are found without sorting all
EXPLAINED = 5  # candidates kept with a decision


@dataclass(slots=True, eq=False)
class Schedule:
    """The requests a pass looks at, their prices, and where those that have to wait are planned."""

    queue: Sequence[PlacementInput]
    state: ClusterState
    picture: Picture
    prices: Prices
    _planned: dict[int, list[tuple[float, int]]] = field(default_factory=dict)  # row → (seconds, index) waiting there

    def fill_s(self, index: int, row: int) -> float:
        """How much longer the step of the prompt's last token takes if others fill it up: it ends for all at once."""
        table = self.picture.table
        if not table.is_prefill[row]:
            return 0.0
        uncached = self.queue[index].num_tokens - int(self.prices.cached[index, row])
        behind = -(int(table.pending_prefill[row]) + uncached) % int(table.chunk[row])
        return behind * float(table.prefill_token_s[row])

    def plan(self, index: int, row: int) -> None:
        """The request waits for the worker."""
        compute_s = float(self.prices.compute_s[index, row])
        self.picture.wait_s[row] += compute_s
        self._planned.setdefault(row, []).append((compute_s, index))

    def give_way(self, index: int, row: int) -> int:
        """The request to defer: of those waiting for the worker, the one with most work, unless it is this one."""
        waiting = self._planned.get(row, [])
        movable = [one for one in waiting if not self.queue[one[1]].resumed]
        longest = max(movable, key=lambda one: (one[0], self.queue[one[1]].request_id), default=None)
        if longest is None or longest[0] <= self.prices.compute_s[index, row]:
            return index
        waiting.remove(longest)
        self.picture.wait_s[row] -= longest[0]
        return longest[1]

    def place(self, index: int, row: int, ttft_s: np.ndarray) -> Place:
        """Start the request on the worker."""
        item, prices, picture = self.queue[index], self.prices, self.picture
        table, names = picture.table, picture.table.names
        local = not table.is_prefill[row]
        target: int | None = row
        if not local:
            sequence = RunningSequence(item.num_tokens, item.output)
            target = decode_target(prices.decode[index], prices.step_s[index], names[row], sequence, self.state)
        tokens = item.num_tokens - int(prices.cached[index, row])
        candidates = self._candidates(index, row, target, ttft_s)
        why = (
            f"{names[row]} should answer first, in {1000 * ttft_s[row]:.0f} ms: "
            f"{1000 * picture.wait_s[row]:.0f} ms until it begins, {tokens} of {item.num_tokens} tokens to compute"
        )
        if len(self.queue) > 1:
            picture.take(row, target, tokens, item.num_tokens, float(prices.compute_s[index, row]))
            if target is not None:
                prices.update(target)
        decode = None if local or target is None else names[target]
        return Place(item.request_id, RoutingDecision(names[row], decode, local, why, candidates))

    def _candidates(self, index: int, row: int, target: int | None, ttft_s: np.ndarray) -> tuple[Candidate, ...]:
        """The chosen one, then those that would answer soonest."""
        item, prices, table = self.queue[index], self.prices, self.picture.table
        order = [row, *(one for one in _lowest(ttft_s, EXPLAINED) if one != row)][:EXPLAINED]
        found = []
        for one in order:
            if ttft_s[one] < np.inf:
                local = not table.is_prefill[one]
                step_s = float(prices.step_s[index, one if local or target is None else target])
                uncached = item.num_tokens - int(prices.cached[index, one])
                wait_s = float(self.picture.wait_s[one])
                found.append(Candidate(table.names[one], local, float(ttft_s[one]), wait_s, uncached, step_s))
        return tuple(found)


def _lowest(values: np.ndarray, count: int) -> list[int]:
    """Where the lowest values are, rising; equal ones in the order they stand in."""
    if len(values) > PARTITIONED:
        bound = np.partition(values, count - 1)[count - 1]
        few = np.flatnonzero(values <= bound)
        return list(few[values[few].argsort(kind="stable")][:count].tolist())
    return list(values.argsort(kind="stable")[:count].tolist())
