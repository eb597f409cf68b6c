"""How many probes and Lanczos steps bring chosen estimates to a relative error, from a pilot of a few probes.

The pilot takes steps until more of them would not pay. Then the number of probes is fixed once, and all of them are
computed. The interval is not looked at after each probe: stopping at the first narrow one would make it cover too
little. Probes of the pilot are the first probes of the run.

At ``m`` steps, ``k`` probes are needed for the half width ``w = rtol |value|`` if

    t(k - 1) sigma sqrt(chi2(k - 1) / (k - 1) / k) + w_0 <= w,

with ``t`` the quantile of the interval, ``chi2`` the 90 % quantile of the scatter that the final probes will show,
``w_0`` the part of the interval that no probe reduces, and ``sigma`` a 90 % upper bound on the standard deviation of a
probe. For the trace and the sum of squares, ``sigma`` follows from the moments of the remaining eigenvalues: for a
probe uniform on the sphere of ``R`` dimensions and ``f(lambda) = lambda^p``

    Var(R q' f(H) q) = 2 R^2 / (R + 2) (mean f^2 - (mean f)^2),

which each probe of the pilot estimates, so that the bound is much lower than one from the scatter of the pilot. For the
other estimates it is the chi-square bound on that scatter. The pilot takes more steps as long as it costs less than the
least ``m k`` so far. The steps are then those for which the further probes cost least.

References:
    C. Stein, A two-sample test for a linear hypothesis whose power is independent of the variance, Ann. Math. Statist.
    16 (1945).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, inf, isnan, sinh, sqrt
from typing import Any

import numpy as np
from scipy.special import chdtri, stdtrit

from spectra.errors import ArgumentError
from spectra.spectrum.estimates import CONFIDENCE, Estimate, t_quantile
from spectra.spectrum.estimators import BY_NAME, ESTIMATORS, Interval
from spectra.spectrum.quadrature import Quadrature
from spectra.spectrum.spectrum import Spectrum
from spectra.spectrum.tridiagonal import Tridiagonal

#: The most probes, where no other number is given.
MOST = 64
#: The probes of a pilot; for the ends of the spectrum alone, whose intervals need no scatter, fewer are cheaper.
PILOT, PILOT_OF_ENDS = 4, 2
#: The numbers of steps at which the pilot is evaluated.
_FIRST, _GROWTH = 6, 1.25
#: The probability of each of the two bounds in the number of probes.
_BOUND = 0.9
_LARGEST = 2**40

#: The estimates that may have an aim.
NAMES = tuple(e.name for e in ESTIMATORS if e.budget and e.interval is not Interval.BRACKET)
_ENDS = frozenset(e.name for e in ESTIMATORS if e.interval is Interval.ENDS)
#: Name -> p of the estimates that are functions of ``sum lambda^p``.
_POWERS = {"trace": 1, "mean_eigenvalue": 1, "second_moment": 2, "frobenius_norm": 2}

Aims = tuple[tuple[str, float], ...]


def checked_aims(given: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> Aims:
    """Names of estimates with their relative errors, in the order of tables.

    Raises:
        ArgumentError: an unknown name, an estimate without a relative error, or a value that is not between 0 and 1.

    Example:
        >>> checked_aims({"lambda_max": 1e-3, "trace": 0.05})
        (('trace', 0.05), ('lambda_max', 0.001))
    """
    found = dict(given)
    for name, value in found.items():
        if name not in NAMES:
            why = "has no relative error" if name in BY_NAME else "is no estimate"
            raise ArgumentError(f"rtol: {name!r} {why}: one of {', '.join(NAMES)} is needed")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
            raise ArgumentError(f"rtol: {name}={value}: a number above 0 and below 1 is needed, such as {name}=0.05")
    return tuple((name, float(found[name])) for name in NAMES if name in found)


@dataclass(frozen=True)
class Plan:
    """The Lanczos steps and the number of probes of a run."""

    steps: int
    probes: int
    settled: bool = True  # more steps of the pilot would not change it


@dataclass(frozen=True)
class Planner:
    """Chooses the steps and the number of probes of one operator."""

    aims: Aims  # empty: the pilot alone is wanted
    n: int
    noise: float  # of the products, relative to |H|_2
    distribution: str
    most_steps: int
    most_probes: int

    @property
    def pilot(self) -> int:
        """The number of probes of the pilot."""
        ends = bool(self.aims) and all(name in _ENDS for name, _ in self.aims)
        return min(PILOT_OF_ENDS if ends else PILOT, self.most_probes)

    @cached_property
    def stages(self) -> tuple[int, ...]:
        """The numbers of steps at which the pilot is evaluated, ascending."""
        last = min(self.most_steps, self.n)
        found = [min(_FIRST, last)]
        while found[-1] < last:
            found.append(min(last, ceil(_GROWTH * found[-1])))
        return tuple(found)

    def plan(self, pilot: Sequence[Tridiagonal], start_overlaps: np.ndarray | None) -> Plan:
        """The plan by the recurrences of the pilot. It depends on no step beyond those at which it is settled.

        Args:
            pilot: one per probe, all of the same number of steps unless exhausted.
            start_overlaps: the scalar products of these probes, and of others behind them, with the Krylov basis of
                the first one; a column per step of the first.
        """
        taken = inf if all(t.exhausted for t in pilot) else max(t.steps for t in pilot)
        best, least, whole = Plan(self.stages[0], self.pilot, settled=False), (True, True, inf), inf
        before: dict[str, float] = {}  # the probes needed at the stage before
        for place, steps in enumerate(self.stages):
            if steps > taken:
                return Plan(best.steps, best.probes, settled=False)
            rules = [first_steps(t, steps) for t in pilot]
            overlaps = None if start_overlaps is None else start_overlaps[: len(rules), : rules[0].steps]
            q = Quadrature(tuple(rules), self.n, self.noise, self.distribution, start_overlaps=overlaps)
            own = {name: probes_needed(q, name, rtol) for name, rtol in self.aims}
            # Of many probes some have a small part along an eigenvector, and find its eigenvalue some steps later.
            needed = [k if k in (len(rules), inf) else max(k, before.get(name, k)) for name, k in own.items()]
            before = own
            probes = max([len(rules), *(k for k in needed if k < inf)])
            out_of_reach = inf in needed
            # The pilot is there already. Where no number of probes is enough, the most steps come closest.
            more = -steps if out_of_reach else steps * (probes - len(rules))
            if (cost := (out_of_reach, probes > self.most_probes, more)) < least:
                best, least = Plan(steps, int(min(probes, self.most_probes))), cost
            if not out_of_reach:
                whole = min(whole, steps * probes)
            last = place + 1 == len(self.stages) or all(t.exhausted for t in rules)
            if last or self.stages[place + 1] * len(rules) >= whole:
                break
        return best

    def settled(self, pilot: Sequence[Tridiagonal], start_overlaps: Callable[[], np.ndarray]) -> bool:
        """Whether the pilot may end after the present step; the arguments are as of `plan`."""
        return max(t.steps for t in pilot) in self.stages and self.plan(pilot, start_overlaps()).settled


def first_steps(t: Tridiagonal, steps: int) -> Tridiagonal:
    """The tridiagonal matrix of the first steps of a recurrence; itself where it has no more."""
    if t.steps <= steps:
        return t
    return Tridiagonal(t.alphas[:steps], t.betas[:steps], orthogonality=t.orthogonality)


def probes_needed(q: Quadrature, name: str, rtol: float) -> float:
    """The number of probes that bring an estimate to a relative error, with a probability of about 0.9 or more.

    Args:
        q: of the probes of a pilot.
        name: of the estimate.
        rtol: the half width of the interval divided by the size of the value.

    Returns:
        At least the number of probes of the pilot. Infinite where no number of probes of as many steps is enough.
    """
    found = BY_NAME[name].compute(q)
    half = relative_half_width(found)
    if half == inf:
        return inf
    if name in _ENDS:
        return q.num_probes if half <= rtol else inf
    spread, fixed = _from_moments(q, name) if name in _POWERS else _from_scatter(q, name, found, half)
    room, confidence = rtol - fixed, _confidence(name)
    if room <= 0:
        return inf

    def enough(k: int) -> bool:
        scatter = sqrt(float(chdtri(k - 1, 1 - _BOUND)) / (k - 1))
        return t_quantile(k, confidence) * spread * scatter <= room * sqrt(k)

    low = high = q.num_probes
    while not enough(high):
        low, high = high, 2 * high
        if high > _LARGEST:
            return inf
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def relative_half_width(estimate: Estimate) -> float:
    """Half the width of the interval divided by the size of the value; infinite where one of them is missing or 0."""
    if isnan(estimate.value) or estimate.value == 0 or estimate.lower is None or estimate.upper is None:
        return inf
    return (estimate.upper - estimate.lower) / (2 * abs(estimate.value))


def words_of_aims(
    spectrum: Spectrum, aims: Aims, estimates: Mapping[str, Estimate], exact: Collection[str] = ()
) -> list[str]:
    """A line for each aim: whether it is met, and what would be needed where it is not.

    Args:
        spectrum: the result.
        aims: the names and their relative errors.
        estimates: of the spectrum, as they are printed.
        exact: the names of the numbers that are known exactly.
    """
    lines = []
    size = f"{spectrum.num_probes} probes of {spectrum.lanczos_steps} steps"
    for name, rtol in aims:
        half = relative_half_width(estimates[name])
        if name in exact:
            lines.append(f"rtol: {name} is exact, no probe was needed for it")
        elif half <= rtol:
            lines.append(f"rtol: {name} is within {half:.2g} of its value ({size}); the aim was {rtol:g}")
        else:
            within = "is not known" if half == inf else f"is within {half:.2g} of its value"
            needed = _missing(spectrum.quadrature, name, rtol, half)
            lines.append(f"rtol: {name} {within} ({size}): the aim of {rtol:g} is not met; {needed}")
    return lines


def _missing(q: Quadrature, name: str, rtol: float, half: float) -> str:
    """What an estimate needs to reach an aim."""
    needed = max(probes_needed(q, name, rtol), ceil(q.num_probes * (half / rtol) ** 2) if half < inf else 0)
    if q.num_probes == 1 and name not in _ENDS:
        return "one probe has no scatter: more probes (--probes) are needed"
    if needed == inf or name in _ENDS:
        return "more Lanczos steps (--lanczos-steps), or products in float64, are needed"
    return f"about {needed:,} probes (--probes) would be needed"


def _from_moments(q: Quadrature, name: str) -> tuple[float, float]:
    """The bound on a probe's standard deviation, and the error of the arithmetic, both relative to the value."""
    power, k, remaining = _POWERS[name], q.num_probes, q.remaining

    def f(x: np.ndarray) -> np.ndarray:
        return np.asarray(x**power)

    means, squares = q.means(f), q.means(lambda x: f(x) ** 2)
    variances = 2 * remaining**2 / (remaining + 2) * np.maximum(squares - means.mean() ** 2, 0.0)
    above = float(stdtrit(k - 1, _BOUND)) * float(variances.std(ddof=1)) / sqrt(k)
    deviation = sqrt(max(float(variances.mean()) + above, k * q.least_error(f, float(means.mean())) ** 2))
    total = abs(float(f(q.converged.values).sum()) + remaining * float(means.mean()))
    size = total if power == 1 else sqrt(total)
    slope = 2.0 if name == "second_moment" else 1.0
    return deviation / total * (0.5 if name == "frobenius_norm" else 1.0), slope * sqrt(q.n) * q.blur / size


def _from_scatter(q: Quadrature, name: str, found: Estimate, half: float) -> tuple[float, float]:
    """The same from the scatter of the pilot, with all of the interval that is not due to it."""
    assert found.stderr is not None
    k, relative = q.num_probes, found.stderr / found.value
    bound = sqrt((k - 1) / float(chdtri(k - 1, _BOUND)))
    reach = t_quantile(k, _confidence(name)) * relative
    # The interval of the other ranks is that of a logarithm.
    return relative * sqrt(k) * bound, max(0.0, half - (reach if name == "stable_rank" else sinh(min(reach, 50.0))))


def _confidence(name: str) -> float:
    """The confidence of the part of an interval that is due to the probes."""
    return 1 - (1 - CONFIDENCE) / 2 if name == "stable_rank" else CONFIDENCE
