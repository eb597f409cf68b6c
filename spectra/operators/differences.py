"""DifferenceHessianOperator: Hessian products by central differences of the gradient.

They are for networks without a second derivative by autograd. Every product is computed with two steps, whose
difference bounds its error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from spectra.errors import ArgumentError, NumericsError, TaskError
from spectra.operators.checks import check_loss_once
from spectra.operators.curvature import CurvatureOperator
from spectra.operators.hessian import HessianOperator
from spectra.operators.kept import Product
from spectra.operators.kinks import recorded_pieces
from spectra.operators.selftest import SelfTest
from spectra.runtime.exclusive import exclusively
from spectra.runtime.phases import phase

# The lengths that are tried, in units of |theta| eps^(1/3), at which truncation and rounding of a central difference
# balance where the gradient changes over |theta|.
_LENGTHS = [4.0 * 0.5**index for index in range(11)]
_POWER_STEPS = 3  # towards the leading eigenvector, along which truncation is large
# The error that is allowed and stated is this many times the largest one of the test: other directions may be worse.
_MARGIN = 10
_MOST_NOISE = 0.03  # relative to |H|_2; products with more are refused
_RANDOM = {torch.float64: 1e-9, torch.float32: 1e-4}  # a gradient that changes by more from call to call is random
_FOURTH, _APART = {-2: 1, -1: -4, 0: 6, 1: -4, 2: 1}, 4  # as in the self-test of other operators


@dataclass(frozen=True)
class StepTest(SelfTest):
    """The quality of products by differences, with what they are computed with."""

    reach: float = 0.0  # h, the longer of the two distances
    scale: float = 0.0  # |H|_2 of the first batch


class DifferenceHessianOperator(CurvatureOperator):
    """The Hessian by ``H v = |v| (g(theta + h u) - g(theta - h u)) / (2 h)``, ``u = v / |v|``, ``g`` the gradient.

    It needs first derivatives only, so that it exists for custom autograd functions without a double backward. A
    product costs four gradients: it is computed with the steps ``h`` and ``h / 2``. The second one is returned, and the
    difference of the two bounds its truncation (a third of it, as the error falls by four) and rounding.

    The length ``h`` is chosen before the first product, near ``|theta| eps^(1/3)``, so that truncation and rounding
    together are least along a random vector and the leading eigenvector, on the first batch. ``noise`` is ten times
    that error relative to ``|H|_2``, and a product whose two steps differ by more is refused. So kinks within the step
    are refused, wherever they come from, as far as they exceed the noise.

    Raises:
        TaskError: the two steps do not agree, at the first product or any later one; or the gradient is random.

    Example:
        >>> from spectra.task.task import Task
        >>> x, y = torch.eye(3, dtype=torch.float64), torch.zeros(3, 1, dtype=torch.float64)
        >>> model = torch.nn.Linear(3, 1, bias=False, dtype=torch.float64)
        >>> H = DifferenceHessianOperator(Task(model, torch.nn.MSELoss(), [(x, y)]))
        >>> [round(float(entry), 6) for entry in H @ torch.ones(3, dtype=torch.float64)]  # 2 X'X / 3
        [0.666667, 0.666667, 0.666667]
    """

    kind = "hessian"

    def checks(self) -> dict[str, Callable[[], str | None]]:
        """Those of other operators, but the loss needs no second derivative by autograd."""
        return super().checks() | {
            "loss": lambda: check_loss_once(self.function, self.task.survey(), twice=False),
        }

    @property
    def step_test(self) -> StepTest:
        """The self-test, with the distance."""
        test = self.self_test
        assert isinstance(test, StepTest)
        return test

    def linearise(self, batch: Any) -> Product:
        test = self.step_test

        def product(
            vector: Sequence[torch.Tensor], within: Sequence[int] | None = None
        ) -> Sequence[torch.Tensor | None]:
            chosen = range(len(self.function.theta)) if within is None else within
            coarse = self._difference(batch, vector, chosen, test.reach)
            fine = self._difference(batch, vector, chosen, 0.5 * test.reach)
            length = _norm(vector)
            apart = _norm([a - b for a, b in zip(coarse, fine)])
            if not apart <= test.noise * test.scale * length:
                error = apart / (length * test.scale) if test.scale else math.inf
                raise TaskError(self._refusal(batch, vector, chosen, error, test.reach))
            return fine

        return product

    @exclusively
    def _tested(self) -> SelfTest:
        if self._test is None:
            notes = [check() for check in self.checks().values()] if self.within is None else []
            with self.function.evaluation(twice=False):
                return self._measured(tuple(filter(None, notes)))
        return self._test

    def _measured(self, notes: tuple[str, ...]) -> StepTest:
        """Choose the length, and measure the error along a random vector and one close to the leading eigenvector."""
        function = self.function
        batch = function.place(next(batch for batch in self.task.batches() if self.task.weight_of(batch) > 0))
        rounding = self._gradient_rounding(batch)
        unit = float(torch.finfo(function.carried).eps)
        base = (_norm(function.theta) or 1.0) * unit ** (1 / 3)
        first, other = self._random(0), self._random(1)
        leading, scale = first, 0.0
        for step in range(_POWER_STEPS):
            phase("self-test", step, _POWER_STEPS + 2)
            leading = self._difference(batch, leading, range(len(leading)), base)
            scale = _norm(leading)
            if scale == 0:
                return StepTest(0.0, 0.0, None, 8 * unit, notes, reach=base)
            leading = [piece / scale for piece in leading]
        lengths = [base * length for length in _LENGTHS]
        errors = torch.zeros(len(lengths) - 1, dtype=torch.float64)
        for index, vector in enumerate((first, leading)):
            phase("self-test", _POWER_STEPS + index, _POWER_STEPS + 2)
            found = [self._difference(batch, vector, range(len(vector)), length) for length in lengths]
            for place, (coarse, fine) in enumerate(pairwise(found)):
                apart = _norm([a - b for a, b in zip(coarse, fine)])
                # Rounding is added, since two products that both miss a step too short to move the weights are equal.
                errors[place] = max(float(errors[place]), apart + rounding / (math.sqrt(2) * lengths[place + 1]))
        best = int(errors.argmin())
        reach, error = lengths[best], float(errors[best])
        half = 0.5 * reach
        hv, hu = (self._difference(batch, vector, range(len(vector)), half) for vector in (first, other))
        crossed = abs(_dot(other, hv) - _dot(first, hu))
        noise = max(_MARGIN * max(error, crossed) / scale, 8 * unit)
        if not noise <= _MOST_NOISE:
            raise TaskError(self._refusal(batch, leading, range(len(leading)), error / scale, reach))
        note = (
            f"Hessian products by differences of the gradient over a distance of {half:.2g}; they agree with those "
            f"over {reach:.2g} to {error / scale:.1e} of the spectral norm, and the noise is {noise:.1e}"
        )
        return StepTest(0.0, crossed / scale, error / scale, noise, (*notes, note), reach=reach, scale=scale)

    def _random(self, index: int) -> list[torch.Tensor]:
        """A random unit vector as tensors shaped like the parameters."""
        generator = torch.Generator().manual_seed(20 + index)
        drawn = torch.randn(self.n, generator=generator, dtype=torch.float64)
        return self.function.unflatten((drawn / drawn.norm()).to(self.device, self.torch_dtype))

    def _gradient_rounding(self, batch: Any) -> float:
        """The rounding error of a gradient, from a fourth difference over a few roundoffs of the parameters."""
        function, total = self.function, None
        centre = function.flatten(function.theta).detach().to(torch.float64)
        generator = torch.Generator().manual_seed(5)
        draw = torch.randn(self.n, generator=generator, dtype=torch.float64).to(centre)
        move = _APART * torch.finfo(function.carried).eps * draw * function.scale().to(torch.float64)
        before = self._gradient(batch)
        again = self._gradient(batch)
        change, size = _norm([a - b for a, b in zip(before, again)]), _norm(before)
        if change > _RANDOM.get(function.carried, 0.1) * size:
            raise TaskError(
                f"two gradients at the same parameters differ by {change / size:.1%}: something in the model is random "
                "in eval mode (a functional dropout, say); make it depend on model.training"
            )
        try:
            for place, weight in _FOURTH.items():
                function.move_to(centre + place * move)
                pieces = [weight * piece for piece in self._gradient(batch)]
                total = pieces if total is None else [a + b for a, b in zip(total, pieces)]
        finally:
            function.move_to(centre)
        assert total is not None
        return max(_norm(total) / math.sqrt(70), float(torch.finfo(function.carried).eps) * size)

    def _gradient(self, batch: Any) -> list[torch.Tensor]:
        _, gradient = self.function.gradient(batch)
        return [torch.zeros_like(p) if g is None else g for g, p in zip(gradient, self.function.theta)]

    def _difference(
        self, batch: Any, vector: Sequence[torch.Tensor], chosen: Sequence[int], length: float
    ) -> list[torch.Tensor]:
        """The central difference of the gradient along a vector, over a displacement of this length."""
        size = _norm(vector)
        if size == 0:
            return [torch.zeros_like(piece) for piece in vector]
        above, below = (self._gradient_at(batch, vector, chosen, sign * length / size) for sign in (1, -1))
        found = [(a - b) * (size / (2 * length)) for a, b in zip(above, below)]
        if not all(bool(torch.isfinite(piece).all()) for piece in found):
            raise NumericsError("a product with the hessian by differences holds NaN or infinity")
        return found

    def _gradient_at(
        self, batch: Any, vector: Sequence[torch.Tensor], chosen: Sequence[int], step: float
    ) -> list[torch.Tensor]:
        """The gradient in the chosen parameters, with these moved by ``step`` times the vector."""
        moved = [self.function.theta[index] for index in chosen]
        centre = [parameter.detach().clone() for parameter in moved]
        try:
            with torch.no_grad():
                for parameter, start, piece in zip(moved, centre, vector):
                    parameter.copy_(start.to(torch.float64) + step * piece.to(torch.float64))
            gradient = self._gradient(batch)
            return [gradient[index] for index in chosen]
        finally:
            with torch.no_grad():
                for parameter, start in zip(moved, centre):
                    parameter.copy_(start)

    def _refusal(
        self, batch: Any, vector: Sequence[torch.Tensor], chosen: Sequence[int], error: float, reach: float
    ) -> str:
        """Why a product is refused: kinks within the step where there are any, else precision.

        Args:
            batch: of the product.
            vector: with which it is.
            chosen: the numbers of the parameters that the vector is of.
            error: the difference of the two steps, relative to the spectral norm.
            reach: the longer step.
        """
        found = []
        for sign in (1, -1):
            with recorded_pieces() as pieces:
                self._gradient_at(batch, vector, chosen, sign * reach / _norm(vector))
            found.append(pieces)
        same = [a.shape for a in found[0]] == [b.shape for b in found[1]]
        switched = sum(int((a != b).sum()) for a, b in zip(*found)) if same else 0
        start = (
            f"Hessian products by differences of the gradient over {reach:.2g} and half of it differ by "
            f"{error:.1e} of the spectral norm: "
        )
        if switched:
            return f"{start}{switched} units of piecewise-linear functions switch in between; use --product autograd"
        return f"{start}the gradient has kinks there, or is computed too inexactly; --dtype float64 may help"


#: The ways of computing a product with the Hessian.
HESSIANS: dict[str, type[CurvatureOperator]] = {"autograd": HessianOperator, "differences": DifferenceHessianOperator}


def check_product(product: str) -> None:
    """Raise ArgumentError unless there is such a way of computing a product."""
    if product not in HESSIANS:
        raise ArgumentError(f"product={product!r}: one of {', '.join(map(repr, HESSIANS))} is needed")


def _norm(pieces: Sequence[torch.Tensor]) -> float:
    return math.sqrt(sum(float(piece.detach().to(torch.float64).square().sum()) for piece in pieces))


def _dot(pieces: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> float:
    return sum(float((a.to(torch.float64) * b.to(torch.float64)).sum()) for a, b in zip(pieces, others))
