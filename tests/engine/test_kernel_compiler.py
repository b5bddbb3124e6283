"""Compilers and a complete CUDA toolkit are found although the environment of a Ray worker names neither."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from baton.engine.kernel_compiler import addition_flags, architecture, compiler_environment, complete_cuda, cuda_home

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler, as FlashInfer does")


@pytest.mark.parametrize(
    ("capability", "name"), [((8, 0), "8.0"), ((8, 9), "8.9"), ((9, 0), "9.0a"), ((10, 0), "10.0a")]
)
def test_hopper_and_newer_are_compiled_for_with_their_own_instructions(capability: tuple[int, int], name: str) -> None:
    assert architecture(capability) == name


def test_programs_of_pip_and_cuda_are_found_after_those_of_path(tmp_path: Path) -> None:
    programs, home = tmp_path / "venv/bin", tmp_path / "cuda"
    for place in (programs, home / "bin"):
        place.mkdir(parents=True)
    before = {"PATH": f"/usr/bin{os.pathsep}", "CUDA_HOME": str(home)}
    found = compiler_environment(before, (9, 0), programs)
    assert found["PATH"].split(os.pathsep)[:3] == ["/usr/bin", str(programs), str(home / "bin")]
    assert (found["CUDA_HOME"], found["FLASHINFER_CUDA_ARCH_LIST"]) == (str(home), "9.0a")
    assert compiler_environment({**before, **found}, (9, 0), programs) == found, "a child adds nothing"
    chosen = {**before, "FLASHINFER_CUDA_ARCH_LIST": "8.0 9.0a"}
    assert compiler_environment(chosen, (9, 0), programs)["FLASHINFER_CUDA_ARCH_LIST"] == "8.0 9.0a"


def test_the_toolkit_is_nvccs_unless_named_and_not_the_folder_of_a_script_that_calls_nvcc(tmp_path: Path) -> None:
    toolkit, usual = tmp_path / "cuda-13", tmp_path / "usual"
    _files(toolkit, "bin/nvcc", "include/cuda_runtime.h")
    (toolkit / "bin/nvcc").chmod(0o755)
    on_path, link = {"PATH": str(toolkit / "bin")}, tmp_path / "bin/nvcc"
    assert cuda_home(on_path, usual) == toolkit
    assert cuda_home({**on_path, "CUDA_PATH": "/opt/cuda"}, usual) == Path("/opt/cuda")
    assert cuda_home({"PATH": ""}, usual) == usual
    link.parent.mkdir()
    link.symlink_to(toolkit / "bin/nvcc")
    assert cuda_home({"PATH": str(link.parent)}, usual) == toolkit
    link.unlink()
    link.write_text("#!/bin/sh\n")
    link.chmod(0o755)
    assert cuda_home({"PATH": str(link.parent)}, usual) == usual


def _files(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"// {name}\n")
    return folder


def test_headers_that_the_toolkit_lacks_are_linked_from_pips_packages_and_no_others(tmp_path: Path) -> None:
    toolkit = _files(tmp_path / "cuda", "include/cublas_v2.h", "include/cublasLt.h", "lib64/stubs/libcuda.so")
    pip = _files(tmp_path / "pip dir", "cuda_runtime.h", "curand_kernel.h", "curand_globals.h", "cublas_v2.h")
    folder = tmp_path / "additions"
    complete_cuda(toolkit, [tmp_path / "nowhere", pip], folder)
    names = ["cublas_v2.h", "curand_globals.h", "curand_kernel.h"]
    assert sorted(path.name for path in (folder / "include").iterdir()) == names
    assert not (folder / "lib").exists()


def test_links_follow_packages_that_moved(tmp_path: Path) -> None:
    folder = tmp_path / "additions"
    for number in (1, 2):
        pip = _files(tmp_path / f"venv{number}", "curand_kernel.h")
        complete_cuda(tmp_path / "none", [pip], folder)
        assert (folder / "include/curand_kernel.h").resolve() == pip / "curand_kernel.h"


def test_nothing_is_added_to_a_complete_toolkit(tmp_path: Path) -> None:
    headers = ["include/cublas_v2.h", "include/cublasLt.h", "include/curand_kernel.h"]
    toolkit = _files(tmp_path / "cuda", *headers, "lib64/stubs/libcuda.so")
    complete_cuda(toolkit, [toolkit / "include"], tmp_path / "additions")
    assert not (tmp_path / "additions").exists()
    assert addition_flags({}, tmp_path / "additions") == {}


def test_flags_stand_beside_those_that_are_set_and_are_added_once(tmp_path: Path) -> None:
    folder = _files(tmp_path / "a folder", "include/curand_kernel.h")
    found = addition_flags({"FLASHINFER_EXTRA_CUDAFLAGS": "-lineinfo"}, folder)
    assert found == {"FLASHINFER_EXTRA_CUDAFLAGS": f"-lineinfo '-I{folder}/include'"}
    assert addition_flags(found, folder) == {}


@needs_compiler
def test_a_compiler_finds_the_header_and_links_against_the_driver_that_is_not_here(tmp_path: Path) -> None:
    pip = _files(tmp_path / "pip dir", "curand_kernel.h")
    folder = tmp_path / "additions here"
    complete_cuda(tmp_path / "none", [pip], folder)
    flags = addition_flags({}, folder)
    source = tmp_path / "kernel.cc"
    source.write_text("#include <curand_kernel.h>\nint f() { return 0; }\n")
    options = shlex.split(flags["FLASHINFER_EXTRA_CUDAFLAGS"]) + shlex.split(flags["FLASHINFER_EXTRA_LDFLAGS"])
    library = tmp_path / "kernel.so"
    command = ["c++", "-shared", "-fPIC", str(source), *options, "-Wl,--no-as-needed", "-lcuda", "-o", str(library)]
    subprocess.run(command, check=True)
    assert b"libcuda.so.1" in library.read_bytes(), "the driver's own library is loaded with it"
