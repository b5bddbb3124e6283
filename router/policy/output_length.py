"""Output lengths: their distributions, and a predictor that learns online from earlier answers, without model or text.

A request is described by levels of evidence, from broad to narrow, and each level's histogram is smoothed towards the
level above it (hierarchical Dirichlet smoothing: counts + strength · the broader distribution):

    all requests → tenant → context → its answers to prompts with as many new tokens → its answers after an answer of
    that length → the request's own page-hash chain, node by node

A *context* is the deepest prefix that many requests share (a system prompt, an agent's template), or, without one,
all requests of the tenant. The nodes below it are conversations: few samples each, and the latest answer there is the
best evidence. Quantiles are recalibrated online (Kuleshov et al. 2018) by where past answers fell in their predicted
distributions.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log2

import numpy as np

MAX_TOKENS = 1 << 20
GROWTH = 1.08  # of a bin's width
STRIDE_TOKENS = 512  # one chain node per so many prompt tokens
BROAD_SAMPLES = 200  # a node with more samples is a context
MAX_NODES, MAX_LEVELS = 200_000, 4096  # memory: least recently used go first
LEVEL_STRENGTH, NODE_STRENGTH = 30.0, 8.0
FORGET = 1 / 2000  # per answer, of a level's weight
NEIGHBOURS = 0.25  # of a sample's weight that each neighbouring bin gets
RANKS = 100
MAX_WEIGHT = 1e12  # of a bin, in a file that is loaded: far above what forgetting allows
PRIOR_TOKENS = 256  # before the first answer


def _edges() -> list[int]:
    edges = [1]
    while edges[-1] < MAX_TOKENS:
        edges.append(max(edges[-1] + 1, int(edges[-1] * GROWTH)))
    return edges


EDGES = _edges()
"""A bin holds the lengths up to its edge, from above the one before."""
NUM_BINS = len(EDGES)
_LENGTHS = np.array(EDGES, dtype=float)


def bin_of(tokens: int) -> int:
    """The bin of a length."""
    return min(bisect_left(EDGES, tokens), NUM_BINS - 1)


@dataclass(slots=True, eq=False)
class LengthDistribution:
    """Shares of the length bins (they sum to 1), cut off at `limit` tokens. `levels` calibrates quantiles.

    `levels` maps a stated share to the share of this distribution that covers it (see output_length.py); None is the
    identity.
    """

    shares: np.ndarray
    limit: int = MAX_TOKENS
    levels: np.ndarray | None = None
    _above: list[float] = field(default_factory=list)  # share of lengths in bin k and later
    _weighted: list[float] = field(default_factory=list)  # the same, each times its length

    def quantile(self, share: float) -> int:
        """The length that `share` of such requests stay within, in tokens."""
        if self.levels is not None:
            place = share * (len(self.levels) - 1)
            low = min(int(place), len(self.levels) - 2)
            share = float(self.levels[low] + (place - low) * (self.levels[low + 1] - self.levels[low]))
        return min(round(float(np.interp(share, np.cumsum(self.shares), _LENGTHS))), self.limit)

    @property
    def median(self) -> int:
        return self.quantile(0.5)

    def share_within(self, tokens: int) -> float:
        """How much of the distribution, uncalibrated, lies at or below `tokens` (the middle of its bin)."""
        index = bin_of(tokens)
        return float(self.shares[:index].sum() + self.shares[index] / 2)

    def remaining(self, emitted: int = 0) -> float:
        """Expected tokens to come after `emitted`: at least one, at most what `limit` leaves."""
        if not self._above and not emitted:  # the common case: once per request, when it arrives
            return max(1.0, min(float(self.shares @ _LENGTHS), self.limit))
        if not self._above:
            self._above = np.cumsum(self.shares[::-1])[::-1].tolist()
            self._weighted = np.cumsum((self.shares * _LENGTHS)[::-1])[::-1].tolist()
        index = bin_of(emitted + 1)
        above = self._above[index]
        # Beyond every length seen so far, old sequences tend to continue (Lindy): half as long again.
        expected = self._weighted[index] / above - emitted if above > 1e-6 else emitted / 2
        return max(1.0, min(expected, self.limit - emitted))


def point(tokens: int, limit: int = MAX_TOKENS) -> LengthDistribution:
    """All weight on one length."""
    shares = np.zeros(NUM_BINS)
    shares[bin_of(tokens)] = 1.0
    return LengthDistribution(shares, limit)


@dataclass(slots=True, eq=False)
class _Level:
    """The answers of one level of evidence: their weight by bin, and in all."""

    counts: np.ndarray
    total: float = field(init=False)

    def __post_init__(self) -> None:
        self.total = float(self.counts.sum())

    def add(self, at: slice, weights: np.ndarray) -> None:
        """One more answer, whose weights sum to 1; earlier ones fade."""
        self.counts *= 1 - FORGET
        self.counts[at] += weights
        self.total = self.total * (1 - FORGET) + 1


_Node = tuple[int, int, bytes]
"""A prefix that was seen: how often, its latest answer's length, and the bins of its answers while they are few.

There are many, and most prompts have some new ones: a tuple costs the garbage collector nothing.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """A request's predicted output length, and the evidence behind it, which learns the true length later."""

    distribution: LengthDistribution
    levels: tuple[str, ...]
    nodes: tuple[int, ...]


def chain_nodes(page_keys: Sequence[int], page_size: int) -> tuple[int, ...]:
    """The prefix nodes of a prompt: every page of at least STRIDE_TOKENS, else every so-manyth."""
    step = max(1, STRIDE_TOKENS // page_size)
    return tuple(page_keys[step - 1 :: step])


@dataclass(eq=False)
class OutputLength:
    """The predictor. Deterministic; bounded in memory; `dumps` and `loads` carry the broad levels over a restart."""

    _levels: OrderedDict[str, _Level] = field(default_factory=OrderedDict)
    _nodes: OrderedDict[int, _Node] = field(default_factory=OrderedDict)
    _ranks: np.ndarray = field(default_factory=lambda: np.ones(RANKS))
    _calibration: np.ndarray | None = None

    def predict(self, nodes: Sequence[int], tenant: str, prompt_tokens: int, max_tokens: int) -> Prediction:
        """The distribution of this request's output length; `nodes` are its prompt's `chain_nodes`."""
        seen = [self._nodes[key] for key in self._seen(nodes)]
        context, narrow = 0, []
        for index, node in enumerate(seen):
            if node[0] >= BROAD_SAMPLES:
                context = index + 1
            elif index + 1 == len(seen) or seen[index + 1][0] != node[0]:
                narrow.append(node)  # else the next node has exactly the same answers
        name = f"{nodes[context - 1]:x}" if context else f"of {tenant!r}"
        new_tokens = prompt_tokens - len(seen) * STRIDE_TOKENS
        levels = ["", f"tenant {tenant}", f"context {name}", f"new {name} {_octave(new_tokens)} {bool(narrow)}"]
        if narrow:
            levels.append(f"after {name} {_octave(narrow[-1][1])}")
        shares = _PRIOR
        for level in dict.fromkeys(levels):
            known = self._levels.get(level)
            if known is not None:
                shares = (known.counts + LEVEL_STRENGTH * shares) / (known.total + LEVEL_STRENGTH)
        for _, _, bins in narrow:
            counts = np.bincount(np.frombuffer(bins, np.uint8), minlength=NUM_BINS)
            shares = NODE_STRENGTH * shares + (1 - 2 * NEIGHBOURS) * counts
            shares[:-1] += NEIGHBOURS * counts[1:]
            shares[1:] += NEIGHBOURS * counts[:-1]
            shares[0] += NEIGHBOURS * counts[0]
            shares[-1] += NEIGHBOURS * counts[-1]
            shares /= NODE_STRENGTH + len(bins)
        return Prediction(
            LengthDistribution(shares, max_tokens, self._levels_of_quantiles()), tuple(levels), tuple(nodes)
        )

    def observe(self, prediction: Prediction, output_tokens: int, cut_off: bool = False) -> None:
        """Learn that the answer was complete, or `cut_off` by its max_tokens, after `output_tokens`.

        A cut-off answer would have been longer: its weight goes to the longer bins, as they were predicted.
        """
        index = bin_of(output_tokens)
        at, weights = slice(index, index + 1), np.ones(1)
        if cut_off:
            longer = prediction.distribution.shares[index + 1 :]
            if longer.sum() > 1e-6:
                at, weights = slice(index + 1, NUM_BINS), longer / longer.sum()
        for name in dict.fromkeys(prediction.levels):
            level = self._levels.pop(name, None) or _Level(np.zeros(NUM_BINS))
            level.add(at, weights)
            self._levels[name] = level
        while len(self._levels) > MAX_LEVELS:
            self._levels.popitem(last=False)
        if cut_off:
            return
        rank = min(int(prediction.distribution.share_within(output_tokens) * RANKS), RANKS - 1)
        self._ranks *= 1 - 1 / 1000
        self._ranks[rank] += 1
        self._calibration = None
        for key in prediction.nodes:
            count, _, bins = self._nodes.pop(key, _UNSEEN)
            # With many answers it is a context, and has a level.
            bins = bins + bytes((index,)) if count + 1 < BROAD_SAMPLES else b""
            self._nodes[key] = count + 1, output_tokens, bins
        while len(self._nodes) > MAX_NODES:
            self._nodes.popitem(last=False)

    def _seen(self, nodes: Sequence[int]) -> Sequence[int]:
        for index, key in enumerate(nodes):
            if key not in self._nodes:
                return nodes[:index]
        return nodes

    def _levels_of_quantiles(self) -> np.ndarray:
        """For each stated share 0, 0.01, … 1 the share of the predicted distributions that has covered it."""
        if self._calibration is None:
            covered = np.concatenate([[0.0], np.cumsum(self._ranks) / self._ranks.sum()])
            self._calibration = np.interp(_GRID, covered, _GRID)
        return self._calibration

    def snapshot(self) -> OutputLength:
        """A copy of what `dumps` writes, so that another thread can write it."""
        levels = OrderedDict((name, _Level(level.counts.copy())) for name, level in self._levels.items())
        return OutputLength(levels, _ranks=self._ranks.copy())

    def dumps(self) -> str:
        """The state to keep over a restart, as JSON: the broad levels and the calibration."""
        levels = {
            name: {str(index): round(float(level.counts[index]), 3) for index in np.flatnonzero(level.counts > 1e-3)}
            for name, level in self._levels.items()
        }
        return json.dumps({"version": 1, "levels": levels, "ranks": [round(float(rank), 3) for rank in self._ranks]})

    @classmethod
    def loads(cls, text: str) -> OutputLength:
        """A predictor from `dumps`; raises `ValueError` for anything else."""
        try:
            values = json.loads(text)
            predictor = cls(_ranks=_weights(values["ranks"]))
            for name, bins in values["levels"].items():
                counts = np.zeros(NUM_BINS)
                counts[[int(index) for index in bins]] = _weights(list(bins.values()))
                predictor._levels[name] = _Level(counts)
        except (TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(f"not a file of learned output lengths ({error!r})") from None
        if values.get("version") != 1 or len(predictor._ranks) != RANKS or not predictor._ranks.any():
            raise ValueError("not a file of learned output lengths")
        return predictor


def _weights(values: list[float]) -> np.ndarray:
    """Counts from a file: not negative, and small enough to be counts. Raises `ValueError` for others."""
    weights = np.array(values, dtype=float)
    if weights.ndim != 1 or not ((weights >= 0.0) & (weights < MAX_WEIGHT)).all():
        raise ValueError("not a list of counts")
    return weights


def _octave(tokens: int) -> int:
    """Half-octave bucket of a number of tokens."""
    return int(2 * log2(max(tokens, 1)))


def _prior_shares() -> np.ndarray:
    """Geometric with mean PRIOR_TOKENS: the prior before the first answer."""
    edges = np.array([0, *EDGES], dtype=float)
    shares = np.exp(-edges[:-1] / PRIOR_TOKENS) - np.exp(-edges[1:] / PRIOR_TOKENS)
    return np.asarray(shares / shares.sum())


_PRIOR = _prior_shares()
_UNSEEN: _Node = 0, 0, b""
_GRID = np.linspace(0.0, 1.0, RANKS + 1)
