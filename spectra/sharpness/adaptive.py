"""adaptive_sharpness: the rise of the loss under perturbations proportional to the size of each parameter.

References:
    Kwon, Kim, Park and Choi, "ASAM: adaptive sharpness-aware minimization for scale-invariant learning of deep neural
    networks", ICML 2021 (the worst case). Andriushchenko, Croce, Müller, Hein and Flammarion, "A modern look at the
    relationship between sharpness and generalization", ICML 2023 (average and worst case, elementwise).
"""

from __future__ import annotations

import math

import torch

from spectra.errors import ArgumentError
from spectra.operators.displaced import DisplacedLoss
from spectra.results.measure import Measure, remarked
from spectra.runtime.exclusive import exclusively
from spectra.sharpness.ascent import Ball, check_counts, climb
from spectra.sharpness.draws import gaussian, moments_of
from spectra.task.task import Task

FORMS = ("average", "worst")


@exclusively
def adaptive_sharpness(
    task: Task,
    bn_mode: str = "eval",
    *,
    form: str = "average",
    rho: float = 0.05,
    p: float = 2,
    draws: int = 16,
    steps: int = 20,
    seed: int = 0,
    dtype: str = "float64",
) -> Measure:
    """The rise of the loss when each parameter ``w`` moves by ``|w|`` times a perturbation of size ``rho``.

    With ``w * e`` elementwise::

        average   E_{e ~ N(0, rho^2 I)} L(w + |w| * e) - L(w)
        worst     max_{|e|_p <= rho} L(w + |w| * e) - L(w)

    Both are invariant under a rescaling of single units of a ReLU network (incoming weights and bias times ``c > 0``,
    outgoing weights times ``1/c``): the same ``e`` then gives the same function. They are not invariant under a
    rescaling of the logits. A parameter that is zero does not move.

    The average has a standard error over draws. Each draw is used with both signs, so that the slope of the loss at
    ``w`` cancels; the value can be negative. The worst case is found by projected gradient ascent: a **lower bound**,
    with the relative first-order gap as ``certificate``. The papers average over batches; here the loss is that of all
    data. The l2 term is not in the loss.

    Cost: ``2 draws`` losses, a third of a gradient each; or up to ``steps`` gradients and some more losses.

    Args:
        task: the task.
        bn_mode: "eval", "recalibrated" or "train".
        form: "average" or "worst".
        rho: the relative size; two values compare only at one ``rho``.
        p: of the worst case, 2 or ``math.inf``.
        draws: of the average.
        steps: of the ascent at most.
        seed: of the draws.
        dtype: "float64" or "float32".

    Raises:
        ArgumentError: an argument outside its range.
        DataError, TaskError, NumericsError: as :class:`spectra.operators.displaced.DisplacedLoss`.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.constant_(model.weight, 2.0)
        >>> task = Task.from_loss(model, lambda model, x: model(x).mean(), [torch.tensor([[3.0, 4.0]])])
        >>> print(adaptive_sharpness(task, form="worst", rho=0.1))  # 0.1 |(2 * 3, 2 * 4)|
        1
    """
    if form not in FORMS:
        raise ArgumentError(f"form={form!r}: one of {', '.join(map(repr, FORMS))} is needed")
    if not (math.isfinite(rho) and rho > 0):
        raise ArgumentError(f"rho={rho}: a positive number is needed; 0.05 is the default")
    if p not in (2, math.inf):
        raise ArgumentError(f"p={p}: 2 or inf is needed")
    check_counts(draws, steps, seed)
    loss = DisplacedLoss(task, bn_mode, dtype)
    remark = loss.for_differences()
    with loss.prepared():
        measure = _average(loss, rho, draws, seed) if form == "average" else _worst(loss, rho, p, steps, seed)
    return remarked(measure, remark)


def _average(loss: DisplacedLoss, rho: float, draws: int, seed: int) -> Measure:
    base, scale = loss.loss(), loss.theta.abs()
    rises = []
    for e, _ in gaussian(loss.n, draws, seed):
        shift = rho * scale * e.to(loss.device)
        rises.append((loss.loss(shift) + loss.loss(-shift)) / 2 - base)
    mean, error = moments_of(rises)
    return Measure(
        value=mean,
        stderr=error,
        form="average",
        bn_mode=loss.bn_mode,
        details={"rho": rho, "draws": draws, "seed": seed, "loss": base},
    )


def _worst(loss: DisplacedLoss, rho: float, p: float, steps: int, seed: int) -> Measure:
    base, centre = loss.gradient()
    scale, ball = loss.theta.abs(), Ball(rho, p)
    aim = scale * centre
    if not bool(aim.any()):
        aim = next(gaussian(loss.n, 1, seed))[0].to(loss.device)

    def slope(e: torch.Tensor) -> tuple[float, torch.Tensor]:
        value, gradient = loss.gradient(scale * e)
        return value - base, scale * gradient

    top = climb(lambda e: loss.loss(scale * e) - base, slope, ball, ball.farthest(aim), steps)
    return Measure(
        value=max(top.value, 0.0),  # e = 0 is in the ball
        form=f"worst p={p:g}",
        bn_mode=loss.bn_mode,
        certificate=top.gap,
        reason="a lower bound: the greatest rise that the ascent met, which nothing proves to be the greatest",
        details={
            "bound": "lower",
            "rho": rho,
            "loss": base,
            "steps": top.steps,
            "losses": loss.losses,
            "gradients": loss.gradients,
        },
    )
