"""A small load on a live cluster, and a Prometheus that scrapes it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tests.clients.cluster import MODEL, Served, serve
from tests.observability.prometheus import Prometheus, prometheus

PROMPT = "The prefill worker computes the prompt, and hands the pages over like a baton. " * 3
NUM_REQUESTS, NUM_CLIENTS = 24, 4
COUNTERS = ("baton_requests_total", "baton_completed_requests_total", "vllm:request_success_total")


@contextmanager
def scraped_cluster(folder: Path) -> Iterator[tuple[Served, Prometheus]]:
    """A cluster of one prefill and two decode workers that has answered requests, and their Prometheus."""
    with serve({"prefill": 1, "decode": 2}, policy="predicted_latency") as served:
        admin_http = served.read(lambda cluster: cluster.router.addresses.admin_http)
        with prometheus(folder, f"http://{admin_http}/sd") as scraper:
            scraper.until('count(up{job="baton"} == 1) == 2')
            for round_number in (1, 2):  # A rate needs two scrapes of each process, with a change between them
                answer_requests(served)
                for counter in COUNTERS:
                    scraper.until(f"sum({counter}) == {round_number * NUM_REQUESTS}")
            yield served, scraper


def answer_requests(served: Served) -> None:
    """Let the cluster answer requests of several clients, streamed and whole."""
    client = served.client()

    def ask(number: int) -> None:
        stream = client.completions.create(
            model=MODEL, prompt=f"{number % 3}: {PROMPT}", max_tokens=24, stream=True, extra_body={"ignore_eos": True}
        )
        assert list(stream)

    with ThreadPoolExecutor(NUM_CLIENTS) as clients:
        list(clients.map(ask, range(NUM_REQUESTS)))
