"""A cluster that all tests of this folder share, unless they kill or secure one."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from tests.clients.cluster import Served, serve


@pytest.fixture(scope="package")
def served() -> Iterator[Served]:
    """Every request is prefilled on one worker and decoded on another."""
    with serve({"prefill": 1, "decode": 1}) as running:
        yield running


@pytest.fixture(scope="package")
def client(served: Served) -> Iterator[openai.OpenAI]:
    with served.client(max_retries=0) as made:
        yield made
