"""delta_sharpness: how much the loss changes within a ball around the parameters; a baseline, not invariant.

References:
    Yi et al., "BN-invariant sharpness regularizes the training model to better generalization", IJCAI 2019, equation 1;
    theorem 3.1 (it can be made anything by rescaling weights before batch norm).
"""

from __future__ import annotations

import math

import torch

from spectra.operators.displaced import DisplacedLoss
from spectra.results.measure import Measure, not_measured, remarked
from spectra.runtime.exclusive import exclusively
from spectra.sharpness.ascent import Ball, Summit, check_counts, climb
from spectra.sharpness.draws import gaussian, moments_of
from spectra.sharpness.interval import check_delta_and_p
from spectra.task.task import Task


@exclusively
def delta_sharpness(
    task: Task,
    bn_mode: str = "eval",
    *,
    delta: float = 1e-3,
    p: float = 2,
    draws: int = 32,
    steps: int = 20,
    seed: int = 0,
    dtype: str = "float64",
) -> Measure:
    """``( mean_{|u| <= delta} |L(theta + u) - L(theta)|^p )^{1/p} / (1 + L(theta))``, ``u`` uniform in the ball.

    The paper prints the integral over the ball, not divided by its volume; for many parameters that volume underflows
    or overflows. This is the mean over the ball. For finite ``p`` it is estimated from draws ``u = delta U^{1/n} g /
    |g|``, with ``stderr`` to first order from the scatter of ``|dL|^p``. For ``p = inf`` it is the maximum over the
    ball by projected gradient ascent, upward and downward: a **lower bound**, with the relative first-order gap as
    ``certificate``.

    ``delta`` is an absolute length, so this is not invariant under any rescaling. The l2 term is not in the loss.

    Cost: ``draws`` losses, a third of a gradient each; or, for ``p = inf``, up to ``2 steps`` gradients and some more
    losses.

    Args:
        task: the task.
        bn_mode: "eval", "recalibrated" or "train".
        delta: the radius of the ball.
        p: an integer of at least 1, or ``math.inf`` for the maximum.
        draws: points of the ball, for finite ``p``.
        steps: of the ascent at most, in either direction, for ``p = inf``.
        seed: of the draws.
        dtype: "float64" or "float32".

    Raises:
        ArgumentError: an argument outside its range.
        DataError, TaskError, NumericsError: as :class:`spectra.operators.displaced.DisplacedLoss`.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> task = Task.from_loss(model, lambda model, x: model(x).mean(), [torch.tensor([[3.0, 4.0]])])
        >>> print(delta_sharpness(task, delta=0.1, p=math.inf))
        0.5
    """
    check_delta_and_p(delta, p)
    check_counts(draws, steps, seed)
    loss = DisplacedLoss(task, bn_mode, dtype)
    remark = loss.for_differences()
    with loss.prepared():
        measure = _maximum(loss, delta, steps, seed) if p == math.inf else _mean(loss, delta, p, draws, seed)
    return remarked(measure, remark)


def _mean(loss: DisplacedLoss, delta: float, p: float, draws: int, seed: int) -> Measure:
    form, base = f"mean p={p:g}", loss.loss()
    if base <= -1:
        return not_measured(_no_scale(base), form=form, bn_mode=loss.bn_mode)
    changes = []
    for g, u in gaussian(loss.n, draws, seed):
        radius = delta * u ** (1 / loss.n)
        changes.append(abs(loss.loss((g * (radius / float(g.norm()))).to(loss.device)) - base))
    largest = max(changes)
    details = {"delta": delta, "draws": draws, "seed": seed, "loss": base}
    if largest == 0:
        return Measure(value=0.0, stderr=0.0, form=form, bn_mode=loss.bn_mode, details=details)
    mean, error = moments_of([(change / largest) ** p for change in changes])
    value = largest * mean ** (1 / p) / (1 + base)
    return Measure(value=value, stderr=value * error / (p * mean), form=form, bn_mode=loss.bn_mode, details=details)


def _maximum(loss: DisplacedLoss, delta: float, steps: int, seed: int) -> Measure:
    base, centre = loss.gradient()
    if base <= -1:
        return not_measured(_no_scale(base), form="maximum", bn_mode=loss.bn_mode)
    ball = Ball(delta)
    aim = centre
    if not bool(centre.any()):
        aim = next(gaussian(loss.n, 1, seed))[0].to(loss.device)

    def summit(sign: float) -> Summit:
        def slope(u: torch.Tensor) -> tuple[float, torch.Tensor]:
            value, gradient = loss.gradient(u)
            return sign * (value - base), sign * gradient

        return climb(lambda u: sign * (loss.loss(u) - base), slope, ball, ball.farthest(sign * aim), steps)

    up, down = summit(1.0), summit(-1.0)
    best = up if up.value >= down.value else down
    return Measure(
        value=max(best.value, 0.0) / (1 + base),
        form="maximum",
        bn_mode=loss.bn_mode,
        certificate=best.gap,
        reason="a lower bound: the greatest change that the ascent met, which nothing proves to be the greatest",
        details={
            "bound": "lower",
            "delta": delta,
            "loss": base,
            "rise": up.value,
            "fall": down.value,
            "steps": best.steps,
            "losses": loss.losses,
            "gradients": loss.gradients,
        },
    )


def _no_scale(base: float) -> str:
    return f"the loss is {base:.6g}, and a change relative to 1 + loss needs a loss above -1"
