"""Clients that leave, and processes that die while a client reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from baton.harness.process_cluster import ProcessCluster
from baton.router.core.live_request import LiveRequest
from tests.clients.cluster import MODEL, Served, pages_in_use, serve
from tests.clients.router_process import restartable

FREED_WITHIN_S = 1.0
LONG: dict[str, Any] = {
    "model": MODEL,
    "max_tokens": 600,
    "temperature": 0.8,
    "seed": 5,
    "extra_body": {"ignore_eos": True, "return_token_ids": True},
}


@pytest.fixture(scope="module")
def pool() -> Iterator[Served]:
    with serve({"prefill": 1, "decode": 2}) as running:
        yield running


def _ids(chunks: Any) -> list[int]:
    return [token_id for chunk in chunks for token_id in chunk.choices[0].model_extra["token_ids"]]


def _live(cluster: ProcessCluster) -> list[LiveRequest]:
    return list(cluster.router.driver.core.requests.live.values())


def test_a_stream_that_is_closed_early_frees_the_pages_of_both_workers(pool: Served) -> None:
    with pool.client(max_retries=0) as client:
        prompt = [11] * 300
        stream = client.completions.create(prompt=prompt, stream=True, **LONG)
        for _ in range(3):
            next(stream)
        pool.seconds_until(lambda cluster: any(pages_in_use(cluster).values()))
        stream.close()
        assert pool.seconds_until(lambda cluster: not any(pages_in_use(cluster).values())) < FREED_WITHIN_S
        assert pool.read(lambda cluster: cluster.router.driver.core.live) == 0


def test_a_client_that_leaves_before_its_whole_answer_frees_the_pages(pool: Served) -> None:
    with pool.client(max_retries=0, timeout=0.3) as client, pytest.raises(openai.APITimeoutError):
        client.completions.create(prompt=[12] * 300, **LONG)
    assert pool.seconds_until(lambda cluster: not any(pages_in_use(cluster).values())) < FREED_WITHIN_S


def test_a_stream_survives_the_death_of_its_decode_worker(pool: Served) -> None:
    prompt = [13] * 40
    with pool.client(max_retries=0) as client:
        expected = client.completions.create(prompt=prompt, **LONG).choices[0].model_extra
        stream = client.completions.create(prompt=prompt, stream=True, **LONG)
        begun = [next(stream) for _ in range(3)]
        pool.seconds_until(lambda cluster: any(record.decoding for record in _live(cluster)))
        victim = pool.read(lambda cluster: _live(cluster)[0].decode_worker)
        pool.kill(victim)
        assert expected is not None
        assert _ids([*begun, *stream]) == expected["token_ids"]


@pytest.mark.slow
def test_a_stream_survives_a_killed_router_and_the_next_request_is_served() -> None:
    prompt = [14] * 40
    with restartable() as router, router.client(max_retries=0) as client:
        expected = client.completions.create(prompt=prompt, **LONG).choices[0].model_extra
        stream = client.completions.create(prompt=prompt, stream=True, **LONG)
        begun = [next(stream) for _ in range(3)]
        router.kill()
        assert router.gateway.driver.session.streams  # The answer is under way
        router.start()
        assert expected is not None
        assert _ids([*begun, *stream]) == expected["token_ids"]
        again = client.completions.create(prompt=prompt, **LONG).choices[0].model_extra
        assert again is not None and again["token_ids"] == expected["token_ids"]
