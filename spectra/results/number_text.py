"""Numbers as text, rounded to the digits that their errors justify."""

from __future__ import annotations

import math

from spectra.results.headline import EXACT, is_exact
from spectra.spectrum.estimates import Estimate
from spectra.spectrum.estimators import ENDS

#: Numbers from this on, and below its inverse, are written with a power of ten.
_LARGE = 1e6
#: Half of an interval is at most 13 standard errors where these are its only source; from here on others dominate it.
_WIDER = 30


def plain(value: float | None, digits: int = 5) -> str:
    """A number without a stated error, to so many significant digits.

    Example:
        >>> plain(0.123456789), plain(512), plain(None), plain(1234567.0)
        ('0.12346', '512', '-', '1.2346e+06')
    """
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.{digits}g}"


def rounded(value: float, error: float | None) -> tuple[str, str]:
    """A number and its error, the error to two significant digits and the number to the last of them.

    Example:
        >>> rounded(12.3456, 0.5621), rounded(1234567.0, 5621.0), rounded(3.25, None)
        (('12.35', '0.56'), ('1.2346e+06', '5.6e+03'), ('3.25', ''))
    """
    if error is None:
        return plain(value), ""
    if not (math.isfinite(value) and math.isfinite(error)) or error <= 0:
        return plain(value), plain(error, 2)
    last = math.floor(math.log10(error)) - 1  # the place of the second digit of the error
    if math.floor(math.log10(round(error, -last))) > last + 1:  # 0.0996 is 0.10
        last += 1
    size = max(abs(value), error)
    if 1e-4 <= size < _LARGE and last >= -8:
        places = max(0, -last)
        return f"{value:.{places}f}", f"{error:.{places}f}"
    return f"{value:.{max(1, math.floor(math.log10(size)) - last)}e}", f"{error:.1e}"


def with_error(value: float, error: float | None) -> str:
    """`12.35 +- 0.56`, or the number alone where it has no error."""
    value_words, error_words = rounded(value, error)
    return f"{value_words} +- {error_words}" if error_words else value_words


def interval(lower: float | None, upper: float | None) -> str:
    """`[11.0, 13.7]`, with the digits that tell its ends apart; an end that is not known is infinite.

    Example:
        >>> interval(1.23456, 1.23678), interval(None, 2.0), interval(None, None)
        ('[1.2346, 1.2368]', '[-inf, 2]', '')
    """
    if lower is None and upper is None:
        return ""
    low, high = -math.inf if lower is None else lower, math.inf if upper is None else upper
    digits = _digits(lower, upper)
    return f"[{low:.{digits}g}, {high:.{digits}g}]"


def number(estimate: Estimate) -> tuple[str, str]:
    """The value of an estimate and its error, or `exact` in its place.

    Without an error, or with one that is small against the interval, the value has the digits of the interval; a value
    that could not be computed is `-`.
    """
    if math.isnan(estimate.value):
        return "-", ""
    if is_exact(estimate):
        return plain(estimate.value), EXACT
    if estimate.stderr is None and (estimate.lower is not None or estimate.upper is not None):
        return plain(estimate.value, _digits(estimate.lower, estimate.upper)), ""
    if _is_wider(estimate):
        return plain(estimate.value, _digits(estimate.lower, estimate.upper)), plain(estimate.stderr, 2)
    return rounded(estimate.value, estimate.stderr)


def bounds(estimate: Estimate) -> str:
    """The interval of an estimate; of an exact number, which is its own interval, nothing."""
    return "" if is_exact(estimate) else interval(estimate.lower, estimate.upper)


def _is_wider(estimate: Estimate) -> bool:
    """Whether the interval has another source than the probes: rounding of the products, or the steps."""
    stderr, lower, upper = estimate.stderr, estimate.lower, estimate.upper
    return stderr is not None and lower is not None and upper is not None and upper - lower > 2 * _WIDER * stderr


def as_range(estimate: Estimate | None) -> str:
    """An end of the spectrum as the interval that it is in, `9.373 to 9.424`; its value is the inner end."""
    if estimate is None:
        return "-"
    if estimate.lower is None and estimate.upper is None:
        return number(estimate)[0]
    low, high = (math.copysign(math.inf, s) if e is None else e for e, s in ((estimate.lower, -1), (estimate.upper, 1)))
    digits = _digits(estimate.lower, estimate.upper)
    return f"{low:.{digits}g} to {high:.{digits}g}"


def _digits(lower: float | None, upper: float | None) -> int:
    """The significant digits that two numbers need to differ in two of them."""
    if lower is None or upper is None or not (math.isfinite(lower) and math.isfinite(upper) and upper > lower):
        return 5
    size = max(abs(lower), abs(upper))
    return min(12, max(3, math.ceil(math.log10(size / (upper - lower))) + 2))


def in_short(estimate: Estimate | None) -> str:
    """A mean over probes with its error, `31.377 exact`, or the bracket of a count that the steps do not resolve."""
    if estimate is None or math.isnan(estimate.value):
        return "-"
    if is_exact(estimate):
        return " ".join(number(estimate))
    if estimate.resolved is False:
        return unresolved(estimate)
    # Without scatter over the probes to speak of, but with an interval, `0 +- 0` would be false.
    words = as_range(estimate) if _is_wider(estimate) else with_error(estimate.value, estimate.stderr)
    return words if estimate.tau is None else f"{words} (tau {estimate.tau:.2g})"


def in_words(name: str, estimate: Estimate | None) -> str:
    """A number of this name with its error, an end of the spectrum as a range; with a star if it has a note."""
    words = as_range(estimate) if name in ENDS else in_short(estimate)
    starred = estimate is not None and estimate.note is not None and estimate.resolved is not False
    return words + " *" * starred


def unresolved(estimate: Estimate) -> str:
    """The bracket of a count that the steps do not resolve, in words."""
    low = 0.0 if estimate.lower is None else estimate.lower
    high = 1.0 if estimate.upper is None else estimate.upper
    tau = "" if estimate.tau is None else f" (tau {estimate.tau:.2g})"
    return f"not resolved: {low:.3g} to {high:.3g}{tau}"


def estimate_cells(name: str, estimate: Estimate, remarks: dict[str, list[str]]) -> list[str]:
    """Value, error, interval and marks; longer notes are added to the remarks."""
    # A count that is not resolved has no value: its bracket is the result.
    value, error = ("-", "") if estimate.resolved is False else number(estimate)
    marks = [] if estimate.tau is None else [f"tau = {estimate.tau:.3g}"]
    if estimate.resolved is False and estimate.note:
        marks.append(estimate.note)
    elif estimate.note:
        remarks[name] = [estimate.note]
        marks.append("*")
    return [value, error, bounds(estimate), "; ".join(marks)]
