"""Turns the refusal of a measure, or of the exact trace or diagonal that it needs, into a measure without a value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from spectra.errors import NumericsError, TaskError
from spectra.exact.diagonal import ExactDiagonal
from spectra.results.exact_trace import ExactTrace
from spectra.results.measure import Measure, not_measured
from spectra.runtime.faults import refusal_in


def measured_or_refused(measured: Callable[[], Measure], **conditions: Any) -> Measure:
    """The measure that ``measured`` returns; NaN with the reason and the conditions if it is refused."""
    try:
        return measured()
    except (TaskError, NumericsError) as error:
        return not_measured(refusal_in(error), **conditions)


def curvature_of(exact: ExactTrace | ExactDiagonal) -> str:
    """``"hessian"`` or ``"ggn"``: the matrix that a trace or diagonal belongs to.

    Raises:
        TaskError: there is no trace or diagonal; the message has the reasons.
    """
    if exact.kind is None:
        raise TaskError("; ".join(exact.reasons))
    return exact.kind
