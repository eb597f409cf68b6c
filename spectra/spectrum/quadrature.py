"""The quadrature rules of all probes of one operator, split into converged eigenvalues and the remainder.

With ``r`` simple eigenvalues ``lambda_j`` that have converged in every probe (``spectrum.converged``), of weight
``w_ij`` in the rule of probe ``i``, the remainder of a sphere probe is uniform on the sphere of the ``n - r`` other
dimensions. So, for any ``f``,

    Tr f(H) = sum_j f(lambda_j) + (n - r) E[ sum_{other nodes} w f(theta) / (1 - sum_j w_ij) ],

and the estimate has the variance of the remainder alone. Where nothing has converged in every probe this is the plain
mean over the probes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from math import sqrt

import numpy as np

from spectra.spectrum.converged import Converged, find_converged, nothing_converged
from spectra.spectrum.eigenpairs import Eigenpairs
from spectra.spectrum.tridiagonal import Tridiagonal

Function = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Quadrature:
    """The Gauss rules of ``k`` probes for a symmetric operator of ``n`` rows: the input of every estimator."""

    tridiagonals: tuple[Tridiagonal, ...]  # k
    n: int
    noise: float = 2.220446e-16  # eta, the error of a product relative to |H|_2 |q|
    distribution: str = "sphere"  # "sphere" or "rademacher"
    start_overlaps: np.ndarray | None = None  # (k, m) scalar products of the probes with the first one's Krylov basis
    exact_trace: float | None = None  # Tr H if it is known exactly
    eigenpairs: Eigenpairs | None = None  # of a search whose starts are independent of the probes
    overlaps: np.ndarray | None = None  # (k, r) y_j'q_i of every probe with the vectors of the eigenpairs

    def __post_init__(self) -> None:
        object.__setattr__(self, "tridiagonals", tuple(self.tridiagonals))

    @property
    def num_probes(self) -> int:
        """The number ``k`` of probes."""
        return len(self.tridiagonals)

    @cached_property
    def scale(self) -> float:
        """The largest ``|theta|`` over all probes: a lower bound of ``|H|_2``, used as its value in error terms."""
        return max(t.scale for t in self.tridiagonals)

    @property
    def blur(self) -> float:
        """``noise |H|_2``: the largest shift of an eigenvalue by the noise of the products (Weyl)."""
        return self.noise * self.scale

    @cached_property
    def memory(self) -> dict[object, object]:
        """A cache of results for these rules, such as the curve of a count over the tolerances."""
        return {}

    @cached_property
    def product_norms(self) -> np.ndarray:
        """``|H q_i| = hypot(alpha_i1, beta_i1)``, (k,)."""
        first = [t.last_beta if t.steps == 1 else t.betas[0] for t in self.tridiagonals]
        return np.asarray(np.hypot([t.alphas[0] for t in self.tridiagonals], first))

    def without_noise(self) -> Quadrature:
        """The same rules with ``noise=0``."""
        return replace(self, noise=0.0)

    def with_nothing_known(self) -> Quadrature:
        """The same rules without known eigenvalues: every estimate is the plain mean over the probes."""
        other = replace(self)
        other.__dict__["converged"] = nothing_converged(self.num_probes)
        return other

    # --- converged eigenvalues, and the remainder -----------------------------------------------------------------

    @cached_property
    def converged(self) -> Converged:
        """The simple eigenvalues that have converged in every probe; none for probes that are not of the sphere."""
        if self.distribution != "sphere":
            return nothing_converged(self.num_probes)
        return find_converged(self.tridiagonals, self.n, self.noise, self.start_overlaps)

    @property
    def remaining(self) -> int:
        """``n - r``: the number of eigenvalues that are not known."""
        return self.n - self.converged.count

    @cached_property
    def remainders(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Nodes and weights of each probe's rule for the remaining eigenvalues; the weights sum to 1."""
        rules = []
        for t, places in zip(self.tridiagonals, self.converged.places):
            nodes, weights = np.delete(t.nodes, places), np.delete(t.weights, places)
            total = float(weights.sum())
            rules.append((nodes, weights / total if total > 0 else weights))
        return rules

    @cached_property
    def rules(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Nodes and weights of each probe for all eigenvalues, the converged ones with a weight of ``1/n``."""
        found = self.converged
        each = np.full(found.count, 1 / self.n)
        return [
            (np.concatenate([nodes, found.values]), np.concatenate([weights * (self.remaining / self.n), each]))
            for nodes, weights in self.remainders
        ]

    @cached_property
    def shares(self) -> np.ndarray:
        """The fraction of each probe's weight on the remaining eigenvalues, (k,)."""
        pairs = zip(self.tridiagonals, self.converged.places)
        return np.array([float(np.delete(t.weights, places).sum()) for t, places in pairs])

    def means(self, f: Function) -> np.ndarray:
        """Each probe's estimate of the mean of ``f`` over the remaining eigenvalues, (k,); 0 where none remains."""
        return np.array([float(weights @ f(nodes)) for nodes, weights in self.remainders])

    def moments(self, p: int) -> np.ndarray:
        """Each probe's estimate of the mean of ``lambda^p``, (k,); exact for ``p <= 2m``, a rule for ``p < 2m``."""
        if self.remaining == 0:
            return np.zeros(self.num_probes)
        whole = np.array([t.moment(p) for t in self.tridiagonals])
        if self.converged.count == 0:
            return whole
        pairs = zip(self.tridiagonals, self.converged.places)
        known = np.array([float(t.weights[places] @ t.nodes[places] ** p) for t, places in pairs])
        return np.asarray((whole - known) / self.shares)

    def adjusted(self, samples: np.ndarray, f: Function) -> np.ndarray:
        """Samples of the mean of ``f``, (k,), with the exact trace as a control variate if it is known.

        The expectation of each probe's mean of ``lambda`` is known. The deviation from it is subtracted, times the
        slope of the best linear fit to ``f`` under the measure of the other probes; so the mean stays unbiased.
        """
        k = self.num_probes
        if self.exact_trace is None or k < 2 or self.remaining == 0:
            return samples
        centre = (self.exact_trace - float(self.converged.values.sum())) / self.remaining
        first, second = self.moments(1), self.means(np.square)
        products = np.array([float(weights @ (f(nodes) * nodes)) for nodes, weights in self.remainders])
        values = self.means(f)

        def of_others(means: np.ndarray) -> np.ndarray:
            return np.asarray((means.sum() - means) / (k - 1))

        variance = of_others(second) - of_others(first) ** 2
        covariance = of_others(products) - of_others(values) * of_others(first)
        slope = np.divide(covariance, variance, out=np.zeros(k), where=variance > 1e-14 * of_others(second))
        return np.asarray(samples - slope * (first - centre))

    def least_error(self, f: Function, centre: float) -> float:
        """A lower bound of the standard error of ``Tr f(H)`` from the Ritz values of the remainder.

        The scatter of a few probes is often too small where few eigenvalues dominate. Ritz values lie between the
        eigenvalues by interlacing (Cauchy). So for ``f`` whose size grows with ``|lambda|`` the variance of a sphere
        probe, ``2n/(n+2) sum (f(lambda) - mean)^2``, is at least the same sum over the Ritz values. A multiple
        eigenvalue is counted with the multiplicity that its weights imply.

        Args:
            f: the function.
            centre: the mean of ``f`` over the remaining eigenvalues.
        """
        n = self.remaining
        if self.distribution != "sphere" or n == 0:
            return 0.0
        found, sizes = self.converged, []
        for t, simple, multiple in zip(self.tridiagonals, found.places, found.multiple_places):
            copies = np.ones(t.steps)
            copies[multiple], copies[simple] = found.multiplicities, 0.0
            sizes.append(float(copies @ np.maximum(0.0, np.abs(f(t.nodes)) - abs(centre)) ** 2))
        return sqrt(2 * n / (n + 2) / self.num_probes * max(sizes))

    def error_of_known(self, f: Function) -> float:
        """The error of ``Tr f(H)`` from the errors of the converged eigenvalues and of their weights."""
        found = self.converged
        if found.count == 0:
            return 0.0
        values = f(found.values)
        moved = np.maximum(*(np.abs(f(found.values + sign * found.errors) - values) for sign in (-1, 1)))
        return float((moved + found.weight_errors * np.abs(values)).sum())
