"""The task whose curvature a measure takes: its own loss, or the normalised cross-entropy of its outputs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional as F

from spectra.errors import ArgumentError, TaskError
from spectra.exact.normalized import equal_logits, normalized_cross_entropy, summed_normalized_cross_entropy
from spectra.operators.function import LossFunction
from spectra.operators.modes import couples_samples
from spectra.operators.passes import Passes
from spectra.operators.recalibration import recalibrate
from spectra.results.measure import Measure, remarked
from spectra.task.averaging import averaging_of
from spectra.task.task import Task

LOSSES = ("task", "normalized")


def checked_loss(loss: str) -> str:
    """The name, or ArgumentError if it is not one of ``LOSSES``."""
    if loss not in LOSSES:
        raise ArgumentError(f"loss={loss!r}: one of {', '.join(map(repr, LOSSES))} is needed")
    return loss


class LossChoice:
    """The task with the loss that a measure takes, without l2, and the samples that this loss leaves out.

    The normalised cross-entropy is not defined for a sample (or a position of it) whose logits are all equal. Such
    samples are left out: the mean is over the others.

    Args:
        task: the task.
        loss: ``"task"`` or ``"normalized"``.
        bn_mode: of the pass over the data that finds the samples.

    Raises:
        TaskError: the task has no outputs, there are fewer than three classes, or no sample is left.
    """

    def __init__(self, task: Task, loss: str, bn_mode: str) -> None:
        self.left_out: int | None = None  # None for the task's own loss
        self.samples = 0
        if loss == "task":
            self.task = replace(task, l2=0.0)
            return
        if not task.splits:
            raise TaskError("the task has a loss_fn and no outputs that could be normalised: pass a criterion")
        counted = averaging_of(F.cross_entropy)
        assert counted is not None
        summing = task.reduces_to == "sum"
        self.left_out, self.samples = (0, 0) if couples_samples(task.model, bn_mode) else _count(task, bn_mode)
        if self.left_out and self.left_out == self.samples:
            raise TaskError("the normalised cross-entropy is not defined: the logits of every sample are equal")
        share = 1 - self.left_out / self.samples if self.left_out else 1.0

        def summed(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return summed_normalized_cross_entropy(output, target)

        def averaged(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return summed(output, target) / (counted.weight(target) * share)

        def weight(batch: Any) -> Any:
            return counted.weight(task.target_of(batch))

        if summing:
            self.task = replace(task, criterion=summed, weight=None, reduction="sum", l2=0.0)
        else:
            criterion = averaged if self.left_out else normalized_cross_entropy
            self.task = replace(task, criterion=criterion, weight=weight, reduction="mean", l2=0.0)

    def noted(self, measure: Measure) -> Measure:
        """The measure with how many samples were left out: in ``details``, and in words if there are any."""
        if self.left_out is None:
            return measure
        words = f"{self.left_out} of {self.samples} samples are left out: all their logits are equal"
        measure = replace(measure, details={**measure.details, "left_out": self.left_out})
        return remarked(measure, words if self.left_out else "")


def _count(task: Task, bn_mode: str) -> tuple[int, int]:
    """How many samples have equal logits, and how many there are; ignored targets do not count."""
    function = LossFunction(task, bn_mode)
    if bn_mode == "recalibrated":
        recalibrate(function)
    left_out = samples = 0
    with function.evaluation(twice=False), torch.no_grad():
        for batch, _ in Passes(function).batches():
            equal, target = equal_logits(function.output(batch)), task.target_of(batch)
            kept = torch.ones_like(equal) if target.is_floating_point() else target != -100
            left_out, samples = left_out + int((equal & kept).sum()), samples + int(kept.sum())
    return left_out, samples
