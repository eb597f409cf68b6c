"""Slice: the loss along a direction, its parabola, what kinks add to the curvature, and critical sharpness."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from spectra.jsonable import to_jsonable

# Where the parabola holds: its error is at most this share of the largest change of the loss up to there.
TOLERANCE = 0.1


@dataclass(frozen=True)
class Line:
    """The direction of a slice, and the first two derivatives of the loss along it: ``L(theta + t d)`` at ``t = 0``."""

    name: str  # "top", "bottom", "gradient", "random", "filter", or the name of another checkpoint
    unit: str  # the meaning of t = 1, in words
    length: float  # |d|
    loss: float  # L(0), with the l2 term
    slope: float  # g'd
    curvature: float  # d'Hd, by autograd
    residual: float | None = None  # |Hd - (d'Hd) d| of an eigenvector; None for other directions
    products: int = 0  # with the Hessian, the search for an eigenvector included

    def parabola(self, steps: Any) -> Any:
        """``L(0) + t g'd + t^2/2 d'Hd``, of a step or of each in an array."""
        return self.loss + steps * self.slope + 0.5 * steps**2 * self.curvature


@dataclass(frozen=True)
class Kinks:
    """What finite differences over a radius see of the curvature along a direction, against autograd.

    The difference ``(L(r) - 2 L(0) + L(-r)) / r^2`` contains the jumps of the gradient at the kinks that are crossed,
    which autograd leaves out. It also contains the fourth derivative, which vanishes with ``r^2``.
    """

    pairs: int  # of a sample and a unit of a piecewise-linear function; 0: the network has no such function
    radii: np.ndarray  # (R,), falling, in units of t
    switched: np.ndarray  # (R,): the share of pairs on another piece at -r or r, the mean of the two
    curvature: np.ndarray  # (R,): by differences; NaN where a loss is not finite
    error: np.ndarray  # (R,): of it, by the rounding of the losses

    def ratio(self, by_autograd: float) -> np.ndarray:
        """The curvature by differences over that by autograd, (R,); NaN where the latter is 0."""
        return self.curvature / by_autograd if by_autograd else np.full(self.radii.shape, np.nan)


@dataclass(frozen=True)
class CriticalSharpness:
    """``2 / eta_c``, where ``eta_c`` is the smallest step along an update at which the loss exceeds that at step 0.

    The step is found by bracketing and bisection: at ``holds`` the loss is not larger than at 0, at ``exceeds`` it is.
    Were the loss to rise above and fall again below its value at 0 before ``holds``, that would not be seen.
    On a quadratic along the negative gradient the value is ``g'Hg / |g|^2``.
    """

    holds: float  # the lower end of the bracket of eta_c; 0 where the loss exceeds at every step that was tried
    exceeds: float  # the upper end; infinite where it exceeds at no step
    passes: int  # over the data
    of: str  # whose loss, along which update
    reason: str | None = None  # why there is no value

    @property
    def value(self) -> float:
        """At the middle of the bracket of the step; NaN without a bracket."""
        return float("nan") if self.reason is not None else 4.0 / (self.holds + self.exceeds)

    @property
    def lower(self) -> float:
        return 2.0 / self.exceeds

    @property
    def upper(self) -> float:
        return 2.0 / self.holds if self.holds else float("inf")

    def __float__(self) -> float:
        return self.value


@dataclass(frozen=True)
class Slice:
    """The loss along one direction.

    Losses that are NaN or infinite are kept as such.
    """

    line: Line
    bn_mode: str
    steps: np.ndarray  # (P,), from -radius to radius
    losses: np.ndarray  # (P,)
    radius_rule: str  # how the radius was chosen, in words
    holds: float  # the parabola holds at all |t| that were tried up to here
    fails: float | None  # the smallest |t| that was tried at which it fails; None: it holds over the whole radius
    rounding: float  # of a loss, measured
    kinks: Kinks
    critical: CriticalSharpness | None = None  # along the negative gradient, or towards another checkpoint
    test_losses: np.ndarray | None = None  # (P,)
    relative: CriticalSharpness | None = None  # of the test loss along the same update
    notes: tuple[str, ...] = ()

    @property
    def radius(self) -> float:
        return float(self.steps[-1])

    @cached_property
    def not_finite(self) -> list[float]:
        """The steps at which the loss is NaN or infinite."""
        return [float(t) for t in self.steps[~np.isfinite(self.losses)]]

    def to_json(self) -> dict[str, Any]:
        """Every number in JSON's own types; a loss that is not finite is null, and its step is in ``not_finite``."""
        kinks, ratio = self.kinks, self.kinks.ratio(self.line.curvature)
        parts: dict[str, Any] = {
            "direction": _plain(self.line),
            "bn_mode": self.bn_mode,
            "radius": self.radius,
            "radius_rule": self.radius_rule,
            "t": self.steps,
            "loss": self.losses,
            "parabola": self.line.parabola(self.steps),
            "not_finite": self.not_finite,
            "parabola_holds_to": self.holds,
            "parabola_fails_at": self.fails,
            "loss_rounding": self.rounding,
            "kinks": _plain(kinks) | {"ratio": ratio},
            "critical_sharpness": _sharpness(self.critical),
            "test_loss": self.test_losses,
            "relative_critical_sharpness": _sharpness(self.relative),
            "notes": self.notes,
        }
        return to_jsonable(parts)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Slices:
    """The slices of one checkpoint, with what they are of."""

    header: Mapping[str, Any]  # checkpoint, task, loss, n, n_samples, dtype, seed, ...
    slices: tuple[Slice, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The content of the file: the header, ``notes`` and ``slices``."""
        slices = [each.to_json() for each in self.slices]
        return to_jsonable({**self.header, "notes": self.notes, "slices": slices})  # type: ignore[no-any-return]


def _plain(value: Any) -> dict[str, Any]:
    return {one.name: getattr(value, one.name) for one in fields(value)}


def _sharpness(found: CriticalSharpness | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {"value": found.value, "lower": found.lower, "upper": found.upper} | {
        "step_holds": found.holds,
        "step_exceeds": found.exceeds,
        "passes": found.passes,
        "of": found.of,
        "reason": found.reason,
    }
