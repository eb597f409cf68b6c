"""The conditions under which the blocks of the Hessian and the Gauss-Newton matrix of a tensor are the same.

``H = G + sum_k s_k grad^2 z_k`` with the slopes ``s`` of the criterion in the outputs ``z``. So the block of a tensor
is the same in ``H`` and ``G``, for all labels, if ``v' grad^2 (r.z) v = 0`` for vectors ``v`` on that tensor and
weights ``r`` of the outputs. Both are drawn at random, so a nonzero quadratic form is detected almost surely. Three
conditions must hold on a few samples spread over the data, in float64:

1. the form vanishes for each tensor, at the parameters and at a nearby point (where nothing is zero by accident). The
   tensors of a module are tested together: if their joint form vanishes at random vectors, each form does. If it does
   not, they are tested one by one;
2. ``H v = G v + grad^2 (s.z) v`` for the loss, for ``v`` on all tensors at once. If it does not hold,
   ``v' H v = v' G v`` must hold for each tensor;
3. ``grad^2 (r.z) v`` by autograd equals the difference of two gradients, for ``v`` on all tensors at once (a custom
   function may return no second derivative). If it does not, the gradient of each tensor must not change along it.

Conditions 2 and 3 take a fixed number of passes. Condition 1 takes a product for each module and point.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from spectra.operators.function import LossFunction
from spectra.operators.graph import carried_dtype
from spectra.operators.jacobian import criterion_product, outputs_of, slope_of
from spectra.runtime.phases import part, phase

# Relative to the first derivative, for a change of the tensor by its own size. Exact zeros and rounding errors pass.
_FLAT = 1e-12
_UNCHANGED = 1e-4  # of the gradient between two points, over their distance
_STEPS = (1e-6, 1e-8)  # a step that crosses a kink is followed by a shorter one
_EQUAL = 1e-9
_ROUNDINGS = 30  # allowed rounding errors of a lower precision that the loss casts to


class Conditions:
    """The function on the rows, a random vector for each tensor, and what was learned so far."""

    def __init__(self, function: LossFunction, batch: Any, generator: torch.Generator) -> None:
        self.function, self.batch, self.generator = function, batch, generator
        self.lengths = [float(p.detach().norm()) or 0.1 * math.sqrt(p.numel()) for p in function.theta]
        self.vectors = self.directions()
        self.defects: list[str | None] = [None] * len(function.theta)  # in words; None for a tensor that passes
        self.effective: set[int] = set()  # tensors with an effect on the outputs
        self.extra = 0  # passes made because a joint condition failed
        self.sizes: dict[int, float] = {}  # of the first derivative, for a change of the tensor by its own size

    def directions(self) -> list[torch.Tensor]:
        """Random vectors as long as their tensors (``0.1`` per entry for a tensor of zeros)."""
        drawn = [torch.randn(p.shape, generator=self.generator, dtype=torch.float32) for p in self.function.theta]
        wide = [v.to(p) for v, p in zip(drawn, self.function.theta)]
        return [v.mul_(length / (float(v.norm()) or 1.0)) for v, length in zip(wide, self.lengths)]

    def weights(self, outputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Random weights of the outputs."""
        return [torch.randn(z.shape, generator=self.generator, dtype=z.dtype).to(z.device) for z in outputs]

    def slope(self, outputs: Sequence[torch.Tensor], weights: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
        """The gradient of ``r.z`` by tensor, with its graph; notes its sizes."""
        theta = self.function.theta
        slope: list[torch.Tensor | None] = list(
            torch.autograd.grad(outputs, theta, weights, create_graph=True, allow_unused=True)
        )
        for index, g in enumerate(slope):
            norm = 0.0 if g is None else float(g.detach().norm())
            self.sizes[index] = norm * self.lengths[index] / math.sqrt(max(1, self.vectors[index].numel()))
            if norm != 0:
                self.effective.add(index)
        return slope

    def remaining(self, pieces: Sequence[torch.Tensor | None]) -> list[int]:
        """The tensors that have not failed and have a derivative."""
        return [index for index, piece in enumerate(pieces) if piece is not None and not self.defects[index]]

    def moved(self, indices: Sequence[int], step: float) -> Any:
        """Context in which these tensors are moved by ``step`` times their vectors."""
        return _moved([self.function.theta[i] for i in indices], [self.vectors[i] for i in indices], step)

    def forms(self, left: Sequence[torch.Tensor | None], indices: Sequence[int], by: Sequence[int]) -> list[float]:
        """``v_i' (d left/d theta v)_i`` for these tensors, with ``v`` the vectors of the tensors ``by``."""
        pairs = [(left[i], self.vectors[i]) for i in by]
        roots = [(root, v) for root, v in pairs if root is not None and root.requires_grad]
        if not roots:
            return [0.0] * len(indices)
        products = torch.autograd.grad(
            [root for root, _ in roots],
            [self.function.theta[i] for i in indices],
            [v for _, v in roots],
            retain_graph=True,
            allow_unused=True,
        )
        return [_dot(product, self.vectors[i]) for product, i in zip(products, indices)]


def _dot(product: torch.Tensor | None, v: torch.Tensor) -> float:
    return 0.0 if product is None else float(product.reshape(-1) @ v.reshape(-1))


def examine(test: Conditions) -> None:
    """Test all conditions: find the tensors with an effect on the outputs, and the defects."""
    function, outputs = test.function, outputs_of(test.function.output(test.batch))
    if not outputs:
        return
    weights = test.weights(outputs)
    with part("certificate", 0, 4):
        slope = test.slope(outputs, weights)
        _curvature_of_outputs(test, slope)
    with part("certificate", 1, 4):
        _loss_forms(test)
    with part("certificate", 2, 4):
        _derivatives_by_differences(test, weights, slope)
    del outputs, slope
    with _moved(function.theta, test.directions(), 0.1), part("certificate", 3, 4):
        outputs = outputs_of(function.output(test.batch))
        _curvature_of_outputs(test, test.slope(outputs, test.weights(outputs)))


@contextmanager
def _moved(parameters: Sequence[torch.Tensor], vectors: Sequence[torch.Tensor], step: float) -> Iterator[None]:
    """Context in which each parameter is moved by ``step`` times its vector."""
    original = [p.detach().clone() for p in parameters]
    try:
        with torch.no_grad():
            for p, v in zip(parameters, vectors):
                p.add_(v, alpha=step)
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(parameters, original):
                p.copy_(value)


def _curvature_of_outputs(test: Conditions, slope: Sequence[torch.Tensor | None]) -> None:
    """Condition 1."""
    modules: dict[str, list[int]] = {}
    for index in test.remaining(slope):
        modules.setdefault(test.function.names[index].rpartition(".")[0], []).append(index)
    for place, members in enumerate(modules.values()):
        phase("", place, len(modules))
        smallest = min(test.sizes[index] for index in members)
        if abs(sum(test.forms(slope, members, members))) <= _FLAT * smallest:
            continue
        for index in members:
            (form,), size = test.forms(slope, [index], [index]), test.sizes[index]
            if not abs(form) <= _FLAT * size:
                test.defects[index] = f"relative second derivative {abs(form) / size if size else math.inf:.2g}"


def _loss_forms(test: Conditions) -> None:
    """Condition 2."""
    function, vectors = test.function, test.vectors
    output = function.output(test.batch)
    target = function.task.target_of(test.batch)
    outputs, theta = outputs_of(output), function.theta
    points, slope = slope_of(function, output, target, create_graph=True)
    cotangents = [
        (torch.zeros_like(z) if s is None else s.detach().clone()).requires_grad_() for z, s in zip(outputs, slope)
    ]
    pulled = torch.autograd.grad(outputs, theta, cotangents, create_graph=True, allow_unused=True)
    value = function.criterion(output, target)
    gradient = torch.autograd.grad(value, theta, create_graph=True, allow_unused=True)
    equal = max(_EQUAL, _ROUNDINGS * torch.finfo(carried_dtype(value)).eps)
    indices = [index for index in test.remaining(gradient) if pulled[index] is not None]
    if not indices:
        return

    def pushed(
        chosen: Sequence[int], also: Sequence[int] = ()
    ) -> tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]:
        """``J v``, and the derivative of ``(J's)'v`` in the tensors ``also``, for ``v`` on the chosen tensors."""
        found = torch.autograd.grad(
            [pulled[i] for i in chosen], [*cotangents, *(theta[i] for i in also)], [vectors[i] for i in chosen],
            retain_graph=True, allow_unused=True, materialize_grads=True,
        )  # fmt: skip
        return found[: len(cotangents)], found[len(cotangents) :]

    def same(hessian: float, ggn: float, others: float, square: float) -> bool:
        return abs(hessian - ggn - others) <= equal * (abs(hessian) + abs(ggn) + abs(others)) + 1e-13 * square

    along, products = pushed(indices, indices)
    square = sum(float(u.square().sum()) for u in along)
    curved = criterion_product(slope, points, along)
    back = torch.autograd.grad(outputs, [theta[i] for i in indices], curved, retain_graph=True, allow_unused=True)
    hessian = test.forms(gradient, indices, indices)
    ggn, others = ([_dot(piece, vectors[i]) for piece, i in zip(each, indices)] for each in (back, products))
    if all(same(*forms, square) for forms in zip(hessian, ggn, others)):
        return
    test.extra += 2 * len(indices)
    for place, index in enumerate(indices):
        phase("", place, len(indices))
        (hessian_form,) = test.forms(gradient, [index], [index])
        along, _ = pushed([index])
        square = sum(float(u.square().sum()) for u in along)
        ggn_form = sum(float((c * u).sum()) for c, u in zip(criterion_product(slope, points, along), along))
        if not same(hessian_form, ggn_form, 0.0, square):
            test.defects[index] = f"v'Hv = {hessian_form:.6g} and v'Gv = {ggn_form:.6g}"


def _derivatives_by_differences(
    test: Conditions, weights: Sequence[torch.Tensor], slope: Sequence[torch.Tensor | None]
) -> None:
    """Condition 3; last at these parameters, because moving them in place invalidates the graphs."""
    indices = test.remaining(slope)

    def gradients(chosen: Sequence[int], step: float) -> Sequence[torch.Tensor]:
        with test.moved(chosen, step):
            return torch.autograd.grad(
                outputs_of(test.function.output(test.batch)),
                [test.function.theta[i] for i in chosen],
                weights,
                allow_unused=True,
                materialize_grads=True,
            )

    def rates(chosen: Sequence[int], step: float) -> list[float]:
        ahead, behind = gradients(chosen, step), gradients(chosen, -step)
        return [_dot(a - b, test.vectors[i]) / (2 * step) for a, b, i in zip(ahead, behind, chosen)]

    def near(chosen: Sequence[int], expected: Sequence[float], found: Sequence[float]) -> bool:
        return all(abs(e - f) <= _UNCHANGED * test.sizes[i] for i, e, f in zip(chosen, expected, found))

    expected = test.forms(slope, indices, indices)
    if not indices or any(near(indices, expected, rates(indices, step)) for step in _STEPS):
        return
    test.extra += 2 * len(_STEPS) * len(indices)
    for place, index in enumerate(indices):
        phase("", place, len(indices))
        found = [math.inf]
        for step in _STEPS:
            found = rates([index], step)
            if near([index], [0.0], found):
                break
        else:
            rate = abs(found[0]) / test.sizes[index] if test.sizes[index] else 0
            test.defects[index] = f"its gradient changes along the tensor (relative rate {rate:.2g})"
