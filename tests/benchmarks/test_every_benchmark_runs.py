"""Each benchmark from its flags to its JSON, at its smallest size, or the test that runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from baton.harness.provenance import ROOT
from benchmarks.all import command, main, recording_for, run
from benchmarks.catalog import BENCHMARKS, Benchmark

pytestmark = pytest.mark.ray
RUN_HERE = [benchmark for benchmark in BENCHMARKS if not benchmark.own_test]


@pytest.mark.slow
@pytest.mark.parametrize("one", RUN_HERE, ids=lambda one: one.name)
def test_a_benchmark_gives_every_figure_that_it_promises(one: Benchmark, tmp_path: Path) -> None:
    recording = recording_for(one, "smoke", None, tmp_path) if one.recording is not None else None
    result = tmp_path / f"{one.name}.json"
    outcome = run(one, command(one, "smoke", recording, False, result), tmp_path)
    assert outcome.result is not None, (tmp_path / f"{one.name}.log").read_text()[-5000:]
    assert [figure for figure in one.promised if figure not in outcome.result.figures] == []
    assert outcome.result.size == "smoke"
    assert outcome.result.machine["cores"] >= 1


def test_those_that_are_not_run_here_are_run_by_the_test_they_name() -> None:
    for one in BENCHMARKS:
        if one.own_test:
            text = (ROOT / one.own_test).read_text()
            assert f'"{one.module_name}"' in text
            assert f'published("{one.name}")' in text


def test_a_benchmark_that_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    broken = Benchmark("broken", "none at all", "", module="benchmarks.no_such_module")
    lengths = next(one for one in BENCHMARKS if one.name == "output_length")
    monkeypatch.setattr("benchmarks.all.BENCHMARKS", (broken, lengths))
    monkeypatch.setattr("benchmarks.all.BY_NAME", {"broken": broken, "output_length": lengths})
    assert main(["--smoke", "--out", str(tmp_path)]) == 1
    output = capsys.readouterr().out
    assert "failed with code 1" in output
    assert "No module named benchmarks.no_such_module" in output
    assert "2 of 2  output_length" in output
    assert json.loads((tmp_path / "output_length.json").read_text())["figures"]["mae_tokens"] > 0


def test_a_full_run_without_its_recorded_trace_is_skipped_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["--only", "output_length_azure", "--out", str(tmp_path), "--traces", str(tmp_path)]) == 1
    output = capsys.readouterr().out
    assert "azure_2023_conversation.csv is not in --traces" in output


def test_the_full_run_has_the_arguments_of_the_catalogue_and_keeps_its_figures_under_its_own_name() -> None:
    azure = next(benchmark for benchmark in BENCHMARKS if benchmark.name == "output_length_azure")
    words = command(azure, "full", Path("/traces/azure_2023_conversation.csv"), True, Path("/out/x.json"))
    assert words[1:] == [
        *("-m", "benchmarks.output_length", "--trace", "/traces/azure_2023_conversation.csv"),
        *("--publish", "output_length_azure", "--json", "/out/x.json"),
    ]


def test_an_unknown_benchmark_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SystemExit, match=r"--only: unknown benchmark streming; there are .*streaming"):
        main(["--only", "streming"])
