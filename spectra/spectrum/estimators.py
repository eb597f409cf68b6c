"""The registry of estimators: every number that each record has, in the order in which tables show it.

There is one entry per number. These are made from the entries: `Spectrum.estimates`, the error budget, the exact
headline numbers, the quantities in which two runs are compared, the rows of the tables of the command line, and the
table in ``docs/quantities.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial

from spectra.spectrum import cumulative, deflation, degeneracy, extremes, ranks, traces
from spectra.spectrum.estimates import Estimate
from spectra.spectrum.fractions import CountCurve
from spectra.spectrum.quadrature import Quadrature


class Unit(Enum):
    """The unit of an estimate."""

    EIGENVALUE = "eigenvalue"  # a change of the loss per squared parameter
    SQUARE = "eigenvalue squared"
    FRACTION = "fraction of `n`"
    COUNT = "number of eigenvalues"  # from 1 to n, and no whole number


class Interval(Enum):
    """How the interval of an estimate is made."""

    SAMPLES = "t"  # Student's t with one sample per probe
    ENDS = "interval"  # from the outermost Ritz value to a bound beyond it; there is no standard error
    BRACKET = "bracket"  # rigorous bounds of every probe's measure, widened by the error of the probes
    RULES = "t and rules"  # Student's t, widened by the estimated error of the quadrature


@dataclass(frozen=True, kw_only=True)
class Estimator:
    """A number that follows from the quadrature rules of the probes, with its description for tables and docs."""

    name: str
    compute: Callable[..., Estimate]  # takes a Quadrature; of a count also `tau`, of an end also a confidence
    formula: str  # what it is, in one line of Markdown
    unit: Unit
    cost: str  # products with the matrix, in Markdown
    interval: Interval
    error: str  # how its error is stated, in Markdown
    conclude: str = ""  # what may and may not be concluded from it, in Markdown
    from_trace: Callable[[float, int], float] | None = None  # (Tr H, n) -> the number, if the trace determines it
    curve: Callable[..., CountCurve] | None = None  # of a count: for several tolerances
    budget: bool = True  # it has an error budget
    compared: bool = True  # two runs are compared in it
    summary: bool = True  # the summary of a record shows it
    variant_of: str | None = None  # the summary shows it after this number
    needs_eigenpairs: bool = False

    def applies(self, q: Quadrature) -> bool:
        """Whether these quadrature rules have what the estimator needs."""
        return not self.needs_eigenpairs or q.eigenpairs is not None

    def recompute(self, q: Quadrature, like: Estimate) -> Estimate:
        """The estimate from other quadrature rules; a count at the tolerance of the estimate that is given."""
        return self.compute(q, like.tau) if self.curve is not None else self.compute(q)


# Estimators of one kind; an entry below may override what its kind says.
_mean = partial(Estimator, unit=Unit.EIGENVALUE, cost="`k`", interval=Interval.SAMPLES, error="t")
_deflated = partial(_mean, budget=False, compared=False, needs_eigenpairs=True)
_end = partial(
    Estimator,
    unit=Unit.EIGENVALUE,
    cost="`m k`",
    interval=Interval.ENDS,
    error="interval: Ritz value inside, random-start bound outside, both ends together 95 %",
)
_count = partial(
    Estimator,
    unit=Unit.FRACTION,
    cost="`m k`",
    interval=Interval.BRACKET,
    error="bracket; else *not resolved*",
)
_rank = partial(Estimator, unit=Unit.COUNT, cost="`m k`", interval=Interval.RULES)
_closest = partial(_mean, cost="`m k`", budget=False, compared=False, summary=False)


def _closest_estimators(count: int, word: str) -> tuple[Estimator, Estimator]:
    """Mass and value of the Ritz values closest to 0."""
    values = "Ritz value closest" if count == 1 else "two Ritz values closest"
    cancel = "" if count == 1 else "; small also where their signs cancel"
    return (
        _closest(
            name=f"closest_{word}_mass",
            compute=lambda q: degeneracy.closest(q, count).mass,
            formula=f"weight of the {values} to 0, mean over the probes; values within the noise of each other are one",
            unit=Unit.FRACTION,
            conclude="Comparison with the figures of Granziol (2020) at the same `m`, and nothing else: it depends on "
            "`m` wherever the spectrum is continuous",
        ),
        _closest(
            name=f"closest_{word}_value",
            compute=lambda q: degeneracy.closest(q, count).value,
            formula=f"weighted mean of the {values} to 0, mean over the probes",
            conclude=f"As `closest_{word}_mass`{cancel}",
        ),
    )


#: In the order of tables and files.
ESTIMATORS: tuple[Estimator, ...] = (
    _mean(
        name="trace",
        compute=traces.trace,
        formula="`Tr H = sum lambda`, by `n mean alpha_i1` and the eigenvalues that all probes have found",
        cost="`k`; `m k` for the eigenvalues",
        conclude="Total curvature. Not sharpness in any one direction; positive and negative eigenvalues cancel; "
        "changes under rescaling of weights that leaves the function as it is",
        from_trace=lambda trace, n: trace,
    ),
    _mean(
        name="mean_eigenvalue",
        compute=traces.mean_eigenvalue,
        formula="`(1/n) Tr H`",
        conclude="As the trace; networks of different `n` differ in it because they have other null spaces",
        from_trace=lambda trace, n: trace / n,
        compared=False,
        summary=False,
    ),
    _mean(
        name="second_moment",
        compute=traces.second_moment,
        formula="`(1/n) sum lambda^2 = (1/n) |H|_F^2`",
        unit=Unit.SQUARE,
        conclude='Per-parameter size of the curvature. Some papers print it, or its root, as the "Frobenius norm"',
        compared=False,
        summary=False,
    ),
    _mean(
        name="frobenius_norm",
        compute=traces.frobenius_norm,
        formula="`|H|_F = sqrt(sum lambda^2)`, no normalisation",
        error="t of the square, its root",
        conclude="At least the spectral norm. Says nothing about signs",
    ),
    _end(
        name="spectral_norm",
        compute=extremes.spectral_norm,
        formula="`|H|_2 = max |lambda|`",
        conclude="The sharpest direction at this point. Not how flat the minimum is: a reparametrisation changes it",
    ),
    _end(
        name="lambda_max",
        compute=extremes.lambda_max,
        formula="`max lambda`, the largest Ritz value of all probes",
        conclude="Compare with `2 / learning rate` for the stability of gradient descent. The scatter over probes is "
        "not its error",
    ),
    _end(
        name="lambda_min",
        compute=extremes.lambda_min,
        formula="`min lambda`, the smallest Ritz value of all probes",
        conclude="Below 0 beyond its interval: not a minimum. Small: not a proof of a minimum, since the interval "
        "reaches below 0",
    ),
    _count(
        name="rank_degeneracy",
        compute=degeneracy.rank_degeneracy,
        curve=degeneracy.degeneracy_curve,
        formula="`#{|lambda| <= tau} / n`",
        conclude="How many directions are flat **to this `tau`**. Not that they are zero. Two values compare only at "
        "one `tau`. A Gauss-Newton matrix of `N` samples has rank at most `N (C - 1)`: from few samples it is "
        "degenerate by counting alone",
    ),
    _count(
        name="negative_mass",
        compute=cumulative.negative_mass,
        curve=cumulative.negative_curve,
        formula="`#{lambda < -tau} / n`",
        conclude="Part of directions that bend down by more than `tau`. Nothing about those between `-tau` and 0; at "
        "`tau = 0` it is meaningless, because rounding decides the sign of a null space, and never called resolved",
    ),
    _rank(
        name="stable_rank",
        compute=ranks.stable_rank,
        formula="`|H|_F^2 / |H|_2^2`",
        cost="`m k` (`k` for the numerator)",
        error="norm and Frobenius norm each at 97.5 %; cut to `[1, n]`",
        conclude="How many eigenvalues as large as the largest would give the same `|H|_F`. Not a count of non-zero "
        "eigenvalues",
    ),
    _rank(
        name="participation_rank",
        compute=ranks.participation_rank,
        formula="`(sum |lambda|)^2 / sum lambda^2`",
        error="delta method on its logarithm, t; and the distance between three quadrature rules, an indication of the "
        "error of `m` steps and no bound; cut to `[1, n]`",
        conclude="Over how many directions the curvature is spread. Moved by a bulk that `stable_rank` does not see",
        summary=False,
    ),
    _rank(
        name="entropy_rank",
        compute=ranks.entropy_rank,
        formula="`exp(-sum p log p)`, `p = |lambda| / sum |lambda|`",
        error="as `participation_rank`",
        conclude="As `participation_rank`, with more weight on small eigenvalues. The three ranks are different "
        "quantities and never to be compared with each other",
        summary=False,
    ),
    *_closest_estimators(1, "one"),
    *_closest_estimators(2, "two"),
    _deflated(
        name="trace_deflated",
        compute=deflation.trace,
        formula="`sum theta_i + n mean_q (q'Hq - sum theta_i (y_i'q)^2)`, with eigenpairs `theta_i, y_i`",
        error="t over the probes, unbiased whatever the residuals; never below what the known rest of the spectrum "
        "implies",
        conclude="As `trace`, of which it is a better estimate where few eigenvalues dominate. The two share their "
        "probes: they are no independent confirmation of each other",
        variant_of="trace",
    ),
    _deflated(
        name="frobenius_norm_deflated",
        compute=deflation.frobenius_norm,
        formula="root of `sum theta_i^2 + n mean_q (|Hq|^2 - sum theta_i^2 (y_i'q)^2)`, with eigenpairs",
        error="as `trace_deflated`, and at least `sqrt(sum theta_i^2)`",
        conclude="As `frobenius_norm`",
        variant_of="frobenius_norm",
    ),
)

BY_NAME = {estimator.name: estimator for estimator in ESTIMATORS}
#: The ends of the spectrum: (quadrature, confidence) -> Estimate.
ENDS = {e.name: e.compute for e in ESTIMATORS if e.interval is Interval.ENDS}
#: The counts over several tolerances: (quadrature, tolerances) -> CountCurve.
COUNTS = {e.name: e.curve for e in ESTIMATORS if e.curve is not None}
#: The numbers that an exact trace determines: (Tr H, n) -> the number.
FROM_TRACE = {e.name: e.from_trace for e in ESTIMATORS if e.from_trace is not None}
#: The numbers that two runs are compared in.
COMPARED = tuple(e.name for e in ESTIMATORS if e.compared)
#: The rows of the summary of a record; a variant follows the number that it is a variant of.
SUMMARY = tuple(
    shown.name
    for e in ESTIMATORS
    if e.summary and e.variant_of is None
    for shown in (e, *(other for other in ESTIMATORS if other.summary and other.variant_of == e.name))
)


def estimate_all(q: Quadrature) -> dict[str, Estimate]:
    """Name -> estimate, of every estimator that applies to these quadrature rules; not reconciled with each other."""
    return {estimator.name: estimator.compute(q) for estimator in ESTIMATORS if estimator.applies(q)}


def reference_table() -> str:
    """The estimators as a table in Markdown, for ``docs/quantities.md``."""
    rows = [("name", "formula", "unit", "cost", "error", "may and may not conclude"), ("---",) * 6]
    rows += [(f"`{e.name}`", e.formula, e.unit.value, e.cost, e.error, e.conclude) for e in ESTIMATORS]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in rows)
