"""GGNOperator: exact products with the generalised Gauss-Newton matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from spectra.batches import map_tensors, tensors_of
from spectra.errors import TaskError
from spectra.operators.curvature import CurvatureOperator, Product
from spectra.task import Task


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
        live = [tensor for tensor in tensors_of(output) if tensor.requires_grad and tensor.is_floating_point()]
        if not live:
            raise TaskError("the output of the model does not depend on the parameters")
        # J'u as a function of u: its derivative, taken backwards with v, is J v.
        cotangents = [torch.zeros_like(tensor, requires_grad=True) for tensor in live]
        pulled = torch.autograd.grad(live, function.theta, cotangents, create_graph=True, allow_unused=True)
        met = [index for index, piece in enumerate(pulled) if piece is not None and piece.requires_grad]
        back = [piece for piece in pulled if piece is not None and piece.requires_grad]
        points, slope = self._slope(output, self.task.target_of(batch))

        def product(block: torch.Tensor) -> torch.Tensor:
            if not met:
                return torch.zeros_like(block)
            rows = []
            for vector in block:
                pieces = function.unflatten(vector)
                pushed = torch.autograd.grad(
                    back,
                    cotangents,
                    grad_outputs=[pieces[index] for index in met],
                    retain_graph=True,
                    allow_unused=True,
                    materialize_grads=True,
                )
                bent = [
                    torch.zeros_like(point) if value is None else value
                    for point, value in zip(points, _derivative(slope, points, pushed))
                ]
                rows.append(
                    function.flatten(
                        torch.autograd.grad(live, function.theta, bent, retain_graph=True, allow_unused=True)
                    )
                )
            return torch.stack(rows)

        return product

    def _slope(self, output: Any, target: Any) -> tuple[list[torch.Tensor], list[torch.Tensor | None]]:
        """The outputs as leaves of their own, and the gradient of the criterion in them, to be differentiated again."""
        points: list[torch.Tensor] = []

        def leaf(tensor: torch.Tensor) -> torch.Tensor:
            if not (tensor.requires_grad and tensor.is_floating_point()):
                return tensor.detach()
            points.append(tensor.detach().requires_grad_())
            return points[-1]

        value = self.function.criterion(map_tensors(output, leaf), target)
        if not value.requires_grad:
            raise TaskError("the criterion does not depend on the output of the model")
        return points, list(torch.autograd.grad(value, points, create_graph=True, allow_unused=True))


def _derivative(
    slope: Sequence[torch.Tensor | None], points: Sequence[torch.Tensor], direction: Sequence[torch.Tensor]
) -> Sequence[torch.Tensor | None]:
    """The product of the criterion's Hessian with a direction; None for zero."""
    pairs = [(s, d) for s, d in zip(slope, direction) if s is not None and s.requires_grad]
    if not pairs:
        return [None] * len(points)
    return torch.autograd.grad(
        [s for s, _ in pairs], points, [d for _, d in pairs], retain_graph=True, allow_unused=True
    )
