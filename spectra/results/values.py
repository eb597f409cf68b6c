"""Values: an estimate over training as arrays, with one entry per checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from spectra.spectrum.estimates import Estimate

_T = TypeVar("_T")


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


def values_of(found: Sequence[Estimate | float | None]) -> Values:
    """Estimates or plain numbers, one per checkpoint, as arrays; a plain number has no error, and None is NaN."""

    def column(part: str) -> np.ndarray:
        return floats_of(found, lambda e: e if isinstance(e, float) and part == "value" else getattr(e, part, None))

    value = column("value")
    resolved = [e is not None and (isinstance(e, float) or e.resolved is not False) for e in found]
    # Only bracketed quantities have ``resolved``; others count as resolved.
    return Values(
        value=value,
        stderr=column("stderr"),
        lower=column("lower"),
        upper=column("upper"),
        resolved=np.array(resolved, dtype=bool) & np.isfinite(value),
    )


def floats_of(things: Iterable[_T], read: Callable[[_T], float | None]) -> np.ndarray:
    """(T,) float64: the value of `read` for each element, NaN where that is None."""
    return np.array([math.nan if (number := read(thing)) is None else number for thing in things], dtype=np.float64)
