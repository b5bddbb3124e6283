"""The manifest of kernels that were compiled on another machine, and the GPUs that they run on."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from baton.protocol.errors import ConfigError

MANIFEST = "baton_kernels.json"
_MODULE = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Built:
    """One module's library: the architectures it was compiled for ("9.0a"), its size, and its SHA-256."""

    architectures: tuple[str, ...]
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """Modules by name, and the versions they were built with. `glibc` is the oldest with which all of them load."""

    flashinfer: str
    tvm_ffi: str
    cuda: str
    glibc: str
    machine: str
    modules: Mapping[str, Built]

    def as_json(self) -> str:
        """The manifest's file contents."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @staticmethod
    def from_json(text: str) -> Manifest:
        """The inverse of `as_json`; raises `ConfigError` for anything else."""
        try:
            raw = json.loads(text)
            built = {
                name: Built(tuple(entry["architectures"]), int(entry["num_bytes"]), str(entry["sha256"]))
                for name, entry in raw.pop("modules").items()
                if _MODULE.fullmatch(name)
            }
            return Manifest(**{name: str(value) for name, value in raw.items()}, modules=built)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise ConfigError(f"{MANIFEST} is not a valid manifest of kernels: {error}.") from None

    def with_older(self, older: Manifest | None) -> Manifest:
        """This manifest with the modules of an `older` one added, if both were built with the same versions."""
        if older is None or replace(older, modules=self.modules, glibc=self.glibc) != self:
            return self
        glibc = max(older.glibc, self.glibc, key=lambda version: [int(part) for part in version.split(".")])
        return replace(self, glibc=glibc, modules={**older.modules, **self.modules})


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of the kernels in FlashInfer's folder, None without one; raises `ConfigError` if it is invalid."""
    path = folder / MANIFEST
    return Manifest.from_json(path.read_text()) if path.is_file() else None


def runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether machine code for "8.0" or "9.0a" runs on a GPU of this compute capability.

    Newer chips run older code of the same generation. Code with chip-specific instructions ("a") runs on one chip only.
    """
    found = re.fullmatch(r"(\d+)\.(\d+)([af]?)", architecture)
    if found is None:
        return False
    major, minor = int(found[1]), int(found[2])
    if found[3] == "a":
        return (major, minor) == capability
    return major == capability[0] and minor <= capability[1]
