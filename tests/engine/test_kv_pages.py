"""The page pool keeps its invariants under any sequence of operations."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from baton.engine.kv_pages import OutOfPages, PagePool
from baton.protocol.errors import InternalError
from baton.protocol.prefix_hash import page_hashes, root_hash
from tests.page_pools import count_matches, evict_all

ROOT = root_hash("model")


class PagePoolMachine(RuleBasedStateMachine):
    """Sequences over a small alphabet, so that prefixes collide; a set models the prefixes that must match."""

    tables = Bundle("tables")

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(12, 2)
        self.matchable: set[bytes] = set()
        self.held: list[list[int]] = []

    @rule(target=tables, tokens=st.lists(st.integers(0, 2), min_size=1, max_size=12))
    def start(self, tokens: list[int]) -> tuple[list[int], list[int]]:
        hashes = page_hashes(tokens, 2, ROOT)
        expected = count_matches(self.pool, hashes)
        cached = self.pool.match(hashes)
        assert len(cached) == expected
        missing = -(-len(tokens) // 2) - len(cached)
        available = self.pool.num_available
        try:
            fresh = self.pool.allocate(missing)
        except OutOfPages:
            assert missing > available
            assert self.pool.num_available == available
            self.pool.release(cached)
            self.track()
            return [], []
        assert missing <= available
        assert not set(fresh) & {page for table in self.held for page in table}
        table = cached + fresh
        self.held.append(table)
        self.track()
        return table, tokens

    @rule(entry=tables)
    def commit(self, entry: tuple[list[int], list[int]]) -> None:
        table, tokens = entry
        if table not in self.held:
            return
        hashes = page_hashes(tokens, 2, ROOT)
        for index, page_hash in enumerate(hashes):
            self.pool.commit(table[index], page_hash)
        self.track()
        assert count_matches(self.pool, hashes) == len(hashes)

    @rule(target=tables, entry=tables)
    def share(self, entry: tuple[list[int], list[int]]) -> tuple[list[int], list[int]]:
        table, tokens = entry
        if table not in self.held:
            return [], []
        self.pool.share(table)
        copy = list(table)
        self.held.append(copy)
        return copy, tokens

    @rule(entry=consumes(tables))
    def release(self, entry: tuple[list[int], list[int]]) -> None:
        table, _ = entry
        if table in self.held:
            self.held.remove(table)
            self.pool.release(table)

    @rule()
    def clear(self) -> None:
        evict_all(self.pool)
        self.track()
        assert self.pool.num_cached == 0

    def track(self) -> None:
        """The reported changes alone must give the matchable prefixes: the router's prefix index has nothing else."""
        stored, evicted = self.pool.take_changes()
        assert not set(stored) & set(evicted)
        self.matchable = (self.matchable | set(stored)) - set(evicted)
        assert self.matchable == set(self.pool.matchable())

    @invariant()
    def every_page_is_in_one_state(self) -> None:
        self.pool.check_integrity()
        assert self.pool.num_in_use == len({page for table in self.held for page in table})
        assert self.pool.num_free + self.pool.num_cached + self.pool.num_in_use == 12


PagePoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_any_order_of_operations_keeps_the_invariants = PagePoolMachine.TestCase


def test_the_least_recently_used_chain_is_evicted_from_its_end() -> None:
    pool = PagePool(4, 1)
    hashes = page_hashes([1, 2, 3], 1, ROOT)
    old = pool.allocate(3)
    for page, page_hash in zip(old, hashes, strict=True):
        pool.commit(page, page_hash)
    pool.release(old)
    pool.allocate(2)
    assert count_matches(pool, hashes) == 2
    assert pool.take_changes() == (hashes[:2], hashes[2:])
    assert pool.take_changes() == ([], [])


def test_pages_are_not_matched_across_models_or_salts() -> None:
    chains = [page_hashes([1, 2], 1, root_hash(model, salt)) for model, salt in (("a", ""), ("b", ""), ("a", "tenant"))]
    assert len({page_hash for chain in chains for page_hash in chain}) == 6


def test_a_reused_page_has_a_new_generation() -> None:
    pool = PagePool(1, 1)
    (page,) = pool.allocate(1)
    before = pool.generation(page)
    pool.release([page])
    pool.allocate(1)
    assert pool.generation(page) == before + 1


def test_releasing_a_page_twice_is_an_internal_error() -> None:
    pool = PagePool(2, 1)
    pages = pool.allocate(1)
    pool.release(pages)
    with pytest.raises(InternalError, match="more often"):
        pool.release(pages)
