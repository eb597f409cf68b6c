"""normalized_sharpness_direct: normalized sharpness from losses under noise, without second derivatives.

References:
    [NA] Tsuzuku, Sato and Sugiyama, "Normalized flat minima: exploring scale invariant definition of flat minima for
    neural networks using PAC-Bayesian analysis", arXiv:1901.04653 (2019), appendix D, equation (62). The paper calls
    ``sigma_i sigma_j'`` a variance in its section 5.2; in (17) and here its square ``s_ij`` is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from spectra.errors import ArgumentError, TaskError
from spectra.exact.trace import exact_diagonal
from spectra.operators.displaced import DisplacedLoss
from spectra.operators.modes import check_bn_mode
from spectra.results.measure import Measure, remarked
from spectra.runtime.exclusive import exclusively
from spectra.sharpness.ascent import check_counts
from spectra.sharpness.balancing import Array, Link, balance
from spectra.sharpness.draws import gaussian, moments_of
from spectra.sharpness.layouts import Layout, weight_layouts
from spectra.sharpness.refusals import curvature_of, measured_or_refused
from spectra.task.task import Task

FORM = "direct"
# Share of the mean of H_ij W_ij^2 that is added to each H_ij W_ij^2 for the start, so that no scale starts at infinity.
_FLOOR = 1e-4
_RATE, _DECAYS = 0.1, (0.9, 0.99)  # of Adam, in the logarithm of a variance


@exclusively
def normalized_sharpness_direct(
    task: Task,
    bn_mode: str = "eval",
    *,
    lam: float = 1e4,
    steps: int = 40,
    draws: int = 32,
    seed: int = 0,
    dtype: str = "float64",
) -> Measure:
    """The minimum over unit scales of the loss's rise under Gaussian noise plus the cost of the noise.

    ``inf_{x,y} E L(W + sqrt(s) * e) - L(W) + sum_ij W_ij^2 / (2 lam s_ij)`` with ``s_ij = exp(x_i + y_j)`` the variance
    of the noise on weight ``ij`` of each matrix, all matrices at once, and ``e ~ N(0, I)``; biases and normalisation
    layers get no noise. For ``lam -> inf`` the noise becomes small and ``sqrt(lam)`` times it, ``details["scaled"]``,
    tends to the ``"pacbayes"`` form of :func:`spectra.normalized_sharpness` where the diagonal of the Hessian has no
    negative entry; for a quadratic loss it is that at any ``lam``. Invariant under node-wise rescaling.

    The problem is not convex. The scales start from those of the second-order definition (with a small share of the
    mean added, so that all are finite). Adam then moves them along the reparametrised gradient, with a pair ``+e, -e``
    per step. Their mean over the second half of the steps is used if it is better than the start. The value is the
    objective at these scales over **other** draws, each a pair: an unbiased estimate, with ``stderr``, of an **upper
    bound** of the infimum.

    Cost: the exact diagonal, ``2 steps`` gradients, and ``6 draws`` losses of a third of a gradient each.

    Args:
        task: the task; its ``l2`` term has no part.
        bn_mode: "eval" or "recalibrated".
        lam: ``lambda``, the weight of the noise's cost. The order of networks depends on it, so compare values only at
            equal ``lam``.
        steps: of the search; 0 leaves the scales where they start.
        draws: pairs that the value is averaged over, at least 2.
        seed: of all draws.
        dtype: "float64" or "float32", of the losses.

    Returns:
        The measure. NaN with the reason in train mode, if the curvature is zero or unknown, or if weights that are
        exactly zero leave scales without a minimum.

    Raises:
        ArgumentError: an argument outside its range.
        DataError: the data cannot be used.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.constant_(model.weight, 3.0)
        >>> task = Task(model, torch.nn.MSELoss(), [(torch.ones(1, 1), torch.full((1, 1), 3.0))])
        >>> found = normalized_sharpness_direct(task, lam=100.0, steps=0, draws=2000)
        >>> abs(found.details["scaled"] - 3 * 2**0.5) < 4 * 10 * found.stderr
        True
    """
    if not (math.isfinite(lam) and lam > 0):
        raise ArgumentError(f"lam={lam}: a finite number above 0 is needed; 1e4 is the default")
    if steps < 0:
        raise ArgumentError(f"steps={steps}: at least 0 is needed; 40 is the default")
    check_counts(draws, 1, seed)
    conditions = {"form": FORM, "bn_mode": check_bn_mode(bn_mode)}

    def measured() -> Measure:
        plain = replace(task, l2=0.0)
        diagonal = exact_diagonal(plain, bn_mode, method="exact")
        _ = curvature_of(diagonal)  # refused here if there is no diagonal
        loss = DisplacedLoss(plain, bn_mode, dtype)
        remark = loss.for_differences()
        noise = _Noise(loss, plain, diagonal, lam)
        with loss.prepared():
            return remarked(replace(_measured(noise, steps, draws, seed), bn_mode=bn_mode), remark)

    return measured_or_refused(measured, **conditions)


def _measured(noise: _Noise, steps: int, draws: int, seed: int) -> Measure:
    searching, choosing, valuing = (int(n) for n in np.random.SeedSequence(seed).generate_state(3))
    chosen = noise.start
    if steps:
        searched = noise.search(chosen, steps, searching)
        if _better(noise.values(searched, draws, choosing), noise.values(chosen, draws, choosing)):
            chosen = searched
    price = noise.price(chosen)
    rise, error = moments_of(noise.rises(chosen, draws, valuing))
    return Measure(
        value=rise + price,
        stderr=error,
        form=FORM,
        reason="an upper bound: the objective at the scales that the search found, which nothing proves to be the best",
        details={
            "bound": "upper",
            "lambda": noise.lam,
            "scaled": math.sqrt(noise.lam) * (rise + price),
            "rise": rise,
            "price": price,
            "loss": noise.base,
            "moved": chosen is not noise.start,
            "steps": steps,
            "draws": draws,
            "seed": seed,
            "excluded": list(noise.excluded),
            "losses": noise.loss.losses,
            "gradients": noise.loss.gradients,
        },
    )


def _better(values: list[float], others: list[float]) -> bool:
    return moments_of(values)[0] < moments_of(others)[0]


Scales = tuple[tuple[Array, Array], ...]  # of each matrix: x (outputs,) and y (inputs,)


@dataclass(frozen=True)
class _Matrix:
    """A weight matrix: where it is among the parameters, its weights, and their squares by (output, input)."""

    layout: Layout
    place: slice
    weight: torch.Tensor
    squares: Array


class _Noise:
    """The rise of the loss under noise of given scales, the cost of the noise, and the initial scales.

    Raises:
        NumericsError: the start could not be certified.
        TaskError: there are no scales to start from.
    """

    def __init__(self, loss: DisplacedLoss, task: Task, diagonal: Mapping[str, torch.Tensor], lam: float) -> None:
        layouts, self.excluded = weight_layouts(task.model)
        self.loss, self.lam, self.base = loss, lam, loss.loss()
        self.matrices: list[_Matrix] = []
        begins: list[tuple[Array, Array]] = []
        end = 0
        for name, tensor in zip(loss.function.names, loss.function.unflatten(loss.theta)):
            place, end = slice(end, end + tensor.numel()), end + tensor.numel()
            if name not in layouts:
                continue
            weight, layout = tensor.to(torch.float64), layouts[name]
            squares = layout.matrix(weight.square())
            self.matrices.append(_Matrix(layout, place, weight, squares))
            begins.append(_start(name, layout.matrix(diagonal[name].clamp(min=0)), squares, lam))
        if not self.matrices:
            raise TaskError("the task trains no weight matrix, so there is nothing that noise could be put on")
        self.start: Scales = tuple(begins)

    def shift(self, scales: Scales, e: torch.Tensor) -> torch.Tensor:
        """``sqrt(s) * e`` on the weight matrices and 0 on all else, ``(n,)``."""
        moved = torch.zeros_like(self.loss.theta)
        for part, (x, y) in zip(self.matrices, scales):
            size = part.layout.spread(np.exp((x[:, None] + y[None, :]) / 2), part.weight)
            moved[part.place] = size.reshape(-1) * e[part.place]
        return moved

    def price(self, scales: Scales) -> float:
        """``sum W^2 / (2 lam s)``."""
        costs = [p.squares * np.exp(-x[:, None] - y[None, :]) for p, (x, y) in zip(self.matrices, scales)]
        return sum(float(part.sum()) for part in costs) / (2 * self.lam)

    def rises(self, scales: Scales, draws: int, seed: int) -> list[float]:
        """The rise of the loss under each of the draws, the mean of both signs."""
        results = []
        for e, _ in gaussian(self.loss.n, draws, seed):
            shift = self.shift(scales, e.to(self.loss.device))
            results.append((self.loss.loss(shift) + self.loss.loss(-shift)) / 2 - self.base)
        return results

    def values(self, scales: Scales, draws: int, seed: int) -> list[float]:
        """The objective under each of the draws."""
        price = self.price(scales)
        return [rise + price for rise in self.rises(scales, draws, seed)]

    def slope(self, scales: Scales, e: torch.Tensor) -> Array:
        """The derivative of the objective in all x and y under one pair of draws, in one vector.

        ``d/dx_i = sum_j (sqrt(s_ij) e_ij (g+ - g-)_ij / 4 - W_ij^2 / (2 lam s_ij))`` with the gradients at both ends.
        """
        shift = self.shift(scales, e.to(self.loss.device))
        along = shift * (self.loss.gradient(shift)[1] - self.loss.gradient(-shift)[1]) / 4
        pieces = []
        for part, (x, y) in zip(self.matrices, scales):
            entries = part.layout.matrix(along[part.place].reshape(part.weight.shape))
            entries = entries - part.squares * np.exp(-x[:, None] - y[None, :]) / (2 * self.lam)
            pieces += [entries.sum(axis=1), entries.sum(axis=0)]
        return np.concatenate(pieces)

    def search(self, start: Scales, steps: int, seed: int) -> Scales:
        """The mean of the second half of the steps of Adam, whose rate falls linearly to 0."""
        sizes = np.cumsum([len(part) for pair in start for part in pair])[:-1]
        at = np.concatenate([part for pair in start for part in pair])
        first, second, mean = np.zeros_like(at), np.zeros_like(at), np.zeros_like(at)
        kept = 0

        def scales(flat: Array) -> Scales:
            parts = np.split(flat, sizes)
            return tuple(zip(parts[::2], parts[1::2]))

        for step, (e, _) in enumerate(gaussian(self.loss.n, steps, seed), 1):
            slope = self.slope(scales(at), e)
            first += (1 - _DECAYS[0]) * (slope - first)
            second += (1 - _DECAYS[1]) * (slope**2 - second)
            size = np.sqrt(second / (1 - _DECAYS[1] ** step))
            direction = first / (1 - _DECAYS[0] ** step) / np.where(size > 0, size, 1.0)
            at = at - _RATE * (1 - (step - 1) / steps) * direction
            if 2 * step > steps:
                kept += 1
                mean += (at - mean) / kept
        return scales(mean)


def _start(name: str, h: Array, u: Array, lam: float) -> tuple[Array, Array]:
    """The scales of the second-order definition: ``x, y`` that minimise ``sum h s / 2 + u / (2 lam s)``.

    Each ``h u`` has a small part of the mean added first: a choice that any rescaling of units leaves as it is.
    """
    mean = float((h * u).mean())
    if not mean > 0:
        raise TaskError(f"the curvature of {name} is 0 wherever its weights are not: noise on it costs nothing")
    lifted = h + np.divide(_FLOOR * mean, u, out=np.zeros_like(u), where=u > 0)
    balanced = balance([Link(0, 1, lifted), Link(1, 0, u.T)], list(h.shape))
    if not balanced.attained:
        raise TaskError(f"weights of {name} are exactly 0 in such places that no scales are best: the noise has no end")
    return balanced.potentials[0] - math.log(lam) / 2, -balanced.potentials[1]
