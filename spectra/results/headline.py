"""Headline: the number to quote of a record, which is exact if an exact one is known, else an estimate from probes.

The trace of the Gauss-Newton matrix is computed exactly with most records. It is the trace of a record of that matrix,
and of a record of the Hessian where the certificate of the exact trace holds; that of their difference, the residual,
is then zero. The same holds for each parameter tensor.
A Monte-Carlo trace is not exact. Where a check of the traces failed, one of the two numbers is wrong and it is not
known which, so no number of that record counts as exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from spectra.spectrum.estimates import Estimate
from spectra.spectrum.estimators import FROM_TRACE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spectra.results.exact_trace import ExactTrace
    from spectra.results.trace_checks import Check
    from spectra.spectrum.spectrum import Spectrum

EXACT, PROBES = "exact", "probes"


class Numbers(Protocol):
    """The attributes of a :class:`spectra.Record` that headlines use."""

    @property
    def operator(self) -> str: ...

    @property
    def spectrum(self) -> Spectrum | None: ...

    @property
    def exact(self) -> ExactTrace | None: ...

    @property
    def checks(self) -> tuple[Check, ...]: ...

    @property
    def estimates(self) -> Mapping[str, Estimate]: ...


@dataclass(frozen=True)
class Headline(Estimate):
    """The number to quote, and its source: ``"exact"``, or ``"probes"`` for an estimate.

    An exact number has the standard error 0 and an interval that is the number itself, to the rounding of the
    arithmetic.

    Example:
        >>> print(exactly(31.377), Headline(12.3456, 0.5621, 11.0, 13.7, num_probes=8))
        31.377 (exact) 12.35 +- 0.56
    """

    source: str = PROBES

    @property
    def exact(self) -> bool:
        """Whether the number is exact."""
        return self.source == EXACT

    def __str__(self) -> str:
        return f"{self.value:.6g} (exact)" if self.exact else super().__str__()


def exactly(value: float) -> Headline:
    """An exact number."""
    return Headline(value, 0.0, value, value, 0, confidence=1.0, source=EXACT)


def is_exact(estimate: Estimate | None) -> bool:
    """Whether a number is exact and not an estimate; False for None."""
    return isinstance(estimate, Headline) and estimate.exact


def headlines_of(record: Numbers) -> dict[str, Headline]:
    """Name -> the number to quote, for every estimate of a record.

    Numbers that the trace determines are exact where the exact trace is that of the record's matrix.
    """
    found = {name: Headline(**vars(estimate)) for name, estimate in record.estimates.items()}
    total, _ = exact_traces(record)
    if total is not None and record.spectrum is not None:
        n = record.spectrum.n
        found |= {name: exactly(number(total, n)) for name, number in FROM_TRACE.items() if name in found}
    return found


def headline_tensor_traces(record: Numbers) -> dict[str, Headline]:
    """The trace of each parameter tensor's diagonal block; exact where the block of the exact trace is the record's.

    Returns:
        In the order of the tensors; empty where neither estimates nor exact traces are known.
    """
    traces = {} if record.spectrum is None else record.spectrum.tensor_traces()
    _, exact = exact_traces(record)
    return {name: Headline(**vars(estimate)) for name, estimate in traces.items()} | {
        name: exactly(value) for name, value in exact.items()
    }


def exact_traces(record: Numbers) -> tuple[float | None, dict[str, float]]:
    """The exact trace of the record's matrix (None: not known), and tensor name -> exact trace of its block."""
    exact = record.exact
    if exact is None or exact.total is None or exact.drawn or any(map(_is_in_doubt, record.checks)):
        return None, {}
    if record.operator == "ggn":
        return exact.total, dict(exact.by_layer)
    if record.operator not in ("hessian", "residual"):
        return None, {}
    own = {name: value for name, value in exact.by_layer.items() if exact.certified.get(name)}
    if record.operator == "residual":  # H - G
        return 0.0 if exact.applies else None, dict.fromkeys(own, 0.0)
    return exact.total if exact.applies else None, own


def _is_in_doubt(check: Check) -> bool:
    """Whether this is a failed check of an exact trace: of the whole matrix, or of a tensor."""
    return check.failed and (check.name == "trace" or check.name.startswith("trace of "))
