"""A real Prometheus scrapes a live cluster: it finds the processes at the router, and boards and alerts have data."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from baton.deploy.grafana_board import board
from tests.clients.cluster import MODEL, Served
from tests.observability.board_queries import ask, has_data
from tests.observability.load import scraped_cluster
from tests.observability.prometheus import Prometheus, needs_prometheus

pytestmark = needs_prometheus
SELDOM = {"Refusals", "Operations per second", "Tokens not shown, per second", "Error of predicted output length"}


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Prometheus]]:
    with scraped_cluster(tmp_path_factory.mktemp("prometheus")) as both:
        yield both


def test_prometheus_finds_router_and_gateways_at_the_router(scraped: tuple[Served, Prometheus]) -> None:
    _, scraper = scraped
    assert {series["metric"]["process"] for series in scraper.query("up == 1")} == {"router", "gateway-0"}


def test_every_panel_of_the_board_has_data_except_for_what_did_not_happen(scraped: tuple[Served, Prometheus]) -> None:
    answers = ask(board(), scraped[1])
    assert {query.panel for query in answers.without} <= SELDOM, [query.expression for query in answers.without]


def test_no_alert_fires_and_every_rule_can_be_evaluated(scraped: tuple[Served, Prometheus]) -> None:
    _, scraper = scraped
    (group,) = scraper.get("rules")["groups"]
    assert {rule["health"] for rule in group["rules"]} <= {"ok", "unknown"}
    assert not [rule for rule in group["rules"] if rule["state"] == "firing"]
    assert all(isinstance(scraper.query(rule["query"]), list) for rule in group["rules"])


def test_counters_agree_with_what_the_cluster_answered(scraped: tuple[Served, Prometheus]) -> None:
    served, scraper = scraped
    finished = served.read(lambda cluster: cluster.router.driver.core.explanations.finished)
    scraper.until(f'sum(vllm:request_success_total{{model_name="{MODEL}"}}) == {finished}')
    scraper.until(f"sum(baton_completed_requests_total) == {finished}")
    assert has_data(scraper.query("histogram_quantile(0.9, sum by (le) (vllm:time_to_first_token_seconds_bucket))"))


def test_an_exemplar_names_a_request_that_explain_finds(scraped: tuple[Served, Prometheus]) -> None:
    served, scraper = scraped
    found = scraper.get("query_exemplars", query="vllm:time_to_first_token_seconds_bucket", start="0", end="9999999999")
    names = {exemplar["labels"]["request_id"] for series in found for exemplar in series["exemplars"]}
    explained = served.read(lambda cluster: {name for name, _ in cluster.router.driver.core.explanations.newest()})
    assert names
    assert names <= explained
