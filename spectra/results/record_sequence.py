"""RecordSequence: what a `Trajectory` and a `Series` have in common as records in training order."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from spectra.results import tables

if TYPE_CHECKING:
    from typing import Self

    import numpy as np

    from spectra.results.record import Record


class RecordSequence:
    """Records in training order: their number, a range of epochs, and the table with a row per record."""

    records: tuple[Record, ...]

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

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


def _is_within(record: Record, first: float | None, last: float | None) -> bool:
    """Whether the epoch of a record lies between both, ends included; None leaves an end open."""
    if first is None and last is None:
        return True
    if record.epoch is None:
        return False
    return (first is None or record.epoch >= first) and (last is None or record.epoch <= last)
