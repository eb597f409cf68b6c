"""GGNOperator: exact products with the generalised Gauss-Newton matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from spectra.errors import TaskError
from spectra.operators.curvature import CurvatureOperator
from spectra.operators.jacobian import Jacobian, criterion_product, slope_of
from spectra.operators.kept import Product
from spectra.task.averaging import is_convex
from spectra.task.task import Task


class GGNOperator(CurvatureOperator):
    """The generalised Gauss-Newton matrix ``G = (1/N) sum_n J_n' A_n J_n`` of the loss over all data.

    ``J`` is the Jacobian of the outputs, ``A`` the Hessian of the criterion in them. Every factor is exact: ``J v`` is
    the derivative of ``J' u`` with respect to ``u`` (which does not depend on ``u``), ``A`` and ``J'`` are reverse
    passes. ``G`` is positive semi-definite where the criterion is convex in the outputs; for softmax cross-entropy it
    is the Fisher matrix of the model's own distribution. With ``bn_mode="train"``, ``J`` couples the samples of a
    batch.

    Raises:
        TaskError: the task was made from a ``loss_fn`` and has no split between outputs and criterion.

    References:
        N. Schraudolph, Fast curvature matrix-vector products for second-order gradient descent, Neural Computation 14
        (2002).
    """

    kind = "ggn"
    split = True

    @property
    def semidefinite(self) -> bool:
        """Whether the criterion is one that is known to be convex in the outputs."""
        return is_convex(self.task.criterion)

    def __init__(
        self,
        task: Task,
        bn_mode: str = "eval",
        *,
        dtype: str | torch.dtype | None = None,
        params: str | Sequence[str] | None = None,
    ) -> None:
        if not task.splits:
            raise TaskError(
                "the GGN needs the loss split into network and criterion, and a task made with Task.from_loss has no "
                "such split: use Task(model, criterion, data, forward=..., target=...), or the Hessian"
            )
        super().__init__(task, bn_mode, dtype=dtype, params=params)

    def linearise(self, batch: Any) -> Product:
        function = self.function
        output = function.output(batch)
        jacobian = Jacobian(function, output)
        points, slope = slope_of(function, output, self.task.target_of(batch), create_graph=True)

        def product(
            vector: Sequence[torch.Tensor], within: Sequence[int] | None = None
        ) -> Sequence[torch.Tensor | None]:
            pushed = jacobian.push(vector, within)
            if pushed is None:
                return [None] * len(vector)
            return jacobian.pull(criterion_product(slope, points, pushed), within)

        return product
