"""ResidualOperator: exact products with the part of the Hessian that its Gauss-Newton matrix leaves out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from spectra.errors import TaskError
from spectra.operators.ggn import GGNOperator
from spectra.operators.hessian import derivative_of
from spectra.operators.jacobian import outputs_of, slope_of
from spectra.operators.kept import Product


class ResidualOperator(GGNOperator):
    """The residual ``R = H - G = (1/N) sum_n sum_o s_no d^2 f_no / dtheta^2`` of the Gauss-Newton matrix.

    ``f_no`` is output ``o`` of sample ``n``, and ``s_no`` the derivative of the criterion in it. ``R v`` is computed as
    the derivative of ``J' s`` along ``v`` with ``s`` held constant. So nothing cancels, as it does in a difference of
    two products. The noise is relative to ``|R|_2``. It contains the rounding of ``s``, which is large where the
    outputs are close to the targets. The l2 term belongs to ``H`` and to ``G``, and is not in ``R``. ``R`` is
    indefinite in general. Its trace is zero where the outputs are affine in each parameter alone, as in networks of
    linear layers and ReLU.

    Raises:
        TaskError: the task has no split between outputs and criterion, or the network no second derivative.

    References:
        N. Schraudolph, Fast curvature matrix-vector products for second-order gradient descent, Neural Computation 14
        (2002).

    Example:
        >>> import torch
        >>> from spectra.task.task import Task
        >>> class Square(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.w = torch.nn.Parameter(torch.tensor([3.0], dtype=torch.float64))
        ...     def forward(self, x):
        ...         return x * self.w**2
        >>> data = [(torch.ones(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))]
        >>> R = ResidualOperator(Task(Square(), torch.nn.MSELoss(), data))
        >>> R @ torch.ones(1, dtype=torch.float64)  # 2 (w^2 - 1) * 2
        tensor([32.], dtype=torch.float64)
    """

    kind = "residual"
    with_l2 = False

    @property
    def semidefinite(self) -> bool:
        return False

    def checks(self) -> dict[str, Callable[[], str | None]]:
        return super().checks() | {"second derivative": self._refuse_without_hessian}

    def _refuse_without_hessian(self) -> None:
        if self.function.no_hessian:
            raise TaskError(self.function.no_hessian)

    def linearise(self, batch: Any) -> Product:
        function = self.function
        output = function.output(batch)
        _, slopes = slope_of(function, output, self.task.target_of(batch), create_graph=False)
        pairs = [(tensor, slope) for tensor, slope in zip(outputs_of(output), slopes) if slope is not None]
        gradient = torch.autograd.grad(
            [tensor for tensor, _ in pairs],
            function.theta,
            [slope for _, slope in pairs],
            create_graph=True,
            allow_unused=True,
        )
        return derivative_of(function, gradient)
