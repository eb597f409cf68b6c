"""Checks of a spectrum by Lanczos against all eigenvalues of the same matrix.

The distance between the two is compared with simulated distances. For ``k`` probes and ``m`` steps these need only the
eigenvalues: Lanczos depends on the squared components of a probe along the eigenvectors. For a sphere probe these are
``chi^2_1 / sum`` for a simple eigenvalue, and ``chi^2_r / sum`` in all for an eigenvalue of ``r`` eigenvectors.
"""

from __future__ import annotations

from math import copysign, inf, sqrt

import numpy as np
from scipy.special import stdtrit

from spectra.results.trace_checks import LEVEL, POWER, Check, verdict_of
from spectra.spectrum.estimates import Estimate, t_quantile
from spectra.spectrum.exact_spectrum import GGNSpectrum
from spectra.spectrum.spectrum import Spectrum
from spectra.spectrum.tridiagonal import Tridiagonal

#: The number of simulated runs from which the law of the distance is estimated.
SIMULATIONS = 40
_NAME = "{} (exact spectrum)"


def check_spectrum(spectrum: Spectrum, exact: GGNSpectrum, *, level: float = LEVEL) -> list[Check]:
    """A run of the Gauss-Newton matrix against all its eigenvalues: norms, degeneracy, and the distance of the spectra.

    Args:
        spectrum: by Lanczos with sphere probes, at least two, on the same data as ``exact``.
        exact: all eigenvalues.
        level: the chance of a false alarm among the comparisons.

    Returns:
        A check each of the Frobenius norm, the spectral norm, the rank degeneracy at the run's tolerance, and the
        Wasserstein-1 distance, whose ``exact`` value is what a run with such probes and steps has on average.
    """
    each = 1 - (1 - level) ** 0.25
    degeneracy = spectrum.rank_degeneracy()
    checks = [
        _within("frobenius_norm", spectrum.frobenius_norm(), exact.frobenius_norm, each),
        _within("spectral_norm", spectrum.spectral_norm(), exact.spectral_norm, each),
    ]
    if degeneracy.resolved and degeneracy.tau is not None:
        checks.append(_within("rank_degeneracy", degeneracy, exact.degeneracy(degeneracy.tau), each))
    return [*checks, _distance(spectrum, exact, each)]


def wasserstein(spectrum: Spectrum, exact: GGNSpectrum) -> float:
    """``int |F - F_exact| dx`` between the mean Ritz measure of the probes and the spectrum."""
    return _distance_of(_pooled(spectrum.tridiagonals), _measure(exact))


def simulated_distances(spectrum: Spectrum, exact: GGNSpectrum, count: int = SIMULATIONS, seed: int = 0) -> np.ndarray:
    """(count,) the distance for simulated runs with as many probes and steps on a matrix of these eigenvalues."""
    values, weights = _measure(exact)
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        runs = [_lanczos(values, weights * exact.n, spectrum.lanczos_steps, rng) for _ in range(spectrum.num_probes)]
        found.append(_distance_of(_pooled(runs), (values, weights)))
    return np.array(found)


def _distance(spectrum: Spectrum, exact: GGNSpectrum, level: float) -> Check:
    """The check of the distance: Student's t on its logarithm, whose law is close to normal."""
    found = max(wasserstein(spectrum, exact), np.finfo(float).tiny)
    logs = np.log(np.maximum(simulated_distances(spectrum, exact), np.finfo(float).tiny))
    mean, spread = float(logs.mean()), float(logs.std(ddof=1)) * sqrt(1 + 1 / logs.size)
    noise = np.log1p(exact.noise * exact.spectral_norm / np.exp(mean))  # distances below rounding say nothing
    error = max(spread, float(noise))
    dof = logs.size - 1
    z = (float(np.log(found)) - mean) / error if error > 0 else copysign(inf, float(np.log(found)) - mean)
    reach = float(stdtrit(dof, 1 - level) + stdtrit(dof, POWER)) * error
    typical = float(np.exp(mean))
    detectable = typical * float(np.expm1(reach))
    verdict = verdict_of(max(z, 0.0), dof, 2 * level, detectable, exact.spectral_norm)  # only a larger one is wrong
    name = _NAME.format("wasserstein_distance")
    return Check(name, found, typical, typical * error, z, dof, detectable, verdict, "ggn")


def _within(name: str, estimate: Estimate, exact: float, level: float) -> Check:
    """A check by the interval of the estimate: its half-width towards the exact value is Student's t times an error."""
    assert estimate.lower is not None
    assert estimate.upper is not None
    dof = estimate.num_probes - 1
    side = estimate.upper - estimate.value if exact >= estimate.value else estimate.value - estimate.lower
    error = max(side, 1e-9 * abs(estimate.value)) / t_quantile(estimate.num_probes, estimate.confidence)
    z = (estimate.value - exact) / error if error > 0 else 0.0
    detectable = float(stdtrit(dof, 1 - level / 2) + stdtrit(dof, POWER)) * error
    verdict = verdict_of(z, dof, level, detectable, exact)
    return Check(_NAME.format(name), estimate.value, exact, error, z, dof, detectable, verdict, "ggn")


def _measure(exact: GGNSpectrum) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, ascending, and their fractions of ``n``; those that are ``l2`` by counting are one entry."""
    values = np.append(exact.eigenvalues, exact.l2)
    weights = np.append(np.full(exact.eigenvalues.size, 1 / exact.n), exact.num_zero / exact.n)
    order = np.argsort(values)
    kept = weights[order] > 0
    return values[order][kept], weights[order][kept]


def _pooled(tridiagonals: list[Tridiagonal] | tuple[Tridiagonal, ...]) -> tuple[np.ndarray, np.ndarray]:
    nodes = np.concatenate([t.nodes for t in tridiagonals])
    weights = np.concatenate([t.weights for t in tridiagonals]) / len(tridiagonals)
    order = np.argsort(nodes)
    return nodes[order], weights[order]


def _distance_of(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> float:
    """The Wasserstein-1 distance of two measures, each given as points and weights."""
    from scipy.stats import wasserstein_distance  # takes longer to import than all else here

    return float(wasserstein_distance(one[0], other[0], one[1], other[1]))


def _lanczos(values: np.ndarray, degrees: np.ndarray, steps: int, rng: np.random.Generator) -> Tridiagonal:
    """Lanczos on a matrix with these eigenvalues from a sphere probe, in the basis of its eigenvectors."""
    start = np.sqrt(rng.chisquare(degrees))
    basis = np.zeros((min(steps, values.size), values.size))
    basis[0] = start / np.linalg.norm(start)
    alphas: list[float] = []
    betas: list[float] = []
    for j in range(len(basis)):
        residual = values * basis[j]
        alphas.append(float(basis[j] @ residual))
        for _ in range(2):
            residual -= (basis[: j + 1] @ residual) @ basis[: j + 1]
        betas.append(float(np.linalg.norm(residual)))
        scale = max(abs(a) + b for a, b in zip(alphas, betas))
        if betas[-1] <= 1e-10 * scale or j + 1 == values.size:
            return Tridiagonal(np.array(alphas), np.array(betas), exhausted=True)
        if j + 1 < len(basis):
            basis[j + 1] = residual / betas[-1]
    return Tridiagonal(np.array(alphas), np.array(betas))
