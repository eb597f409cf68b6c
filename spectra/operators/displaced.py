"""DisplacedLoss: the loss over all data, and its gradient, at parameters displaced from the model's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from spectra.errors import ArgumentError, NumericsError, TaskError
from spectra.operators.checks import check_loss_once, check_partition
from spectra.operators.curvature import torch_dtype_of
from spectra.operators.function import LossFunction
from spectra.operators.graph import dtype_name
from spectra.operators.modes import couples_samples
from spectra.operators.passes import Passes
from spectra.operators.recalibration import recalibrate
from spectra.task.task import Task

# Repeated losses agree to this, relative to the loss; a larger difference means that the network is random.
_REPEATS = {torch.float32: 1e-4, torch.float64: 1e-9}


class DisplacedLoss:
    """``L(theta + x)`` and its gradient over all data of a task; ``theta``: the model's parameters, ``x``: a vector.

    Only copies of the parameters move; the model and its running statistics do not change. Losses and gradients are
    summed over batches in float64. With ``"recalibrated"`` the running statistics are estimated at ``theta`` and then
    fixed, as with ``"eval"``. The task's ``l2`` term is left out: it belongs to the training and is not invariant under
    reparametrisation.

    Float64 is the default for every model, because callers take differences of losses: at a distance of 1e-3, float32
    keeps only three or four digits of them.

    Args:
        task: the task. In train mode its own partition into batches is part of the loss.
        bn_mode: ``"eval"``, ``"recalibrated"`` or ``"train"``.
        dtype: ``"float64"`` or ``"float32"``: what the network is computed in.
        params: which trainable parameters move, as of the curvature operators; all by default.

    Raises:
        ArgumentError: an unknown mode or dtype, or a pattern that matches no parameter.
        DataError: the data do not define one loss in this mode.
        TaskError: the averaging of the criterion is not known, or the loss is random.
        NumericsError: parameters or loss are NaN or infinite.
    """

    def __init__(
        self,
        task: Task,
        bn_mode: str = "eval",
        dtype: str | torch.dtype = "float64",
        params: str | Sequence[str] | None = None,
    ) -> None:
        self.task = task
        self.bn_mode = bn_mode
        self.function = function = LossFunction(task, bn_mode, torch_dtype_of(dtype), params)
        self.passes = Passes(function)
        self.n, self.device = function.n, function.device
        function.check_finite()
        survey = task.survey()
        self.note = check_partition(task, bn_mode, survey)
        if bn_mode == "recalibrated":
            recalibrate(function)
        check_loss_once(function, survey, twice=False)
        self.theta = function.flatten(function.theta).detach().to(torch.float64)  # (n,)
        self.losses = 0  # number of losses computed so far, without those computed along with a gradient
        self.gradients = 0
        self._check_repeats()

    @property
    def coupled(self) -> bool:
        """Whether the loss depends on the partition into batches."""
        return couples_samples(self.task.model, self.bn_mode)

    def for_differences(self) -> str:
        """A note on the precision of differences of these losses; empty for float64.

        Raises:
            TaskError: the losses are less precise than float32.
        """
        carried = self.function.carried
        if carried == torch.float64:
            return ""
        name = dtype_name(carried)
        if carried != torch.float32:
            raise TaskError(
                f"the model or its loss casts to {name} on the way: differences of losses have no digits left"
            )
        return "differences of float32 losses keep few digits"

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Keep the batches on the device between passes, if they fit."""
        with self.passes.holding():
            yield

    def loss(self, shift: torch.Tensor | None = None) -> float:
        """``L(theta + shift)``; ``shift`` is ``(n,)`` in float64, None for zero.

        Raises:
            NumericsError: it is NaN or infinite.
        """
        return _finite(self.value(shift))

    def value(self, shift: torch.Tensor | None = None) -> float:
        """``L(theta + shift)`` as :meth:`loss`, also where it is NaN or infinite."""
        self.losses += 1
        task, total = self.task, 0.0
        with self.function.evaluation(), self._moved(shift):
            for batch, weight in self.passes.batches():
                total += task.total_factor(weight) * self.function.value(batch)
        return total / task.divisor(task.survey().total_weight)

    def gradient(self, shift: torch.Tensor | None = None) -> tuple[float, torch.Tensor]:
        """``L`` and its gradient ``(n,)``, in float64, at ``theta + shift``.

        Raises:
            NumericsError: the loss or an entry of the gradient is NaN or infinite.
        """
        self.gradients += 1
        task, function, total = self.task, self.function, 0.0
        slope = torch.zeros(self.n, dtype=torch.float64, device=self.device)
        with function.evaluation(), self._moved(shift):
            for batch, weight in self.passes.batches():
                factor = task.total_factor(weight)
                loss, gradients = function.gradient(batch)
                total += factor * float(loss.detach())
                slope.add_(function.flatten(gradients).detach(), alpha=factor)
        divisor = task.divisor(task.survey().total_weight)
        slope /= divisor
        if not bool(torch.isfinite(slope).all()):
            raise NumericsError("the gradient of the loss holds NaN or infinity: move less far, or use float64")
        return _finite(total / divisor), slope

    @contextmanager
    def _moved(self, shift: torch.Tensor | None) -> Iterator[None]:
        if shift is None:
            yield
            return
        if shift.shape != (self.n,):
            raise ArgumentError(f"shape {tuple(shift.shape)} of a displacement: ({self.n},) is needed")
        self.function.move_to(self.theta + shift)
        try:
            yield
        finally:
            self.function.move_to(self.theta)

    def _check_repeats(self) -> None:
        function = self.function
        with function.evaluation():
            batch = next(batch for batch in self.task.batches() if self.task.weight_of(batch) > 0)
            values = []
            for seed in (3, 4):
                torch.manual_seed(seed)
                values.append(function.value(function.place(batch)))
        change = abs(values[1] - values[0])
        if change > _REPEATS[function.dtype] * max(abs(values[0]), abs(values[1])):
            raise TaskError(
                f"the loss of the same batch changes by {change:.2g} from one call to the next: something in the model "
                "is random in eval mode (a functional dropout, say); make it depend on model.training"
            )


def _finite(loss: float) -> float:
    if not math.isfinite(loss):
        raise NumericsError(f"the loss is {loss} near the parameters: move less far, or use float64")
    return loss
