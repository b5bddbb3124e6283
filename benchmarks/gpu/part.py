"""What a part works with: its options, its steps one by one, and the file its figures go to."""

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
    """The flags that every part heeds."""

    device: str  # "cuda" or "cpu"
    shape: str  # a key of SIZES
    seed: int
    result: Path
    log: Path  # where this process's standard output and error go
    scratch: Path | None = None  # for a checkpoint; None: wherever there is room
    kernels: str = "auto"  # for prefill
    points: tuple[str, ...] = ()  # of decode that are measured; empty: all

    @property
    def sizes(self) -> Sizes:
        return chosen_sizes(self.shape, self.points)

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"


@dataclass(eq=False)
class Part:
    """One part at work. A step that fails leaves the figures of the others as they are."""

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
        """The prefill kernels that a worker with this setting would take here."""
        if not self.options.on_gpu:
            return "fa2"
        config, dtype = model_config(self.sizes.model), DTYPES[self.sizes.dtype]
        return prefill_kernels(self.options.kernels, config, dtype, torch.cuda.get_device_capability())

    def say(self, text: str) -> None:
        """A progress line, here and in the log."""
        line = f"{self.name:<12}{time.monotonic() - self._started_s:6.1f} s  {text}"
        print(line, file=self.screen, flush=True)
        print(line, file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Something a reader of the figures should know."""
        self.result.notes.append(text)
        self.save()

    def step(self, what: str, figures: Iterable[str], call: Callable[[], dict[str, float]]) -> bool:
        """Measure something. False when it failed, which is written down with the figures it owes."""
        self.say(what)
        self.result.doing = what
        self.save()
        try:
            self.result.figures |= call()
        except Exception as error:  # noqa: BLE001 - whatever it is, the other steps still run
            self.fail(what, figures, error)
            return False
        finally:
            self.save()
        return True

    def fail(self, what: str, figures: Iterable[str], error: BaseException) -> None:
        """Write a failure down."""
        failure = Failure.of(what, list(figures), error)
        self.say(f"failed: {failure.sentence}")
        print(failure.traceback, file=sys.stderr, flush=True)
        self.result.failures.append(failure)
        self.save()

    def skip(self, figures: Iterable[str], why: str) -> None:
        """These figures are not measured, for a reason that is no failure."""
        self.result.skipped |= dict.fromkeys(figures, why)
        self.save()

    def save(self) -> None:
        self.result.seconds = time.monotonic() - self._started_s
        write_json(self.options.result, self.result.to_json())
