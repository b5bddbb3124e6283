"""What FlashInfer needs of a process to compile kernels: programs on PATH, the GPU's architecture, CUDA's headers."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

_CUDA = Path("/usr/local/cuda")
_HOMES = ("CUDA_HOME", "CUDA_PATH")
# Kernels include these; they come in packages of their own, which a machine with nvcc may lack.
_HEADERS = ("cublas_v2.h", "cublasLt.h", "curand_kernel.h")
_HEADER_FILES = ("cublas*.h", "curand*.h")


def let_flashinfer_compile(capability: tuple[int, int]) -> None:
    """Set this process's environment so that kernels for a GPU of this compute capability can be compiled, by it and by
    its children. FlashInfer reads the architecture when it is imported: call this before.
    """
    os.environ.update(compiler_environment(os.environ, capability, Path(sys.executable).parent))
    folder = Path(os.environ.get("FLASHINFER_WORKSPACE_BASE") or Path.home()) / ".cache/flashinfer/cuda_headers"
    os.environ.update(header_environment(os.environ, cuda_home(os.environ) / "include", _pip_includes(), folder))


def architecture(capability: tuple[int, int]) -> str:
    """What FlashInfer compiles for: the chip alone, from Hopper on with the instructions that only it has ("9.0a")."""
    major, minor = capability
    return f"{major}.{minor}{'a' if major >= 9 else ''}"


def compiler_environment(environment: Mapping[str, str], capability: tuple[int, int], programs: Path) -> dict[str, str]:
    """PATH with the places of ninja and nvcc at its end, and the architecture unless one is set.

    `programs` is where pip puts programs.
    """
    path = [place for place in environment.get("PATH", "").split(os.pathsep) if place]
    places = [programs, *(Path(environment[name]) / "bin" for name in _HOMES if environment.get(name)), _CUDA / "bin"]
    path += [str(place) for place in places if str(place) not in path and place.is_dir()]
    arches = environment.get("FLASHINFER_CUDA_ARCH_LIST") or architecture(capability)
    return {"PATH": os.pathsep.join(path), "FLASHINFER_CUDA_ARCH_LIST": arches}


def cuda_home(environment: Mapping[str, str]) -> Path:
    """The CUDA toolkit that FlashInfer takes (jit/cpp_ext.py, get_cuda_path)."""
    for name in _HOMES:
        if environment.get(name):
            return Path(environment[name])
    nvcc = shutil.which("nvcc", path=environment.get("PATH", ""))
    return Path(nvcc).parent.parent if nvcc else _CUDA


def header_environment(
    environment: Mapping[str, str], toolkit: Path, others: Iterable[Path], folder: Path
) -> dict[str, str]:
    """Headers that the include folder `toolkit` lacks, taken from the folders `others`: links in `folder`, and the flag
    that names it. Nothing where nothing is missing, or no other folder has it.

    Links to these headers alone: the other folders also have headers of a CUDA that may not be the toolkit's.
    """
    missing = [name for name in _HEADERS if not (toolkit / name).exists()]
    found = [place for place in others if any((place / name).exists() for name in missing)]
    if not found:
        return {}
    folder.mkdir(parents=True, exist_ok=True)
    for place in found:
        for pattern in _HEADER_FILES:
            for header in place.glob(pattern):
                _link(folder / header.name, header)
    flag = shlex.quote(f"-I{folder}")
    flags = environment.get("FLASHINFER_EXTRA_CUDAFLAGS", "")
    return {} if flag in flags else {"FLASHINFER_EXTRA_CUDAFLAGS": f"{flags} {flag}".strip()}


def _link(link: Path, target: Path) -> None:
    """Workers of one machine do this at the same time: a link is complete, or the one before."""
    beside = link.with_name(f".{link.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)
    beside.symlink_to(target)
    beside.replace(link)


def _pip_includes() -> list[Path]:
    """Include folders of NVIDIA's packages from pip: nvidia/cu13/include, nvidia/curand/include and the like."""
    spec = importlib.util.find_spec("nvidia")
    places = spec.submodule_search_locations if spec else None
    return [include for place in places or () for include in sorted(Path(place).glob("*/include"))]
