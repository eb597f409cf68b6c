"""Problem: a task, and dense float64 matrices of its loss by plain torch, without anything of spectra.

The Hessian is a double backward pass of the loss over the whole data. The Gauss-Newton and empirical Fisher matrices
come from the Jacobian of the outputs and closed forms of the criterion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from cases import batches_of, dense_hessian
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from spectra import Task

#: (outputs, targets) of the whole data; of each batch where batch norm couples its rows.
Parts = list[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Dense:
    """The loss, its gradient, and the three matrices, in float64."""

    loss: float
    gradient: torch.Tensor  # (n,)
    hessian: torch.Tensor  # (n, n)
    ggn: torch.Tensor  # (n, n)
    fisher: torch.Tensor  # (n, n)


@dataclass(frozen=True)
class Problem:
    """A task with cross-entropy or mean squared error, and its outputs on the whole data computed another time."""

    task: Task
    parts: Callable[[str], Parts]  # of a batch-norm mode, connected to `params`
    params: Sequence[torch.Tensor]  # those of the reference, in the order of the trainable ones of the model
    dtype: str | None = None  # of the operators
    tolerance: float = 1e-11  # relative, in the Frobenius norm
    known: dict[str, Dense] = field(default_factory=dict)

    def dense(self, bn_mode: str = "eval", *, again: bool = False) -> Dense:
        """The matrices of a batch-norm mode, computed once; ``again`` for other values of the parameters."""
        if again or bn_mode not in self.known:
            self.known[bn_mode] = self._computed(bn_mode)
        return self.known[bn_mode]

    def _computed(self, bn_mode: str) -> Dense:
        with sdpa_kernel(SDPBackend.MATH):
            parts = self.parts(bn_mode)
        entropy = isinstance(self.task.criterion, nn.CrossEntropyLoss)
        rows = sum(len(y) for _, y in parts)
        loss = sum(
            F.cross_entropy(z, y, reduction="sum") / rows
            if entropy
            else F.mse_loss(z, y, reduction="sum") / (rows * z[0].numel())
            for z, y in parts
        )
        slopes = torch.autograd.grad(loss, self.params, retain_graph=True, allow_unused=True)
        gradient = _flat(slopes, self.params)
        ggn, fisher = torch.zeros(2, len(gradient), len(gradient), dtype=torch.float64)
        for z, y in parts:
            width = z[0].numel()
            jacobian = torch.stack(
                [
                    _flat(torch.autograd.grad(e, self.params, retain_graph=True, allow_unused=True), self.params)
                    for e in z.flatten()
                ]
            ).unflatten(0, (len(z), width))
            for row, (entries, target) in zip(jacobian, zip(z.detach().flatten(1), y)):
                if entropy:
                    p = entries.softmax(0)
                    curvature, slope = p.diag() - torch.outer(p, p), p - F.one_hot(target, width)
                else:
                    curvature, slope = 2 / width * torch.eye(width), 2 / width * (entries - target.flatten())
                ggn += row.T @ curvature @ row / rows
                fisher += torch.outer(row.T @ slope, row.T @ slope) / rows
        return Dense(float(loss.detach()), gradient, dense_hessian(loss, list(self.params)).detach(), ggn, fisher)


def _flat(pieces: Sequence[torch.Tensor | None], params: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in zip(pieces, params)])


def trainable(model: nn.Module) -> list[torch.Tensor]:
    """The parameters that an operator has, in its order."""
    return [p for p in model.parameters() if p.requires_grad and p.numel()]


def problem(
    model: nn.Module,
    x: Any,
    y: torch.Tensor,
    *,
    data: Sequence[Any] | None = None,
    plain: Callable[[Any], torch.Tensor] | None = None,
    criterion: nn.Module | None = None,
    options: dict[str, Any] | None = None,
    **others: Any,
) -> Problem:
    """A problem whose outputs do not depend on the partition into batches.

    Args:
        model: in train mode, as training leaves it.
        x: the whole input.
        y: the whole target.
        data: the batches; by default ``x`` and ``y`` in two unequal ones.
        plain: the outputs for the whole input; by default those of the model in eval mode.
        criterion: cross-entropy by default.
        options: further arguments of the task.
        others: further fields of the problem.
    """
    if data is None:
        first = len(y) // 2 + 1
        data = batches_of(x, y, first, len(y) - first)
    model.train()
    task = Task(model, criterion or nn.CrossEntropyLoss(), list(data), **(options or {}))

    def outputs(_: str) -> Parts:
        model.eval()
        try:
            return [((plain or model)(x), y)]
        finally:
            model.train()

    return Problem(**({"task": task, "parts": outputs, "params": trainable(model)} | others))


def labelled(rows: int = 7, shape: tuple[int, ...] = (4,), classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Random inputs and labels."""
    return torch.randn(rows, *shape), torch.randint(classes, (rows,))


def symbols(rows: int = 6, length: int = 3, size: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Random sequences of symbols, with a label each."""
    return torch.randint(size, (rows, length)), torch.randint(3, (rows,))


def seeded(make: Callable[[], Problem]) -> Problem:
    """The problem from a fixed seed, with float64 as torch's default dtype meanwhile."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(0)
        return make()
    finally:
        torch.set_default_dtype(before)
