"""The catalogue lists every benchmark, and what its entries refer to exists."""

from __future__ import annotations

import ast

import pytest

from benchmarks.catalog import BENCHMARKS, Benchmark, deadline_s, expand
from benchmarks.provenance import ROOT

NO_BENCHMARKS = {"all", "compare", "tables", "vllm_peer"}  # the last one runs in its own environment


def _programs() -> set[str]:
    """The modules of benchmarks/ that can be run."""
    found = set()
    for path in (ROOT / "benchmarks").glob("*.py"):
        tree = ast.parse(path.read_text())
        if any(isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in tree.body):
            found.add(path.stem)
    return found - NO_BENCHMARKS


def test_every_benchmark_is_in_the_catalogue() -> None:
    assert {benchmark.module_name for benchmark in BENCHMARKS} == _programs()


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda benchmark: benchmark.name)
def test_the_code_a_benchmark_measures_exists_and_its_figures_are_documented(benchmark: Benchmark) -> None:
    assert [path for path in benchmark.code_paths if not (ROOT / path).exists()] == []
    assert len(set(benchmark.promised)) == len(benchmark.promised) > 0
    assert f"<!-- figures: {benchmark.name} " in (ROOT / "docs" / "benchmarks.md").read_text()


def test_a_figure_with_choices_stands_for_each_of_them() -> None:
    assert expand("a {b,c}_{1,2} d_*") == ("a", "b_1", "b_2", "c_1", "c_2", "d_*")
    assert Benchmark("x", "", "", higher="a b_*", neutral="{c,d}").promised == ("a", "c", "d")


def test_a_named_figure_has_its_own_direction_and_others_that_of_their_pattern() -> None:
    benchmark = Benchmark("x", "", "", higher="rate rate_*", lower="time", neutral="rate_offered")
    assert [benchmark.direction(name) for name in ("rate", "rate_2", "time", "rate_offered", "other")] == [
        *("higher", "higher", "lower", None, None)
    ]


def test_a_deadline_is_the_longest_of_those_that_run_the_same_module() -> None:
    assert deadline_s("policies", "full") > deadline_s("policies", "quick") > deadline_s("policies", "smoke")
    assert deadline_s("something else", "full") > 0
