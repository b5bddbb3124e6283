"""How many KV pages a GPU has room for. Pure: what was measured is passed in."""

from __future__ import annotations

from dataclasses import dataclass

from baton.protocol.errors import ConfigError

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Bytes of one GPU as a worker finds them after its weights are loaded and a profiling run is over."""

    total: int
    free: int  # now, for anybody: what other processes took is gone from it
    own: int  # that this worker holds now: weights, mostly. The driver's own share stays in what the fraction leaves
    step_peak: int  # that the largest step took beyond `own` while it ran
    workspace: int  # still to be taken: attention workspace, recorded steps, their output


def pages_that_fit(memory: DeviceMemory, fraction: float, page_bytes: int, needed: int) -> int:
    """Pages for this worker if it is to take `fraction` of the GPU, everything of its own included.

    Another worker on the same GPU has a fraction of its own, so neither looks at what the other has yet to take; but
    what is already gone from the GPU cannot be had. Raises `ConfigError` when fewer than `needed` (one full-length
    request) fit, with what takes the room.
    """
    besides = memory.step_peak + memory.workspace
    by_fraction = int(memory.total * fraction) - memory.own - besides
    by_free = memory.free - besides
    # One page more pads recorded steps.
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
