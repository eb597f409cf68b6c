"""Jacobian: products with the Jacobian of a batch's outputs, and the criterion's derivatives in the outputs.

:func:`why_inseparable` also decides whether the loss depends on these outputs only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from spectra.errors import TaskError
from spectra.operators.convolutions import constant_factors, derivatives_within
from spectra.operators.function import LossFunction
from spectra.operators.graph import leaves_of
from spectra.task.batches import map_tensors, tensors_of


class Jacobian:
    """``J = d output / d theta`` of one batch, by its products. Made and used within the function's evaluation.

    ``J v`` is the derivative of ``J' u`` with respect to ``u``, which does not depend on ``u``: reverse over reverse.

    Args:
        function: the loss function with the parameters to differentiate in.
        output: the model's output for the batch, connected to the parameters; a tree of tensors.

    Raises:
        TaskError: no tensor of the output depends on the parameters.
    """

    def __init__(self, function: LossFunction, output: Any) -> None:
        self.function = function
        self.outputs = outputs_of(output)
        if not self.outputs:
            raise TaskError("the output of the model does not depend on the parameters")
        self._cotangents = [torch.zeros_like(tensor, requires_grad=True) for tensor in self.outputs]
        with constant_factors():
            pulled = torch.autograd.grad(
                self.outputs, function.theta, self._cotangents, create_graph=True, allow_unused=True
            )
        self._back = [piece if piece is not None and piece.requires_grad else None for piece in pulled]

    @property
    def reaches(self) -> bool:
        """Whether autograd finds any dependence of the outputs on the parameters; if not, ``J`` is zero."""
        return any(piece is not None for piece in self._back)

    def push(
        self, vector: Sequence[torch.Tensor], within: Sequence[int] | None = None
    ) -> Sequence[torch.Tensor] | None:
        """``J v``, shaped like the outputs; None if it is zero for every ``v``.

        Args:
            vector: ``v``, shaped like the parameters; or its parts for the parameters ``within``: the others are zero.
            within: numbers of parameters; None: all.
        """
        chosen = range(len(self._back)) if within is None else within
        pairs = [(piece, v) for index, v in zip(chosen, vector) if (piece := self._back[index]) is not None]
        if not pairs:
            return None
        return torch.autograd.grad(
            [piece for piece, _ in pairs],
            self._cotangents,
            grad_outputs=[v for _, v in pairs],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )

    def pull(
        self, cotangents: Sequence[torch.Tensor], within: Sequence[int] | None = None
    ) -> Sequence[torch.Tensor | None]:
        """``J' u`` for the parameters (or those ``within``), None for zeros, with ``u`` shaped like the outputs."""
        theta = self.function.theta
        wanted = theta if within is None else [theta[index] for index in within]
        with derivatives_within(theta, within):
            return torch.autograd.grad(self.outputs, wanted, cotangents, retain_graph=True, allow_unused=True)


def outputs_of(output: Any) -> list[torch.Tensor]:
    """The tensors of the output that depend on the parameters."""
    return [tensor for tensor in tensors_of(output) if tensor.requires_grad and tensor.is_floating_point()]


def slope_of(
    function: LossFunction, output: Any, target: Any, *, create_graph: bool
) -> tuple[list[torch.Tensor], list[torch.Tensor | None]]:
    """The outputs as new leaves, and the gradient of the criterion in them (None for an unused output).

    Raises:
        TaskError: the criterion does not depend on the output.
    """
    points: list[torch.Tensor] = []

    def leaf(tensor: torch.Tensor) -> torch.Tensor:
        if not (tensor.requires_grad and tensor.is_floating_point()):
            return tensor.detach()
        points.append(tensor.detach().requires_grad_())
        return points[-1]

    value = function.criterion(map_tensors(output, leaf), target)
    if not value.requires_grad:
        raise TaskError("the criterion does not depend on the output of the model")
    return points, list(torch.autograd.grad(value, points, create_graph=create_graph, allow_unused=True))


def criterion_product(
    slope: Sequence[torch.Tensor | None], points: Sequence[torch.Tensor], direction: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """The product of the criterion's Hessian in the outputs with a direction, shaped like the outputs.

    Args:
        slope: the gradient of the criterion with its graph, from :func:`slope_of`.
        points: the outputs as leaves, from :func:`slope_of`.
        direction: shaped like the outputs.
    """
    pairs = [(s, d) for s, d in zip(slope, direction) if s is not None and s.requires_grad]
    if not pairs:
        return [torch.zeros_like(point) for point in points]
    left, right = [s for s, _ in pairs], [d for _, d in pairs]
    products = torch.autograd.grad(left, points, right, retain_graph=True, allow_unused=True, materialize_grads=True)
    return [product.detach() for product in products]


def why_inseparable(function: LossFunction, loss: torch.Tensor, output: Any, target: Any) -> str | None:
    """The reason why the loss of a batch depends on more than the output; None if it does not.

    The loss must depend on the parameters through the output only, and the criterion must be computable from the
    detached output. A criterion that differentiates the output in an input of the network violates both. A criterion
    with a term in the parameters violates the first.

    Args:
        function: the loss function with the parameters to differentiate in; called within its evaluation.
        loss: of the batch, from :meth:`LossFunction.evaluate`.
        output: of the same pass.
        target: of the batch.
    """
    leaves = {id(leaf) for leaf in leaves_of(loss, tensors_of(output))} - {id(tensor) for tensor in tensors_of(output)}
    direct = [name for name, p in zip(function.names, function.theta) if id(p) in leaves]
    if direct:
        some = ", ".join(direct[:3]) + (", ..." if len(direct) > 3 else "")
        return (
            f"it depends on {some} in another way than through the output (by a derivative in an input that the "
            "criterion takes, or a term in the parameters)"
        )
    try:
        slope_of(function, output, target, create_graph=False)
    except TaskError as error:
        return f"it cannot be computed from the output once that is cut off from the network: {error}"
    return None
