"""Compilers and headers are found where a worker that Ray started has neither PATH nor a whole CUDA toolkit."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from engine.kernel_compiler import architecture, compiler_environment, cuda_home, header_environment


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
    assert found["FLASHINFER_CUDA_ARCH_LIST"] == "9.0a"
    assert compiler_environment({**before, **found}, (9, 0), programs) == found, "a child adds nothing"
    chosen = {**before, "FLASHINFER_CUDA_ARCH_LIST": "8.0 9.0a"}
    assert compiler_environment(chosen, (9, 0), programs)["FLASHINFER_CUDA_ARCH_LIST"] == "8.0 9.0a"


def test_the_toolkit_is_the_one_of_nvcc_unless_named(tmp_path: Path) -> None:
    nvcc = tmp_path / "cuda-13/bin/nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.touch(0o755)
    assert cuda_home({"PATH": str(nvcc.parent)}) == tmp_path / "cuda-13"
    assert cuda_home({"PATH": str(nvcc.parent), "CUDA_PATH": "/opt/cuda"}) == Path("/opt/cuda")
    assert cuda_home({"PATH": ""}) == Path("/usr/local/cuda")


def _headers(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text(f"// {name}\n")
    return folder


def test_headers_that_the_toolkit_lacks_are_linked_from_pips_packages_and_no_others(tmp_path: Path) -> None:
    toolkit = _headers(tmp_path / "cuda", "cuda_runtime.h", "cublas_v2.h", "cublasLt.h")
    pip = _headers(tmp_path / "pip dir", "cuda_runtime.h", "curand_kernel.h", "curand_globals.h", "cublas_v2.h")
    folder = tmp_path / "links here"
    found = header_environment({}, toolkit, [tmp_path / "nowhere", pip], folder)
    assert sorted(path.name for path in folder.iterdir()) == ["cublas_v2.h", "curand_globals.h", "curand_kernel.h"]
    assert found == {"FLASHINFER_EXTRA_CUDAFLAGS": f"'-I{folder}'"}
    assert header_environment(found, toolkit, [pip], folder) == {}, "a child adds nothing"
    more = header_environment({"FLASHINFER_EXTRA_CUDAFLAGS": "-lineinfo"}, toolkit, [pip], folder)
    assert more == {"FLASHINFER_EXTRA_CUDAFLAGS": f"-lineinfo '-I{folder}'"}


def test_links_follow_packages_that_moved(tmp_path: Path) -> None:
    folder = tmp_path / "links"
    for number in (1, 2):
        pip = _headers(tmp_path / f"venv{number}", "curand_kernel.h")
        header_environment({}, tmp_path / "none", [pip], folder)
        assert (folder / "curand_kernel.h").resolve() == pip / "curand_kernel.h"


def test_nothing_is_linked_where_nothing_is_missing_or_nothing_is_there(tmp_path: Path) -> None:
    whole = _headers(tmp_path / "whole", "cublas_v2.h", "cublasLt.h", "curand_kernel.h")
    empty = _headers(tmp_path / "empty")
    assert header_environment({}, whole, [whole], tmp_path / "links") == {}
    assert header_environment({}, empty, [empty], tmp_path / "links") == {}
    assert not (tmp_path / "links").exists()


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++, as FlashInfer does")
def test_a_compiler_takes_the_flag_and_finds_the_header(tmp_path: Path) -> None:
    import shlex

    pip = _headers(tmp_path / "pip dir", "curand_kernel.h")
    found = header_environment({}, tmp_path / "none", [pip], tmp_path / "links here")
    source = tmp_path / "kernel.cc"
    source.write_text("#include <curand_kernel.h>\n")
    flags = shlex.split(found["FLASHINFER_EXTRA_CUDAFLAGS"])
    subprocess.run(["g++", "-fsyntax-only", *flags, str(source)], check=True)
