"""Table and JSON of benchmarks.gpu state the outcome of every figure, even of parts that failed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from baton.harness.report import Goal
from benchmarks.gpu.__main__ import earlier_parts, main, parse, run_part
from benchmarks.gpu.figures import EXPECTED, goals
from benchmarks.gpu.parts import PARTS, PartPlan, broken_off, skipped
from benchmarks.gpu.results import Failure, PartResult, one_sentence, read_json, rows, write_json
from benchmarks.gpu.sizes import SIZES

ROOT = Path(__file__).resolve().parents[2]
EIGHT_B = SIZES["llama-8b"]


def test_the_figures_keep_their_published_names() -> None:
    names = {name for figures in EXPECTED.values() for name in figures(EIGHT_B)}
    for batch in (1, 16, 64, 256):
        for context in ("1k", "4k"):
            assert f"decode_ratio_to_floor_b{batch}_{context}" in names
    assert {"prefill_ratio_to_matmul_2k", "prefill_ratio_to_matmul_8k"} <= names
    assert {"handoff_ratio_to_copy", "handoff_hidden_share"} <= names
    assert set(goals(EIGHT_B)) <= names
    assert "decode_ratio_to_floor_b256_1k" not in goals(EIGHT_B)
    assert list(EXPECTED) == [plan.name for plan in PARTS]


def test_the_documentation_has_every_figure_with_its_goal() -> None:
    documented = (ROOT / "docs" / "benchmarks.md").read_text()
    judged = goals(EIGHT_B)
    for figures in EXPECTED.values():
        for name in figures(EIGHT_B):
            (row,) = [line for line in documented.splitlines() if line.startswith(f"| `{name}` |")]
            assert row.split("|")[3].strip() == str(judged.get(name, ""))


def test_every_figure_has_a_row_with_its_outcome() -> None:
    result = PartResult(
        figures={"measured": 1.1, "beside": 3.0},
        failures=[Failure("a step", ["broken"], "ValueError: no"), Failure("another", [], "OSError: gone")],
        skipped={"left out": "no room"},
    )
    expected = ["measured", "broken", "left out"]
    assert rows(result, expected, {"measured": Goal(1.25, at_most=True), "broken": Goal(1.0)}) == [
        ("measured", "1.1", "≤ 1.25", "met"),
        ("broken", "failed: ValueError: no", "≥ 1", ""),
        ("left out", "skipped: no room", "", ""),
        ("beside", "3", "", ""),
        ("another", "failed: OSError: gone", "", ""),
    ]


def test_an_error_becomes_one_line() -> None:
    assert one_sentence(ValueError("first\nsecond")) == "ValueError: first"
    assert one_sentence(KeyError()) == "KeyError"
    assert len(one_sentence(ValueError("x" * 1000))) <= 160


def test_an_interrupted_part_keeps_its_measurements() -> None:
    result = PartResult(figures={"a": 1.0}, skipped={"b": "no room"}, doing="the third")
    ended = broken_off(result, PARTS[2], "it took longer than 100 s", "the log", ["a", "b", "c"])
    assert ended.figures == {"a": 1.0}
    assert [(failure.figures, failure.sentence) for failure in ended.failures] == [
        (["c"], "it took longer than 100 s during: the third")
    ]


def test_a_result_survives_writing_and_reading_its_file(tmp_path: Path) -> None:
    result = PartResult({"a": 1.0}, [Failure("s", ["b"], "no")], {"c": "why"}, ["n"], {"gpu": "x"}, {"d": {}}, "", 2.0)
    write_json(tmp_path / "x.json", result.to_json())
    assert PartResult.from_json(read_json(tmp_path / "x.json")) == result
    (tmp_path / "y.json").write_text('{"figures": ')
    assert read_json(tmp_path / "y.json") == {}


def test_a_part_is_not_started_with_too_little_time_left() -> None:
    result = skipped(PARTS[-1], 3.0, ["a"])
    assert result.skipped["a"].startswith("3 s of the budget were left")
    assert not result.failures


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--only", "decode,encode"])
    assert "encode" in capsys.readouterr().err


def _part_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> PartResult:
    """What `run_part` makes of a part whose module does this."""
    (tmp_path / "part_of_a_test.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    args = parse(["--device", "cpu", "--shape", "tiny", "--out", str(tmp_path / "gpu.json")])
    return run_part(PartPlan("prefill", "part_of_a_test", 0, 2), args, 2.0)


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("import os; os.abort()", "its process ended with code -6"),
        ("import sys; sys.exit('no such library')", "its process ended with code 1"),
        ("import signal; signal.pause()", "it took longer than 2 s"),
    ],
)
def test_a_process_that_dies_or_hangs_is_a_failure_of_its_part_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, sentence: str
) -> None:
    result = _part_of(tmp_path, monkeypatch, code)
    assert [failure.sentence for failure in result.failures] == [f"{sentence} during: starting"]
    assert result.failures[0].figures == EXPECTED["prefill"](SIZES["tiny"])
    if "library" in code:
        assert "no such library" in result.failures[0].traceback


def test_a_terminated_run_terminates_its_part(tmp_path: Path) -> None:
    held = tmp_path / "held"
    os.mkfifo(held)
    says_it_runs = f"pipe = open({str(held)!r}, 'w')\npipe.write('x')\npipe.flush()"
    (tmp_path / "part_of_a_test.py").write_text(f"import signal\n{says_it_runs}\nsignal.pause()\n")
    out = str(tmp_path / "gpu.json")
    code = (
        f"import sys; sys.path.append({str(tmp_path)!r})\n"
        "from benchmarks.gpu import __main__ as script\n"
        "script.PARTS = (script.PartPlan('decode', 'part_of_a_test', 0, 60),)\n"
        f"script.main(['--device', 'cpu', '--shape', 'tiny', '--only', 'decode', '--out', {out!r}])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    with held.open() as reader:  # opened when the part runs
        assert reader.read(1) == "x"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
        assert reader.read() == ""  # end of file: no process holds it open


def test_parts_of_an_earlier_run_are_kept_only_from_the_same_device(tmp_path: Path) -> None:
    path = tmp_path / "before.json"
    parts = {"decode": PartResult({"a": 1.0}).to_json(), "prefill": PartResult({"b": 1.0}).to_json()}
    write_json(path, {"setting": {"device": "cpu", "shape": "tiny"}, "parts": parts})
    flags = ["--only", "decode", "--keep", str(path), "--shape", "tiny", "--device"]
    assert list(earlier_parts(parse([*flags, "cpu"]))) == ["prefill"]
    assert earlier_parts(parse([*flags, "cuda"])) == {}


def test_without_a_gpu_the_command_says_how_to_try_it_on_a_cpu(monkeypatch: pytest.MonkeyPatch, capsys) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("benchmarks.gpu.__main__.has_cuda", lambda: False)
    assert main([]) == 2
    assert "--device cpu --shape tiny" in capsys.readouterr().out


ALL = sorted(f"benchmarks.gpu.{path.stem}" for path in (ROOT / "benchmarks" / "gpu").glob("*.py"))
COMPUTING = [f"benchmarks.gpu.{name}" for name in ("compiling", "correctness", "decode", "prefill", "kernels", "child")]
NEVER_NEEDED = ["ray", "typer", "torchvision", "pytest", "hypothesis", "tests"]


@pytest.mark.parametrize(
    ("modules", "missing"),
    [
        ([*ALL, "baton.worker.build", "baton.router.build"], NEVER_NEEDED),
        (COMPUTING, [*NEVER_NEEDED, "nixl", "zmq", "grpc"]),
    ],
    ids=["all parts", "parts of one process, without the links"],
)
def test_nothing_is_imported_that_an_offline_gpu_host_may_lack(modules: list[str], missing: list[str]) -> None:
    code = (
        "import sys, importlib\n"
        f"sys.modules.update(dict.fromkeys({missing!r}))\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
