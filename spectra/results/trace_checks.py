"""The cross-check of traces: estimates from probes against the same traces computed exactly.

With ``k`` probes, samples ``s_i`` of a trace and its exact value ``T``::

    z = (mean_i s_i - T) / e,     e = max(s / sqrt(k), noise, model),     t with k - 1 degrees of freedom

``noise`` is the error of the arithmetic (``eta``): a discrepancy below it is no evidence. ``model``, if it is known, is
the standard error of the mean by the law of the probes; it replaces ``s / sqrt(k)`` where the ``k`` samples happen to
be close together. The level of each of ``c`` comparisons is ``1 - (1 - a)^(1/c)`` (Sidak), so that ``a`` is the
probability of a false alarm among all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import hypot, isfinite, isnan, nan, sqrt
from typing import Any

import numpy as np
from scipy.special import stdtr, stdtrit

from spectra.errors import ArgumentError
from spectra.jsonable import to_jsonable
from spectra.spectrum.spectrum import Spectrum

#: The chance of a false alarm among all comparisons of a record.
LEVEL = 0.01
#: The probability with which a discrepancy of the size ``detectable`` is found.
POWER = 0.8
#: The number of fresh probes that confirm a disagreement: enough for a mean of squared normals to be nearly normal.
FRESH_PROBES = 64

AGREES = "agrees"
DISAGREES = "disagrees"
INCONCLUSIVE = "inconclusive"  # no discrepancy, but one as large as the exact value would not be detected
VERDICTS = (AGREES, INCONCLUSIVE, DISAGREES)

# Degrees of freedom with which most checks can only be inconclusive: those of 2 and of 3 probes.
_FEW = 2

_MATRICES = {"hessian": "Hessian", "ggn": "Gauss-Newton matrix", "residual": "residual H - G"}


@dataclass(frozen=True)
class Check:
    """One comparison of an estimate with its exact value.

    ``verdict`` is ``"agrees"``, ``"disagrees"``, or ``"inconclusive"`` where a discrepancy as large as the exact value
    itself would not be detected.
    """

    name: str  # "trace", or "trace of TENSOR"
    estimate: float
    exact: float
    error: float  # standard error of the difference, at least that of the arithmetic
    z: float
    dof: int
    detectable: float  # the smallest discrepancy found with a chance of 80 %
    verdict: str
    of: str = "hessian"  # which matrix: "hessian", "ggn" or "residual"

    @property
    def failed(self) -> bool:
        return self.verdict == DISAGREES

    @property
    def critical(self) -> float:
        """The ``|z|`` above which the comparison fails, at its level; NaN where there is no standard error."""
        if not (self.error > 0 and isfinite(self.detectable)):
            return nan
        return self.detectable / self.error - float(stdtrit(self.dof, POWER))

    def __str__(self) -> str:
        return (
            f"the {self.name} of the {_MATRICES.get(self.of, self.of)} is {self.estimate:.7g} by probes and "
            f"{self.exact:.7g} without them, z = {self.z:+.1f}: {self.verdict}"
        )

    def to_json(self) -> dict[str, Any]:
        """The fields as a dictionary for JSON."""
        entries: dict[str, Any] = to_jsonable(asdict(self))
        return entries


def too_few_probes(checks: Sequence[Check]) -> bool:
    """Whether a record has only 2 or 3 probes, and more than half of its checks are inconclusive for that reason.

    Such checks give no information. The result is False where a check failed.
    """
    vague = sum(check.verdict == INCONCLUSIVE for check in checks)
    few = any(check.dof <= _FEW for check in checks)
    return few and 2 * vague > len(checks) and not any(check.failed for check in checks)


def can_tell(checks: Sequence[Check]) -> bool:
    """Whether the checks of a record give information: False where all are inconclusive, or with too few probes."""
    return any(check.verdict != INCONCLUSIVE for check in checks) and not too_few_probes(checks)


def why_inconclusive(checks: Sequence[Check]) -> str | None:
    """Why checks are inconclusive, in words; None where none is."""
    vague = [check for check in checks if check.verdict == INCONCLUSIVE]
    if not vague:
        return None
    dof = min(check.dof for check in vague)
    words = f"with {dof + 1} probes Student's t has {dof} degree{'s' if dof > 1 else ''} of freedom"
    limits = [check.critical for check in vague if not isnan(check.critical)]
    if limits:
        words += f", and the smallest |z| that could be called a disagreement is {min(limits):.3g}"
    return words


def check_traces(
    spectrum: Spectrum,
    exact: Mapping[str, float],
    *,
    exact_errors: Mapping[str, float] | None = None,
    exact_draws: int | None = None,
    of: str = "hessian",
    level: float = LEVEL,
    scale: float | None = None,
) -> list[Check]:
    """Checks of the traces from a run's first products against exact ones: of each tensor, and of the whole matrix.

    Args:
        spectrum: with the per-tensor forms of its first products, from at least two probes.
        exact: tensor name -> exact trace of its diagonal block; tensors that have none are left out.
        exact_errors: the standard errors of those that are themselves estimates.
        exact_draws: the number of draws of these.
        of: the matrix of both: ``"hessian"`` or ``"ggn"``.
        level: the probability of a false alarm among all comparisons.
        scale: ``|H|_2``, the unit of the noise; by default the largest Ritz value, which needs enough steps.

    Returns:
        ``"trace"`` first, if all tensors have exact traces, then a check per tensor. Empty with one probe, which has no
        standard error.

    Raises:
        ArgumentError: a tensor that the run does not have.
    """
    if spectrum.tensor_forms is None or spectrum.num_probes < 2:
        return []
    sizes = spectrum.tensor_sizes
    unknown = sorted(set(exact) - set(sizes))
    if unknown:
        raise ArgumentError(f"there is no tensor {unknown[0]} in the run: its tensors are {', '.join(sizes)}")
    if not exact:
        return []
    errors = exact_errors or {}
    fewest = min(spectrum.num_probes, exact_draws or spectrum.num_probes)
    unit = max(scale or 0.0, spectrum.quadrature.scale)
    whole = set(exact) == set(sizes)
    each = 1 - (1 - level) ** (1 / (len(exact) + whole))
    checks = []
    if whole:
        total = float(sum(exact.values()))
        known = sqrt(sum(error**2 for error in errors.values()))
        samples = spectrum.n * spectrum.tensor_forms.sum(axis=1)
        noise, model = sqrt(spectrum.n) * spectrum.noise * unit, _law(spectrum, total)
        how = {"noise": noise, "model": model, "level": each}
        checks.append(compare("trace", samples, total, exact_error=known, dof=fewest - 1, of=of, **how))
    for column, (name, size) in enumerate(sizes.items()):
        if name in exact:
            samples = spectrum.n * spectrum.tensor_forms[:, column]
            noise = sqrt(size) * spectrum.noise * unit
            known = errors.get(name, 0.0)
            how = {"noise": noise, "level": each}
            checks.append(
                compare(f"trace of {name}", samples, exact[name], exact_error=known, dof=fewest - 1, of=of, **how)
            )
    return checks


def compare(
    name: str,
    samples: np.ndarray,
    exact: float,
    *,
    exact_error: float = 0.0,
    dof: int | None = None,
    noise: float = 0.0,
    model: float = 0.0,
    level: float = LEVEL,
    of: str = "hessian",
) -> Check:
    """One comparison of a mean over probes with an exact value, at the given level.

    Args:
        name: of the check.
        samples: (k,), one per probe, at least two.
        exact: the exact value of their mean.
        exact_error: its standard error, where it is itself an estimate.
        dof: degrees of freedom of the error; those of the samples by default, and never more.
        noise: the error of the arithmetic.
        model: the error of the mean by the law of the probes, where it is known.
        level: the probability of a false alarm.
        of: the matrix: ``"hessian"`` or ``"ggn"``.
    """
    k = samples.size
    if k < 2:
        raise ArgumentError(f"{k} sample: a comparison needs at least 2 probes")
    mean = float(samples.mean())
    error = hypot(max(float(samples.std(ddof=1)) / sqrt(k), noise, model), exact_error)
    difference = mean - exact
    z = 0.0 if difference == 0 else difference / error if error > 0 else float(np.copysign(np.inf, difference))
    degrees = k - 1 if dof is None else min(dof, k - 1)
    critical = float(stdtrit(degrees, 1 - level / 2))
    detectable = (critical + float(stdtrit(degrees, POWER))) * error
    verdict = verdict_of(z, degrees, level, 0.0 if error <= noise else detectable, exact)
    return Check(name, mean, float(exact), error, z, degrees, detectable, verdict, of)


def verdict_of(z: float, dof: int, level: float, detectable: float, exact: float) -> str:
    """The verdict: inconclusive where a discrepancy as large as the exact value would not be detected."""
    if not isfinite(z) or 2 * float(stdtr(dof, -abs(z))) < level:
        return DISAGREES
    return AGREES if detectable <= abs(exact) else INCONCLUSIVE


def _law(spectrum: Spectrum, total: float) -> float:
    """The standard error of the mean by the law of sphere probes: ``2n/(n + 2) (|H|_F^2 - (Tr H)^2 / n) / k``.

    ``|H|_F^2`` is estimated from the same products. For Rademacher probes, whose variance lacks the diagonal, 0.
    """
    if spectrum.distribution != "sphere":
        return 0.0
    n, k = spectrum.n, spectrum.num_probes
    square = n * float(np.mean(spectrum.quadrature.product_norms**2))
    return sqrt(max(0.0, 2 * n / (n + 2) * (square - total**2 / n)) / k)


def confirmed(first: Sequence[Check], second: Sequence[Check]) -> list[Check]:
    """The checks of one set of probes, with each disagreement confirmed or replaced by a check with fresh probes.

    Where one eigenvalue dominates, the samples of few probes are far from normal, and Student's t then gives more false
    alarms than its level (up to a third of the records, where one eigenvalue dominates every tensor). A wrong number
    disagrees for every set of probes; a chance disagreement does not. With :data:`FRESH_PROBES` more, false alarms are
    below 0.6 % of the records on every spectrum tried.

    Args:
        first: the checks.
        second: the same checks from independent probes.

    Returns:
        The checks of ``first``; where only ``first`` disagrees, the check of ``second``.
    """
    again = {check.name: check for check in second}
    kept = []
    for check in first:
        other = again.get(check.name)
        chance = check.failed and other is not None and (not other.failed or other.z * check.z < 0)
        kept.append(other if chance and other is not None else check)
    return kept
