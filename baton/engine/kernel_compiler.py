"""Prepares a process for FlashInfer's compilation: programs on PATH, the GPU's architecture, a complete CUDA toolkit.

A machine with nvcc may lack the headers of cuBLAS and cuRAND, which are separate packages, and the stub library of the
driver to link against. They are put in a permanent folder, because build files refer to it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from baton.protocol.errors import ConfigError

_CUDA = Path("/usr/local/cuda")
_HOMES = ("CUDA_HOME", "CUDA_PATH")
_HEADERS = ("cublas_v2.h", "cublasLt.h", "curand_kernel.h")
_HEADER_FILES = ("cublas*.h", "curand*.h")
_REASON = re.compile(r"\berror:|cannot find|No such file")


def let_flashinfer_compile(capability: tuple[int, int]) -> None:
    """Set the environment so that this process and its children can compile kernels for this compute capability.

    Call it before FlashInfer is imported, which reads the architecture then. Raises `ConfigError` when the folder for
    missing headers cannot be written.
    """
    os.environ.update(compiler_environment(os.environ, capability, Path(sys.executable).parent))
    folder = Path(os.environ.get("FLASHINFER_WORKSPACE_BASE") or Path.home()) / ".cache/flashinfer/cuda_additions"
    try:
        complete_cuda(Path(os.environ["CUDA_HOME"]), pip_includes(), folder)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ConfigError(
            f"Headers that FlashInfer compiles with cannot be put into {folder} ({error}): set "
            "FLASHINFER_WORKSPACE_BASE to a folder that can be written."
        ) from None
    os.environ.update(addition_flags(os.environ, folder))


def architecture(capability: tuple[int, int]) -> str:
    """FlashInfer's name of the architecture: such as "8.0"; from Hopper on with chip-specific instructions ("9.0a")."""
    major, minor = capability
    return f"{major}.{minor}{'a' if major >= 9 else ''}"


def compiler_environment(environment: Mapping[str, str], capability: tuple[int, int], programs: Path) -> dict[str, str]:
    """PATH with the folders of ninja and nvcc at its end, CUDA_HOME, and the architecture; variables set before win.

    `programs` is the folder where pip puts programs.
    """
    path = [place for place in environment.get("PATH", "").split(os.pathsep) if place]
    places = [programs, *(Path(environment[name]) / "bin" for name in _HOMES if environment.get(name)), _CUDA / "bin"]
    path += [str(place) for place in places if str(place) not in path and place.is_dir()]
    found = {**environment, "PATH": os.pathsep.join(path)}
    return {
        "PATH": found["PATH"],
        "CUDA_HOME": str(cuda_home(found)),
        "FLASHINFER_CUDA_ARCH_LIST": environment.get("FLASHINFER_CUDA_ARCH_LIST") or architecture(capability),
    }


def cuda_home(environment: Mapping[str, str], usual: Path = _CUDA) -> Path:
    """The CUDA toolkit: that of CUDA_HOME or CUDA_PATH, else nvcc's, else the `usual` one.

    FlashInfer's own search fails where the nvcc on PATH is a script outside its toolkit.
    """
    for name in _HOMES:
        if environment.get(name):
            return Path(environment[name])
    nvcc = shutil.which("nvcc", path=environment.get("PATH", ""))
    homes = [place.parent.parent for place in (Path(nvcc), Path(nvcc).resolve())] if nvcc else []
    return next((home for home in homes if (home / "include/cuda_runtime.h").exists()), usual)


def complete_cuda(home: Path, includes: Iterable[Path], folder: Path) -> None:
    """Put into `folder` what the toolkit `home` lacks: links to headers found in `includes`, and the driver's stub.

    Only these headers are linked: the others in `includes` may belong to another version of CUDA.
    """
    missing = [name for name in _HEADERS if not (home / "include" / name).exists()]
    for place in includes:
        if any((place / name).exists() for name in missing):
            for header in (path for pattern in _HEADER_FILES for path in place.glob(pattern)):
                _link(folder / "include" / header.name, header)
    stub = folder / "lib/libcuda.so"
    if not (home / "lib64/stubs/libcuda.so").exists() and not stub.exists() and shutil.which("c++"):
        _compile_stub(stub)


def addition_flags(environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Flags that point FlashInfer's compilers to `folder`; empty if they are already set."""
    flags_by_name = {}
    for name, option, part in (("CUDAFLAGS", "-I", "include"), ("LDFLAGS", "-L", "lib")):
        flags, more = environment.get(f"FLASHINFER_EXTRA_{name}", ""), shlex.quote(f"{option}{folder / part}")
        if (folder / part).is_dir() and more not in flags:
            flags_by_name[f"FLASHINFER_EXTRA_{name}"] = f"{flags} {more}".strip()
    return flags_by_name


def pip_includes() -> list[Path]:
    """Include folders of NVIDIA's packages from pip: nvidia/cu13/include, nvidia/curand/include and the like."""
    spec = importlib.util.find_spec("nvidia")
    places = spec.submodule_search_locations if spec else None
    return [include for place in places or () for include in sorted(Path(place).glob("*/include"))]


def _link(link: Path, target: Path) -> None:
    beside = _beside(link)
    beside.symlink_to(target)
    beside.replace(link)


def _compile_stub(stub: Path) -> None:
    """An empty library with the driver's name, which makes the loader find the real driver at run time."""
    beside = _beside(stub)
    command = ["c++", "-shared", "-Wl,-soname,libcuda.so.1", "-xc++", os.devnull, "-o", str(beside)]
    subprocess.run(command, check=True, capture_output=True)
    beside.replace(stub)


def _beside(path: Path) -> Path:
    """A temporary name of this process: several workers may write the same file at once, and replace it atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)
    return beside


def missing_programs(environment: Mapping[str, str]) -> list[str]:
    """The names of the programs for compiling kernels that are not found."""
    programs = {
        "ninja": "ninja",
        "nvcc": environment.get("FLASHINFER_NVCC") or f"{environment.get('CUDA_HOME', _CUDA)}/bin/nvcc",
        "a C++ compiler": environment.get("CXX") or "c++",
    }
    path = environment.get("PATH", "")
    return [name for name, program in programs.items() if shutil.which(program, path=path) is None]


def reason_of(error: Exception) -> str:
    """The line of a compiler's output that names the failure."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if _REASON.search(line)), lines[-1] if lines else repr(error))
