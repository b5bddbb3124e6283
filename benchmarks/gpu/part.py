"""The framework of a part: its options, its steps, and the file of its figures."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TextIO

import torch

from baton.engine.executor import DTYPES
from baton.engine.kernel_loading import prefill_kernels
from baton.engine.model_config import model_config
from benchmarks.gpu.results import Failure, PartResult, write_json
from benchmarks.gpu.sizes import Sizes, chosen_sizes


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a part."""

    device: str  # "cuda" or "cpu".
    shape: str  # A key of SIZES.
    seed: int
    result: Path
    log: Path  # Receives this process's standard output and error.
    scratch: Path | None = None  # Folder for a checkpoint; None: the first one with room.
    kernels: str = "auto"  # Prefill kernels.
    points: tuple[str, ...] = ()  # Decode points to measure; empty: all.

    @property
    def sizes(self) -> Sizes:
        """The sizes that the options choose."""
        return chosen_sizes(self.shape, self.points)

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"


@dataclass(eq=False)
class Part:
    """A running part. A failed step does not affect the figures of other steps."""

    name: str
    options: Options
    screen: TextIO
    result: PartResult = field(default_factory=PartResult)
    _started_s: float = field(default_factory=time.monotonic)

    @property
    def sizes(self) -> Sizes:
        return self.options.sizes

    @cached_property
    def kernels(self) -> str:
        """The prefill kernels that a worker with these options uses here."""
        if not self.options.on_gpu:
            return "fa2"
        config, dtype = model_config(self.sizes.model), DTYPES[self.sizes.dtype]
        return prefill_kernels(self.options.kernels, config, dtype, torch.cuda.get_device_capability())

    def say(self, text: str) -> None:
        """Print a progress line to the screen and to the log."""
        line = f"{self.name:<12}{time.monotonic() - self._started_s:6.1f} s  {text}"
        print(line, file=self.screen, flush=True)
        print(line, file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Add a note for readers of the figures."""
        self.result.notes.append(text)
        self.save()

    def step(self, what: str, figures: Iterable[str], call: Callable[[], dict[str, float]]) -> bool:
        """Run a measurement; returns False after a failure, which is recorded with the figures it should have given."""
        self.say(what)
        self.result.doing = what
        self.save()
        try:
            self.result.figures |= call()
        except Exception as error:  # noqa: BLE001 - the other steps still run
            self.fail(what, figures, error)
            return False
        finally:
            self.save()
        return True

    def fail(self, what: str, figures: Iterable[str], error: BaseException) -> None:
        """Record a failure."""
        failure = Failure.of(what, list(figures), error)
        self.say(f"failed: {failure.sentence}")
        print(failure.traceback, file=sys.stderr, flush=True)
        self.result.failures.append(failure)
        self.save()

    def skip(self, figures: Iterable[str], why: str) -> None:
        """Record that figures are not measured, for a reason that is not a failure."""
        self.result.skipped |= dict.fromkeys(figures, why)
        self.save()

    def save(self) -> None:
        """Write the results so far to the file."""
        self.result.seconds = time.monotonic() - self._started_s
        write_json(self.options.result, self.result.to_json())
