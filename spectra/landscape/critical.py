"""critical_sharpness: from one gradient and at most nine losses, without a second derivative."""

from __future__ import annotations

from collections.abc import Sequence

from spectra.errors import ArgumentError
from spectra.landscape.along import Along, gradient_at
from spectra.landscape.critical_step import critical_step
from spectra.landscape.directions import OtherWeights, towards
from spectra.operators.displaced import DisplacedLoss
from spectra.results.slices import CriticalSharpness
from spectra.runtime.memo import shared_results
from spectra.task.task import Task


def critical_sharpness(
    task: Task,
    update: OtherWeights | None = None,
    *,
    loss_of: Task | None = None,
    bn_mode: str = "eval",
    dtype: str = "float64",
    params: str | Sequence[str] | None = None,
) -> CriticalSharpness:
    """``2 / eta_c``: the critical sharpness along the negative gradient, or along the update to another checkpoint.

    One gradient and at most nine passes over the data; no second derivative. Along the negative gradient ``eta_c`` is
    a learning rate. Along an update it is a multiple of the update, so that a value above 2 says that the update
    itself raises this loss.

    Args:
        task: the task.
        update: the weights after the update; None: a step along the negative gradient of the task's loss.
        loss_of: a task with the same model, whose loss is followed along the update of the first one: the relative
            critical sharpness of Kalra et al. None: the loss of the task itself.
        bn_mode: ``"eval"``, ``"recalibrated"`` or ``"train"``.
        dtype: ``"float64"`` or ``"float32"``: what the network is computed in.
        params: which trainable parameters move; all by default.

    Raises:
        ArgumentError: ``loss_of`` has another model, or an option is not known.
        CheckpointError: the other weights lack a parameter, have another shape, or are the same.
        SpectraError: the data or the loss cannot be used, as of :class:`~spectra.operators.displaced.DisplacedLoss`.

    References:
        D. Kalra et al., A scalable measure of loss landscape curvature for analyzing the training dynamics of LLMs
        (arXiv 2601.16979).

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
        >>> x = torch.ones(1, 1, dtype=torch.float64)
        >>> found = critical_sharpness(Task(model, nn.MSELoss(), [(2 * x, x)]))  # the second derivative is 2 * 2^2
        >>> found.lower <= 8 <= found.upper
        True
    """
    if loss_of is not None and loss_of.model is not task.model:
        raise ArgumentError("loss_of=: a task with the same model is needed, since its loss is followed from there")
    with shared_results():
        first = DisplacedLoss(task, bn_mode, dtype, params)
        gradient = gradient_at(first)
        vector = -gradient if update is None else towards(update, first.function)
        followed = first if loss_of is None else DisplacedLoss(loss_of, bn_mode, dtype, params)
        own = gradient if loss_of is None else gradient_at(followed)
        slope = float(own @ vector)
        with followed.prepared():
            along = Along(followed, vector)
            guess = -2 * abs(along(0.0)) / slope if update is None and slope < 0 else 1.0
            words = "the negative gradient" if update is None else f"the update to {update.name}"
            of = "the loss" if loss_of is None else "the other loss"
            return critical_step(along, guess=guess or 1.0, slope=slope, of=f"{of}, along {words}")
