"""Comparison of two runs: the worst change first, whether a figure should rise or fall."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from baton.harness.results import Goal, Result, write_json
from benchmarks.compare import changes, main, warnings

OLD = Result(
    "engine",
    {"tokens_per_s": 100.0, "ttft_ms": 10.0, "tpot_ms": 4.0, "requests": 7.0, "errors": 0.0, "spared": 2.0},
    machine={"cpu": "A", "cores": 2},
    setting={"threads": 2},
    goals={"errors": Goal(0, at_most=True), "spared": Goal(0, at_most=True)},
)
NEW = replace(
    OLD,
    figures={"tokens_per_s": 50.0, "ttft_ms": 5.0, "tpot_ms": 5.0, "requests": 9.0, "errors": 1.0, "spared": 0.0},
)


def test_the_worst_change_comes_first_and_neutral_changes_last() -> None:
    found = [(change.figure, change.better) for change in changes(OLD, NEW)]
    assert found == [
        *(("errors", 0.0), ("tokens_per_s", 0.5), ("tpot_ms", 0.8), ("ttft_ms", 2.0)),
        *(("spared", float("inf")), ("requests", None)),
    ]


def test_an_equal_figure_is_not_a_change_even_at_zero() -> None:
    assert {change.better for change in changes(OLD, OLD)} == {1.0, None}


def test_a_difference_that_changed_its_sign_is_better_or_worse_but_has_no_ratio() -> None:
    old, new = (Result("streaming", {"added_ttft_ms_p50": value}) for value in (0.5, -0.1))
    (change,) = changes(old, new)
    assert change.ratio is None
    assert change.better == float("inf")


def test_another_machine_setting_or_size_and_a_busy_machine_give_warnings() -> None:
    assert warnings(OLD, NEW) == []
    other = replace(NEW, machine={"cpu": "B", "cores": 2}, setting={}, size="quick", load_average={"before": 1.5})
    text = " ".join(warnings(OLD, other))
    assert "One is a full run, the other a quick run." in text
    assert "The machine differs: cpu A and B." in text
    assert "The setting differs: threads 2 and unknown." in text
    assert "The new run began at a load average of 1.5 on 2 cores." in text


def test_figures_that_only_one_run_has_are_named() -> None:
    assert warnings(OLD, replace(OLD, figures={"tokens_per_s": 1.0, "fresh": 2.0}))[-1] == "Only the new run has fresh."


def test_the_command_prints_ratios_and_rejects_a_file_that_is_not_a_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    for name, result in (("old", OLD), ("new", NEW)):
        write_json(tmp_path / f"{name}.json", result.to_json())
    assert main([str(tmp_path / "old.json"), str(tmp_path / "new.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line for line in lines if "tpot_ms" in line]
    assert "1.250" in row
    assert "0.800×" in row
    (tmp_path / "new.json").write_text("[]")
    assert main([str(tmp_path / "old.json"), str(tmp_path / "new.json")]) == 2
    assert "new.json is not a result of a benchmark" in capsys.readouterr().err


def test_two_runs_without_a_common_figure_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = Result("router", {"requests_per_s": 5.0})
    for name, result in (("old", OLD), ("new", other)):
        write_json(tmp_path / f"{name}.json", result.to_json())
    assert main([str(tmp_path / "old.json"), str(tmp_path / "new.json")]) == 2
    assert "share no figure" in capsys.readouterr().err
