"""The programs of docs/examples do what their docstrings describe, on one Ray cluster."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from baton.builtin_model import CHECKPOINT
from baton.builtin_model.sentences import is_sentence
from baton.deploy.launcher import stop_cluster
from baton.deploy.local_ray import LocalRay
from tests.live.commands import ROOT
from tests.live.conftest import Live, start_live

pytestmark = pytest.mark.ray

EXAMPLES = ROOT / "docs" / "examples"
Run = Callable[..., str]


@pytest.fixture(scope="module")
def cluster(ray_head: LocalRay) -> Iterator[Live]:
    """One prefill and two decode workers under the default policy; a killed worker is restarted."""
    yield start_live(CHECKPOINT, "examples-", {"prefill": 1, "decode": 2})
    stop_cluster("examples-")


@pytest.fixture
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Runs a program as its docstring describes; the cluster it uses, if any, must end idle with all its workers."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    live: Live | None = request.getfixturevalue("cluster") if "cluster" in request.fixturenames else None
    if live is not None:
        environment |= {"BATON_ADDRESS": live.address, "BATON_ADMIN_ADDRESS": live.admin_address}

    def program(name: str, *arguments: str) -> str:
        command = [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    yield program
    if live is not None:
        live.wait_idle(60.0)


def test_a_stream_is_the_answer_that_generate_gives(cluster: Live, run: Run) -> None:
    output = run("stream")
    with cluster.client() as client:
        answer = client.generate("write : the old fox", max_tokens=40, temperature=0.8, seed=1)
    assert output.startswith(answer.text + "\n\nroute")
    assert f"{answer.prompt_tokens} prompt, {answer.output_tokens} output, ended by {answer.finish_reason}" in output


def test_a_request_that_cannot_meet_its_objective_is_refused_and_others_are_served(cluster: Live, run: Run) -> None:
    served, refused = run("objectives").splitlines()
    assert re.fullmatch(r"24 served, \d+ refusals, TTFT at most \d+\.\d\d s", served)
    assert "TTFT objective is 0.00 s" in refused


def test_a_script_moves_a_worker_there_and_back_and_the_request_loses_nothing(cluster: Live, run: Run) -> None:
    there, back, request = run("rebalance").splitlines()
    assert there.startswith("2 prefill, 1 decode: done after ")
    assert back.startswith("1 prefill, 2 decode: done after ")
    assert re.fullmatch(r"the request got 300 tokens and was migrated \d+ times", request)
    with cluster.admin() as admin:
        assert [len(pool.workers) for pool in admin.cluster().pools if pool.workers] == [1, 2]


def test_a_stream_continues_with_the_same_tokens_after_its_worker_was_killed(cluster: Live, run: Run) -> None:
    killed, continued, indices, tokens = run("resume").splitlines()
    assert re.fullmatch(r"killed decode-\d", killed)
    assert re.fullmatch(r"continued on decode-\d after a pause of \d+\.\d s", continued)
    assert killed.split()[1] != continued.split()[2]
    assert (indices, tokens) == ("every index once: True", "same tokens as undisturbed: True")


def test_a_custom_policy_decides_in_the_simulator(run: Run) -> None:
    lines = run("policy").splitlines()
    assert [line.split()[0] for line in lines] == ["round_robin", "least_work", "predicted_latency"]
    in_time = [int(re.search(r"(\d+)% in time", line)[1]) for line in lines]  # type: ignore[index]
    assert in_time[0] < in_time[1] <= in_time[2]


def test_a_trace_is_simulated_on_every_split(run: Run, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"timestamp": 0, "input_length": 900, "output_length": 20, "hash_ids": [0, 1]}\n' * 3)
    for arguments in ((), (str(trace),)):
        lines = run("simulate", *arguments).splitlines()
        assert len(lines) == 4
        assert all(re.search(r"\d+% in time, +[\d.]+ requests/s, TTFT p90 [\d.]+ s", line) for line in lines)


def test_every_example_is_run_here() -> None:
    here = Path(__file__).read_text()
    programs = sorted(path.stem for path in EXAMPLES.glob("*.py"))
    assert programs == sorted(set(re.findall(r'run\("(\w+)"', here)))


def test_the_program_of_the_readme_runs(cluster: Live, run: Run, tmp_path: Path) -> None:
    """Those with OpenAI's client run in tests/clients."""
    programs = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    (program,) = (program for program in programs if "import baton" in program)
    (tmp_path / "program.py").write_text(program)
    assert is_sentence("the old fox" + run(str(tmp_path / "program")).rstrip())
