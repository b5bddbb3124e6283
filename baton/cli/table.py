"""Tables that fit the terminal: in a narrow one the least important columns are left out, and no name is cut."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

PIPE_CELLS = 200  # Width of a line that is not printed on a terminal
_FRAME, _GAP = 1, 3  # Cells of a table's frame: once, and per column


@dataclass(frozen=True, slots=True)
class Column:
    """One column. A column of rank 0 always stays; of the others the highest rank is left out first."""

    title: str
    rank: int = 0
    right: bool = False
    wraps_to: int = 0  # Minimum width in cells to which text may be wrapped; 0: no wrapping
    drawing: bool = False  # Left out on an ASCII terminal, which lacks its characters
    note: str = ""  # Shown below the table if the column is


def columns_that_fit(cells: Sequence[int], ranks: Sequence[int], room: int, gap: int = _GAP) -> list[int]:
    """Indices of the columns that are kept in `room` cells: those of rank 0, and as many others as fit.

    The column of the highest rank is left out first; of equal ranks, the last. More room never removes a column.
    """
    kept = list(range(len(cells)))
    for index in sorted(kept, key=lambda index: (-ranks[index], -index)):
        if ranks[index] == 0 or sum(cells[one] + gap for one in kept) + _FRAME <= room:
            break
        kept.remove(index)
    return kept


@dataclass(eq=False)
class FittingTable:
    """A table that chooses its columns when it is drawn. Print it with `show`, which does not cut lines
    that are too long even for the columns of rank 0.
    """

    columns: Sequence[Column]
    rows: list[list[Text]] = field(default_factory=list)
    sections: set[int] = field(default_factory=set)  # Indices of rows with a line below them
    title: str = ""

    def add_row(self, *values: str | Text) -> None:
        """Add a row, with a value per column; texts are shown without markup."""
        self.rows.append([Text(value) if isinstance(value, str) else value for value in values])

    def end_section(self) -> None:
        """Draw a line below the rows so far."""
        self.sections.add(len(self.rows) - 1)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        widest = [
            max([len(column.title), *(row[index].cell_len for row in self.rows)])
            for index, column in enumerate(self.columns)
        ]
        least = [min(cells, column.wraps_to or cells) for cells, column in zip(widest, self.columns, strict=True)]
        kept = columns_that_fit(least, [column.rank for column in self.columns], options.max_width)
        kept = [index for index in kept if not (self.columns[index].drawing and options.ascii_only)]
        needed = sum(least[index] + _GAP for index in kept) + _FRAME
        table = Table(title=self.title or None, title_justify="left", box=box.HEAVY_HEAD)
        if needed > options.max_width:
            table.width = needed
        for index in kept:
            column = self.columns[index]
            table.add_column(
                column.title,
                justify="right" if column.right else "left",
                no_wrap=not column.wraps_to,
                overflow="fold",
                min_width=least[index],
            )
        for number, row in enumerate(self.rows):
            table.add_row(*(row[index] for index in kept), end_section=number in self.sections)
        yield table
        notes = [note for index in kept if (note := self.columns[index].note)]
        if notes:
            yield Text("; ".join(notes), "dim")


def show(console: Console, *parts: RenderableType) -> None:
    """Print without cutting lines. Outside a terminal every column fits, unless $COLUMNS sets the width."""
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPE_CELLS
    for part in parts:
        console.print(part, crop=False)


def fitting(columns: Iterable[Column], rows: Iterable[Sequence[str | Text]], title: str = "") -> FittingTable:
    """A table with these rows."""
    table = FittingTable(list(columns), title=title)
    for row in rows:
        table.add_row(*row)
    return table
