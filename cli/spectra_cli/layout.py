"""The common parts of all tables: console, style, lines, headings, notes, and the header of a run."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import rich.box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from spectra.errors import escaped
from spectra.results.note_text import ALARMS
from spectra.results.note_text import grouped as grouped
from spectra.results.note_text import notes_of as notes_of
from spectra.results.note_text import worst_of as worst_of
from spectra.results.record import Record
from spectra.results.record_text import header as header
from spectra_cli.console import SafeConsole

#: Wider than any table: away from a terminal a table is as wide as it needs to be, and nothing is cut off.
_PIPED_WIDTH = 10_000

#: Notes that a summary prints at most.
FEW_NOTES = 3


def make_console(*, stderr: bool = False) -> Console:
    """A console on which nothing is ever truncated: the width is fixed and large where there is no terminal."""
    stream = sys.stderr if stderr else sys.stdout
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show must not end the report
    width = None if stream.isatty() else _PIPED_WIDTH
    return SafeConsole(file=stream, width=width, highlight=False, markup=False, emoji=False)


class _PipedTable(Table):
    """A table that joins its cells itself where there is no terminal: the same text as by rich, but faster."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns = [[column.header, *column.cells] for column in self.columns]
        widths = [max(len(cell) if isinstance(cell, str) else 0 for cell in column) for column in columns]
        simple = not self.title and all(_is_simple(cell) for column in columns for cell in column)
        if options.is_terminal or not simple or sum(widths) + 3 * (len(widths) - 1) > options.max_width:
            yield from super().__rich_console__(console, options)
            return
        for line in self._lines(columns, widths):
            yield Segment(line)
            yield Segment.line()

    def _lines(self, columns: Sequence[Sequence[Any]], widths: Sequence[int]) -> Iterator[str]:
        sides = ["<" if column.justify == "left" else ">" for column in self.columns]
        form = "   ".join(f"{{:{side}{width}}}" for side, width in zip(sides, widths)).format
        header, *rows = zip(*columns, strict=True)
        yield form(*header)
        yield "\u2500" * (sum(widths) + 3 * (len(widths) - 1))
        yield from (form(*row) for row in rows)


def _is_simple(cell: object) -> bool:
    """Whether rich prints a cell as it is: every character is one column wide, and none is markup or an emoji."""
    if not isinstance(cell, str) or not cell.isascii() or not cell.isprintable():
        return False
    return cell == cell.strip() and "[" not in cell and cell.count(":") < 2


def new_table(*columns: str, title: str | None = None, left: Iterable[int] = ()) -> Table:
    """An empty table in the style of the project; its columns are aligned to the right, those in `left` to the left."""
    table = _PipedTable(
        box=rich.box.SIMPLE_HEAD, show_edge=False, pad_edge=False, title=title, title_justify="left", title_style=""
    )
    for column in columns:
        table.add_column(column, justify="right", overflow="fold")
    for index in left:
        table.columns[index].justify = "left"
    return table


def print_pairs(console: Console, pairs: Sequence[tuple[str, str]]) -> None:
    """Print a line for each (name, words), with aligned names."""
    width = max((len(name) for name, _ in pairs), default=0)
    for name, words in pairs:
        print_line(console, f"  {name:<{width}}  {words}")


def print_heading(console: Console, words: str) -> None:
    """Print an empty line and a heading in bold."""
    console.print()
    print_line(console, words, style="bold")


def print_line(console: Console, words: str, style: str = "") -> None:
    """Print a text as one line, with control characters escaped."""
    console.print(Text(escaped(" ".join(words.splitlines())), style=style), soft_wrap=True)


def print_notes(
    console: Console, remarks: dict[str, list[str]], records: Iterable[Record], most: int | None = None
) -> int:
    """Print the notes that stars refer to and the notes of records, failed checks first.

    With ``most``, at most so many are printed, and two notes of the records come before those of the stars.

    Returns:
        The number of notes that were not printed.
    """
    found = notes_of(records)
    alarms = [f"! {note}" for note in found if note.startswith(ALARMS)]
    notes = [f"! {note}" for note in found if not note.startswith(ALARMS)]
    stars = [f"* {', '.join(names)}: {note}" for note, names in grouped(remarks).items()]
    first = 0 if most is None else 2
    lines = [*alarms, *notes[:first], *stars, *notes[first:]]
    shown = lines[:most]
    for line in shown:
        print_line(console, line)
    return len(lines) - len(shown)
