"""Difference: an estimate of ``f(a) - f(b)``; whether two spectra share their probes; tests for differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from scipy.special import stdtr

from spectra.spectrum.estimates import Estimate
from spectra.spectrum.quadrature import Quadrature
from spectra.spectrum.tridiagonal import Tridiagonal


class SpectrumLike(Protocol):
    """The attributes of a :class:`spectra.Spectrum` that a difference uses."""

    seed: int | None
    tensor_forms: np.ndarray | None  # (k, number of tensors)

    @property
    def tensor_sizes(self) -> Mapping[str, int]: ...

    @property
    def n(self) -> int: ...

    @property
    def distribution(self) -> str: ...

    @property
    def num_probes(self) -> int: ...

    @property
    def tridiagonals(self) -> Sequence[Tridiagonal]: ...

    @property
    def quadrature(self) -> Quadrature: ...

    def trace(self) -> Estimate: ...

    def estimates(self) -> dict[str, Estimate]: ...


@dataclass(frozen=True)
class Difference(Estimate):
    """An `Estimate` of ``f(a) - f(b)``, and how its error was computed."""

    paired: bool = False  # the error is that of the differences probe by probe
    why_not: str | None = None  # why the probes are not paired; None also where there is no sample per probe
    unpaired_stderr: float | None = None  # the standard error if the probes were independent; for comparison
    dof: float | None = None  # degrees of freedom of Student's t behind the interval
    p_value: float | None = None  # two-sided, of the hypothesis of no difference; None without stderr

    @property
    def excludes_zero(self) -> bool | None:
        """Whether 0 is outside the interval; None where an end that would decide it is not known."""
        if (self.lower is not None and self.lower > 0) or (self.upper is not None and self.upper < 0):
            return True
        return False if self.lower is not None and self.upper is not None else None


def why_not_paired(a: SpectrumLike, b: SpectrumLike) -> str | None:
    """The reason why two spectra do not share their probes, in words; None where they share them."""
    if a.seed is None or b.seed is None:
        return "the seed of the probes is not known"
    for name in ("n", "seed", "distribution", "num_probes"):
        if getattr(a, name) != getattr(b, name):
            return f"the probes are not shared: {name} is {getattr(a, name)} and {getattr(b, name)}"
    if a.tensor_sizes and b.tensor_sizes and list(a.tensor_sizes.items()) != list(b.tensor_sizes.items()):
        return "the probes are not shared: the parameter tensors differ in name, size or order"
    return None


def interval_difference(first: Estimate, second: Estimate, confidence: float, **more: Any) -> Difference:
    """The difference with the interval from all values within two intervals; it has no standard error."""
    lower = None if first.lower is None or second.upper is None else first.lower - second.upper
    upper = None if first.upper is None or second.lower is None else first.upper - second.lower
    k = min(first.num_probes, second.num_probes)
    more.setdefault("note", first.note or second.note)
    return Difference(first.value - second.value, None, lower, upper, k, confidence=round(confidence, 12), **more)


def welch_dof(errors: Sequence[float], sizes: Sequence[int]) -> float:
    """Degrees of freedom of a difference of two means (Welch, Satterthwaite).

    Where both standard errors are 0, those of the smaller sample.
    """
    parts = [error**2 for error in errors]
    if sum(parts) == 0:
        return float(min(sizes) - 1)
    shares = [part / sum(parts) for part in parts]  # of order one, so that no square under- or overflows
    return 1 / sum(share**2 / (size - 1) for share, size in zip(shares, sizes) if share > 0)


def p_of(size: float, stderr: float, dof: float) -> float:
    """The two-sided p-value of a difference of this size, by Student's t."""
    if stderr == 0:
        return 0.0 if size > 0 else 1.0
    return 2 * float(stdtr(dof, -size / stderr))
