"""A worker without usable kernels exits before it loads anything, with an error that names the remedy."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from baton.builtin_model import CHECKPOINT
from baton.engine import kernel_compiler, kernel_loading
from baton.engine.attention.kernel_modules import KernelModule
from baton.engine.checkpoint import read_config
from baton.engine.kernel_compiler import let_flashinfer_compile, missing_programs, reason_of
from baton.engine.kernel_loading import check_compilable, check_prebuilt, check_versions, prefill_kernels
from baton.engine.prebuilt_kernels import Built, Manifest, runs_on
from baton.engine.race.launchable import check_triton
from baton.engine.ranks import ONE_RANK
from baton.harness.process_cluster import plans
from baton.protocol.errors import ConfigError
from baton.worker import executors

FOLDER = Path("/site/flashinfer/data/aot")
BUILT = {"page": Built(("8.0", "9.0a"), 1, ""), "norm": Built(("9.0a",), 1, "")}


@pytest.mark.parametrize(
    ("architecture", "capability", "runs"),
    [
        ("9.0a", (9, 0), True),
        ("9.0a", (9, 1), False),
        ("9.0a", (8, 0), False),
        ("8.0", (8, 0), True),
        ("8.0", (8, 9), True),
        ("8.9", (8, 0), False),
        ("8.0", (9, 0), False),
        ("10.0f", (10, 3), True),
        ("native", (9, 0), False),
    ],
)
def test_machine_code_runs_within_its_generation(architecture: str, capability: tuple[int, int], runs: bool) -> None:
    assert runs_on(architecture, capability) is runs


def test_prebuilt_kernels_for_other_gpus_are_refused_and_unknown_ones_are_not() -> None:
    check_prebuilt(["page", "norm", "rope"], BUILT, (9, 0), FOLDER)
    check_prebuilt(["page"], BUILT, (8, 6), FOLDER)
    words = "The prebuilt kernels norm in /site/flashinfer/data/aot are for GPUs 9.0a, and this one is 8.6: install"
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        check_prebuilt(["page", "norm"], BUILT, (8, 6), FOLDER)
    assert "--arch 8.6," in caught.value.message


@pytest.mark.parametrize(("flashinfer", "cuda"), [("0.6.7", "13.0"), ("0.6.6", "12.8")])
def test_prebuilt_kernels_that_an_upgrade_left_behind_are_refused(flashinfer: str, cuda: str) -> None:
    manifest = Manifest("0.6.6", "0.1.15", "13.0", "2.14", "x86_64", BUILT)
    check_versions(manifest, "0.6.6", "13.1", FOLDER)
    with pytest.raises(ConfigError, match=re.escape(f"but FlashInfer {flashinfer} and CUDA {cuda} are installed")):
        check_versions(manifest, flashinfer, cuda, FOLDER)


def test_an_unwritable_folder_is_named_with_the_variable_to_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FLASHINFER_WORKSPACE_BASE", str(tmp_path / "file"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    for name in ("PATH", "FLASHINFER_CUDA_ARCH_LIST", "FLASHINFER_EXTRA_CUDAFLAGS", "FLASHINFER_EXTRA_LDFLAGS"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setattr(kernel_compiler, "pip_includes", list)
    with pytest.raises(ConfigError, match="set FLASHINFER_WORKSPACE_BASE"):
        let_flashinfer_compile((9, 0))


def test_kernels_that_are_neither_prebuilt_nor_compilable_are_named_with_what_is_missing() -> None:
    check_compilable([], ["ninja", "nvcc"], (9, 0))
    check_compilable(["page"], [], (9, 0))
    words = "kernels page, norm are not installed, and programs to compile them are not found (ninja, nvcc): install"
    with pytest.raises(ConfigError, match=re.escape(words)):
        check_compilable(["page", "norm"], ["ninja", "nvcc"], (9, 0))


def test_programs_are_searched_where_flashinfer_calls_them(tmp_path: Path) -> None:
    for name in ("bin/ninja", "bin/c++", "cuda/bin/nvcc"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch(0o755)
    whole = {"PATH": str(tmp_path / "bin"), "CUDA_HOME": str(tmp_path / "cuda")}
    assert missing_programs(whole) == []
    assert missing_programs({**whole, "CUDA_HOME": str(tmp_path), "CXX": "g++-99"}) == ["nvcc", "a C++ compiler"]
    nothing = {"PATH": "", "CUDA_HOME": str(tmp_path)}
    assert missing_programs(nothing) == ["ninja", "nvcc", "a C++ compiler"]


@pytest.mark.parametrize(
    "line",
    [
        "norm.cu:3:10: fatal error: cublasLt.h: No such file or directory",
        "/usr/bin/ld: cannot find -lcudart: No such file",
    ],
)
def test_the_line_with_the_cause_is_taken_from_a_compilers_output(line: str) -> None:
    output = (
        f"Ninja build failed. Ninja output:\n[1/2] nvcc -c\nFAILED: norm.cuda.o\n{line}\ncollect2: error: ld returned 1"
    )
    assert reason_of(RuntimeError(output)) == line
    assert reason_of(RuntimeError("Ninja build failed.")) == "Ninja build failed."
    assert reason_of(RuntimeError()) == "RuntimeError()"


def test_a_worker_checks_its_kernels_before_loading_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """This folder has no weights, and the (simulated) GPU cannot run fa3."""
    monkeypatch.setattr(executors, "open_device", torch.device)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    usual = plans(CHECKPOINT, 512, 10)[1]
    plan = replace(usual, engine=usual.engine.changed(device="cuda:0", attention="fa3"))
    with pytest.raises(ConfigError, match="only Hopper GPUs"):
        executors.make_executor(plan, tmp_path, read_config(CHECKPOINT), print, ONE_RANK)


@pytest.mark.parametrize(
    ("asked", "capability", "compiled", "chosen"),
    [
        ("auto", (9, 0), True, "fa3"),
        ("auto", (9, 0), False, "fa2"),  # fa3 would compile for minutes
        ("auto", (8, 0), True, "fa2"),
        ("fa2", (9, 0), True, "fa2"),
        ("fa3", (9, 0), False, "fa3"),
    ],
)
def test_auto_is_fa3_where_a_hopper_gpu_has_it_ready(
    monkeypatch: pytest.MonkeyPatch, asked: str, capability: tuple[int, int], compiled: bool, chosen: str
) -> None:
    monkeypatch.setattr(kernel_loading, "load_flashinfer", lambda: None)
    monkeypatch.setattr(KernelModule, "describe", lambda self, library: SimpleNamespace(is_compiled=compiled))
    config = replace(read_config(CHECKPOINT), head_dim=128)
    assert prefill_kernels(asked, config, torch.bfloat16, capability) == chosen
    assert prefill_kernels("auto", replace(config, head_dim=32), torch.bfloat16, capability) == "fa2"  # torch computes


def test_the_error_where_triton_cannot_compile_names_what_to_install() -> None:
    """Without a GPU Triton has no driver; a missing compiler gives the same error."""
    with pytest.raises(ConfigError, match=r"Triton cannot compile .* install a C compiler"):
        check_triton()
