"""Eigenvalues that have converged in every probe, with their accuracy, and whether each is simple.

Where a Ritz value has converged in every probe, its weight in the rule of probe ``i`` is the squared overlap ``w_ij``
of the probe with the eigenspace. If the eigenvalue is simple, it is known with its multiplicity and need not be
estimated: given these overlaps, the remainder of a sphere probe is uniform on the sphere of the complement.

*Converged.* With the residual ``rho`` (and the noise of the products), the gap ``g`` to the other Ritz values, and the
angle ``phi = rho / g``, the eigenvalue is off by at most ``rho phi`` and the weight, relatively, by about
``2 m phi^2``. A value counts as converged where the latter is below 1e-3 in every probe.

*Simple.* One tridiagonal matrix cannot tell a simple eigenvalue from a multiple one. The scalar products of the other
probes with the Krylov basis of the first one can: with ``y`` the Ritz vector of the first probe, ``(y'q_i)^2 = w_ij``
for a simple eigenvalue, and less for a multiple one or a cluster. Where these products were not kept, the weights
decide: of an eigenvalue with ``d`` eigenvectors they follow Beta(d/2, (n-d)/2). One eigenvalue in twenty is expected to
be multiple, and an eigenvalue is taken to be simple where the posterior probability of the contrary is at most 5 %.

References:
    B. Parlett, The Symmetric Eigenvalue Problem (1998), sections 11.7 and 13.4: residuals, gaps and angles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import betaln

from spectra.spectrum.tridiagonal import Tridiagonal

# The largest relative error of a weight that counts as converged.
_WEIGHT_ERROR = 1e-3

# An eigenvalue is simple where the squared overlaps with one eigenvector sum to the weights up to this fraction.
_MISSING = 1e-4

# The prior of the share of multiple eigenvalues is Beta(1, 19); _DOUBT is the largest accepted posterior probability.
_PRIOR, _DOUBT = 19.0, 0.05


@dataclass(frozen=True, eq=False)
class Converged:
    """The ``r`` simple eigenvalues that have converged in every probe, ascending."""

    values: np.ndarray  # (r,)
    errors: np.ndarray  # (r,) upper bounds of |value - eigenvalue|
    weight_errors: np.ndarray  # (r,) upper bounds of the relative errors of the probes' weights
    places: np.ndarray  # (k, r) int: the index of the node in each probe's rule
    multiple_places: np.ndarray  # (k, s) int: indices of other converged eigenvalues, which are or may be multiple
    multiplicities: np.ndarray  # (s,) estimates for these from their weights: at least 2, or 1 where it may be simple

    @property
    def count(self) -> int:
        """The number ``r`` of eigenvalues."""
        return int(self.values.size)


def nothing_converged(num_probes: int) -> Converged:
    """The empty result: no eigenvalue has converged in every probe."""
    none, nowhere = np.zeros(0), np.zeros((num_probes, 0), dtype=np.int64)
    return Converged(none, none, none, nowhere, nowhere, none)


def find_converged(
    tridiagonals: Sequence[Tridiagonal], n: int, noise: float, start_overlaps: np.ndarray | None = None
) -> Converged:
    """The simple eigenvalues that have converged in every probe, from sphere probes.

    Args:
        tridiagonals: (k) of the probes.
        n: the number of rows.
        noise: the error of a product relative to ``|H|_2 |q|``.
        start_overlaps: (k, m), the scalar products of every probe with the Krylov basis of the first one; None where
            they are not known.

    Returns:
        The eigenvalues with the indices of their nodes in each probe's rule. Empty where there is none.
    """
    k = len(tridiagonals)
    blur = noise * max(t.scale for t in tridiagonals)
    known = [_accuracy(t, blur) for t in tridiagonals]
    seeds = np.flatnonzero(known[0].converged)
    matched = np.stack(
        [
            _match(t, each, tridiagonals[0].nodes[seeds], known[0].residuals[seeds])
            for t, each in zip(tridiagonals, known)
        ]
    )
    at = matched[:, (matched >= 0).all(axis=0)]  # (k, r)
    if at.size == 0:
        return nothing_converged(k)
    weights = np.stack([t.weights[row] for t, row in zip(tridiagonals, at)])
    residuals = np.stack([each.residuals[row] for each, row in zip(known, at)])
    angles = np.stack([each.angles[row] for each, row in zip(known, at)])
    if any(t.steps == n for t in tridiagonals):
        simple = np.ones(at.shape[1], dtype=bool)  # as many Ritz values as rows: none is multiple
    elif start_overlaps is None or k == 1:
        simple = _likely_simple(weights, n)
    else:
        simple = _seen_simple(weights[1:], start_overlaps[1:] @ tridiagonals[0].ritz_vectors()[:, at[0]], angles[0])
    off = residuals * angles
    best = off.argmin(axis=0), np.arange(off.shape[1])
    nodes = np.stack([t.nodes[row] for t, row in zip(tridiagonals, at)])
    steps = np.array([[t.steps] for t in tridiagonals])
    fewest = 1.0 if start_overlaps is None else 2.0
    found = Converged(
        nodes[best][simple],
        off[best][simple] + blur + max(_rounding(t) for t in tridiagonals),
        (2 * steps * angles**2).max(axis=0)[simple],
        at[:, simple],
        at[:, ~simple],
        np.maximum(fewest, n * weights.mean(axis=0)[~simple]),
    )
    # Fewer eigenvalues than rows leave a part of each probe, or some of them are multiple after all.
    left = 1 - weights[:, simple].sum(axis=1)
    if found.count > n or (found.count < n and (left < 1e-12).any()):
        return nothing_converged(k)
    return found


@dataclass(frozen=True, eq=False)
class _Accuracy:
    """How well the Ritz values of one probe are known, (m,) each."""

    residuals: np.ndarray  # with the noise of the products
    angles: np.ndarray  # between Ritz vector and eigenvector, in radians
    converged: np.ndarray  # bool


def _accuracy(t: Tridiagonal, blur: float) -> _Accuracy:
    residuals = t.residuals + blur + t.defect + _rounding(t)
    gaps = np.zeros(t.steps)
    if t.steps > 1:
        # The eigenvalue of a neighbour may be nearer by the neighbour's own residual.
        apart = np.diff(t.nodes)
        below = np.concatenate([[np.inf], apart - residuals[:-1]])
        above = np.concatenate([apart - residuals[1:], [np.inf]])
        gaps = np.maximum(np.minimum(below, above), 0.0)
    angles = np.where(gaps > 0, residuals / np.where(gaps > 0, gaps, 1.0), 1.0)
    return _Accuracy(residuals, angles, 2 * t.steps * angles**2 < _WEIGHT_ERROR)


def _rounding(t: Tridiagonal) -> float:
    """The error of eigenvalues computed in float64."""
    return 16 * float(np.finfo(float).eps) * t.scale


def _match(t: Tridiagonal, known: _Accuracy, values: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """(r,) int: the index of the converged node of a probe within ``reach`` of each value; -1 where there is none."""
    after = np.clip(np.searchsorted(t.nodes, values), 1, max(1, t.steps - 1))
    before = after - 1
    after = np.minimum(after, t.steps - 1)
    nearest = np.where(np.abs(t.nodes[after] - values) < np.abs(t.nodes[before] - values), after, before)
    near = np.abs(t.nodes[nearest] - values) <= reach + known.residuals[nearest]
    places = np.where(near & known.converged[nearest], nearest, -1)
    often, counts = np.unique(places, return_counts=True)
    return np.where(np.isin(places, often[counts > 1]), -1, places)  # two values at one node: not resolved here


def _seen_simple(weights: np.ndarray, overlaps: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """(r,) bool: whether the squared overlaps with one vector equal the weights.

    Args:
        weights: (k - 1, r), of all probes but the first.
        overlaps: (k - 1, r), of these probes with the first probe's Ritz vectors.
        angles: (r,), between these and the eigenvectors.
    """
    share = (overlaps**2).sum(axis=0) / np.maximum(weights.sum(axis=0), 1e-300)
    return np.asarray(np.abs(1 - share) <= _MISSING + 10 * angles)


def _likely_simple(weights: np.ndarray, n: int) -> np.ndarray:
    """(r,) bool: whether the weights, (k, r), are those of simple eigenvalues, by the posterior probability."""
    if n < 3:
        return np.zeros(weights.shape[1], dtype=bool)
    w = np.clip(weights, 1e-300, 1 - 1e-15)
    # The log of the ratio of the laws Beta(1, (n-2)/2) and Beta(1/2, (n-1)/2); larger multiplicities raise it too.
    each = betaln(0.5, (n - 1) / 2) - betaln(1.0, (n - 2) / 2) + 0.5 * (np.log(w) - np.log1p(-w))
    ratio = np.exp(np.clip(each.sum(axis=0), -500, 500))
    p = (np.arange(400) + 0.5)[:, None] / 400  # the share of multiple eigenvalues
    mixture = (1 - p) + p * ratio
    logs = (_PRIOR - 1) * np.log1p(-p[:, 0]) + np.log(mixture).sum(axis=1)
    posterior = np.exp(logs - logs.max())
    return np.asarray((posterior / posterior.sum()) @ (p * ratio / mixture) <= _DOUBT)
