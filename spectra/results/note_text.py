"""The notes of records, for tables: warnings first, and one note for all that differ in numbers only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from spectra.results.record import Record

#: How the notes begin that come first: of a failed check, and of a record that could not be checked.
ALARMS = ("CHECK FAILED", "UNVERIFIED")

# A number by itself, and no digits of a name.
_NUMBER = re.compile(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?(?![\w.]*[A-Za-z_])")


def notes_of(records: Iterable[Record]) -> list[str]:
    """The notes of records: first every failed check, then the worst of each kind with the number of its records."""
    found = [note for record in records for note in record.notes]
    alarms = [note for note in dict.fromkeys(found) if note.startswith(ALARMS)]
    others = worst_of(note for note in found if not note.startswith(ALARMS))
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
