"""The flags of a benchmark and the contents of its JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from baton.harness import deadline
from baton.harness.report import Goal, Options, Report, arguments, command_line
from baton.harness.results import published, read_result, write_json


@pytest.fixture(autouse=True)
def no_deadline(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Keeps the test process free of deadlines; the list of limits that would have been set."""
    limits: list[float] = []
    monkeypatch.setattr(deadline, "enforce", lambda limit_s, name: limits.append(limit_s))
    return limits


def _options(*words: str) -> Options:
    parser = arguments("doc", "python -m tests.reliability.fuzz --minutes 2")
    parser.add_argument("--minutes", type=float, default=2.0)
    return parser.parse_args(words)


def test_a_run_has_one_of_three_sizes() -> None:
    assert [_options(*words).pick(1, 2, 3) for words in ((), ("--quick",), ("--smoke",))] == [1, 2, 3]
    assert [_options(*words).quick for words in ((), ("--quick",), ("--smoke",))] == [False, True, True]
    with pytest.raises(SystemExit):
        _options("--quick", "--smoke")


def test_requested_time_is_added_to_the_deadline(no_deadline: list[float]) -> None:
    _options(), _options("--minutes", "10"), _options("--quick", "--minutes", "10"), _options("--deadline-s", "7")
    assert no_deadline[1] - no_deadline[0] == 60 * 8
    assert no_deadline[2:] == [300.0, 7.0]


def test_a_long_benchmark_names_its_own_deadline(no_deadline: list[float]) -> None:
    arguments("doc", "python -m benchmarks.planner --jobs 2", full_s=5400.0).parse_args([])
    assert no_deadline == [5400.0]


def test_a_run_keeps_where_its_figures_come_from(tmp_path: Path) -> None:
    options = _options("--json", str(tmp_path / "x.json"), "--seed", "4", "--minutes", "0.5")
    report = Report("fuzz", {"inputs": Goal(1)}, {"inputs": 12345678.0, "rate": 1 / 3}, {"seed": 4}, {"more": [1]})
    report.publish(options)
    result = read_result(tmp_path / "x.json")
    assert result.figures == {"inputs": 12345700.0, "rate": 0.333333}
    assert result.goals == {"inputs": Goal(1)}
    assert result.command == "python -m tests.reliability.fuzz --seed 4 --minutes 0.5"
    assert {"cpu", "cores", "memory_gib", "python"} == set(result.machine)
    assert set(result.load_average) == {"before", "after"}
    assert result.wall_s is not None
    assert result.source == "measured"
    assert len(result.date) == len("2026-01-01")
    assert json.loads((tmp_path / "x.json").read_text())["details"] == {"more": [1]}


def test_a_full_run_is_kept_under_its_name_without_its_details(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baton.harness.report.FOLDER", tmp_path / "results")
    Report("fuzz", figures={"inputs": 1.0}, details={"more": [1]}).publish(_options("--publish"))
    Report("fuzz", figures={"inputs": 2.0}).publish(_options("--publish", "fuzz_again"))
    kept = [published(name, tmp_path / "results") for name in ("fuzz", "fuzz_again", "never")]
    assert [one.figures for one in kept] == [{"inputs": 1.0}, {"inputs": 2.0}, {}]
    assert kept[1].name == "fuzz_again"
    assert "details" not in json.loads((tmp_path / "results" / "fuzz.json").read_text())


def test_only_a_full_run_can_be_kept(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _options("--publish", "--smoke")
    assert "--publish keeps full runs only" in capsys.readouterr().err


def test_a_figure_that_is_no_finite_number_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"fuzz measured no finite number for wrong"):
        Report("fuzz", figures={"right": 1.0, "wrong": float("nan")}).publish(_options("--json", str(tmp_path / "x")))
    assert not (tmp_path / "x").exists()


def test_a_recorded_command_omits_output_and_input_paths() -> None:
    given = ["--trace", "/home/me/trace.jsonl", "--json", "out.json", "--publish", "--jobs", "2", "--deadline-s", "9"]
    assert command_line("benchmarks.policies", given) == "python -m benchmarks.policies --trace trace.jsonl --jobs 2"


def test_a_file_that_is_not_a_result_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"figures": 3}')
    with pytest.raises(ValueError, match=r"x\.json is not a result of a benchmark"):
        read_result(tmp_path / "x.json")


def test_a_pipe_that_gets_the_figures_stays_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_json(pipe, {"figure": 1})
    assert json.loads(os.read(reader, 1000)) == {"figure": 1}
    assert pipe.is_fifo()
    os.close(reader)
