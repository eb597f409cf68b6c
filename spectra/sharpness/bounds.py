"""pac_bayes_bounds: the PAC-Bayes bounds behind normalized sharpness, evaluated with all constants, as diagnostics.

For a loss between 0 and ``c``, ``m`` independent samples and Gaussian noise on the weights, with probability
``1 - delta`` over the samples, for each ``lambda`` of a set and each noise whose log-variances are of a finite set::

    E L_true <= L + c (rise + KL / lambda + Xi / lambda + lambda / (2 m)),   rise = sum_i H_ii s_i / (2 c)

The rise is the quadratic model's; **its error is left out**, so none of these is a guarantee. ``Xi`` has
``ln(1/delta)`` and the logarithm of the number of all choices that were free to depend on the data.

References:
    [NA] Tsuzuku, Sato and Sugiyama, "Normalized flat minima", arXiv:1901.04653 (2019), (1) to (13). Its (5) lacks the
    factor 1/2 of the rise.
    [NI] the same authors and title, ICML 2020, (1), (13) to (17) and proposition 4.1, which is `bound_parameters`;
    `bound_ns1` is of the setting of proposition 4.2, derived here by the same steps. Its
    (26), (33) and (35) print a root of a whole bilinear form, which is below anything that the noise can reach. So
    `bound_units` and `bound_matrices` are derived here by the same steps, with scales ``|gamma| <= R``; their constants
    are those of this derivation, not a quotation of proposition 6.1, which is of the same setting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from spectra.errors import ArgumentError, NumericsError, TaskError
from spectra.exact.trace import exact_diagonal
from spectra.operators.displaced import DisplacedLoss
from spectra.operators.modes import check_bn_mode
from spectra.results.measure import Measure, not_measured
from spectra.runtime.exclusive import exclusively
from spectra.runtime.faults import refusal_in
from spectra.sharpness.balancing import Array
from spectra.sharpness.layouts import weight_layouts
from spectra.sharpness.noise_scales import in_box, one_each
from spectra.sharpness.normalized import fisher_rao_from_diagonal, parameter_wise, penalised_parameter_wise
from spectra.sharpness.per_layer import clipped_share
from spectra.sharpness.refusals import curvature_of
from spectra.task.task import Task

NAMES = ("bound_units", "bound_matrices", "bound_parameters", "bound_ns1")
LAMBDAS = 2.0 ** (np.arange(61) / 2)  # Lambda: 1 to 2^30
PRICES = 10.0 ** np.arange(-2, 3)  # Lambda': of the distance of a scale from the prior's


@exclusively
def pac_bayes_bounds(
    task: Task,
    bn_mode: str = "eval",
    *,
    samples: int | None = None,
    delta: float = 0.05,
    loss_range: float = 1.0,
    radius: float = 20.0,
    points: int = 81,
) -> dict[str, Measure]:
    """The bounds on the expected loss under noise, each at its best ``lambda``, and whether it says anything.

    With ``h = H / c`` the diagonal over the range ``c`` of the loss, negative entries taken for 0, and ``u = w^2``:

    - ``bound_units``: ``L + c (V / sqrt(lambda) + Xi / lambda + lambda / (2 m))``, with the variance ``e^(x_i + y_j) /
      sqrt(lambda)`` of noise and prior on weight ``ij`` of a matrix and one of its own on each other parameter,
      ``V = sum (h e^t + u e^-t) / 2`` over all parameters, ``t`` the log-scale of each. ``x``, ``y`` minimise it with
      ``|x|, |y| <= R`` and are then rounded to ``B``. Without the two constraints the part of the matrices is the
      ``"pacbayes"`` form of normalized sharpness. ``Xi = ln(1/delta) + (scales) ln|B| + ln|Lambda|``.
    - ``bound_matrices``: the same with one scale per matrix, that of matrix-normalized sharpness.
    - ``bound_parameters``: proposition 4.1 of [NI], ``L + c (lambda' FR / (2 sqrt(lambda)) + NS'(lambda') /
      (2 sqrt(lambda)) + Xi / lambda + lambda / (2 m))`` with ``Xi = ln(1/delta) + n ln|B| + 2 ln|Lambda| +
      ln|Lambda'|`` and ``B`` the log-standard-deviations, half of the above.
    - ``bound_ns1``: the first one with a scale for each parameter, so that ``V = sum_i min_{t in B} (h_i e^t + u_i
      e^-t) / 2``, ``Xi = ln(1/delta) + n ln|B| + ln|Lambda|``. ``V`` is at least ``NS1 = sum sqrt(h_i u_i)``, [NI]
      (19), and at most ``cosh(d / 2) NS1`` for points at a distance ``d`` where no best scale is outside of the set.

    ``B`` has ``points`` numbers in ``[-R, R]``, evenly spaced; ``Lambda = {2^(j/2), j = 0..60}``; ``Lambda' =
    {10^j, j = -2..2}``.

    Cost: the exact diagonal, and one loss.

    Args:
        task: the task, averaged over its samples; its ``l2`` has no part.
        bn_mode: ``"eval"`` or ``"recalibrated"``.
        samples: ``m``, of the training set; the rows of the task's data with None.
        delta: the probability that a bound does not hold.
        loss_range: ``c``, the most that the loss of a sample is taken to be.
        radius: ``R``, of log-variances.
        points: of ``B``.

    Returns:
        Name -> measure. ``reason`` has the assumptions, and begins with "vacuous" where the value is not below
        ``loss_range``, which is known without any bound; ``details`` has all constants and terms.

    Raises:
        ArgumentError: an argument outside its range.
        DataError: the data cannot be used.

    Example:
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.constant_(model.weight, 0.01)
        >>> task = Task(model, torch.nn.MSELoss(), [(torch.full((4, 1), 0.1), torch.zeros(4, 1))])
        >>> found = pac_bayes_bounds(task, samples=10**6)["bound_units"]
        >>> 0 < found.value < 0.02, found.reason[:28], found.details["scales"]
        (True, 'not a guarantee. It assumes ', 2)
    """
    if samples is not None and samples < 1:
        raise ArgumentError(f"samples={samples}: at least 1 is needed; None takes the rows of the data")
    if not 0 < delta < 1:
        raise ArgumentError(f"delta={delta}: a probability between 0 and 1 is needed; 0.05 is the default")
    if not (math.isfinite(loss_range) and loss_range > 0):
        raise ArgumentError(f"loss_range={loss_range}: a finite number above 0 is needed; 1 is the default")
    if not 0 <= radius <= 100:
        raise ArgumentError(f"radius={radius}: a number from 0 to 100 is needed; 20 is the default")
    if points < 1 or (points == 1) != (radius == 0):
        raise ArgumentError(f"points={points}: at least 2 are needed, and 1 for radius=0; 81 is the default")
    conditions: dict[str, Any] = {"bn_mode": check_bn_mode(bn_mode)}
    try:
        plain = replace(task, l2=0.0)
        m = samples if samples is not None else task.survey().num_samples
        if plain.reduces_to != "mean":
            raise TaskError("the bounds are for a mean over samples: the loss of this task is a sum")
        if m is None:
            raise TaskError("how many samples there are is not known: pass samples=")
        diagonal = exact_diagonal(plain, bn_mode, method="exact")
        conditions["curvature"] = curvature_of(diagonal)
        parts = _BoundTerms(plain, diagonal, loss_range)
        loss = DisplacedLoss(plain, bn_mode).loss()
        if loss < 0:
            raise TaskError(f"the loss is {loss:.6g}: the bounds are for losses from 0 on")
    except (TaskError, NumericsError) as error:
        return {name: not_measured(refusal_in(error), form="pac-bayes", **conditions) for name in NAMES}
    log_scales = np.linspace(-radius, radius, points)
    constants = {
        "loss": loss,
        "samples": m,
        "delta": delta,
        "loss_range": loss_range,
        "radius": radius,
        "points": points,
    }
    why = [*_assumptions(m, loss_range), *diagonal.reasons]
    base = math.log(1 / delta)
    measures: dict[str, Measure] = {}
    for name, single in (("bound_units", False), ("bound_matrices", True)):
        noise, scales, certificate = parts.of_noise(log_scales, single)
        constant = base + scales * math.log(points) + math.log(len(LAMBDAS))
        terms = _best(noise, constant, m) | {"noise": noise, "scales": scales}
        measures[name] = _measure(constants | terms, why, certificate, parts.clipped, conditions)
    rao, count = parts.fisher_rao(), parts.count
    constant = base + count * math.log(points) + 2 * math.log(len(LAMBDAS)) + math.log(len(PRICES))
    tried = []
    for price in PRICES:
        penalised, certificate = parts.penalised(float(price), log_scales / 2)
        terms = _best((price * rao + penalised) / 2, constant, m)
        tried.append((terms["excess"], certificate, terms | {"price": float(price), "penalised": penalised}))
    _, certificate, terms = min(tried, key=lambda one: one[0])
    terms |= {"fisher_rao": rao, "scales": count}
    measures["bound_parameters"] = _measure(constants | terms, why, certificate, parts.clipped, conditions)
    noise, ns1 = parts.of_each(log_scales)
    terms = _best(noise, base + count * math.log(points) + math.log(len(LAMBDAS)), m)
    terms |= {"noise": noise, "ns1": ns1, "scales": count}
    measures["bound_ns1"] = _measure(constants | terms, why, 0.0, parts.clipped, conditions)
    return measures


def _best(noise: float, constant: float, m: int) -> dict[str, float]:
    """The least ``noise / sqrt(lambda) + constant / lambda + lambda / (2 m)`` over the set of lambdas."""
    values = noise / np.sqrt(LAMBDAS) + constant / LAMBDAS + LAMBDAS / (2 * m)
    best = int(values.argmin())
    return {"lambda": float(LAMBDAS[best]), "excess": float(values[best]), "constant": constant}


def _assumptions(m: int, c: float) -> list[str]:
    return [
        f"not a guarantee. It assumes that the loss of every sample is between 0 and {c:g}, as cross-entropy is not",
        f"that the weights were trained on {m} independent samples",
        "that buffers and frozen parameters do not depend on them",
        "and that the rise of the loss under noise is the quadratic model's, whose error is left out",
    ]


def _measure(
    details: Mapping[str, Any], why: list[str], certificate: float, clipped: float, conditions: Mapping[str, Any]
) -> Measure:
    c, value = details["loss_range"], details["loss"] + details["loss_range"] * details["excess"]
    vacuous = not value < c
    reason_prefix = f"vacuous: not below {c:g}, which the loss is taken never to exceed; " if vacuous else ""
    return Measure(
        value=value,
        form="pac-bayes",
        certificate=certificate,
        clipped=clipped,
        reason=reason_prefix + ", ".join(why[:4]) + "".join(f"; {reason}" for reason in why[4:]),
        details={**details, "vacuous": vacuous},
        **conditions,
    )


class _BoundTerms:
    """Diagonal over the range of the loss and squared weights: of matrices by unit, and of all other parameters."""

    def __init__(self, task: Task, diagonal: Mapping[str, torch.Tensor], c: float) -> None:
        layouts, _ = weight_layouts(task.model)
        weights = dict(task.model.named_parameters())
        self.matrices: list[list[tuple[Array, Array]]] = []  # by tensor, by group
        self.flat: list[tuple[Array, Array]] = []  # by tensor, entry by entry
        others: list[tuple[Array, Array]] = []
        for name, entries in diagonal.items():
            h = entries.detach().to("cpu", torch.float64).clamp(min=0) / c
            u = weights[name].detach().to("cpu", torch.float64).square()
            self.flat.append((h.numpy().ravel(), u.numpy().ravel()))
            if name in layouts:
                blocks = zip(layouts[name].blocks(h), layouts[name].blocks(u))
                self.matrices.append([(a.entries, b.entries) for a, b in blocks])
            else:
                others.append(self.flat[-1])
        self.others = tuple(np.concatenate([pair[k] for pair in others] or [np.zeros(0)]) for k in (0, 1))
        self.count = sum(h.size for h, _ in self.flat)
        self.clipped = clipped_share(entries / c for entries in diagonal.values())

    def of_noise(self, log_scales: Array, single: bool) -> tuple[float, int, float]:
        """``V`` at scales of the set, how many scales there are, and how far they were from the best before rounding.

        Any scales of the set give a bound: the certificate says how good these are, not whether it holds.
        """
        h, u = self.others
        total, scales, worst = one_each(h, u, log_scales), h.size, 0.0
        for blocks in self.matrices:
            if single:
                trace, squares = (np.array([sum(float(pair[k].sum()) for pair in blocks)]) for k in (0, 1))
                total, scales = total + one_each(trace, squares, log_scales), scales + 1
                continue
            for a, b in blocks:
                value, certificate = in_box(a, b, log_scales)
                total, scales, worst = total + value, scales + sum(a.shape), max(worst, certificate)
        return total, scales, worst

    def of_each(self, log_scales: Array) -> tuple[float, float]:
        """``V`` with a scale for each parameter, and ``NS1``."""
        return sum(one_each(h, u, log_scales) for h, u in self.flat), sum(parameter_wise(h, u) for h, u in self.flat)

    def fisher_rao(self) -> float:
        return sum(fisher_rao_from_diagonal(h, u) for h, u in self.flat)

    def penalised(self, lam: float, log_scales: Array) -> tuple[float, float]:
        results = [penalised_parameter_wise(h, u, lam, log_scales) for h, u in self.flat]
        return sum(result.value for result in results), max((result.certificate for result in results), default=0.0)
