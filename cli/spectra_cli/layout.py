"""The common parts of all tables: console, style, lines, headings, notes, and the header of a run."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import rich.box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from spectra.errors import escaped
from spectra.results.record import Record
from spectra.results.trajectory import Trajectory
from spectra_cli.console import SafeConsole
from spectra_cli.numbers import plain

#: Wider than any table: away from a terminal a table is as wide as it needs to be, and nothing is cut off.
_PIPED_WIDTH = 10_000

#: Notes that a summary prints at most.
FEW_NOTES = 3

# How the notes begin that come first: of a failed check, and of a record that could not be checked.
_ALARMS = ("CHECK FAILED", "UNVERIFIED")

# A number by itself, and no digits of a name.
_NUMBER = re.compile(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?(?![\w.]*[A-Za-z_])")


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


def header(trajectory: Trajectory) -> list[tuple[str, str]]:
    """(name, words) of the settings that the records share; unknown ones are left out."""
    settings = trajectory.settings or next((record.settings for record in trajectory), {})
    first = next((record for record in trajectory if record.spectrum is not None), None)
    lines = [
        ("task", settings.get("task")),
        ("loss", settings.get("loss")),
        (
            "reduction",
            settings.get("reduction") and f"{settings['reduction']}, l2 = {plain(settings.get('l2') or 0.0)}",
        ),
    ]
    if first is not None and first.spectrum is not None:
        spectrum = first.spectrum
        asked = settings.get("lanczos_steps", spectrum.lanczos_steps)
        fewer = f" (at most {spectrum.lanczos_steps} taken)" if spectrum.lanczos_steps < asked else ""
        probes = f"k = {spectrum.num_probes} probes ({spectrum.distribution}, seed {spectrum.seed})"
        lines += [
            ("data", f"N = {plain(first.facts.get('n_samples'))}{_batches(settings.get('batch_sizes'))}"),
            ("parameters", f"n = {plain(spectrum.n)}{_selection(settings.get('params'))}"),
            ("Lanczos", ", ".join(filter(None, (f"m = {asked} steps{fewer}", probes, settings.get("dtype"))))),
        ]
    lines += [
        ("matrix", "preconditioned: P^-1/2 H P^-1/2, P of the optimizer" if settings.get("precondition") else None),
        ("preset", settings.get("preset")),
        (
            "snapshot",
            f"one pass of the data, seed {settings.get('data_seed')}" if "snapshot_data" in settings else None,
        ),
    ]
    if first is not None and first.test_spectrum is not None:
        there = plain(first.facts.get("test_n_samples")) + _batches(settings.get("test_batch_sizes"))
        lines.append(("test data", f"N = {there}"))
    return [(name, str(words)) for name, words in lines if words]


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


def notes_of(records: Iterable[Record]) -> list[str]:
    """The notes of records: first every failed check, then the worst of each kind with the number of its records."""
    found = [note for record in records for note in record.notes]
    alarms = [note for note in dict.fromkeys(found) if note.startswith(_ALARMS)]
    others = worst_of(note for note in found if not note.startswith(_ALARMS))
    return alarms + [_counted(worst, alike) for worst, alike in others.items()]


def worst_of(notes: Iterable[str]) -> dict[str, list[str]]:
    """The worst note of each kind -> all notes of that kind.

    Notes are of one kind where they differ in numbers only; digits in a name such as ``layer3.0.weight`` are no
    numbers. The worst note has the largest value of the first number that differs.

    Example:
        >>> list(worst_of(["one carries 16% of the sum", "one carries 100% of the sum", "TF32 was off"]))
        ['one carries 100% of the sum', 'TF32 was off']
    """
    kinds: dict[str, list[str]] = {}
    for note in notes:
        kinds.setdefault(_NUMBER.sub("#", note), []).append(note)
    return {max(alike, key=_numbers_in): alike for alike in kinds.values()}


def _numbers_in(note: str) -> list[float]:
    return [float(number.replace(",", "")) for number in _NUMBER.findall(note)]


def _counted(note: str, alike: Sequence[str]) -> str:
    """The note, with the number of records that have a note of its kind."""
    if len(alike) == 1:
        return note
    return f"{note} ({'worst of ' if len(set(alike)) > 1 else ''}{len(alike)} records)"


def grouped(remarks: dict[str, list[str]]) -> dict[str, list[str]]:
    """Note -> the quantities with a star for it; the worst note of each kind represents all of its kind."""
    names: dict[str, list[str]] = {}
    stands_for: dict[str, list[str]] = {}
    for name, notes in remarks.items():
        for worst, alike in worst_of(notes).items():
            names.setdefault(worst, []).append(name)
            stands_for[worst] = max(stands_for.get(worst, []), alike, key=len)
    return {_counted(worst, stands_for[worst]): quantities for worst, quantities in names.items()}


def print_notes(
    console: Console, remarks: dict[str, list[str]], records: Iterable[Record], most: int | None = None
) -> int:
    """Print the notes that stars refer to and the notes of records, failed checks first.

    With ``most``, at most so many are printed, and two notes of the records come before those of the stars.

    Returns:
        The number of notes that were not printed.
    """
    found = notes_of(records)
    alarms = [f"! {note}" for note in found if note.startswith(_ALARMS)]
    notes = [f"! {note}" for note in found if not note.startswith(_ALARMS)]
    stars = [f"* {', '.join(names)}: {note}" for note, names in grouped(remarks).items()]
    first = 0 if most is None else 2
    lines = [*alarms, *notes[:first], *stars, *notes[first:]]
    shown = lines[:most]
    for line in shown:
        print_line(console, line)
    return len(lines) - len(shown)


def _batches(sizes: Any) -> str:
    """Batch sizes in words, from [size, number of consecutive batches]."""
    if not isinstance(sizes, list) or not sizes:
        return ""
    return f" in batches of {', '.join(f'{count} x {size}' for size, count in sizes)}"


def _selection(params: Any) -> str:
    if params is None:
        return ""
    return f" (only {params if isinstance(params, str) else ', '.join(map(str, params))})"
