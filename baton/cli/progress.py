"""Progress of starting processes and of long computations: live on a terminal, else plain lines."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.spinner import Spinner
from rich.table import Table

_DONE = ("serving", "ready", "done")


class StartProgress:
    """Shows the stage of each process; call it with (process, stage)."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stages: dict[str, str] = {}
        self._started = time.monotonic()
        self._live = Live(console=console, refresh_per_second=8, transient=False) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, process: str, stage: str) -> None:
        if self._stages.get(process) == stage:
            return
        self._stages[process] = stage
        if self._live:
            self._live.update(self._table())
        else:
            self._console.print(f"{time.monotonic() - self._started:5.1f} s  {process:<12} {stage}", markup=False)

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 1))
        table.add_column()
        table.add_column(no_wrap=True)
        for process, stage in self._stages.items():
            finished = stage.startswith(_DONE)
            table.add_row("[green]✓[/]" if finished else Spinner("dots"), process, f"[dim]{escape(stage)}[/]")
        return table


class CountProgress:
    """A progress bar, on a terminal only; `total` None: unknown."""

    def __init__(self, console: Console, total: int | None, what: str) -> None:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
        self._progress = Progress(
            *columns, TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal
        )
        self._task = self._progress.add_task(what, total=total, text="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def at(self, done: int, text: str) -> None:
        """Show that `done` items are complete, with `text` after the bar."""
        self._progress.update(self._task, completed=done, text=text)
