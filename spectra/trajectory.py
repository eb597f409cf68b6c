"""A run of training as its records tell it: ordered by epoch, one series per operator and batch-norm mode."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from spectra.errors import ArgumentError

if TYPE_CHECKING:
    from spectra.density import Density
    from spectra.estimates import Estimate
    from spectra.records import Record
    from spectra.spectrum import Spectrum


@dataclass(frozen=True)
class Values:
    """One estimate over training: an entry per record of the series, NaN where it is missing or failed.

    The probes are the same at every checkpoint of a run, so the errors of neighbouring epochs are correlated.
    """

    value: np.ndarray  # (T,)
    stderr: np.ndarray  # (T,) NaN where there is none (one probe; extremes)
    lower: np.ndarray  # (T,)
    upper: np.ndarray  # (T,)
    resolved: np.ndarray  # (T,) bool; False where missing, or where the bracket is too wide for the value to mean much

    def __len__(self) -> int:
        return len(self.value)


class Series:
    """The records of one operator and one batch-norm mode, in training order.

    Every name in the records' estimates is an attribute: ``series.trace`` is a `Values`.
    """

    def __init__(self, records: Iterable[Record], *, operator: str, bn_mode: str) -> None:
        self.records = tuple(records)
        self.operator = operator
        self.bn_mode = bn_mode

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __repr__(self) -> str:
        return f"Series({self.operator!r}, {self.bn_mode!r}, {len(self)} records: {', '.join(self.names)})"

    @property
    def epochs(self) -> np.ndarray:
        """(T,) float64, NaN where a record does not know its epoch."""
        return _floats(self.records, lambda record: record.epoch)

    @property
    def steps(self) -> np.ndarray:
        """(T,) float64, NaN where a record does not know its step."""
        return _floats(self.records, lambda record: record.step)

    @property
    def names(self) -> tuple[str, ...]:
        """The estimates that at least one record has, in their order."""
        return tuple(dict.fromkeys(name for record in self.records for name in record.estimates))

    def values(self, name: str) -> Values:
        """The estimate of this name over training.

        Raises:
            ArgumentError: no record has it; the message lists what there is.
        """
        if name not in self.names:
            raise ArgumentError(f"no estimate {name!r}: there are {', '.join(self.names) or 'none'}")

        def column(read: Callable[[Estimate], float | None]) -> np.ndarray:
            def cell(record: Record) -> float | None:
                estimate = record.estimates.get(name)
                return None if estimate is None else read(estimate)

            return _floats(self.records, cell)

        value = column(lambda e: e.value)
        resolved = np.array([_is_resolved(record.estimates.get(name)) for record in self.records], dtype=bool)
        return Values(
            value=value,
            stderr=column(lambda e: e.stderr),
            lower=column(lambda e: e.lower),
            upper=column(lambda e: e.upper),
            resolved=resolved & np.isfinite(value),
        )

    def __getattr__(self, name: str) -> Values:
        if name.startswith("_") or "records" not in self.__dict__:
            raise AttributeError(name)
        try:
            return self.values(name)
        except ArgumentError as error:
            raise AttributeError(str(error)) from None

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.names})

    def fact(self, name: str) -> np.ndarray:
        """(T,) one of the records' facts (loss, accuracy, ...) over training, NaN where it is missing.

        Raises:
            ArgumentError: no record has it; the message lists what there is.
        """
        names = dict.fromkeys(fact for record in self.records for fact in record.facts)
        if name not in names:
            raise ArgumentError(f"no fact {name!r}: there are {', '.join(names) or 'none'}")
        return _floats(self.records, lambda record: record.facts.get(name))

    def at(self, epoch: float) -> Record:
        """The record of an epoch; the last complete one where there are several.

        Raises:
            ArgumentError: there is none; the message lists the epochs there are.
        """
        found = [record for record in self.records if record.epoch is not None and record.epoch == epoch]
        if not found:
            known = ", ".join(f"{e:g}" for e in self.epochs if math.isfinite(e)) or "none"
            raise ArgumentError(f"epoch={epoch}: no record of {self.operator} {self.bn_mode} has it; there are {known}")
        return next((record for record in reversed(found) if record.status == "complete"), found[-1])

    def spectrum(self, epoch: float) -> Spectrum:
        """The spectrum of an epoch.

        Raises:
            ArgumentError: there is no such epoch, or its record failed.
        """
        record = self.at(epoch)
        if record.spectrum is None:
            raise ArgumentError(f"epoch={epoch:g}: {record.label} failed: {record.reason}")
        return record.spectrum

    def density(self, epoch: float, **options: Any) -> Density:
        """The density of an epoch; the options are those of `Spectrum.density`."""
        return self.spectrum(epoch).density(**options)


class Trajectory:
    """The records of one run, ordered by epoch, then step, then the order in which they came.

    ``t[0]`` is a record, ``t["hessian", "eval"]`` a `Series`. Records that failed are there, with their reason.
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
        self.records: tuple[Record, ...] = tuple(record for _, record in sorted(arrived, key=_training_time))
        self.settings: Mapping[str, Any] = dict(settings or {})  # of the run
        self.notes = tuple(notes)  # what the reader of the file had to say
        self.path = path

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __repr__(self) -> str:
        series = ", ".join(f"{operator} {bn_mode}" for operator, bn_mode in self.keys())
        return f"Trajectory({len(self)} records: {series})"

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
        """The epochs that records know of, ascending, each once; float64."""
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


def _floats(records: Iterable[Record], read: Callable[[Record], float | None]) -> np.ndarray:
    return np.array([math.nan if (number := read(record)) is None else number for record in records], dtype=np.float64)


def _is_resolved(estimate: Estimate | None) -> bool:
    # Only bracketed quantities say whether they are resolved; the others mean what they say.
    return estimate is not None and estimate.resolved is not False
