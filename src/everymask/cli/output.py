"""What verbs print: results on standard output, everything else on standard error."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

    from everymask.cli.application import Common
    from everymask.metrics import Table


class Output:
    """Prints as the common options say.

    Args:
        common: With ``--json`` only `result` writes to standard output; ``--quiet`` leaves out notes and progress.
    """

    def __init__(self, common: Common) -> None:
        self.quiet = common.quiet
        self.json = common.json

    def show(self, content: RenderableType = "") -> None:
        """A line or a table for people, on standard output."""
        if not self.json:
            _console().print(content, highlight=False, markup=False, soft_wrap=isinstance(content, str))

    def table(self, content: Table) -> None:
        """A table for people, on standard output."""
        if not self.json:
            self.show(rich_table(content, _console().width))

    def rows(self, columns: Sequence[str], rows: Sequence[Sequence[str | int | float]], title: str = "") -> None:
        """A table of plain cells for people, on standard output."""
        from everymask.metrics.base import Table

        self.table(Table(title, tuple(columns), tuple(tuple(row) for row in rows)))

    def note(self, message: str) -> None:
        """Something worth knowing, on standard error."""
        if not self.quiet:
            sys.stderr.write(f"note: {message}\n")

    def hint(self, message: str) -> None:
        """Where things are and what to do next: for people who are not in a hurry."""
        if not self.quiet:
            self.show(message)

    def result(self, values: Mapping[str, Any] | Sequence[Any]) -> None:
        """The result for machines, with ``--json``."""
        if self.json:
            sys.stdout.write(json.dumps(plain(values), indent=2) + "\n")

    @contextlib.contextmanager
    def progress(self, task: str) -> Iterator[Callable[[int, int], None]]:
        """Gives a function of (steps done, steps in all) that draws a progress bar with the time left.

        The bar is drawn on a terminal only, and disappears at the end.
        """
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        hidden = self.quiet or not console.is_terminal
        with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
            number = bar.add_task(task, total=None)

            def advance(done: int, total: int) -> None:
                bar.update(number, completed=done, total=total)

            yield advance


def _console() -> Any:
    from rich.console import Console

    # Piped tables must not be cut to the 80 columns of an imagined terminal.
    return Console() if sys.stdout.isatty() else Console(width=200)


def rich_table(table: Table, width: int = 10_000) -> Any:
    """A `everymask.metrics.Table` for the terminal.

    Args:
        table: Titles, figures and a note.
        width: Characters there are. Columns that do not fit are left out from the right, and a line says so.
    """
    from rich import box
    from rich.table import Table as RichTable

    # The first column names the row: a threshold is written as it was given.
    rows = [
        [f"{cell:g}" if isinstance(cell, float) and not i else cell_text(cell) for i, cell in enumerate(row)]
        for row in table.rows
    ]
    narrowest = [
        max(map(len, [*name.split(), *(row[i] for row in rows)]), default=0) for i, name in enumerate(table.columns)
    ]
    shown, taken = 0, 1
    while shown < len(narrowest) and (shown == 0 or taken + narrowest[shown] + 3 <= width):
        taken += narrowest[shown] + 3  # a space on both sides, and one between columns
        shown += 1
    left_out = "" if shown == len(narrowest) else f"Left out for want of width: {', '.join(table.columns[shown:])}."
    made = RichTable(
        box=box.SIMPLE_HEAD,
        title=table.title,
        title_justify="left",
        title_style="bold",
        caption=" ".join(each for each in (table.note, left_out) if each) or None,
        caption_justify="left",
    )
    for i, name in enumerate(table.columns[:shown]):
        text = not table.rows or isinstance(table.rows[0][i], str)
        made.add_column(name, justify="left" if text else "right", min_width=narrowest[i])
    for row in rows:
        made.add_row(*row[:shown])
    return made


def cell_text(cell: str | int | float) -> str:
    """A table cell for people: three digits after the point; a dash where there is no figure."""
    if isinstance(cell, float):
        return "-" if math.isnan(cell) else f"{cell:.3f}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def counted(number: int, noun: str) -> str:
    """``1 image``, ``1,234 images``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def plain(value: Any) -> Any:
    """Values as JSON has them: paths as text, figures that are not defined as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, str | int | bool) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "tolist"):  # numpy's arrays and numbers
        return plain(value.tolist())
    return [plain(each) for each in value]
