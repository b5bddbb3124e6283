"""A pack of compiled kernels: a tar.xz with libraries and a manifest, carried to the machines that serve.

FlashInfer looks into its folder `data/aot/NAME/NAME.so` before it compiles, so the libraries are unpacked there.
"""

from __future__ import annotations

import io
import lzma
import os
import re
import tarfile
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from baton.engine.prebuilt_kernels import MANIFEST, Built, Manifest, read_manifest
from baton.protocol.errors import ConfigError

_ROOT = "aot"
_GLIBC = re.compile(rb"GLIBC_(\d+(?:\.\d+)+)\0")


@dataclass(frozen=True, slots=True)
class Here:
    """The machine and the Python that kernels are built or installed on; `cuda` is torch's, "" where it has none."""

    flashinfer: str
    tvm_ffi: str
    cuda: str
    glibc: str
    machine: str


def describe(libraries: Mapping[str, bytes], architectures: Sequence[str], built_with: Here) -> Manifest:
    """The manifest of these libraries, given by module name."""
    modules = {
        name: Built(tuple(architectures), len(data), sha256(data).hexdigest()) for name, data in libraries.items()
    }
    return Manifest(
        built_with.flashinfer,
        built_with.tvm_ffi,
        built_with.cuda,
        oldest_glibc(libraries.values()),
        built_with.machine,
        modules,
    )


def oldest_glibc(libraries: Iterable[bytes]) -> str:
    """The oldest glibc that can load these libraries, by the symbol versions that they reference."""
    found = {match.decode() for data in libraries for match in _GLIBC.findall(data)}
    return max(found, key=_numbers, default="2.0")


def write_pack(path: Path, libraries: Mapping[str, bytes], manifest: Manifest) -> None:
    """Write the pack. Equal libraries give equal files: the archive has no times and no owners."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz") as archive:
        _add(archive, f"{_ROOT}/{MANIFEST}", manifest.as_json().encode(), 0o644)
        for name, data in sorted(libraries.items()):
            _add(archive, f"{_ROOT}/{name}/{name}.so", data, 0o755)
    _write(path, packed.getvalue(), 0o644)


def _add(archive: tarfile.TarFile, name: str, data: bytes, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), mode
    archive.addfile(entry, io.BytesIO(data))


def read_pack(path: Path) -> tuple[Manifest, dict[str, bytes]]:
    """Manifest and libraries; raises `ConfigError` for another kind of file, and where a checksum does not match."""
    try:
        with tarfile.open(path, "r:xz") as archive:
            files = {entry.name: archive.extractfile(entry) for entry in archive if entry.isfile()}
            contents = {name: file.read() for name, file in files.items() if file is not None}
    except (OSError, EOFError, tarfile.TarError, lzma.LZMAError) as error:
        raise ConfigError(f"{path} is not a pack of kernels: {error}.") from None
    text = contents.get(f"{_ROOT}/{MANIFEST}")
    if text is None:
        raise ConfigError(f"{path} is not a pack of kernels: it has no {MANIFEST}.")
    manifest = Manifest.from_json(text.decode(errors="replace"))
    libraries = {name: contents.get(f"{_ROOT}/{name}/{name}.so", b"") for name in manifest.modules}
    for name, built in manifest.modules.items():
        if sha256(libraries[name]).hexdigest() != built.sha256:
            raise ConfigError(f"{path} is damaged: {name} does not match its manifest; build or copy it again.")
    return manifest, libraries


def refusal(manifest: Manifest, here: Here) -> str | None:
    """Why these kernels would not load here, None if they would. The GPU's architecture is checked by a worker."""
    if manifest.machine != here.machine:
        return f"they are for {manifest.machine}, and this is {here.machine}: build them on such a machine"
    if manifest.flashinfer != here.flashinfer:
        return f"they are of FlashInfer {manifest.flashinfer}, and {here.flashinfer} is installed: build them with that"
    built, found = _numbers(manifest.tvm_ffi), _numbers(here.tvm_ffi)
    if built[:2] != found[:2] or built > found:
        return (
            f"they were built with apache-tvm-ffi {manifest.tvm_ffi}, and {here.tvm_ffi} is installed: "
            f"pip install 'apache-tvm-ffi=={manifest.tvm_ffi}'"
        )
    if here.cuda and _numbers(manifest.cuda)[0] != _numbers(here.cuda)[0]:
        return f"they were built with CUDA {manifest.cuda}, and torch is of CUDA {here.cuda}: build them with that"
    if _numbers(manifest.glibc) > _numbers(here.glibc):
        return f"they need glibc {manifest.glibc}, and this machine has {here.glibc}: build them on an older system"
    return None


def install(manifest: Manifest, libraries: Mapping[str, bytes], folder: Path) -> None:
    """Put libraries where FlashInfer looks for them, beside those of earlier installs.

    Running workers keep the libraries that they have loaded. Raises `ConfigError` when `folder` cannot be written.
    """
    try:
        for name, data in libraries.items():
            _write(folder / name / f"{name}.so", data, 0o755)
        _write(folder / MANIFEST, manifest.with_older(read_manifest(folder)).as_json().encode(), 0o644)
    except OSError as error:
        raise ConfigError(f"Kernels cannot be installed in {folder}: {error.strerror}.") from None


def _write(path: Path, data: bytes, mode: int) -> None:
    """Replace a file atomically: a concurrent reader or writer sees either the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    beside = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        beside.chmod(mode)
        beside.replace(path)
    except BaseException:
        beside.unlink()
        raise


def _numbers(version: str) -> tuple[int, ...]:
    """ "0.1.15.post2" is (0, 1, 15, 2)."""
    return tuple(int(part) for part in re.findall(r"\d+", version)) or (0,)
