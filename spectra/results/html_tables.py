"""Records and runs as HTML tables, which notebooks show: the numbers and words of the command line.

Classes call these functions in ``_repr_html_``, so nothing here imports them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from spectra.html_table import lines, safe, table
from spectra.results.number_text import as_range, estimate_cells, in_short, plain
from spectra.spectrum.estimators import ENDS

if TYPE_CHECKING:
    from spectra.results.headline import Headline

#: Longer series are shown by their first and last records, so many in all.
MOST_ROWS = 40
_FACTS = {"loss": "loss", "accuracy": "accuracy", "gradient_norm": "gradient norm", "n_parameters": "parameters n"}
_COLUMNS = {"trace": "trace", "frobenius_norm": "|H|_F", "lambda_max": "lambda_max", "lambda_min": "lambda_min"}
_COLUMNS |= {"rank_degeneracy": "rank degeneracy"}
_LEGEND = "+- one standard error over the probes; a to b: from the Ritz value to the 95 % bound beyond it"


class Shown(Protocol):
    """The attributes of a :class:`spectra.Record` that the tables use."""

    @property
    def operator(self) -> str: ...

    @property
    def bn_mode(self) -> str: ...

    @property
    def status(self) -> str: ...

    @property
    def reason(self) -> str | None: ...

    @property
    def facts(self) -> Mapping[str, Any]: ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    @property
    def epoch(self) -> float | None: ...

    @property
    def step(self) -> int | None: ...

    @property
    def where(self) -> str: ...

    @property
    def headlines(self) -> Mapping[str, Headline]: ...


def record_html(record: Shown) -> str:
    """A record: what it is of, every number with its error and interval, and the notes."""
    title = f"{record.operator}, BN {record.bn_mode}: {record.where}".removesuffix(": ")
    facts = ", ".join(f"{words} {plain(record.facts[name])}" for name, words in _FACTS.items() if name in record.facts)
    reason = "" if record.status == "complete" else f"{record.status}: {record.reason}"
    if record.status == "failed":
        return _titled(title) + lines(reason)
    remarks: dict[str, list[str]] = {}
    rows = [[name, *estimate_cells(name, estimate, remarks)] for name, estimate in record.headlines.items()]
    starred = [f"* {name}: {note}" for name, notes in remarks.items() for note in notes]
    shown = table(["quantity", "value", "+-", "interval", ""], rows, left=(0, 4))
    return _titled(title) + lines(facts, reason) + shown + lines(*starred, *record.notes)


def series_html(records: Sequence[Shown]) -> str:
    """The records of one operator and batch-norm mode: a row each, in training order."""
    if not records:
        return lines("no records")
    with_epochs = any(record.epoch is not None for record in records)
    when = "epoch" if with_epochs else "step"
    half, gone = MOST_ROWS // 2, len(records) - MOST_ROWS
    rows = []
    for record in records if gone <= 0 else [*records[:half], *records[-half:]]:
        moment = record.epoch if with_epochs else record.step
        first = (record.where or "-") if moment is None else f"{moment:g}"
        first += " (unverified)" * (record.status == "unverified")
        if record.status == "failed":
            rows.append([first, "failed", *[""] * len(_COLUMNS), record.reason])
            continue
        numbers = [(as_range if name in ENDS else in_short)(record.headlines.get(name)) for name in _COLUMNS]
        loss = record.facts.get("loss")
        rows.append([first, plain(loss), *numbers, record.reason or ""])
    if gone > 0:
        rows.insert(half, [f"... {gone} more", *[""] * (len(_COLUMNS) + 2)])
    title = f"{records[0].operator}, BN {records[0].bn_mode}: {len(records)} record{'' if len(records) == 1 else 's'}"
    last = len(_COLUMNS) + 2
    return _titled(title) + table([when, "loss", *_COLUMNS.values(), ""], rows, left=(last,)) + lines(_LEGEND)


def run_html(every: Sequence[Sequence[Shown]], notes: Sequence[str]) -> str:
    """The records of a run: a table per operator and batch-norm mode, and the notes of the reader of the file."""
    return "".join(map(series_html, every)) + (lines("no records") if not every else "") + lines(*notes)


def _titled(text: str) -> str:
    return f"<p><b>{safe(text)}</b></p>"
