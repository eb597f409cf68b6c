"""How much the spectra of diagonal blocks differ in shape: Jensen-Shannon distances between their densities.

The eigenvalues of each block are divided by its spectral norm, so that the distance compares shapes and not sizes. The
density of a block is that of ``u = asinh(x / s)`` for the divided eigenvalues ``x``, with ``s = 0.01``, smoothed with a
Gaussian of a tenth of a decade: a logarithmic axis on both sides of 0, on which eigenvalues well below a hundredth of
the norm count as 0. A hundred Lanczos steps determine distances at this resolution to about 0.01; a finer one compares
the places of Ritz values that are not eigenvalues. With ``M = (P + Q) / 2`` and the relative entropy to base 2::

    JS(P, Q) = sqrt(KL(P | M) / 2 + KL(Q | M) / 2)

is a metric between 0 (equal) and 1 (no overlap). All constants are fixed, so that distances compare between checkpoints
and between networks.

References:
    Y. Zhang, C. Chen, T. Ding, Z. Li, R. Sun, Z. Luo, Why Transformers need Adam: a Hessian perspective, NeurIPS 2024
    (the mean over pairs of blocks; their densities are smoothed in another way, so that the values are not the same);
    J. Lin, Divergence measures based on the Shannon entropy, IEEE Transactions on Information Theory 37 (1991).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import asinh, log, sqrt

import numpy as np
from scipy.special import xlogy

from spectra.spectrum.density import WIDTH_PER_DECADE, kernel_sum
from spectra.spectrum.estimates import Estimate, t_quantile
from spectra.spectrum.probe_planning import first_steps
from spectra.spectrum.quadrature import Quadrature

THRESHOLD = 1e-2  # s, relative to the spectral norm of each block
WIDTH = WIDTH_PER_DECADE * log(10.0)  # of the Gaussian, in units of u
_POINTS = 1024
_END = asinh(1 / THRESHOLD) + 6 * WIDTH
COORDINATE = np.linspace(-_END, _END, _POINTS)  # of u
_FEWER = (0.5, 0.75)  # of the steps: the changes of a distance from there on indicate the error of the steps
_ROWS_AT_ONCE = 64  # blocks that a block is compared with at once: limits the memory


@dataclass(frozen=True, eq=False)
class Distances:
    """The distances between the densities of all pairs of ``B`` blocks, and their mean over pairs.

    The standard errors are those of the jackknife over probes. Scatter of the probes makes two densities look less
    alike than they are, so that a distance is too large by about ``bias``, also by the jackknife. ``steps_error`` is
    the larger change since half and since three quarters of the Lanczos steps: an indication, and no bound.
    """

    value: np.ndarray  # (B, B) symmetric, 0 on the diagonal
    stderr: np.ndarray | None  # (B, B); None with one probe
    bias: np.ndarray | None  # (B, B); None with one probe
    steps_error: np.ndarray  # (B, B)
    mean: Estimate | None  # over the pairs; None with one block


def shape_curves(q: Quadrature) -> np.ndarray:
    """The density of each probe's rule over ``COORDINATE``, as fractions of the eigenvalues, (k, G); rows sum to 1."""
    norm = max(float(np.abs(nodes).max()) for nodes, _ in q.rules) or 1.0
    curves = np.stack([kernel_sum(COORDINATE, np.arcsinh(x / norm / THRESHOLD), w, WIDTH) for x, w in q.rules])
    return np.asarray(curves / curves.sum(axis=1, keepdims=True))


def distances(blocks: Sequence[Quadrature]) -> Distances:
    """The Jensen-Shannon distances between the shapes of spectra.

    Args:
        blocks: the quadrature rules of each, with equally many probes.
    """
    probes = min(q.num_probes for q in blocks)
    curves = np.stack([shape_curves(q)[:probes] for q in blocks])  # (B, k, G)
    whole = curves.mean(axis=1, keepdims=True)
    left_out = (probes * whole - curves) / (probes - 1) if probes > 1 else curves[:, :0]
    fewer = np.stack([[shape_curves(_cut(q, share)).mean(axis=0) for share in _FEWER] for q in blocks])
    tables = np.clip(np.concatenate([whole, fewer, left_out], axis=1), 0.0, None)  # rounding below 0 removed
    found, cut = _all_pairs(tables), 1 + len(_FEWER)  # (1 + 2 + k, B, B)
    pairs = np.triu_indices(len(blocks), 1)
    means = found[:, pairs[0], pairs[1]].mean(axis=1) if len(blocks) > 1 else None
    steps_error = np.abs(found[1:cut] - found[0]).max(axis=0)
    if probes == 1:
        mean = None if means is None else Estimate(float(means[0]), None, None, None, 1)
        return Distances(found[0], None, None, steps_error, mean)
    stderr, bias = _jackknife(found[0], found[cut:])
    return Distances(found[0], stderr, bias, steps_error, None if means is None else _mean(means, cut))


def _cut(q: Quadrature, share: float) -> Quadrature:
    """The rules after a share of the steps; recurrences that end in an invariant subspace are exact and stay whole."""
    if all(t.exhausted for t in q.tridiagonals):
        return q
    steps = max(1, int(share * max(t.steps for t in q.tridiagonals)))
    overlaps = None if q.start_overlaps is None else q.start_overlaps[:, : min(steps, q.tridiagonals[0].steps)]
    return replace(q, tridiagonals=tuple(first_steps(t, steps) for t in q.tridiagonals), start_overlaps=overlaps)


def _mean(means: np.ndarray, cut: int) -> Estimate:
    """The mean distance: Student's t on the error of the jackknife, and the error of the steps; less the bias below."""
    stderr, bias = (float(part) for part in _jackknife(means[0], means[cut:]))
    value, probes = float(means[0]), len(means) - cut
    reach = t_quantile(probes) * stderr + float(np.abs(means[1:cut] - value).max())
    return Estimate(value, stderr, max(0.0, value - max(0.0, bias) - reach), min(1.0, value + reach), probes)


def _jackknife(whole: np.ndarray, left_out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standard error and bias of a statistic, from its values with one probe left out each."""
    probes, mean = len(left_out), left_out.mean(axis=0)
    stderr = sqrt((probes - 1) / probes) * np.sqrt(((left_out - mean) ** 2).sum(axis=0))
    return stderr, (probes - 1) * (mean - whole)


def _all_pairs(tables: np.ndarray) -> np.ndarray:
    """The distances between distributions ``tables[i, l]`` and ``tables[j, l]``, (L, B, B), for tables (B, L, G)."""
    count = len(tables)
    found = np.zeros((tables.shape[1], count, count))
    entropies = _entropy(tables)  # (B, L)
    for i in range(count):
        for start in range(i + 1, count, _ROWS_AT_ONCE):
            others = slice(start, min(start + _ROWS_AT_ONCE, count))
            mixed = _entropy((tables[i] + tables[others]) / 2)
            divergence = np.clip(mixed - (entropies[i] + entropies[others]) / 2, 0.0, 1.0)
            found[:, i, others] = np.sqrt(divergence).T
    return found + found.transpose(0, 2, 1)


def _entropy(p: np.ndarray) -> np.ndarray:
    """``-sum p log2 p`` over the last axis."""
    return np.asarray(-xlogy(p, p).sum(axis=-1) / log(2.0))
