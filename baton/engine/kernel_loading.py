"""Loads FlashInfer's kernels before anything large; kernels that are not prebuilt are compiled in parallel."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from baton.engine.attention.flashinfer import has_kernels, load_flashinfer
from baton.engine.attention.kernel_modules import KernelModule, kernel_modules
from baton.engine.cuda_device import check_kernels
from baton.engine.kernel_compiler import architecture, missing_programs, reason_of
from baton.engine.model_config import ModelConfig
from baton.engine.prebuilt_kernels import Built, Manifest, read_manifest, runs_on
from baton.engine.race.launchable import check_triton
from baton.protocol.errors import ConfigError

Tell = Callable[[str], None]
INSTALL = "python -m baton.deploy.flashinfer_kernels install FILE"


def prepare_kernels(device: torch.device, config: ModelConfig, dtype: torch.dtype, asked: str, tell: Tell) -> str:
    """Load the kernels of a model on an open GPU (`open_device`); returns the name of the prefill kernels.

    `asked` is "fa2", "fa3" or "auto". Kernels that are not prebuilt are compiled, which takes minutes, once per
    machine. Raises `ConfigError` when kernels can be neither loaded nor compiled.
    """
    capability = torch.cuda.get_device_capability(device)
    prefill = prefill_kernels(asked, config, dtype, capability)
    check_kernels(prefill, capability)
    load_kernels(_modules(config, dtype, prefill), capability, tell)
    check_triton()
    return prefill


def prefill_kernels(asked: str, config: ModelConfig, dtype: torch.dtype, capability: tuple[int, int]) -> str:
    """Resolves "auto": fa3 on a Hopper GPU if it is already compiled, else fa2.

    On Hopper fa3 is faster at every measured length (docs/benchmarks.md), but compiling it takes minutes.
    """
    if asked != "auto":
        return asked
    if capability[0] != 9 or not has_kernels(dtype, config.head_dim):
        return "fa2"
    library = load_flashinfer()
    ready = all(module.describe(library).is_compiled for module in _modules(config, dtype, "fa3"))
    return "fa3" if ready else "fa2"


def _modules(config: ModelConfig, dtype: torch.dtype, prefill: str) -> list[KernelModule]:
    return kernel_modules(dtype, config.head_dim, config.num_heads // config.num_kv_heads, (prefill,))


def load_kernels(modules: Sequence[KernelModule], capability: tuple[int, int], tell: Tell) -> None:
    """As `prepare_kernels`, for these modules. FlashInfer loads them again on the first call, in milliseconds."""
    library = load_flashinfer()
    specs = [module.describe(library) for module in modules]
    folder = Path(library.jit.env.FLASHINFER_AOT_DIR)
    manifest = read_manifest(folder)
    prebuilt = [spec.name for spec in specs if spec.is_aot]
    missing = [spec for spec in specs if not spec.is_compiled]
    if manifest is not None and prebuilt:
        check_versions(manifest, library.__version__, torch.version.cuda or "", folder)
    check_prebuilt(prebuilt, manifest.modules if manifest else {}, capability, folder)
    check_compilable([spec.name for spec in missing], missing_programs(os.environ), capability)
    for spec in specs:
        if spec not in missing:
            _load(spec)
    if missing:
        _compile(missing, tell)


def check_versions(manifest: Manifest, flashinfer: str, cuda: str, folder: Path) -> None:
    """Raise `ConfigError` for kernels of another FlashInfer or CUDA version."""
    if manifest.flashinfer != flashinfer or (cuda and manifest.cuda.split(".")[0] != cuda.split(".")[0]):
        raise ConfigError(
            f"The prebuilt kernels in {folder} are of FlashInfer {manifest.flashinfer} and CUDA {manifest.cuda}, but "
            f"FlashInfer {flashinfer} and CUDA {cuda} are installed: install kernels built with these ({INSTALL}), or "
            "delete the folder to have them compiled."
        )


def check_prebuilt(
    prebuilt: Sequence[str], built: Mapping[str, Built], capability: tuple[int, int], folder: Path
) -> None:
    """Raise `ConfigError` for kernels that were built for other GPUs; kernels without a manifest entry pass."""
    for name in prebuilt:
        architectures = built[name].architectures if name in built else ()
        if architectures and not any(runs_on(built_for, capability) for built_for in architectures):
            raise ConfigError(
                f"The prebuilt kernels {name} in {folder} are for GPUs {', '.join(architectures)}, and this one is "
                f"{capability[0]}.{capability[1]}: install kernels built with --arch {architecture(capability)}, or "
                f"delete {folder} to have them compiled."
            )


def check_compilable(missing: Sequence[str], lacking: Sequence[str], capability: tuple[int, int]) -> None:
    """Raise `ConfigError` when kernels are `missing` and so are programs to compile them (`lacking`)."""
    if missing and lacking:
        raise ConfigError(
            f"FlashInfer's kernels {', '.join(missing)} are not installed, and programs to compile them are not found "
            f"({', '.join(lacking)}): install kernels built for {architecture(capability)} ({INSTALL}; "
            "docs/deployment.md), or the CUDA toolkit and ninja."
        )


def _compile(specs: Sequence[Any], tell: Tell) -> None:
    """Compile one module per thread: most modules have two files, one of which takes most of the time."""
    tell(f"compiling kernels, 0 of {len(specs)} (minutes, once per machine)")
    with ThreadPoolExecutor(len(specs)) as pool:
        futures = [pool.submit(_load, spec) for spec in specs]
        for done, future in enumerate(as_completed(futures), 1):
            future.result()
            tell(f"compiling kernels, {done} of {len(specs)}")


def _load(spec: Any) -> None:
    try:
        spec.build_and_load()
    except (RuntimeError, OSError) as error:
        raise ConfigError(
            f"FlashInfer's kernels {spec.name} cannot be {'loaded' if spec.is_compiled else 'compiled'}: "
            f"{reason_of(error)}"
        ) from error
