"""Series: the records of one operator and one batch-norm mode over training, with estimates as arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from spectra.errors import ArgumentError
from spectra.results.html_tables import series_html
from spectra.results.record_sequence import RecordSequence
from spectra.results.tables import PARTS
from spectra.results.values import Values, floats_of, values_of

if TYPE_CHECKING:
    from spectra.results.record import Record
    from spectra.spectrum.density import Density
    from spectra.spectrum.estimates import Estimate
    from spectra.spectrum.overlap import Overlap
    from spectra.spectrum.pairing import Difference
    from spectra.spectrum.spectrum import Spectrum


class Series(RecordSequence):
    """The records of one operator and one batch-norm mode, in training order.

    Every name in the records' estimates is an attribute: ``series.trace`` is a `Values`.
    """

    def __init__(self, records: Iterable[Record], *, operator: str, bn_mode: str) -> None:
        self.records = tuple(records)
        self.operator = operator
        self.bn_mode = bn_mode

    def __repr__(self) -> str:
        return f"Series({self.operator!r}, {self.bn_mode!r}, {len(self)} records: {', '.join(self.names)})"

    def _repr_html_(self) -> str:
        """A row per record, for notebooks."""
        return series_html(self.records)

    @property
    def epochs(self) -> np.ndarray:
        """(T,) float64, NaN where a record does not know its epoch."""
        return floats_of(self.records, lambda record: record.epoch)

    @property
    def steps(self) -> np.ndarray:
        """(T,) float64, NaN where a record does not know its step."""
        return floats_of(self.records, lambda record: record.step)

    @property
    def names(self) -> tuple[str, ...]:
        """The estimates that at least one record has, in their order."""
        return tuple(dict.fromkeys(name for record in self.records for name in record.estimates))

    def values(self, name: str) -> Values:
        """The estimate of this name over training.

        Raises:
            ArgumentError: no record has it; the message lists what there is.
        """
        self._check_name(name)
        return values_of([record.estimates.get(name) for record in self.records])

    def headline(self, name: str) -> Values:
        """The numbers to quote over training: as `values`, but exact where a record has an exact number.

        An exact entry has the standard error 0 and the interval from the value to itself; see `Record.headline`.

        Raises:
            ArgumentError: no record has it; the message lists what there is.
        """
        self._check_name(name)
        return values_of([record.headlines.get(name) for record in self.records])

    def _check_name(self, name: str) -> None:
        if name not in self.names:
            raise ArgumentError(f"no estimate {name!r}: there are {', '.join(self.names) or 'none'}")

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
        return floats_of(self.records, lambda record: record.facts.get(name))

    @property
    def by_layer(self) -> dict[str, Values]:
        """The trace of each parameter tensor's diagonal block over training, by the tensor's name.

        They sum to the plain mean over the probes of the trace. Empty where the tensors' forms were not kept.
        """
        found = [{} if record.spectrum is None else record.spectrum.tensor_traces() for record in self.records]
        names = dict.fromkeys(name for traces in found for name in traces)
        return {name: values_of([traces.get(name) for traces in found]) for name in names}

    def sharpness(self, name: str) -> Values:
        """A sharpness measure over training, with a standard error where it is a mean over draws; without intervals.

        Raises:
            ArgumentError: no record has it; the message lists what there is.
        """
        names = dict.fromkeys(measure for record in self.records for measure in record.sharpness)
        if name not in names:
            raise ArgumentError(f"no sharpness measure {name!r}: there are {', '.join(names) or 'none'}")
        found = [record.sharpness.get(name) for record in self.records]
        value = floats_of(found, lambda measure: None if measure is None else measure.value)
        stderr = floats_of(found, lambda measure: None if measure is None else measure.stderr)
        nothing = np.full(value.size, math.nan)
        return Values(value, stderr, nothing, nothing.copy(), np.isfinite(value))

    @property
    def subspace_overlap(self) -> np.ndarray:
        """(T,) the overlap of the space of the leading eigenvectors with that of the previous record, 0 to 1, or NaN.

        Needs eigenpairs; see :class:`spectra.spectrum.overlap.Overlap`, which each record has as ``overlap``.
        """
        return floats_of(self.records, lambda record: None if record.overlap is None else record.overlap.value)

    def overlap(self, a: float, b: float) -> Overlap:
        """The scalar products of the eigenvectors of two epochs, which must have been saved.

        Raises:
            ArgumentError: there is no such epoch, or its vectors were not saved.
        """
        from spectra.spectrum.overlap import overlap_of

        found = []
        for epoch in (a, b):
            pairs = self.spectrum(epoch).eigenpairs
            if pairs is None or pairs.vectors is None:
                raise ArgumentError(f"epoch={epoch:g}: its eigenvectors were not saved: --save-eigenvectors keeps them")
            found.append(pairs.vectors)
        return overlap_of(found[0], found[1], f"epoch {a:g}")

    def apply(self, function: Callable[[Spectrum], Estimate | float]) -> Values:
        """A function of the spectrum over training, from the stored tridiagonals; NaN where a record failed.

        Example: ``series.apply(lambda s: s.moment(3))``.

        Raises:
            ArgumentError: the function returns neither an estimate nor a number.
        """
        return values_of([None if r.spectrum is None else _one_number(function(r.spectrum)) for r in self.records])

    def estimate(self, name: str, **options: Any) -> Values:
        """A method of `Spectrum` over training with the given options, from the stored tridiagonals.

        Example: ``series.estimate("rank_degeneracy", tau=1e-3)``.

        Raises:
            ArgumentError: there is no such method, or it does not give one number.
        """

        def compute(spectrum: Spectrum) -> Estimate | float:
            method = None if name.startswith("_") else getattr(type(spectrum), name, None)
            if not callable(method):
                raise ArgumentError(f"no estimate {name!r}: a method of Spectrum is needed, such as rank_degeneracy")
            found: Estimate | float = method(spectrum, **options)
            return found

        return self.apply(compute)

    def difference(self, a: float, b: float, name: str = "trace", **options: Any) -> Difference:
        """The estimate at epoch `a` less that at epoch `b`, with the standard error for shared probes.

        The probes are the same at every checkpoint of a run, so the difference is taken probe by probe: with sphere
        probes its variance is ``2 |H_a - H_b|_F^2`` per probe, whatever that of the values is. The bands of a
        trajectory are correlated for the same reason, and must not be subtracted as if they were independent. For other
        quantities, and for probes that are not shared, see ``spectrum.differences.difference``.

        Raises:
            ArgumentError: there is no such epoch or estimate, or a record failed.
        """
        return self.spectrum(a).difference(self.spectrum(b), name, **options)

    def difference_by_layer(self, a: float, b: float) -> dict[str, Difference]:
        """The difference of the trace of each parameter tensor; they sum to the difference of the trace.

        Raises:
            ArgumentError: there is no such epoch, a record failed, or the forms of the tensors were not kept.
        """
        return self.spectrum(a).tensor_differences(self.spectrum(b))

    def at(self, epoch: float) -> Record:
        """The record of an epoch; of several records the last complete one, else the last one with numbers.

        Raises:
            ArgumentError: there is none; the message lists the epochs there are.
        """
        found = [record for record in self.records if record.epoch is not None and record.epoch == epoch]
        if not found:
            known = ", ".join(f"{e:g}" for e in self.epochs if math.isfinite(e)) or "none"
            raise ArgumentError(f"epoch={epoch}: no record of {self.operator} {self.bn_mode} has it; there are {known}")
        ranked = (
            record for wanted in ("complete", "unverified") for record in reversed(found) if record.status == wanted
        )
        return next(ranked, found[-1])

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


def _one_number(found: Any) -> Estimate | float:
    if all(hasattr(found, part) for part in PARTS):
        estimate: Estimate = found
        return estimate
    if isinstance(found, (int, float, np.integer, np.floating)):
        return float(found)
    raise ArgumentError(
        f"a {type(found).__name__} per checkpoint: one number or estimate is needed; take series.spectrum(epoch) for "
        "the rest, and series.by_layer for the traces of the tensors"
    )
