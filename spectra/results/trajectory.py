"""Trajectory: the records of one training run, ordered by epoch, with a Series per operator and batch-norm mode."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from spectra.errors import ArgumentError
from spectra.results.html_tables import run_html
from spectra.results.record_sequence import RecordSequence
from spectra.results.series import Series

if TYPE_CHECKING:
    from spectra.results.record import Record


class Trajectory(RecordSequence):
    """The records of one run, ordered by epoch, then step, then the order in which they were given.

    ``t[0]`` is a record, ``t["hessian", "eval"]`` a `Series`. Failed records are included, with their reason.
    """

    def __init__(
        self,
        records: Iterable[Record],
        *,
        settings: Mapping[str, Any] | None = None,
        notes: Iterable[str] = (),
        path: str | None = None,
    ) -> None:
        arrived = enumerate(records)
        self.records = tuple(record for _, record in sorted(arrived, key=_training_time))
        self.settings: Mapping[str, Any] = dict(settings or {})  # of the run
        self.notes = tuple(notes)  # warnings of the reader of the file
        self.path = path

    def __repr__(self) -> str:
        series = ", ".join(f"{operator} {bn_mode}" for operator, bn_mode in self.keys())
        return f"Trajectory({len(self)} records: {series})"

    def _repr_html_(self) -> str:
        """A table per operator and batch-norm mode, for notebooks."""
        return run_html([self[key].records for key in self.keys()], self.notes)

    @overload
    def __getitem__(self, key: int) -> Record: ...
    @overload
    def __getitem__(self, key: tuple[str, str]) -> Series: ...
    def __getitem__(self, key: int | tuple[str, str]) -> Record | Series:
        if isinstance(key, int):
            return self.records[key]
        found = [record for record in self.records if (record.operator, record.bn_mode) == key]
        if not found:
            known = ", ".join(repr(pair) for pair in self.keys()) or "none"
            raise ArgumentError(f"no records of {key!r}: there are {known}")
        return Series(found, operator=found[0].operator, bn_mode=found[0].bn_mode)

    def __contains__(self, key: object) -> bool:
        return key in self.keys() or any(record is key for record in self.records)

    def keys(self) -> tuple[tuple[str, str], ...]:
        """The pairs (operator, bn_mode) that have records, in the order in which they first appear."""
        return tuple(dict.fromkeys((record.operator, record.bn_mode) for record in self.records))

    @property
    def epochs(self) -> np.ndarray:
        """The epochs of the records, ascending, each once; float64."""
        return np.unique([record.epoch for record in self.records if record.epoch is not None]).astype(np.float64)

    @property
    def operators(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(operator for operator, _ in self.keys()))

    @property
    def bn_modes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(bn_mode for _, bn_mode in self.keys()))


def _training_time(arrival: tuple[int, Record]) -> tuple[bool, float, bool, int, int]:
    index, record = arrival
    epoch, step = record.epoch, record.step
    return epoch is None, epoch or 0.0, step is None, step or 0, index
