"""The number of KV pages that fit on a GPU. Pure: measurements are passed in."""

from __future__ import annotations

from dataclasses import dataclass

from baton.protocol.errors import ConfigError

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Bytes of one GPU, measured by a worker after loading weights and a profiling run."""

    total: int
    free: int  # now; memory of other processes is already excluded
    own: int  # held by this worker now, mostly weights; the driver's share is outside the fraction
    step_peak: int  # of the largest step beyond `own`
    workspace: int  # to be allocated: attention workspace, recorded steps, their output


def pages_that_fit(memory: DeviceMemory, fraction: float, page_bytes: int, needed: int) -> int:
    """Pages for this worker if all of its memory is to be `fraction` of the GPU.

    Another worker on the same GPU has its own fraction, so neither counts what the other has yet to allocate; but
    memory that is already used is not available. Raises `ConfigError` when fewer than `needed` (one full-length
    request) fit, listing what uses the memory.
    """
    besides = memory.step_peak + memory.workspace
    by_fraction = int(memory.total * fraction) - memory.own - besides
    by_free = memory.free - besides
    # One more page is for the padding of recorded steps.
    pages = min(by_fraction, by_free) // page_bytes - 1
    if pages >= needed:
        return pages
    told = (
        f"{max(pages, 0)} KV pages fit on the GPU, but one full-length request needs {needed} of {page_bytes} bytes. "
        f"Of {_gib(memory.total)} GiB this worker may take {fraction:g}; it holds {_gib(memory.own)}, its largest step "
        f"takes {_gib(memory.step_peak)} and its workspaces {_gib(memory.workspace)}; {_gib(memory.free)} are free"
    )
    if by_free < by_fraction:
        raise ConfigError(f"{told}: other processes are on this GPU; end them, or lower model.context_tokens.")
    raise ConfigError(
        f"{told}: raise engine.gpu_memory_fraction, or lower model.context_tokens or engine.chunk_tokens."
    )


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.2f}"
