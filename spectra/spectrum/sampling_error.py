"""The error from the data: how much a trace varies over samples of the data, from per-batch quadratic forms.

The first product of probe ``i`` is a sum over batches, so ``q_i' H q_i = sum_b c_ib`` (and the l2 term, which is of no
sample). With the shares ``s_b = w_b / sum w`` of the batches, the parts in which a batch differs from all are
``e_ib = c_ib - s_b sum_b c_ib``: the residuals of a weighted mean, or ratio. For samples that are independent draws

    C_ij = sum_b e_ib e_jb / (1 - sum_b s_b^2)

estimates the covariance, over samples of the data, of ``q_i' H q_i`` and ``q_j' H q_j`` with both probes held fixed;
without bias for batches of any sizes, to first order where the weights of the samples differ. With ``B`` equal batches
the divisor is the usual ``(B - 1) / B``.

The probes are shared by all batches, so their error for the mean of ``H`` cancels in ``e``. Their error for the
batches' deviations does not: let ``D`` be the deviation of ``H`` from its mean over samples of the data. The mean of
the probes' forms has, for fixed probes, a variance whose mean over probes is

    E[1'C1 / k^2] = Var(Tr H) / n^2  +  (1/k) E_D[Var_q(q' D q)],

and the second part, about ``2 |D|_F^2 / (k n^2)``, can be many times the first. It is in the scatter of the probes
already. Different probes are independent, so the mean of the products of two has no such part:

    E[C_ij] = Var(Tr H) / n^2    for i != j,

and the mean of ``C`` off its diagonal estimates the variance of the trace over samples of the data, free of the probes.

References:
    W. Cochran, Sampling Techniques (1977), chapter 6 (ratio estimates); H. Scheffe, The Analysis of Variance (1959),
    chapter 7 (random effects, two-way layout).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np

#: The least number of batches: the scatter of fewer is too uncertain.
MIN_BATCHES = 5

# The least effective number of batches, 1 / sum s^2: one batch must not be nearly all of the data.
_MIN_EFFECTIVE = 4.0

# For random batches the correlation of neighbours exceeds this over sqrt(B) with a probability of 0.1 %.
_ALIKE = 3.0


@dataclass(frozen=True)
class PopulationError:
    """The standard error of ``(1/n) Tr H`` over samples of the data; times ``n`` it is that of the trace."""

    stderr: float | None  # of the mean eigenvalue, free of the probes; None where it is not known
    fixed_probes: float | None  # of the estimate with these probes held fixed; it contains an error of the probes
    reason: str | None  # why stderr is not known


def population_error(forms: np.ndarray, weights: np.ndarray) -> PopulationError:
    """The standard error of ``(1/n) Tr H`` over samples of the data, at fixed parameters.

    The batches are assumed to be random groups of independent samples. Data sorted by class or time are not: where
    neighbouring batches are correlated, no number is returned. The number is itself an estimate from ``B`` batches,
    with a relative error of at least ``1 / sqrt(2 (B - 1))``, 35 % for five.

    Args:
        forms: (k, B), the per-batch quadratic forms, which sum to ``q_i' H q_i`` without the l2 term.
        weights: (B,), the weight of each batch in the loss, above 0.

    Returns:
        The error; or None with the reason: fewer than five batches, one probe, correlated neighbouring batches, or an
        error of less than two of its own standard errors, for which the reason gives the known bound.
    """
    k, count = forms.shape
    shares = weights / weights.sum()
    square = float(shares @ shares)
    if count < MIN_BATCHES or 1 / square < _MIN_EFFECTIVE:
        seen = f"{count} batch{'es' if count > 1 else ''}"
        reason = f"too few batches ({seen}, {MIN_BATCHES} of about equal weight are needed): use smaller batches"
        return PopulationError(None, None, reason)
    residuals = forms - np.outer(forms.sum(axis=1), shares)
    alike = _likeness(residuals.mean(axis=0) / np.sqrt(shares))
    if alike > _ALIKE / sqrt(count):
        reason = f"neighbouring batches are alike (correlation {alike:.2f}): the data are not in random order"
        return PopulationError(None, None, reason)
    covariance = residuals @ residuals.T / (1 - square)
    fixed = sqrt(float(covariance.sum())) / k
    if k == 1:
        return PopulationError(
            None, fixed, "with one probe the errors of data and probe cannot be separated: take more"
        )
    pairs = k * (k - 1)
    diagonal = np.diag(covariance)
    variance = float(covariance.sum() - diagonal.sum()) / pairs
    # Its standard error for uncorrelated probes: Var(C_ij) = C_ii C_jj / (B - 1), each pair counted twice.
    chance = sqrt(2 * float(diagonal.sum() ** 2 - diagonal @ diagonal) / (count - 1)) / pairs
    if variance < 2 * chance:
        most = sqrt(max(variance, 0.0) + 2 * chance)
        return PopulationError(None, fixed, f"below {most:.2g}, which the scatter of the probes hides")
    return PopulationError(sqrt(variance), fixed, None)


def _likeness(values: np.ndarray) -> float:
    """The correlation of neighbouring values; 0 where all values are equal."""
    total = float(values @ values)
    return float(values[1:] @ values[:-1]) / total if total > 0 else 0.0
