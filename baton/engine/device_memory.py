"""The number of KV pages that fit on a GPU. Pure: measurements are passed in."""

from __future__ import annotations

from dataclasses import dataclass

from baton.protocol.errors import ConfigError

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Bytes of one GPU, measured by a worker after loading weights and a profiling run."""

    total: int
    free: int  # Free now, so without the memory of other processes.
    own: int  # Held by this worker now, mostly weights. The driver's share does not count.
    step_peak: int  # Peak of the largest step beyond `own`.
    workspace: int  # Still to be allocated: attention workspace, recorded steps, their output.


def pages_that_fit(memory: DeviceMemory, fraction: float, page_bytes: int, needed: int) -> int:
    """The number of pages with which all of this worker's memory is `fraction` of the GPU.

    Another worker on the same GPU has its own fraction, so its future allocations do not count here; its present ones
    do, because `free` excludes them. Raises `ConfigError`, listing the uses of the memory, when fewer than `needed`
    pages (one full-length request) fit.
    """
    besides = memory.step_peak + memory.workspace
    by_fraction = int(memory.total * fraction) - memory.own - besides
    by_free = memory.free - besides
    # One page is for the padding of recorded steps.
    pages = min(by_fraction, by_free) // page_bytes - 1
    if pages >= needed:
        return pages
    figures = (
        f"{max(pages, 0)} KV pages fit on the GPU, but one full-length request needs {needed} of {page_bytes} bytes. "
        f"Of {_gib(memory.total)} GiB this worker may take {fraction:g}; it holds {_gib(memory.own)}, its largest step "
        f"takes {_gib(memory.step_peak)} and its workspaces {_gib(memory.workspace)}; {_gib(memory.free)} are free"
    )
    if by_free < by_fraction:
        raise ConfigError(f"{figures}: other processes use this GPU; end them, or lower model.context_tokens.")
    raise ConfigError(
        f"{figures}: raise engine.gpu_memory_fraction, or lower model.context_tokens or engine.chunk_tokens."
    )


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.2f}"
