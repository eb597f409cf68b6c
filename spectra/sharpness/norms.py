"""Norms of the parameters and of the gradient: cheap baselines that are not invariant under rescaling."""

from __future__ import annotations

import torch

from spectra.errors import ArgumentError
from spectra.operators.displaced import DisplacedLoss
from spectra.operators.function import LossFunction
from spectra.results.measure import Measure
from spectra.runtime.exclusive import exclusively
from spectra.task.task import Task

FORMS = ("all", "matrices")


@exclusively
def squared_norm(task: Task, *, form: str = "all") -> Measure:
    """``sum theta_i^2`` over all trainable parameters, or ``sum_l |W_l|_F^2`` over those of two or more dimensions.

    "matrices" are the weights of linear maps, convolutions and embeddings; biases and the gains of normalisation are
    left out. A tensor that is used twice counts once. Neither depends on the data, and neither is invariant under
    rescaling. ``details["by_tensor"]`` has the parts. Cost: none.

    Raises:
        ArgumentError: an unknown form.
        TaskError: no trainable parameters.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> _ = torch.nn.init.constant_(model.weight, 2.0), torch.nn.init.constant_(model.bias, 1.0)
        >>> task = Task(model, torch.nn.MSELoss(), [(torch.ones(1, 2), torch.ones(1, 1))])
        >>> float(squared_norm(task)), float(squared_norm(task, form="matrices"))
        (9.0, 8.0)
    """
    if form not in FORMS:
        raise ArgumentError(f"form={form!r}: one of {', '.join(map(repr, FORMS))} is needed")
    function = LossFunction(task, dtype=torch.float64)
    function.check_finite()
    parts = {
        name: float(tensor.detach().square().sum())
        for name, tensor in zip(function.names, function.theta)
        if form == "all" or tensor.ndim >= 2
    }
    return Measure(value=sum(parts.values()), form=form, details={"by_tensor": parts})


@exclusively
def gradient_norm(task: Task, bn_mode: str = "eval", *, dtype: str = "float64") -> Measure:
    """``|grad L(theta)|``, of the loss over all data without l2 term. Not invariant. Cost: one gradient.

    ``details["by_tensor"]`` has the norm of each parameter tensor's part.

    Raises:
        ArgumentError: an unknown mode or dtype.
        DataError, TaskError, NumericsError: as :class:`spectra.operators.displaced.DisplacedLoss`.
    """
    loss = DisplacedLoss(task, bn_mode, dtype)
    value, gradient = loss.gradient()
    parts = torch.split(gradient, loss.function.sizes)
    return Measure(
        value=float(gradient.norm()),
        form="gradient",
        bn_mode=bn_mode,
        details={"loss": value, "by_tensor": {n: float(part.norm()) for n, part in zip(loss.function.names, parts)}},
    )
