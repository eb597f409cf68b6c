"""RecordSequence: what a `Trajectory` and a `Series` have in common as records in training order."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from spectra.html_table import html_table
from spectra.results import tables
from spectra.results.number_text import in_words

if TYPE_CHECKING:
    from typing import Self

    import numpy as np

    from spectra.results.record import Record

# What a notebook shows of a run: these numbers, of so many records at most.
_SHOWN = ("trace", "frobenius_norm", "lambda_max", "lambda_min", "rank_degeneracy")
_MOST = 20


class RecordSequence:
    """Records in training order: their number, a range of epochs, and the table with a row per record."""

    records: tuple[Record, ...]

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def _repr_html_(self) -> str:
        """What a notebook shows: the main numbers of the first records, a row each."""
        rows = [(r.where, r.operator, r.bn_mode, *_words_of(r)) for r in self.records[:_MOST]]
        rest = len(self) - len(rows)
        caption = f"{len(self)} records" + (f", the last {rest} of which are not shown" if rest else "")
        return html_table(["checkpoint", "operator", "BN", *_SHOWN], rows, caption=caption)

    def between(self, first: float | None = None, last: float | None = None) -> Self:
        """The records of the epochs from `first` to `last`, both included; None leaves an end open."""
        kept = copy.copy(self)
        kept.records = tuple(record for record in self.records if _is_within(record, first, last))
        return kept

    def to_columns(self) -> dict[str, np.ndarray]:
        """A dictionary of columns with an entry per record; see ``spectra.results.tables.columns_of``."""
        return tables.columns_of(self.records)

    def to_pandas(self) -> Any:
        """The columns as a ``pandas.DataFrame``; needs pandas."""
        return tables.to_pandas(self.records)

    def to_xarray(self) -> Any:
        """The columns as an ``xarray.Dataset``, over the epochs if all records have different ones; needs xarray."""
        return tables.to_xarray(self.records)


def _words_of(record: Record) -> list[str]:
    if record.status == "failed":
        return [f"failed: {record.reason}"]
    return [in_words(name, record.headlines.get(name)) for name in _SHOWN]


def _is_within(record: Record, first: float | None, last: float | None) -> bool:
    """Whether the epoch of a record lies between both, ends included; None leaves an end open."""
    if first is None and last is None:
        return True
    if record.epoch is None:
        return False
    return (first is None or record.epoch >= first) and (last is None or record.epoch <= last)
