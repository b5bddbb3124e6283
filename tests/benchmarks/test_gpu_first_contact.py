"""deploy/gpu_first_contact.sh: the commands it runs, with a Python that only prints its arguments."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from benchmarks.gpu.parts import PARTS

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "deploy" / "gpu_first_contact.sh"


def _run(*arguments: str, python: Path | str = "false") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": str(python)}
    return subprocess.run([SCRIPT, *arguments], env=environment, capture_output=True, text=True, timeout=60)


def test_both_calls_together_run_every_part_but_the_optional_ones(tmp_path: Path) -> None:
    parts = []
    for call in ("first", "second"):
        done = _run(call, str(tmp_path), str(tmp_path / "out"), "--device", "cpu", python="/bin/echo")
        words = done.stdout.split()
        assert words[:3] == ["-m", "benchmarks.gpu", "--only"]
        assert words[-4:] == ["--out", str(tmp_path / "out" / f"{call}.json"), "--device", "cpu"]
        parts += words[3].split(",")
    assert parts == [plan.name for plan in PARTS if not plan.asked_for]


def test_the_wheels_and_kernels_beside_it_are_installed_first(tmp_path: Path) -> None:
    for name in ("one.whl", "kernels.tar.xz"):
        (tmp_path / name).touch()
    done = _run("first", str(tmp_path), str(tmp_path / "out"), python="/bin/echo")
    pip, kernels, benchmark = done.stdout.splitlines()
    assert pip.startswith("-m pip install") and pip.endswith("one.whl")
    assert kernels == f"-m baton.deploy.flashinfer_kernels install {tmp_path}/kernels.tar.xz"
    assert benchmark.startswith("-m benchmarks.gpu")


@pytest.mark.parametrize("arguments", [(), ("third", ".", "."), ("first", ".")])
def test_other_arguments_print_the_usage(arguments: tuple[str, ...]) -> None:
    done = _run(*arguments)
    assert done.returncode == 2
    assert "deploy/gpu_first_contact.sh first  CARRIED OUT" in done.stdout


def test_a_missing_folder_is_reported(tmp_path: Path) -> None:
    done = _run("first", str(tmp_path / "missing"), str(tmp_path))
    assert (done.returncode, "not found" in done.stdout) == (2, True)
