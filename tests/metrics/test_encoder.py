"""Our text of a scrape is what prometheus_client writes of the same values, and its parsers read it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import core as prometheus
from prometheus_client import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar as TheirExemplar
from prometheus_client.utils import floatToGoString

from baton.metrics.encoder import EOF, encode
from baton.metrics.metric import Kind, Metric, Process
from baton.metrics.values import MAX_EXEMPLAR, Distribution, Exemplar, Family, Recorder

COUNTER = Metric("baton_a_total", Kind.COUNTER, Process.ROUTER, 'A "counter".', ("one", "two"))
GAUGE = Metric("baton_b", Kind.GAUGE, Process.ROUTER, "A gauge \\ of\nmine.", ("one", "two"))
PLAIN = Metric("baton_c", Kind.GAUGE, Process.ROUTER, "A gauge.")
HISTOGRAM = Metric("baton_d_seconds", Kind.HISTOGRAM, Process.ROUTER, "Times.", ("model_name",), (0.001, 0.5, 10.0))
LABELS = st.tuples(st.text(max_size=8), st.text(max_size=8))
IDS = st.text("abz019-_. é", max_size=8)  # Their parser reads no quoted text in an exemplar; Prometheus does
NUMBERS = st.integers(0, 1 << 53) | st.floats(0, 1e9)


class Theirs(Collector):
    """The same families, in prometheus_client's types."""

    def __init__(self, families: Sequence[Family]) -> None:
        self.families = families

    def collect(self) -> Iterator[prometheus.Metric]:
        """In prometheus_client's types."""
        kinds = {Kind.COUNTER: prometheus.CounterMetricFamily, Kind.GAUGE: prometheus.GaugeMetricFamily}
        for family in self.families:
            metric = family.metric
            if metric.kind is Kind.HISTOGRAM:
                histogram = prometheus.HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
                for labels, value in family.series:
                    assert isinstance(value, Distribution)
                    histogram.add_metric(labels, list(_buckets(value)), value.total)
                yield histogram
                continue
            plain = kinds[metric.kind](metric.name, metric.help, labels=metric.labels)
            for labels, value in family.series:
                assert not isinstance(value, Distribution)
                plain.add_metric(labels, value)
            yield plain


def _buckets(value: Distribution) -> Iterator[Any]:
    count = 0
    for index, bound in enumerate((*value.bounds, float("inf"))):
        count += value.counts[index]
        kept = value.exemplars.get(index)
        exemplar = None if kept is None else TheirExemplar(dict(kept.labels), kept.value, kept.wall_s)
        yield floatToGoString(bound), count, exemplar


def _families(labels: Sequence[tuple[str, str]], values: Sequence[float], ids: Sequence[str]) -> list[Family]:
    distribution = Distribution(HISTOGRAM.buckets)
    for index, request_id in enumerate(ids):
        exemplar = Exemplar((("request_id", request_id),), values[index % len(values)], 1000.0 + index)
        distribution.add_with(exemplar.value, exemplar)
    series = list(dict(zip(labels, values, strict=False)).items())
    return [
        Family(COUNTER, series),
        Family(GAUGE, series),
        Family(PLAIN, [((), values[0])]),
        Family(HISTOGRAM, [(("m",), distribution)]),
    ]


@settings(max_examples=30)
@given(st.lists(LABELS, min_size=1), st.lists(NUMBERS, min_size=1), st.lists(IDS))
@pytest.mark.parametrize(
    ("openmetrics", "parser", "theirs"),
    [(False, parse, generate_latest), (True, parse_openmetrics, generate_openmetrics)],
    ids=["text", "openmetrics"],
)
def test_it_reads_as_prometheus_clients_own_text(
    openmetrics: bool,
    parser: Callable[[str], Iterator[prometheus.Metric]],
    theirs: Callable[[Collector], bytes],
    labels: list[tuple[str, str]],
    values: list[float],
    ids: list[str],
) -> None:
    families = _families(labels, values, ids)
    ours = encode(families, openmetrics) + EOF * openmetrics
    expected = list(parser(theirs(Theirs(families)).decode()))
    assert list(parser(ours)) == expected


def test_an_exemplar_names_the_latest_request_of_a_bucket_unless_its_name_is_too_long() -> None:
    recorder = Recorder()
    for number, name in enumerate(("first", "latest", "x" * MAX_EXEMPLAR)):
        recorder.observe(HISTOGRAM, 0.25, "m", exemplar=Exemplar((("request_id", name),), 0.25, 7.0 + number))
    text = encode(recorder.families(), True)
    assert 'baton_d_seconds_bucket{model_name="m",le="0.5"} 3 # {request_id="latest"} 0.25 8.000\n' in text
    assert text.count("#") == 3
    assert "request_id" not in encode(recorder.families(), False)


def test_a_value_on_a_bound_belongs_to_its_bucket() -> None:
    distribution = Distribution((1.0, 2.0))
    for value in (1.0, 1.5, 2.0, 2.5):
        distribution.add(value)
    assert (distribution.counts, distribution.total) == ([1, 2, 1], 7.0)


def test_a_scrape_is_a_copy() -> None:
    recorder = Recorder()
    recorder.begin(HISTOGRAM, labels=[("m",)])
    recorder.begin(COUNTER, labels=[("a", "b")])
    before = recorder.families()
    recorder.observe(HISTOGRAM, 1.0, "m")
    recorder.count(COUNTER, "a", "b", by=3)
    assert "3" in encode(recorder.families(), False) and "3" not in encode(before, False)


def test_a_colon_in_a_name_stays() -> None:
    metric = Metric("vllm:e", Kind.GAUGE, Process.ROUTER, "A gauge.")
    for openmetrics, parser in ((False, parse), (True, parse_openmetrics)):
        (read,) = parser(encode([Family(metric, [((), 1)])], openmetrics) + EOF * openmetrics)
        assert [(sample.name, sample.value) for sample in read.samples] == [("vllm:e", 1)]
