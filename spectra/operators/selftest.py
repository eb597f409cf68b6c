"""Tests the products before they are used: repeatability, symmetry and rounding error."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch

from spectra.errors import NumericsError, TaskError
from spectra.operators.function import LossFunction
from spectra.operators.graph import dtype_name
from spectra.operators.kept import Product
from spectra.operators.modes import couples_samples
from spectra.runtime.faults import is_limit, is_refusal
from spectra.runtime.phases import phase
from spectra.task.batches import choose_rows, rows_of
from spectra.task.task import Task


class Testable(Protocol):
    """The members of a curvature operator that the test uses."""

    task: Task
    function: LossFunction
    bn_mode: str

    @property
    def n(self) -> int: ...

    @property
    def torch_dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    def linearise(self, batch: Any) -> Product: ...

    def at(self, dtype: torch.dtype) -> Self: ...

    def scaled(self, rows: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True)
class SelfTest:
    """The measured quality of the products, from random vectors on the first batch."""

    repeatability: float  # two products with the same vector under other random states, relative to the product
    asymmetry: float  # |u'Hv - v'Hu| / (|u| |Hv|)
    roundoff: (
        float | None
    )  # against float64, relative to |H|_2 |v|; None if it cannot be computed, or for float64 operators
    noise: float  # eta: the largest of the three relative to |H|_2 |v|, and at least the unit roundoff
    notes: tuple[str, ...] = ()
    on: str = "the first batch"  # the data that the products were computed on


# Larger errors are not rounding: the products are random or not symmetric. By the precision of the loss.
_FAULT = {torch.float64: 1e-7, torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.2}
# Distance, in unit roundoffs, of the points whose rounding errors are compared: large enough to make them independent.
_APART = 4
_FOURTH = {-2: 1, -1: -4, 0: 6, 1: -4, 2: 1}  # the weights of a fourth difference; their squares add up to 70
# A first batch larger than this (parameters times targets) is not used whole if it is much of the data. A part of the
# data with at least this many targets is enough; float64 products alone would cost as much as ten float32 ones.
_SMALL = 2e7
_PART, _TARGETS = 32, 32
_LONGER_PART = 4  # the largest share of the data for the comparison of one long part with its pieces
_COUPLED_PART = 8  # the share of a batch whose samples are coupled


def self_test(operator: Testable, note: str | None = None, *, whole: bool = False) -> SelfTest:
    """Test products with random vectors on the first batch: repeated, transposed, and in float64 if possible.

    If the first batch is large and much of the data, only some of its rows are used. Sums over more rows are rounded
    more often. This growth is measured: the product on a longer part of the batch is compared with the sum over its
    pieces. If batch norm couples the samples, pieces define another function; the rounding error is then assumed to
    grow in proportion to the number of rows, the worst case for terms of one sign.

    The noise is an error relative to ``|H|_2 |v|``, as errors of this size move eigenvalues (Weyl). A random vector
    has small components along the leading eigenvectors, so its product is much shorter than ``|H|_2 |v|``. The scale
    therefore comes from a second product, one step of the power method, and is at most ``|H|_2``.

    Args:
        operator: the operator to test.
        note: a note to include in the result.
        whole: use the whole first batch, whatever its size.

    Raises:
        TaskError: the product is random or not symmetric.
    """
    generator = torch.Generator().manual_seed(2)
    vectors = torch.randn(2, operator.n, generator=generator, dtype=torch.float64)
    vectors /= vectors.norm(dim=1, keepdim=True)
    with operator.function.evaluation():  # one batch for all, since a loader may shuffle
        batch = next(batch for batch in operator.task.batches() if operator.task.weight_of(batch) > 0)
    phase("self-test", 0, 4)
    everything, few = batch, None if whole else _few_rows(operator, batch, vectors)
    batch, first = (batch, _products(operator, batch, vectors, seed=3)) if few is None else few
    length = float(first[0].norm())
    if length == 0:
        return SelfTest(0.0, 0.0, None, _unit(operator), (note,) if note else ())
    phase("self-test", 1, 4)
    leading = first[:1] / length
    second = _products(operator, batch, torch.cat([vectors[:1], leading]), seed=4)
    again, second = second[0], second[1:]
    change = float((again - first[0]).norm())
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
    scale = max(float(second.norm()), length)
    directions, products = torch.cat([vectors[:1], leading]), torch.cat([first[:1], second])
    phase("self-test", 2, 4, "in float64")
    errors = _roundoff(operator, batch, directions, products)
    roundoff = None if errors is None else errors / scale
    on = SelfTest.on
    if batch is not everything:
        phase("self-test", 3, 4, "in pieces")
        growth, on = _growth(operator, everything, batch, leading)
        if growth is None:  # the loss of the batch is not a sum over its rows
            return self_test(operator, note, whole=True)
        roundoff = None if roundoff is None else roundoff * growth.factor + growth.added
    notes = [note] if note else []
    if operator.function.casts:
        roundoff = max(roundoff or 0.0, _rounding_within(operator, batch, directions, products) / scale)
    elif roundoff is not None and roundoff > fault:
        notes.append(f"float32 products are off by {roundoff:.1%} of the spectral norm: use --dtype float64")
    noise = max(change / scale, crossed / scale, roundoff or 0.0, _unit(operator))
    if operator.function.casts:
        carried, dtype = dtype_name(operator.function.carried), dtype_name(operator.torch_dtype)
        notes.append(
            f"the model or its loss casts to {carried} on the way: {dtype} products are as exact as {carried} ones "
            f"(noise {noise:.1e} of the spectral norm)"
        )
    return SelfTest(change / length, crossed / length, roundoff, noise, tuple(notes), on)


def _few_rows(operator: Testable, batch: Any, vectors: torch.Tensor) -> tuple[Any, torch.Tensor] | None:
    """Evenly spaced rows of a batch, and the products on them.

    None for a batch that is small enough to be used whole, and for rows that are not a valid test alone.
    """
    task, rows, survey = operator.task, rows_of(batch), operator.task.survey()
    targets = task.weight_of(batch)
    if not rows or operator.n * targets <= _SMALL:
        return None
    count = max(2, -(-(survey.num_samples or rows) // _PART), math.ceil(_TARGETS * rows / targets))
    if couples_samples(task.model, operator.bn_mode):
        count = max(count, rows // _COUPLED_PART)
    if 2 * count > rows:
        return None
    try:
        few = choose_rows(batch, torch.linspace(0, rows - 1, count).round().to(torch.int64))
        if task.weight_of(few) <= 0:
            return None
        products = _products(operator, few, vectors, seed=3)
    except Exception:  # the model does not accept these rows; errors of the batch itself are reported for the batch
        return None
    return (few, products) if bool(products[0].any()) else None


@dataclass(frozen=True)
class _Growth:
    """The rounding error on a whole batch as ``factor * (error on a few rows) + added``."""

    factor: float
    added: float


def _growth(operator: Testable, batch: Any, few: Any, vector: torch.Tensor) -> tuple[_Growth | None, str]:
    """The growth of the rounding error from a few rows to the whole batch.

    Args:
        operator: the operator under test.
        batch: the first batch.
        few: the rows that were tested.
        vector: ``(1, n)``, close to a leading eigenvector, so that its product is long.

    Returns:
        The growth, None if the loss of the batch is not a sum over rows; and the data used, in words.
    """
    task, rows, few_rows = operator.task, rows_of(batch), rows_of(few)
    assert rows is not None
    assert few_rows is not None
    on = f"{few_rows} of the {rows} rows of the first batch"
    if couples_samples(task.model, operator.bn_mode):
        return _Growth(rows / few_rows, 0.0), on
    if operator.torch_dtype != torch.float32:
        return _Growth(1.0, 0.0), on
    part = min(rows, max(2 * few_rows, (task.survey().num_samples or rows) // _LONGER_PART))
    long_part = choose_rows(batch, torch.arange(part))

    def summed(piece: Any, seed: int) -> torch.Tensor:
        weight = task.weight_of(piece)
        product = _products(operator, piece, vector, seed) if weight > 0 else torch.zeros_like(vector)
        return task.total_factor(weight) * product

    try:
        at_once = summed(long_part, seed=3)
        starts = range(0, part, few_rows)
        pieces = [summed(choose_rows(batch, torch.arange(s, min(part, s + few_rows))), seed=4) for s in starts]
    except Exception:  # as above
        return None, on
    error = float((at_once - torch.stack(pieces).sum(0)).norm() / at_once.norm()) if bool(at_once.any()) else math.inf
    if error > _FAULT[operator.torch_dtype]:
        return None, on
    return _Growth(1.0, error * rows / part), f"{on}, and {part} rows at once against pieces of them"


def _unit(operator: Testable) -> float:
    """A lower bound of the noise. Float64 products have no more precise reference, so some rounding is assumed."""
    unit = float(torch.finfo(operator.function.carried).eps)
    return 8 * unit if operator.function.carried == torch.float64 else unit


def _products(operator: Testable, batch: Any, vectors: torch.Tensor, seed: int) -> torch.Tensor:
    """Products on a batch, returned in float64 on the CPU, computed under the given random seed."""
    with operator.function.evaluation():
        torch.manual_seed(seed)
        try:
            product, function = operator.linearise(operator.function.place(batch)), operator.function
            scaled = operator.scaled(vectors.to(operator.device, operator.torch_dtype))
            rows = [function.unflatten(row) for row in scaled]
            block = operator.scaled(torch.stack([function.flatten(product(row)) for row in rows]))
        except (NotImplementedError, RuntimeError) as error:
            if "differentiat" in str(error) or "derivative" in str(error):
                first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise TaskError(f"the loss cannot be differentiated twice: {first_line}") from error
            raise
    if not bool(torch.isfinite(block).all()):
        raise NumericsError("a product on the first batch holds NaN or infinity")
    return block.to("cpu", torch.float64)


def _roundoff(operator: Testable, batch: Any, vectors: torch.Tensor, products: torch.Tensor) -> float | None:
    """The largest error of float32 products with unit vectors against float64 products; None if not available."""
    if operator.torch_dtype != torch.float32:
        return None
    try:
        exact = _products(operator.at(torch.float64), batch, vectors, seed=3)
    except (RuntimeError, TypeError, TaskError) as error:
        if not (is_limit(error) or is_refusal(error)):
            raise
        # a model with float32 tensors that are neither parameter nor buffer
        return None
    return float((products - exact).norm(dim=1).max())


def _rounding_within(operator: Testable, batch: Any, vectors: torch.Tensor, products: torch.Tensor) -> float:
    """The error of products with unit vectors that comes from a cast to a lower precision inside the model or loss.

    Products at ``theta + j d`` for ``j`` from -2 to 2 are rounded independently, and their fourth difference is
    ``sqrt(70)`` errors long; terms smooth in ``theta`` cancel to fourth order in ``d``. The result is the median over
    three directions ``d``, so that a kink crossed along one of them does not count.
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
