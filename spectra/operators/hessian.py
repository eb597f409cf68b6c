"""HessianOperator: exact Hessian-vector products (Pearlmutter), reverse mode over reverse mode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from spectra.operators.curvature import CurvatureOperator
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
        function = self.function
        _, gradient = function.gradient(batch, create_graph=True)
        # A gradient that is constant in the parameters has no graph, and its derivative is zero.
        dependent = [index for index, piece in enumerate(gradient) if piece is not None and piece.requires_grad]
        live = [piece for piece in gradient if piece is not None and piece.requires_grad]

        def product(vector: Sequence[torch.Tensor]) -> Sequence[torch.Tensor | None]:
            if not live:
                return [None] * len(function.theta)
            return torch.autograd.grad(
                live,
                function.theta,
                grad_outputs=[vector[index] for index in dependent],
                retain_graph=True,
                allow_unused=True,
            )

        return product
