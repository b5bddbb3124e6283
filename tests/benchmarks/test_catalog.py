"""The catalogue lists every benchmark, and what its entries refer to exists."""

from __future__ import annotations

import ast

import pytest

from baton.harness.provenance import ROOT
from baton.harness.results import published
from benchmarks.catalog import BENCHMARKS, Benchmark, expand
from benchmarks.tables import age_of

NO_BENCHMARKS = {"benchmarks.all", "benchmarks.compare", "benchmarks.tables"}
NO_BENCHMARKS.add("benchmarks.vllm_peer")  # runs in an environment of its own


def _programs() -> set[str]:
    """The modules of benchmarks/ and tests/reliability/ that can be run."""
    found = set()
    for folder in ("benchmarks", "tests/reliability"):
        for path in (ROOT / folder).glob("*.py"):
            tree = ast.parse(path.read_text())
            if any(isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in tree.body):
                found.add(f"{folder.replace('/', '.')}.{path.stem}")
    return found - NO_BENCHMARKS


def test_every_benchmark_and_every_reliability_run_is_in_the_catalogue() -> None:
    assert {one.module_name for one in BENCHMARKS} == _programs()


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda benchmark: benchmark.name)
def test_the_code_a_benchmark_measures_exists_and_its_figures_are_documented(benchmark: Benchmark) -> None:
    assert [path for path in benchmark.code_paths if not (ROOT / path).exists()] == []
    assert len(set(benchmark.promised)) == len(benchmark.promised) > 0
    assert f"<!-- figures: {benchmark.name} " in (ROOT / "docs" / "benchmarks.md").read_text()


@pytest.mark.parametrize("one", BENCHMARKS, ids=lambda one: one.name)
def test_a_published_run_of_the_present_code_has_every_figure_that_the_catalogue_promises(one: Benchmark) -> None:
    result = published(one.name)
    present = bool(result.figures) and age_of(result) == 0
    assert not present or [figure for figure in one.promised if figure not in result.figures] == []


def test_a_figure_with_choices_stands_for_each_of_them() -> None:
    assert expand("a {b,c}_{1,2} d_*") == ("a", "b_1", "b_2", "c_1", "c_2", "d_*")
    assert Benchmark("x", "", "", higher="a b_*", neutral="{c,d}").promised == ("a", "c", "d")


def test_a_named_figure_has_its_own_direction_and_others_that_of_their_pattern() -> None:
    benchmark = Benchmark("x", "", "", higher="rate rate_*", lower="time", neutral="rate_offered")
    assert [benchmark.direction(name) for name in ("rate", "rate_2", "time", "rate_offered", "other")] == [
        *("higher", "higher", "lower", None, None)
    ]
