"""Consistency of the estimates of one operator: proved inequalities between them, and intervals that satisfy all.

Every relation is an inequality ``a <= b`` between monotone functions of two estimates, stated once in
:data:`RELATIONS`. :func:`contradictions` lists the relations that a set of estimates violates. :func:`reconciled`
removes the violations. It widens intervals and never narrows them, so each keeps its own confidence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import inf, isnan, sqrt

from spectra.spectrum.estimates import Estimate

# Relative: two numbers this close are equal to rounding.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Term:
    """``sign * factor(n) * estimate ** power``: one side of a relation. ``sign`` is 1 or -1."""

    name: str
    factor: Callable[[int], float] = lambda n: 1.0
    power: float = 1.0
    sign: int = 1

    def of(self, value: float, n: int) -> float:
        """The value of the term at a value of the estimate; with a power other than 1, a negative value counts as 0."""
        powered = value if self.power == 1 else float(max(value, 0.0) ** self.power)
        return self.sign * self.factor(n) * powered

    def inverse(self, term: float, n: int) -> float:
        """The value of the estimate at which the term has this value."""
        scaled = self.sign * term / self.factor(n)
        return scaled if self.power == 1 else float(max(scaled, 0.0) ** (1 / self.power))

    def ends(self, estimate: Estimate, n: int) -> tuple[float, float]:
        """The interval of the term; infinite where the estimate has no bound."""
        lower = -inf if estimate.lower is None else self.of(estimate.lower, n)
        upper = inf if estimate.upper is None else self.of(estimate.upper, n)
        if self.sign < 0:
            lower = -inf if estimate.upper is None else self.of(estimate.upper, n)
            upper = inf if estimate.lower is None else self.of(estimate.lower, n)
        return lower, upper


@dataclass(frozen=True)
class Relation:
    """``smaller <= larger``."""

    smaller: Term
    larger: Term
    moves: str | None = "larger"  # the side that is corrected where the values contradict; None: not compared
    semidefinite: bool = False  # the relation holds for positive semidefinite operators only

    def __str__(self) -> str:
        return f"{self.smaller.name} <= {self.larger.name}"


def _root(n: int) -> float:
    return 1 / sqrt(n)


def _inverse(n: int) -> float:
    return 1.0 / n


def _rows(n: int) -> float:
    return float(n)


#: Relations between the standard estimates. The outermost Ritz values are certain: the other estimate is corrected.
RELATIONS: tuple[Relation, ...] = (
    Relation(Term("lambda_min", _rows), Term("trace")),
    Relation(Term("trace"), Term("lambda_max", _rows), "smaller"),
    Relation(Term("lambda_max"), Term("spectral_norm")),
    Relation(Term("lambda_min", sign=-1), Term("spectral_norm")),
    Relation(Term("spectral_norm"), Term("frobenius_norm")),
    Relation(Term("frobenius_norm", _root), Term("spectral_norm"), "smaller"),
    Relation(Term("trace", _root), Term("frobenius_norm"), "smaller"),
    Relation(Term("trace", _root, sign=-1), Term("frobenius_norm"), "smaller"),
    Relation(Term("frobenius_norm"), Term("trace"), semidefinite=True),
    Relation(Term("stable_rank"), Term("participation_rank")),
    Relation(Term("participation_rank"), Term("entropy_rank")),
    Relation(Term("trace_deflated"), Term("trace"), None),
    Relation(Term("trace"), Term("trace_deflated"), None),
    Relation(Term("frobenius_norm_deflated"), Term("frobenius_norm"), None),
    Relation(Term("frobenius_norm"), Term("frobenius_norm_deflated"), None),
    Relation(Term("spectral_norm"), Term("frobenius_norm_deflated")),
)

#: Estimates that are functions of another one: (name, the function).
DEFINED: tuple[tuple[str, Term], ...] = (
    ("mean_eigenvalue", Term("trace", _inverse)),
    ("second_moment", Term("frobenius_norm", _inverse, 2.0)),
)


def contradictions(found: Mapping[str, Estimate], n: int, semidefinite: bool = False) -> list[str]:
    """A line for each relation that values or intervals violate; empty for consistent estimates.

    Args:
        found: name -> estimate, of one operator.
        n: the number of rows of the operator.
        semidefinite: whether the operator is positive semidefinite by its construction.
    """
    broken = []
    for relation, smaller, larger in _present(found, n, semidefinite):
        low, high = relation.smaller.ends(smaller, n)[0], relation.larger.ends(larger, n)[1]
        if _above(low, high):
            broken.append(f"{relation}: the intervals contradict each other, {low:.9g} > {high:.9g}")
        low, high = relation.smaller.of(smaller.value, n), relation.larger.of(larger.value, n)
        if relation.moves is not None and _above(low, high):
            broken.append(f"{relation}: the values contradict each other, {low:.9g} > {high:.9g}")
    for name, estimate in found.items():
        low, high = (
            -inf if estimate.lower is None else estimate.lower,
            inf if estimate.upper is None else estimate.upper,
        )
        outside = estimate.resolved is not False and (_above(low, estimate.value) or _above(estimate.value, high))
        if not isnan(estimate.value) and (low > high or outside):
            broken.append(f"{name}: {estimate.value:.9g} is not within [{low:.9g}, {high:.9g}]")
    for name, (least, most) in _bounds_of_counts(found, n).items():
        estimate = found[name]
        if (estimate.upper is not None and _above(least, estimate.upper)) or (
            estimate.lower is not None and _above(estimate.lower, most)
        ):
            broken.append(f"{name}: its interval contradicts the other numbers, which leave [{least:.9g}, {most:.9g}]")
    return broken


def reconciled(found: Mapping[str, Estimate], n: int, semidefinite: bool = False) -> dict[str, Estimate]:
    """The estimates without contradictions: where two exclude each other, the less certain one is corrected.

    Args:
        found: name -> estimate, of one operator.
        n: the number of rows of the operator.
        semidefinite: whether the operator is positive semidefinite by its construction.
    """
    result = dict(found)
    for _ in range(4):  # a correction by one relation may violate the next
        for relation, smaller, larger in list(_present(result, n, semidefinite)):
            smaller, larger = result[relation.smaller.name], result[relation.larger.name]
            low, high = relation.smaller.of(smaller.value, n), relation.larger.of(larger.value, n)
            if relation.moves == "larger" and low > high:
                larger = _covering(larger, relation.larger.inverse(low, n), move=True)
            elif relation.moves == "smaller" and low > high:
                smaller = _covering(smaller, relation.smaller.inverse(high, n), move=True)
            low, high = relation.smaller.ends(smaller, n)[0], relation.larger.ends(larger, n)[1]
            if low > high and relation.moves == "smaller":
                smaller = _covering(smaller, relation.smaller.inverse(high, n))
            elif low > high:
                larger = _covering(larger, relation.larger.inverse(low, n))
            result[relation.smaller.name], result[relation.larger.name] = smaller, larger
        for name, term in DEFINED:
            if name in result and term.name in result:
                result[name] = _following(result[name], result[term.name], term, n)
        for name, (least, most) in _bounds_of_counts(result, n).items():
            estimate = result[name]
            if estimate.upper is not None and estimate.upper < least:
                result[name] = _covering(estimate, least)
            elif estimate.lower is not None and estimate.lower > most:
                result[name] = _covering(estimate, most)
        if not contradictions(result, n, semidefinite):
            break
    return result


def _present(
    found: Mapping[str, Estimate], n: int, semidefinite: bool
) -> Iterator[tuple[Relation, Estimate, Estimate]]:
    """The relations that apply, with the estimates of both sides; those with a missing or NaN estimate are skipped."""
    for relation in RELATIONS:
        smaller, larger = found.get(relation.smaller.name), found.get(relation.larger.name)
        if smaller is None or larger is None or (relation.semidefinite and not semidefinite):
            continue
        if not (isnan(smaller.value) or isnan(larger.value)):
            yield relation, smaller, larger


def _above(low: float, high: float) -> bool:
    """Whether one number is larger than another by more than rounding."""
    return low > high and low - high > _ROUNDING * max(abs(low), abs(high))


def _following(estimate: Estimate, of: Estimate, term: Term, n: int) -> Estimate:
    """The estimate if it equals ``term(of)`` to rounding; else ``term`` of the value and interval of ``of``."""
    value = term.of(of.value, n)
    if not (_above(value, estimate.value) or _above(estimate.value, value)):
        return estimate
    lower, upper = (None if end is None else term.of(end, n) for end in (of.lower, of.upper))
    return replace(estimate, value=value, lower=lower, upper=upper)


def _covering(estimate: Estimate, value: float, *, move: bool = False) -> Estimate:
    """The estimate with its interval extended to include ``value``; with ``move`` also its value is set to it."""
    lower = None if estimate.lower is None else min(estimate.lower, value)
    upper = None if estimate.upper is None else max(estimate.upper, value)
    return replace(estimate, value=value if move else estimate.value, lower=lower, upper=upper)


def _bounds_of_counts(found: Mapping[str, Estimate], n: int) -> dict[str, tuple[float, float]]:
    """name -> (least, most): bounds of the counts that follow from the ends of the spectrum and the Frobenius norm."""
    bounds: dict[str, tuple[float, float]] = {}
    norm, frobenius, bottom = (found.get(name) for name in ("spectral_norm", "frobenius_norm", "lambda_min"))
    within, below = found.get("rank_degeneracy"), found.get("negative_mass")
    if within is not None and within.tau is not None and within.tau > 0:
        least, most = 0.0, 1.0
        if norm is not None and norm.lower is not None and norm.lower > within.tau:
            most = 1 - 1 / n  # the largest is outside
        if frobenius is not None and frobenius.upper is not None:
            least = max(0.0, 1 - (frobenius.upper / within.tau) ** 2 / n)  # (1 - f) n tau^2 <= |H|_F^2
        bounds["rank_degeneracy"] = (min(least, most), most)
    if below is not None and below.tau is not None and bottom is not None:
        least = 1 / n if bottom.upper is not None and bottom.upper < -below.tau else 0.0
        most = 0.0 if bottom.lower is not None and bottom.lower >= -below.tau else 1.0
        if within is not None and within.tau is not None and within.tau <= below.tau and within.lower is not None:
            most = min(most, 1 - within.lower)  # no eigenvalue is in both regions
        bounds["negative_mass"] = (min(least, most), most)
    return bounds
