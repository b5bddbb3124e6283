"""Progress of an operation on the pools: live on a terminal, else a plain line per change."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.table import Table

from baton.cli.table import Column, fitting, show
from baton.protocol.v1 import admin_pb2

PLAN_COLUMNS = (
    Column("step", 2, right=True),
    Column("worker"),
    Column("action", 1),
    Column("detail", 3, wraps_to=20),
)
OPERATION_COLUMNS = (
    Column("operation"),
    Column("title", 2, wraps_to=14),
    Column("state", 1),
    Column("steps done", 4),
    Column("seconds", 5, right=True),
    Column("message", 3, wraps_to=20),
)
MARKS = {"waiting": "[dim]·[/]", "done": "[green]✓[/]", "failed": "[red]✗[/]", "cancelled": "[yellow]-[/]"}


def print_plan(console: Console, plan: admin_pb2.Operation) -> None:
    """The steps an operation would take, in order."""
    console.print(f"[bold]{escape(plan.title)}[/]" + (f": {escape(plan.message)}" if plan.message else ""))
    if not plan.steps:
        return
    rows = [(str(number), step.worker, step.action, step.detail) for number, step in enumerate(plan.steps, 1)]
    show(console, fitting(PLAN_COLUMNS, rows))


def print_operations(console: Console, operations: list[admin_pb2.Operation]) -> None:
    """One row per operation."""
    if not operations:
        console.print("No operations since the router started.")
        return
    rows = []
    for one in operations:
        done = sum(step.state == "done" for step in one.steps)
        progress = f"{done} of {len(one.steps)}"
        rows.append((one.operation_id, one.title, one.state, progress, f"{one.elapsed_s:.1f}", one.message))
    show(console, fitting(OPERATION_COLUMNS, rows))


class OperationProgress:
    """Shows the steps of an operation; call `show` with each of its states."""

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self._console, self._quiet = console, quiet
        self._operation = admin_pb2.Operation()
        self._seen_s = time.monotonic()
        self._shown: dict[int, str] = {}  # Step index → its last plain line
        self._spinner = Spinner("dots")
        live = console.is_terminal and not quiet
        self._live = Live(console=console, refresh_per_second=8, get_renderable=self._table) if live else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def show(self, operation: admin_pb2.Operation) -> None:
        """Show the operation's current state."""
        self._operation, self._seen_s = operation, time.monotonic()
        if self._live:
            self._live.refresh()
        elif not self._quiet:
            self._print(operation)

    def _print(self, operation: admin_pb2.Operation) -> None:
        for number, step in enumerate(operation.steps):
            line = f"{step.worker:<12} {step.action}: {step.state}" + (f" ({step.detail})" if step.detail else "")
            if step.state != "waiting" and self._shown.get(number) != line:
                self._shown[number] = line
                self._console.print(f"{operation.elapsed_s:5.1f} s  {line}", markup=False, soft_wrap=True)

    def _table(self) -> RenderableType:
        """The last state, with the times of running steps extended to now."""
        since = time.monotonic() - self._seen_s
        table = Table.grid(padding=(0, 1))
        table.add_column()
        table.add_column(no_wrap=True)
        for step in self._operation.steps:
            mark = MARKS.get(step.state)
            seconds = "" if step.state == "waiting" else f"{step.elapsed_s + (0.0 if mark else since):.1f} s"
            text = f"{step.state}: {step.detail}" if step.detail else step.state
            table.add_row(mark or self._spinner, step.worker, escape(step.action), f"[dim]{escape(text)}[/]", seconds)
        return table
