"""Compiles FlashInfer's kernels on a machine without a GPU, with its CUDA toolkit or a compiler from pip."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from baton.engine.attention.flashinfer import load_flashinfer
from baton.engine.attention.kernel_modules import KernelModule
from baton.engine.kernel_compiler import (
    addition_flags,
    complete_cuda,
    cuda_home,
    missing_programs,
    pip_includes,
    reason_of,
)
from baton.protocol.errors import ConfigError

Say = Callable[[str], None]
# Tested with FlashInfer 0.6.6. Kernels of CUDA 13 need torch for CUDA 13.
COMPILER = (
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-cccl==13.0.85",
    "nvidia-cuda-runtime==13.0.96",
)
CURAND = "nvidia-curand==10.4.0.35"
_WHEEL_HOME = Path("nvidia/cu13")
_EVERY_S = 10.0


def use_toolkit(work: Path, cuda: Path | None, say: Say) -> None:
    """Set this process's environment for compiling; raises `ConfigError` when a program is missing.

    The toolkit is `cuda` if given, else the machine's, else one that pip downloads into `work`.
    """
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])
    home = cuda or cuda_home(os.environ)
    if cuda is None and not (home / "bin/nvcc").exists():
        home = _from_wheels(work, say)
    os.environ["CUDA_HOME"] = str(home)
    if missing := missing_programs(os.environ):
        raise ConfigError(
            f"Not found: {', '.join(missing)}; install ninja (pip) and g++, or name a CUDA toolkit with --cuda."
        )
    say(f"compiling with {home}/bin/nvcc")
    additions = work / "additions"
    includes = [*pip_includes(), home / "include"]
    if not any((place / "curand_kernel.h").exists() for place in includes):
        includes.append(_curand(work, say))
    complete_cuda(home, includes, additions)
    _empty_headers(home, additions / "include")
    os.environ.update(addition_flags(os.environ, additions))


def compile_modules(
    modules: Sequence[KernelModule], architectures: Sequence[str], jobs: int, work: Path, say: Say
) -> dict[str, bytes]:
    """Libraries by module name; files that `work` keeps from an earlier run are not compiled again.

    Call it once per process: FlashInfer reads its settings when it is imported. Raises `ConfigError` when a module
    cannot be compiled.
    """
    os.environ["FLASHINFER_CUDA_ARCH_LIST"] = " ".join(architectures)
    os.environ["FLASHINFER_WORKSPACE_BASE"] = str(work)
    os.environ["MAX_JOBS"] = str(jobs)
    library = load_flashinfer()
    return {module.name: _compile(module, library, say) for module in modules}


def _compile(module: KernelModule, library: Any, say: Say) -> bytes:
    spec, started = module.describe(library), time.monotonic()
    assert spec.name == module.name, f"FlashInfer names this module {spec.name}"
    objects = spec.get_object_paths()
    say(f"{module.name}: {len(objects)} {'file' if len(objects) == 1 else 'files'}")
    with ThreadPoolExecutor(1) as pool:
        building = pool.submit(spec.build, False)
        while not wait([building], _EVERY_S).done:
            done = sum(path.exists() for path in objects)
            say(f"  {done} of {len(objects)} files after {time.monotonic() - started:.0f} s")
    try:
        building.result()
    except RuntimeError as error:
        raise ConfigError(f"{module.name} cannot be compiled: {reason_of(error)} (in {spec.build_dir})") from None
    data = Path(spec.jit_library_path).read_bytes()
    say(f"  {len(data) / 1e6:.1f} MB in {time.monotonic() - started:.0f} s")
    return data


def cuda_version() -> str:
    """The version of the nvcc that compiles, such as "13.0"."""
    return str(load_flashinfer().jit.cpp_ext.get_cuda_version())


def _from_wheels(work: Path, say: Say) -> Path:
    home = work / "cuda" / _WHEEL_HOME
    if not (home / "lib/libcudart.so").exists():
        say("no CUDA toolkit here: fetching nvcc with pip (100 MB)")
        for wheel in _fetch(COMPILER, work):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(work / "cuda")
        for program in [*(home / "bin").glob("*"), *(home / "nvvm/bin").glob("*")]:
            program.chmod(0o755)
        for link, target in (("lib64", "lib"), ("lib/libcudart.so", "libcudart.so.13")):
            (home / link).unlink(missing_ok=True)
            (home / link).symlink_to(target)
    return home


def _curand(work: Path, say: Say) -> Path:
    """The folder of cuRAND's headers, extracted from its wheel without the libraries."""
    folder = work / "curand"
    if not (folder / "curand_kernel.h").exists():
        say("no headers of cuRAND here: fetching them with pip (60 MB)")
        folder.mkdir(parents=True, exist_ok=True)
        (wheel,) = _fetch([CURAND], work)
        with zipfile.ZipFile(wheel) as archive:
            headers = [name for name in archive.namelist() if "/include/curand" in name]
            for name in sorted(headers, key=lambda name: name.endswith("curand_kernel.h")):
                (folder / Path(name).name).write_bytes(archive.read(name))
    return folder


def _empty_headers(home: Path, folder: Path) -> None:
    """Empty headers for cuBLAS, which norm.cu includes and does not use: the wheel with the real ones has 400 MB."""
    for name in ("cublasLt.h", "cublas_v2.h"):
        if not (home / "include" / name).exists() and not (folder / name).exists():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("#pragma once\n")


def _fetch(requirements: Sequence[str], work: Path) -> list[Path]:
    """The wheels of these requirements; raises `ConfigError` when pip fails."""
    folder = work / "wheels"
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--disable-pip-version-check",
        "--no-deps",
        "-d",
        str(folder),
    ]
    done = subprocess.run([*command, *requirements], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ConfigError(f"pip cannot download {', '.join(requirements)} ({reason}): name a CUDA toolkit with --cuda.")
    names = [requirement.split("==")[0].replace("-", "_") for requirement in requirements]
    return [next(folder.glob(f"{name}-*.whl")) for name in names]
