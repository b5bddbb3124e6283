"""The prefix index says what the workers have, whatever is said, lost or swept in whatever order."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from baton.protocol.session_messages import PagesChanged
from baton.router.policy import prefix_index
from baton.router.policy.prefix_index import PrefixIndex

WORKERS = st.sampled_from(["a", "b", "c", "d"])
KEYS = tuple(range(1, 9))
WAITING = [KEYS[:length] for length in range(len(KEYS) + 1)]  # chains of requests that wait for long
PAGES = st.sets(st.sampled_from(KEYS), max_size=5)


def longest_prefix(pages: set[int], chain: list[int]) -> int:
    """How many leading pages of the chain are there."""
    return next((depth for depth, page in enumerate(chain) if page not in pages), len(chain))


class PrefixIndexMachine(RuleBasedStateMachine):
    """`counted` is what the index should believe; a worker that is None there owes a snapshot."""

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex()
        self.counted: dict[str, set[int] | None] = {}
        self.numbers: dict[str, int] = {}

    @rule(worker=WORKERS)
    def add(self, worker: str) -> None:
        self.index.add(worker)
        self.counted[worker] = None

    @rule(worker=WORKERS)
    def remove(self, worker: str) -> None:
        self.index.remove(worker)
        self.counted.pop(worker, None)

    @rule(worker=WORKERS, stored=PAGES, evicted=PAGES, lost=st.integers(0, 5).map(lambda value: value == 5))
    def change(self, worker: str, stored: set[int], evicted: set[int], lost: bool) -> None:
        stored -= evicted
        number = self.numbers.get(worker, 0) + 1 + lost
        self.numbers[worker] = number
        true = self.index.on_change(worker, PagesChanged(number, tuple(sorted(stored)), tuple(sorted(evicted))))
        if worker not in self.counted:
            assert true
            return
        pages = None if lost else self.counted[worker]
        self.counted[worker] = None if pages is None else (pages - evicted) | stored
        assert true == (pages is not None)

    @rule(worker=WORKERS, pages=PAGES)
    def snapshot(self, worker: str, pages: set[int]) -> None:
        number = self.numbers.get(worker, 0) + 1
        self.numbers[worker] = number
        assert self.index.on_change(worker, PagesChanged(number, tuple(sorted(pages)), (), snapshot=True))
        if worker in self.counted:
            self.counted[worker] = set(pages)

    @rule(limit=st.integers(1, 4))
    def sweep_a_little(self, limit: int) -> None:
        self.index.sweep(limit)

    @rule()
    def sweep_everything(self) -> None:
        for _ in range(3):  # the sweep under way, one that sees every worker that has gone, and one with nothing to do
            self.index.sweep(1000)
        assert self.index._bits_in_use == self.index._live
        assert set(self.index._table) == {page for pages in self.counted.values() for page in pages or ()}

    @rule(chain=st.lists(st.sampled_from(KEYS), max_size=6))
    def match(self, chain: list[int]) -> None:
        matches = self.index.match(tuple(chain))
        depths = [depth for depth, _ in matches]
        assert depths == sorted(set(depths))
        assert all(wide & narrow == narrow != wide for (_, wide), (_, narrow) in pairwise(matches))
        expected = {worker: longest_prefix(pages or set(), chain) for worker, pages in self.counted.items()}
        for worker, depth in expected.items():
            assert self.index.pages_of(worker, matches) == depth
        assert set(depths) == set(expected.values()) - {0}
        if matches:
            bits = {1 << (self.index.bit(worker) or 0) for worker, depth in expected.items() if depth}
            assert matches[0][1] == sum(bits)

    @rule(lengths=st.lists(st.integers(0, len(KEYS)), max_size=4))
    def match_a_queue(self, lengths: list[int]) -> None:
        """A kept match is what a fresh one would be, for a queue and for each of its chains."""
        chains = [WAITING[length] for length in lengths]
        for matches, chain in zip(self.index.match_many(chains), chains, strict=True):
            assert matches == self.index._match(chain)
        for chain in WAITING:
            assert self.index.match(chain) == self.index._match(chain)

    @precondition(lambda self: self.counted)
    @invariant()
    def every_worker_has_a_bit_of_its_own(self) -> None:
        bits = [self.index.bit(worker) for worker in self.counted]
        assert len(set(bits)) == len(bits)
        assert None not in bits


PrefixIndexMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
test_any_order_of_messages_is_believed_rightly = PrefixIndexMachine.TestCase


@settings(deadline=None)
@given(
    depths=st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 20), min_size=1),
    asked=st.integers(0, 20),
    stride=st.integers(1, 8),
)
def test_long_chains_are_matched_by_strides_as_if_page_by_page(depths: dict[str, int], asked: int, stride: int) -> None:
    chain = list(range(1, 21))
    index = PrefixIndex()
    for worker, depth in depths.items():
        index.add(worker)
        index.on_change(worker, PagesChanged(1, tuple(chain[:depth]), (), snapshot=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix_index, "STRIDE", stride)
        matches = index.match(chain[:asked])
    assert {worker: index.pages_of(worker, matches) for worker in depths} == {
        worker: min(depth, asked) for worker, depth in depths.items()
    }


def test_a_match_is_asked_anew_after_every_change() -> None:
    index = PrefixIndex()
    keys = KEYS[:2]
    index.add("a")
    assert index.match(keys) == []
    index.on_change("a", PagesChanged(1, (KEYS[0],), (), snapshot=True))
    assert [depth for depth, _ in index.match(keys)] == [1]
    index.on_change("a", PagesChanged(2, (KEYS[1],), ()))
    assert [depth for depth, _ in index.match(keys)] == [2]
    index.remove("a")
    assert index.match(keys) == []


def test_a_thousand_workers_share_a_prefix_and_differ_behind_it() -> None:
    index = PrefixIndex()
    shared, own = KEYS[:4], KEYS[4:7]
    for number in range(1000):
        name = f"worker-{number}"
        index.add(name)
        index.on_change(name, PagesChanged(1, (*shared, *own[: number % 4]), (), snapshot=True))
    matches = index.match(shared + own)
    assert [(depth, holders.bit_count()) for depth, holders in matches] == [(4, 1000), (5, 750), (6, 500), (7, 250)]
    assert [index.pages_of(f"worker-{number}", matches) for number in range(996, 1000)] == [4, 5, 6, 7]
    index.remove("worker-999")
    assert index.match(shared + own)[-1][1].bit_count() == 249


def test_a_page_of_an_earlier_incarnation_never_counts_even_before_the_sweep() -> None:
    index = PrefixIndex()
    index.add("a")
    index.on_change("a", PagesChanged(1, (KEYS[0],), (), snapshot=True))
    index.add("a")
    assert index.match(KEYS[:1]) == []
    index.sweep()
    assert len(index) == 0


def test_sets_of_holders_that_no_page_has_any_more_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_index, "MAX_SETS", 16)
    index = PrefixIndex()
    for worker in "abcdefgh":
        index.add(worker)
        index.on_change(worker, PagesChanged(0, (), (), snapshot=True))
    for combination in range(1, 256):
        holders = [worker for bit, worker in enumerate("abcdefgh") if combination >> bit & 1]
        for evicting in (False, True):
            for worker in holders:
                pages = (KEYS[0],)
                number = index._holders[worker].last_number + 1  # type: ignore[operator]
                stored, evicted = ((), pages) if evicting else (pages, ())
                assert index.on_change(worker, PagesChanged(number, stored, evicted))
    assert len(index) == 0
    assert len(index._sets) <= 16
