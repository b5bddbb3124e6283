"""How NIXL is loaded, and the error when it rejects the pages of a GPU."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from ctypes.util import find_library
from pathlib import Path
from types import ModuleType

import pytest

from baton.kv_transfer.nixl_library import load_libraries, registration_error, settings

ROOT = Path(__file__).resolve().parents[2]
NIXL = ModuleType("nixl_cu13._api")
NIXL.__file__ = "/site/nixl_cu13/_api.py"

ON_GPU = """
import torch
from baton.protocol.errors import ConfigError
from baton.protocol.worker import PageLayout
from baton.kv_transfer.nixl import NixlTransport

class OnGpu(torch.Tensor):
    is_cuda = True

layout = PageLayout(4, 1, 16, 1, 8, "float32", "m")
try:
    NixlTransport(torch.zeros(layout.shape).as_subclass(OnGpu), layout, "gpu:1")
except ConfigError as error:
    print(error.message)
"""

NEEDS = """
import ctypes, sys
from baton.kv_transfer.nixl_library import load_libraries
inner, outer, folders = sys.argv[1], sys.argv[2], sys.argv[3:]
assert bool(load_libraries([inner], folders)) == (not folders)
ctypes.CDLL(outer)
"""


def _python(script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    unset = ("NIXL_LOG_LEVEL", "UCX_LOG_LEVEL")
    environment = {name: value for name, value in os.environ.items() if name not in unset} | variables
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


def test_warnings_are_shown_on_a_gpu_and_hidden_on_a_cpu() -> None:
    gpu, cpu = settings(True, 1 << 30), settings(False, 1 << 30)
    assert (gpu["NIXL_LOG_LEVEL"], gpu["UCX_LOG_LEVEL"]) == ("WARN", "warn")
    assert (cpu["NIXL_LOG_LEVEL"], cpu["UCX_LOG_LEVEL"]) == ("FATAL", "fatal")
    assert "UCX_TLS" not in gpu
    assert settings(True, 1 << 20)["UCX_TLS"] == "^posix"


@pytest.mark.skipif(find_library("cuda") is not None, reason="This machine has NVIDIA's driver.")
def test_pages_that_ucx_cannot_register_as_gpu_memory_name_the_driver_libraries_and_show_nixls_warning() -> None:
    done = _python(ON_GPU)
    assert done.returncode == 0, done.stderr
    assert "libcuda.so.1 and libnvidia-ml.so.1 of NVIDIA's driver cannot be loaded" in done.stdout
    assert "NIXL_ERR_BACKEND" in done.stdout
    assert "UCX_TLS=cuda_copy,cuda_ipc,sm,tcp,self" in done.stdout
    modules = done.stdout.split("UCX_MODULE_DIR=")[1].strip().removesuffix(".")
    assert list(Path(modules).glob("libuct_cuda.so*"))
    assert "detected as host" in done.stderr


def test_the_users_log_level_is_kept() -> None:
    done = _python(ON_GPU, NIXL_LOG_LEVEL="FATAL", UCX_LOG_LEVEL="fatal")
    assert "NIXL cannot register" in done.stdout
    assert "detected as host" not in done.stderr


def test_present_driver_libraries_are_not_named_as_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baton.kv_transfer.nixl_library.DRIVER_LIBRARIES", ("libc.so.6",))
    message = registration_error("NIXL_ERR_BACKEND", True, 3 << 29, NIXL).message
    assert message.startswith("NIXL cannot register 1.5 GiB of GPU memory (NIXL_ERR_BACKEND), although libc.so.6")
    assert "UCX_MODULE_DIR=/site/nixl_cu13.libs/ucx for the worker" in message


def test_refused_host_memory_names_the_limit() -> None:
    assert "ulimit -l" in registration_error("NIXL_ERR_BACKEND", False, 1 << 30, NIXL).message


def test_a_library_outside_the_loaders_path_serves_those_that_need_it(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("There is no C compiler.")
    inner, outer = "libbatoninner.so.1", str(tmp_path / "libbatonouter.so.1")
    folder = tmp_path / "driver"
    folder.mkdir()
    source = tmp_path / "inner.c"
    source.write_text("int inner(void) { return 1; }")
    build = [compiler, "-shared", "-fPIC", str(source), "-o", str(folder / inner), f"-Wl,-soname,{inner}"]
    subprocess.run(build, check=True, timeout=60)
    source.write_text("int inner(void); int outer(void) { return inner(); }")
    subprocess.run(
        [compiler, "-shared", "-fPIC", str(source), str(folder / inner), "-o", outer], check=True, timeout=60
    )
    alone = _python(NEEDS, inner, outer)
    assert alone.returncode != 0
    assert inner in alone.stderr
    assert _python(NEEDS, inner, outer, str(folder)).returncode == 0


def test_the_reason_of_each_library_that_cannot_be_loaded_is_returned() -> None:
    failed = load_libraries(["libc.so.6", "libbatonnothing.so.7"], ["/nonexistent"])
    assert list(failed) == ["libbatonnothing.so.7"]
    assert "cannot open shared object file" in failed["libbatonnothing.so.7"]
