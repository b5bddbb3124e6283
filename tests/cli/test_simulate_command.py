"""`baton simulate` and `baton plan` as a user types them, on small workloads."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from baton.protocol.messages import Release
from baton.router.core.commands import SendToWorker
from baton.router.core.transfers import Transfers
from baton.simulator.faults import draw
from tests.cli.commands import baton, widen

SMALL = [
    "--model",
    "llama-3.1-8b",
    "--requests",
    "40",
    "--rate",
    "20",
    "--prompt-tokens",
    "300",
    "--output-tokens",
    "30",
]
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    widen(monkeypatch, 160)


def test_a_simulation_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert baton("simulate", *SMALL, "--prefill", "1", "--decode", "2") == 0
    shown = capsys.readouterr()
    assert "1 × h100: 16 GB of weights" in shown.err
    assert "1 prefill + 2 decode (3 × h100)" in shown.err
    assert "40 requests" in shown.err
    for word in (
        "TTFT",
        "TPOT",
        "ITL",
        "p99",
        "objectives met",
        "longest prompts",
        "goodput",
        "refused",
        "prefix hits",
    ):
        assert word in shown.out
    assert "prefill " in shown.out.split("utilisation")[1]


def test_without_objectives_none_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert baton("simulate", *SMALL, "--mixed", "1", "--no-slo") == 0
    shown = capsys.readouterr()
    assert "objectives  none" in shown.err
    assert "objectives met" not in shown.out


def test_json_holds_the_figures_and_what_each_worker_did(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--prefill", "1", "--decode", "1", "--mixed", "1", "--tensor-parallel", "2", "--policy", "round_robin"]
    documents = []
    for _ in range(2):
        assert baton("simulate", *SMALL, *options, "--json") == 0
        documents.append(json.loads(capsys.readouterr().out))
    assert documents[0] == documents[1]
    document = documents[0]
    assert set(document) == {"setup", "tensor_parallel", "pools", "figures", "workers"}
    assert document["tensor_parallel"] == {"prefill": 2, "decode": 2, "mixed": 2}
    assert document["pools"] == {"prefill": 1, "decode": 1, "mixed": 1}
    assert document["figures"]["requests"] == 40
    assert 0 <= document["figures"]["slo_attainment"] <= 1
    assert {"ttft_s_p99", "tpot_s_p50", "itl_s_p90", "utilisation_decode", "bytes_moved"} <= set(document["figures"])
    assert [worker["role"] for worker in document["workers"]] == ["prefill", "decode", "mixed"]
    assert not any(worker["pages_in_use"] for worker in document["workers"])


def test_pools_have_degrees_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--prefill", "1", "--decode", "1", "--tensor-parallel", "2", "--decode-tensor-parallel", "4"]
    assert baton("simulate", *SMALL, *options) == 0
    shown = capsys.readouterr().err
    assert "prefill worker  2 × h100: 16 GB of weights" in shown
    assert "decode worker   4 × h100: 16 GB of weights" in shown
    assert "1 prefill + 1 decode (6 × h100)" in shown


def test_a_trace_is_replayed_in_part_and_faster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace.jsonl"
    rows = [{"timestamp": 1000 * at, "input_length": 600, "output_length": 4, "hash_ids": [7, at]} for at in range(9)]
    trace.write_text("\n".join(map(json.dumps, rows)))
    options = ["--model", "llama-3.1-8b", "--trace", str(trace), "--requests", "5", "--scale", "2", "--json"]
    assert baton("simulate", *options) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["figures"]["requests"] == 5
    assert document["figures"]["requests_per_s"] == pytest.approx(2.5)
    assert document["setup"]["page_size"] == 512
    assert document["figures"]["prefix_hit_rate"] > 0.2
    assert document["pools"] == {"prefill": 4, "decode": 4, "mixed": 0}


def test_plots_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    folder = tmp_path / "new" / "plots"
    assert baton("simulate", *SMALL, "--prefill", "1", "--decode", "1", "--plots", str(folder)) == 0
    assert {path.name for path in folder.iterdir()} == {"latency.png", "attainment.png", "utilisation.png"}
    assert all(path.read_bytes().startswith(PNG) for path in folder.iterdir())
    assert "latency.png" in capsys.readouterr().err


def test_missing_matplotlib_is_reported_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    assert baton("simulate", *SMALL, "--plots", str(tmp_path / "plots")) == 1
    shown = capsys.readouterr()
    assert (
        shown.err.strip() == "error: Plots need matplotlib: install it with pip install '.[plots]' in Baton's checkout."
    )
    assert not (tmp_path / "plots").exists()


@pytest.mark.parametrize("command", [("simulate",), ("plan", "--gpus", "8")], ids=lambda words: words[0])
@pytest.mark.parametrize(
    ("option", "value", "word"),
    [
        ("--trace", "no-such-trace.csv", "cannot be read"),
        ("--model", "no-such-model", "llama-3.1-70b"),
        ("--gpu", "abacus", "h200"),
        ("--policy", "best", "cache_aware"),
    ],
)
def test_a_mistake_is_reported_in_one_sentence(
    command: tuple[str, ...], option: str, value: str, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert baton(*command, option, value) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert word in shown.err


def test_too_few_accelerators_for_one_worker_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert baton("plan", "--gpus", "3", "--model", "llama-3.1-70b") == 1
    assert "One worker takes 4 × h100" in capsys.readouterr().err


PLAN = ["plan", *SMALL[:2], "--requests", "30", "--prompt-tokens", "2000", "--output-tokens", "40", "--gpus", "2"]


def test_a_plan_ranks_every_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert baton(*PLAN, "--gpu", "l40s", "--plots", str(tmp_path)) == 0
    shown = capsys.readouterr()
    assert "2 × l40s to divide" in shown.err
    assert "1 prefill + 1 decode" in shown.out
    assert "2 mixed" in shown.out
    assert "Best: " in shown.out
    assert {path.name for path in tmp_path.iterdir()} == {"goodput.png", "load.png"}


@pytest.mark.slow
def test_a_plan_is_the_same_with_more_processes(capsys: pytest.CaptureFixture[str]) -> None:
    documents = []
    for jobs in ("1", "2"):
        assert baton(*PLAN, "--gpu", "l40s", "--jobs", jobs, "--json") == 0
        documents.append(json.loads(capsys.readouterr().out))
    assert documents[0] == documents[1]
    document = documents[0]
    assert document["tensor_parallel"] == {"prefill": 1, "decode": 1, "mixed": 1}
    assert document["best"] == document["splits"][0]["pools"]
    goodputs = [split["goodput"] for split in document["splits"]]
    assert goodputs == sorted(goodputs, reverse=True)
    for split in document["splits"]:
        assert [probe["scale"] for probe in split["probes"]] == sorted(probe["scale"] for probe in split["probes"])
        assert split["best"] is None or split["best"]["attainment"] >= 0.9


def test_a_schedule_of_faults_is_shown_and_played(capsys: pytest.CaptureFixture[str]) -> None:
    assert baton("simulate", "--faults", "--seed", "3", "--keep", "1") == 0
    shown = capsys.readouterr()
    assert str(draw(3).keeping([1])) in shown.err
    assert "promises broken    none" in shown.out


def test_a_schedule_that_fails_is_shrunk_and_says_how_it_is_replayed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    outgoing = Transfers.outgoing

    def at_once(self: Transfers, order: SendToWorker, target: str = "") -> list[SendToWorker]:
        return [order] if isinstance(order.message, Release) else outgoing(self, order, target)

    monkeypatch.setattr(Transfers, "outgoing", at_once)
    assert baton("simulate", "--faults", "--seed", "0", "--schedules", "300") == 1
    replay = re.search(r"replay it: baton (.*)", capsys.readouterr().err)
    assert replay is not None
    for fixed, code in ((False, 1), (True, 0)):
        if fixed:
            monkeypatch.undo()
        assert baton(*replay.group(1).split()) == code


def test_options_that_faults_have_no_use_for_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert baton("simulate", "--faults", "--rate", "3") == 1
    assert "--rate says nothing about schedules of faults" in capsys.readouterr().err
    assert baton("simulate", "--faults", "--keep", "all") == 1
    assert "give numbers of faults" in capsys.readouterr().err
