"""HessianOperator: exact Hessian-vector products (Pearlmutter), reverse mode over reverse mode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from spectra.operators.convolutions import derivatives_within
from spectra.operators.curvature import CurvatureOperator
from spectra.operators.function import LossFunction
from spectra.operators.kept import Product


class HessianOperator(CurvatureOperator):
    """The Hessian ``H`` of the loss over all data, ``H v = d/dtheta <grad L(theta), v>``.

    Each batch needs one forward and one backward pass for all vectors of a block; its gradient is then differentiated
    once per vector. Reverse over reverse is used because other orders give silently wrong results for some layers:
    ``jacrev`` inside forward mode is off by several per cent for layer norm on torch 2.13.

    References:
        B. Pearlmutter, Fast exact multiplication by the Hessian, Neural Computation 6 (1994).

    Example:
        >>> import torch
        >>> from spectra.task.task import Task
        >>> x, y = torch.eye(3, dtype=torch.float64), torch.zeros(3, 1, dtype=torch.float64)
        >>> model = torch.nn.Linear(3, 1, bias=False, dtype=torch.float64)
        >>> H = HessianOperator(Task(model, torch.nn.MSELoss(), [(x, y)]))
        >>> H @ torch.ones(3, dtype=torch.float64)  # 2 X'X / 3
        tensor([0.6667, 0.6667, 0.6667], dtype=torch.float64)
    """

    kind = "hessian"

    def linearise(self, batch: Any) -> Product:
        _, gradient = self.function.gradient(batch, create_graph=True)
        return derivative_of(self.function, gradient)


def derivative_of(function: LossFunction, gradient: Sequence[torch.Tensor | None]) -> Product:
    """The product with the derivative of a gradient: ``v`` to ``d/dtheta <gradient, v>``.

    Args:
        function: the loss function with the parameters.
        gradient: with its graph, shaped like the parameters; None for zero.
    """

    def product(vector: Sequence[torch.Tensor], within: Sequence[int] | None = None) -> Sequence[torch.Tensor | None]:
        chosen = range(len(function.theta)) if within is None else within
        # A gradient that is constant in the parameters has no graph, and its derivative is zero.
        pairs = [(p, v) for i, v in zip(chosen, vector) if (p := gradient[i]) is not None and p.requires_grad]
        if not pairs:
            return [None] * len(chosen)
        wanted = [function.theta[index] for index in chosen]
        with derivatives_within(function.theta, within):
            return torch.autograd.grad(
                [piece for piece, _ in pairs],
                wanted,
                grad_outputs=[v for _, v in pairs],
                retain_graph=True,
                allow_unused=True,
            )

    return product
