"""The products themselves, tried before they are used: do they repeat, are they symmetric, how are they rounded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from spectra.errors import NumericsError, TaskError
from spectra.operators.graph import dtype_name

if TYPE_CHECKING:
    from spectra.operators.curvature import CurvatureOperator


@dataclass(frozen=True)
class SelfTest:
    """How good the products are, as measured with random vectors on the first batch."""

    repeatability: float  # two products with the same vector under other random states, relative to the product
    asymmetry: float  # |u'Hv - v'Hu| / (|u| |Hv|)
    roundoff: float | None  # against float64, relative to |H|_2 |v|; for float32 operators where that can be computed
    noise: float  # eta: the largest of the three relative to |H|_2 |v|, and at least the unit roundoff
    notes: tuple[str, ...] = ()


# Above this, products are not merely rounded: they are random, or not symmetric. By the precision that the loss has.
_FAULT = {torch.float64: 1e-7, torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.2}
# Steps between the points at which rounding is compared, in units of it: far enough for it to fall out anew.
_APART = 4
_FOURTH = {-2: 1, -1: -4, 0: 6, 1: -4, 2: 1}  # the weights of a fourth difference; their squares add up to 70


def self_test(operator: CurvatureOperator, note: str | None = None) -> SelfTest:
    """Products with random vectors on the first batch: repeated, transposed, and in float64 where that can be.

    The noise is an error relative to ``|H|_2 |v|``, by which it moves eigenvalues (Weyl). A random vector has hardly a
    part in the leading eigenvectors, so its own product is much shorter than that: the scale is taken from the product
    with that product, one step of the power method, which is at most ``|H|_2``.

    Raises:
        TaskError: the product is random or not symmetric.
    """
    generator = torch.Generator().manual_seed(2)
    vectors = torch.randn(2, operator.n, generator=generator, dtype=torch.float64)
    vectors /= vectors.norm(dim=1, keepdim=True)
    with operator.function.evaluation():  # one batch for all, since a loader may shuffle
        batch = next(batch for batch in operator.task.batches() if operator.task.weight_of(batch) > 0)
    first = _products(operator, batch, vectors, seed=3)
    length = float(first[0].norm())
    if length == 0:
        return SelfTest(0.0, 0.0, None, _unit(operator), (note,) if note else ())
    again = _products(operator, batch, vectors[:1], seed=4)
    change = float((again[0] - first[0]).norm())
    crossed = abs(float(vectors[1] @ first[0] - vectors[0] @ first[1]))
    fault = _FAULT.get(operator.function.carried, 0.2)
    if change > fault * length:
        raise TaskError(
            f"two products with the same vector differ by {change / length:.1%}: something in the model is random in "
            "eval mode (a functional dropout, say); make it depend on model.training"
        )
    if crossed > fault * length:
        raise TaskError(
            f"the product is not symmetric (by {crossed / length:.1%}): the second derivative of some layer is wrong, "
            "such as that of a custom autograd function"
        )
    leading = first[:1] / length
    second = _products(operator, batch, leading, seed=3)
    scale = max(float(second.norm()), length)
    tried, found = torch.cat([vectors[:1], leading]), torch.cat([first[:1], second])
    errors = _roundoff(operator, batch, tried, found)
    roundoff = None if errors is None else errors / scale
    notes = [note] if note else []
    if operator.function.casts:
        roundoff = max(roundoff or 0.0, _rounding_within(operator, batch, tried, found) / scale)
    elif roundoff is not None and roundoff > fault:
        notes.append(f"float32 products are off by {roundoff:.1%} of the spectral norm: use --dtype float64")
    noise = max(change / scale, crossed / scale, roundoff or 0.0, _unit(operator))
    if operator.function.casts:
        carried, dtype = dtype_name(operator.function.carried), dtype_name(operator.torch_dtype)
        notes.append(
            f"the model or its loss casts to {carried} on the way: {dtype} products are as exact as {carried} ones "
            f"(noise {noise:.1e} of the spectral norm)"
        )
    return SelfTest(change / length, crossed / length, roundoff, noise, tuple(notes))


def _unit(operator: CurvatureOperator) -> float:
    """The least noise that is believed. Float64 has nothing to be compared with, so some rounding is allowed for."""
    unit = float(torch.finfo(operator.function.carried).eps)
    return 8 * unit if operator.function.carried == torch.float64 else unit


def _products(operator: CurvatureOperator, batch: Any, vectors: torch.Tensor, seed: int) -> torch.Tensor:
    """Products on a batch, in float64 on the CPU, under a random state of their own."""
    with operator.function.evaluation():
        torch.manual_seed(seed)
        try:
            product = operator.linearise(operator.function.place(batch))
            block = product(vectors.to(operator.device, operator.torch_dtype))
        except (NotImplementedError, RuntimeError) as error:
            if "differentiat" in str(error) or "derivative" in str(error):
                first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise TaskError(f"the loss cannot be differentiated twice: {first_line}") from error
            raise
    if not bool(torch.isfinite(block).all()):
        raise NumericsError("a product on the first batch holds NaN or infinity")
    return block.to("cpu", torch.float64)


def _roundoff(operator: CurvatureOperator, batch: Any, vectors: torch.Tensor, products: torch.Tensor) -> float | None:
    """The largest error of float32 products with unit vectors, against float64 ones."""
    if operator.torch_dtype != torch.float32:
        return None
    try:
        exact = _products(operator.at(torch.float64), batch, vectors, seed=3)
    except (RuntimeError, TypeError, TaskError):  # a model with float32 tensors that are neither parameter nor buffer
        return None
    return float((products - exact).norm(dim=1).max())


def _rounding_within(operator: CurvatureOperator, batch: Any, vectors: torch.Tensor, products: torch.Tensor) -> float:
    """The error of products with unit vectors that rounding to a lower precision on the way leaves, in float64 too.

    Products at ``theta + j d`` for ``j`` from -2 to 2 are rounded independently, and their fourth difference is
    ``sqrt(70)`` errors long: what is smooth in ``theta`` falls out of it, to fourth order in ``d``. The median over
    three directions ``d``, so that a kink crossed on one of them does not count.
    """
    function = operator.function
    step = _APART * torch.finfo(function.carried).eps
    centre = function.flatten(function.theta).detach()
    generator = torch.Generator().manual_seed(5)
    errors = []
    for _ in range(3):
        move = torch.randn(operator.n, generator=generator, dtype=torch.float64).to(centre) * function.scale()
        difference = _FOURTH[0] * products
        for places, weight in _FOURTH.items():
            if not places:
                continue
            try:
                function.move_to(centre + places * step * move)
                difference = difference + weight * _products(operator, batch, vectors, seed=3)
            finally:
                function.move_to(centre)
        errors.append(float(difference.norm(dim=1).max()) / math.sqrt(70))
    return sorted(errors)[1]
