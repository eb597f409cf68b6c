"""A network with Gaussian noise on its parameters: its loss and its 0-1 error, and log-variances for the noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from spectra.errors import TaskError
from spectra.operators.displaced import DisplacedLoss
from spectra.sharpness.draws import gaussian
from spectra.sharpness.layouts import weight_layouts
from spectra.sharpness.noise_scales import scale_of_each, scales_in_box
from spectra.task.averaging import ignored_class
from spectra.task.task import Task

_FLOOR = 1e-4  # share of a tensor's mean of H w^2 that is added to each H w^2: without curvature noise has no end


@dataclass(frozen=True)
class Look:
    """The loss and the 0-1 error at displaced parameters."""

    loss: float
    error: float
    counted: int  # samples


class NoisyNetwork:
    """The loss and the 0-1 error of a classification task at displaced parameters.

    Raises:
        TaskError: the outputs are not logits ``(N, C)`` with one class for each sample.
    """

    def __init__(self, task: Task, bn_mode: str) -> None:
        self.loss = DisplacedLoss(task, bn_mode)
        self.task, self.ignored = task, ignored_class(task.criterion)
        if not task.splits:
            raise TaskError("the 0-1 error needs the outputs, and a task with a loss_fn has none: pass a criterion")

    def look(self, shift: torch.Tensor | None) -> Look:
        """At ``theta + shift``; outputs that are not finite are errors."""
        function, task = self.loss.function, self.task
        total, wrong, counted = 0.0, 0, 0
        if shift is not None:
            function.move_to(self.loss.theta + shift)
        try:
            with function.evaluation(twice=False):
                for batch, weight in self.loss.passes.batches():
                    value, output = function.evaluate(batch)
                    missed, kept = self._missed(output, task.target_of(batch))
                    total += task.total_factor(weight) * float(value.detach())
                    wrong, counted = wrong + missed, counted + kept
        finally:
            function.move_to(self.loss.theta)
        if not counted:
            raise TaskError("no sample has a target that is not ignored")
        return Look(total / task.divisor(task.survey().total_weight), wrong / counted, counted)

    def _missed(self, output: Any, target: Any) -> tuple[int, int]:
        tensors = isinstance(output, torch.Tensor) and isinstance(target, torch.Tensor)
        if not tensors or output.ndim != 2 or output.shape[1] < 2 or target.ndim != 1 or target.is_floating_point():
            raise TaskError("the 0-1 error is of outputs (N, C) with one class for each sample: this task has others")
        right = (output.argmax(1) == target) & torch.isfinite(output).all(1)
        kept = torch.ones_like(right) if self.ignored is None else target != self.ignored
        return int((~right & kept).sum()), int(kept.sum())

    def under_noise(self, deviations: torch.Tensor, draws: int, seed: int) -> Iterator[tuple[torch.Tensor, Look]]:
        """Each draw of ``N(0, diag(deviations^2))`` with the look at it."""
        for e, _ in gaussian(self.loss.n, draws, seed):
            shift = deviations * e.to(deviations.device)
            yield shift, self.look(shift)


def log_variances(
    network: NoisyNetwork, diagonal: Mapping[str, torch.Tensor], log_scales: np.ndarray[Any, Any], single: bool
) -> tuple[torch.Tensor, int]:
    """``t (n,)`` of the set ``B`` (of its sums ``x_i + y_j`` for matrices), and the number of scales.

    Args:
        network: whose parameters get the noise.
        diagonal: of the curvature, by tensor; negative entries are taken for 0.
        log_scales: ``B``, sorted and evenly spaced.
        single: one scale for each matrix in place of its rows and columns.
    """
    layouts, _ = weight_layouts(network.task.model)
    function, pieces, scales = network.loss.function, [], 0
    for name, tensor in zip(function.names, function.unflatten(network.loss.theta)):
        h, u = diagonal[name].detach().to("cpu", torch.float64).clamp(min=0), tensor.square().cpu()
        floor = _FLOOR * float((h * u).mean())
        h = h + torch.where(u > 0, floor / u, 0.0)
        if name not in layouts:
            t = torch.from_numpy(scale_of_each(h.numpy(), u.numpy(), log_scales))
            scales += h.numel()
        elif single:
            trace, squares = (np.array([float(part.sum())]) for part in (h, u))
            t = torch.full(h.shape, float(scale_of_each(trace, squares, log_scales)[0]), dtype=torch.float64)
            scales += 1
        else:
            layout = layouts[name]
            x, y, _ = scales_in_box(layout.matrix(h), layout.matrix(u), log_scales)
            t = layout.spread(x[:, None] + y[None, :], h)
            scales += len(x) + len(y)
        pieces.append(t.reshape(-1))
    return torch.cat(pieces).to(network.loss.theta), scales
