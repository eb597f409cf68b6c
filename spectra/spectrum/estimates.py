"""Estimate: a number with its standard error and interval, and the mean over probes as an estimate."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from math import inf, isfinite, isnan, nan, sqrt
from typing import Any

import numpy as np
from scipy.special import stdtrit

from spectra.html_table import table

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number, its standard error over probes, and an interval.

    A mean over probes has a standard error and a Student-t interval, and neither with one probe. The ends of the
    spectrum have an interval and no standard error: their scatter over probes is not their error. A number that could
    not be computed is NaN, and its note says why.

    Example:
        >>> estimate = Estimate(12.3456, 0.5621, 11.0, 13.7, num_probes=8)
        >>> print(estimate)
        12.35 +- 0.56
        >>> float(estimate)
        12.3456
    """

    value: float
    stderr: float | None  # of the mean over probes; None with one probe, and where the scatter is not the error
    lower: float | None
    upper: float | None
    num_probes: int
    confidence: float = CONFIDENCE
    tau: float | None = None  # the tolerance that a count belongs to, in units of the eigenvalues
    resolved: bool | None = None  # of a count: whether its bracket is narrow enough for the value to mean anything
    note: str | None = None  # a warning to print with the number

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        if isnan(self.value):
            return f"not computed: {self.note}"
        if self.resolved is False and self.lower is not None and self.upper is not None:
            return f"not resolved, in [{self.lower:.4g}, {self.upper:.4g}]"
        if self.stderr is not None:
            text = _with_error(self.value, self.stderr)
            # A count has a bracket as well as the scatter of its probes.
            return f"{text} in [{self.lower:.4g}, {self.upper:.4g}]" if self.resolved else text
        if self.lower is None and self.upper is None:
            return f"{self.value:.4g}"
        low = "-inf" if self.lower is None else f"{self.lower:.6g}"
        high = "inf" if self.upper is None else f"{self.upper:.6g}"
        return f"{self.value:.6g} in [{low}, {high}]"

    def _repr_html_(self) -> str:
        """The number in words, its interval and what belongs to it, for notebooks."""
        low, high = (
            ("-inf" if self.lower is None else f"{self.lower:.6g}"),
            ("inf" if self.upper is None else f"{self.upper:.6g}"),
        )
        rows = [
            ("", str(self)),
            ("" if self.lower == self.upper else f"{self.confidence:.0%} interval", f"[{low}, {high}]"),
            ("tau" if self.tau is not None else "", self.tau),
            ("probes" if self.num_probes else "", self.num_probes),
            ("note" if self.note else "", self.note),
        ]
        return table(("", ""), [row for index, row in enumerate(rows) if row[0] or not index], left=(0, 1))

    def to_json(self) -> dict[str, Any]:
        """The fields as a dictionary for JSON: missing, NaN and infinite values are None."""
        return {
            key: None if isinstance(value, float) and not isfinite(value) else value
            for key, value in asdict(self).items()
        }


def _with_error(value: float, error: float) -> str:
    """``value +- error`` as text, the error to two digits and the value to the last of these."""
    if error <= 0 or not isfinite(error) or not isfinite(value):
        return f"{value:.6g} +- {error:.2g}"
    leading = int(np.floor(np.log10(error)))
    if max(abs(value), error) < 1e5 and leading > -6:
        digits = max(0, 1 - leading)
        return f"{value:.{digits}f} +- {error:.{digits}f}"
    digits = max(1, int(np.floor(np.log10(max(abs(value), error)))) - leading + 1)
    return f"{value:.{digits}e} +- {error:.1e}"


def t_quantile(num_probes: int, confidence: float = CONFIDENCE) -> float:
    """The two-sided Student-t quantile with ``k - 1`` degrees of freedom; infinite for one probe."""
    return float(stdtrit(num_probes - 1, 0.5 + confidence / 2)) if num_probes > 1 else inf


def mean_estimate(
    samples: np.ndarray,
    *,
    arithmetic: float = 0.0,
    least_error: float = 0.0,
    least: float = -inf,
    greatest: float = inf,
    note: str | None = None,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """The mean of one sample per probe, with ``s / sqrt(k)`` as its error and a Student-t interval, 95 % by default.

    Args:
        samples: (k,).
        arithmetic: the error of the arithmetic, by which the interval is widened on both sides.
        least_error: a lower bound of the standard error.
        least: a lower bound of the quantity; the interval is cut there.
        greatest: an upper bound of the quantity; the interval is cut there.
        note: a warning to print with the number; dropped where all samples are equal.
        confidence: of the interval.
    """
    k = samples.size
    value = float(samples.mean())
    if k == 1:
        return Estimate(value, None, None, None, 1)
    stderr = max(float(samples.std(ddof=1)) / sqrt(k), least_error)
    reach = t_quantile(k, confidence) * stderr + arithmetic
    scattered = stderr > 1e-9 * abs(value)
    return Estimate(
        value,
        stderr,
        max(least, value - reach),
        min(greatest, value + reach),
        k,
        confidence,
        note=note if scattered else None,
    )


def not_computed(reason: str, num_probes: int) -> Estimate:
    """An estimate that does not exist here: its value is NaN (None in JSON), and its note the reason."""
    return Estimate(nan, None, None, None, num_probes, note=reason)


def scaled(estimate: Estimate, factor: float) -> Estimate:
    """The estimate times a factor above 0."""
    stderr, lower, upper = (
        None if end is None else end * factor for end in (estimate.stderr, estimate.lower, estimate.upper)
    )
    return replace(estimate, value=estimate.value * factor, stderr=stderr, lower=lower, upper=upper)
