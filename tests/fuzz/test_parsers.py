"""Bytes from outside are read or refused in words, whatever they are; `tests.reliability.fuzz` goes on for longer."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS

EXAMPLES = {  # These have a whole cluster behind them
    "operations": 15,
    "generate requests": 60,
    "frames to the router": 40,
    "frames to a gateway": 40,
}


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name.replace(" ", "-"))
def test_bytes_from_outside_are_read_or_refused_in_words(
    target: Target, record_property: Callable[[str, object], None]
) -> None:
    seen: Counter[str] = Counter()

    @settings(deadline=None, max_examples=EXAMPLES.get(target.name, 200), database=None)
    @given(seed=st.integers(0, 2**32 - 1))
    def feed(seed: int) -> None:
        seen["inputs"] += 1
        seen["read"] += target.try_one(random.Random(seed))

    feed()
    for name, count in seen.items():
        record_property(name, count)
    assert seen["inputs"] >= EXAMPLES.get(target.name, 200) // 2


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name.replace(" ", "-"))
def test_the_same_seed_makes_the_same_input(target: Target) -> None:
    assert target.make(random.Random(5)) == target.make(random.Random(5))
