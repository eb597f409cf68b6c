"""Decides, per parameter tensor, whether the exact Gauss-Newton diagonal is also the Hessian's.

``H = G + (1/N) sum_n sum_c (dl/dz_nc) grad^2 z_nc``. So the block of a tensor is the same in ``H`` and ``G``, for all
labels, if ``v' grad^2 (r.z) v = 0`` for vectors ``v`` on that tensor and weights ``r`` of the outputs. Both are drawn
at random, so a nonzero quadratic form is detected almost surely. Three conditions must hold for each tensor, on a few
samples spread over the data, in float64:

1. the label-free form vanishes, at the parameters and at a nearby point (where nothing is zero by accident);
2. the gradient of ``r.z`` does not change along ``v`` between kinks (a second test of autograd's second derivative: a
   custom function may return none);
3. ``v' H v = v' G v`` for the loss.

If a condition fails or cannot be computed, the number is reported for the Gauss-Newton matrix, with the reason
(:mod:`spectra.exact.certificate_reasons`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from spectra.errors import SpectraError
from spectra.exact.capture import Recorder
from spectra.exact.certificate_reasons import defects_in_words
from spectra.operators.checks import first_line
from spectra.operators.function import LossFunction
from spectra.operators.graph import carried_dtype
from spectra.operators.jacobian import criterion_product, outputs_of, slope_of
from spectra.runtime.faults import is_limit, refusal_in
from spectra.runtime.phases import part, phase
from spectra.task.batches import choose_rows, join, rows_of

# Number of rows used: fewer for many tensors, because each tensor costs a few passes over these rows.
ROWS, FEWEST_ROWS, ROWS_TIMES_TENSORS = 16, 4, 256
# Relative to the first derivative, for a change of the tensor by its own size. Exact zeros and rounding errors pass.
_FLAT = 1e-12
_UNCHANGED = 1e-4  # of the gradient between two points, over their distance
_STEPS = (1e-6, 1e-8)  # a step that crosses a kink is followed by a shorter one
_EQUAL = 1e-9
_ROUNDINGS = 30  # allowed rounding errors of a lower precision that the loss casts to


@dataclass(frozen=True)
class Certificate:
    """The result for each parameter tensor, and the reasons in sentences."""

    passed: dict[str, bool]
    reasons: tuple[str, ...] = ()
    unmet: frozenset[str] = frozenset()  # tensors that passed only because they do not affect the tested rows

    def with_traces(self, traces: dict[str, float]) -> Certificate:
        """The certificate given the traces: a tensor with a trace but without effect on the tested rows fails."""
        doubtful = [name for name in sorted(self.unmet) if traces[name] != 0]
        if not doubtful:
            return self
        why = (
            f"{', '.join(doubtful)}: no effect on the outputs of the rows looked at for the certificate, and some on "
            "others, so this is said to be the Gauss-Newton matrix's."
        )
        return Certificate(self.passed | dict.fromkeys(doubtful, False), (*self.reasons, why))

    @property
    def kind(self) -> str:
        """``"hessian"`` where every tensor passed, else ``"ggn"``."""
        return "hessian" if self.passed and all(self.passed.values()) else "ggn"


def passes_of(function: LossFunction) -> float:
    """The cost of a certificate in forward and backward passes in float64 over all data: eight for each tensor."""
    survey = function.task.survey()
    batches = min(4, survey.num_batches)
    share = batches / survey.num_batches  # if the rows of a batch cannot be selected
    if survey.num_samples:
        share = min(1.0, max(_rows_wanted(function), batches) / survey.num_samples)
    return 8 * len(function.theta) * share


def _rows_wanted(function: LossFunction) -> int:
    return min(ROWS, max(FEWEST_ROWS, ROWS_TIMES_TENSORS // len(function.theta)))


def certify(function: LossFunction, params: str | Sequence[str] | None = None, seed: int = 3) -> Certificate:
    """The certificate of every parameter tensor of a function.

    Args:
        function: the function with the parameters and buffers to test; it is not modified.
        params: the ``params`` argument that the function was created with.
        seed: of the vectors and weights.
    """
    nothing = dict.fromkeys(function.names, False)
    try:
        float64_copy = LossFunction(function.task, function.bn_mode, torch.float64, params)
        float64_copy.adopt(function)
        with float64_copy.evaluation():
            batch = _few_rows(float64_copy)
            if batch is None:
                return Certificate(nothing, ("No batch could be looked at for the certificate.",))
            with Recorder(float64_copy.theta) as recorder:
                float64_copy.output(batch)
            effective: set[int] = set()
            worst = _look(float64_copy, batch, torch.Generator().manual_seed(seed), effective)
    except SpectraError as error:
        return Certificate(nothing, (f"The certificate could not be computed: {refusal_in(error)}.",))
    except (RuntimeError, TypeError, ValueError) as error:
        if not is_limit(error):
            raise
        why = f"The certificate could not be computed in float64 with two derivatives: {first_line(error)}"
        return Certificate(nothing, (why,))
    passed = {name: worst[index] is None for index, name in enumerate(float64_copy.names)}
    unmet = frozenset(name for index, name in enumerate(float64_copy.names) if index not in effective)
    return Certificate(
        passed, () if all(passed.values()) else defects_in_words(float64_copy, worst, recorder.tied()), unmet
    )


def _few_rows(function: LossFunction) -> Any:
    """Up to 16 rows (4 for many tensors) from four places of the data; the first batch where rows cannot be chosen."""
    task = function.task
    count = task.survey().num_batches
    places = sorted({0, count // 3, 2 * count // 3, count - 1})
    parts: list[Any] = []
    for index, batch in enumerate(task.batches()):
        if index > places[-1]:
            break
        if task.weight_of(batch) <= 0 or (index not in places and parts):
            continue
        rows = rows_of(batch)
        if rows is None:
            return function.place(batch)
        rows_wanted = _rows_wanted(function)
        # Rounded down, because the cost is proportional to the rows, but not below the minimum.
        rows_per_batch = max(rows_wanted // len(places), -(-FEWEST_ROWS // len(places)))
        chosen = torch.linspace(0, rows - 1, min(rows, rows_per_batch)).round().to(torch.int64)
        parts.append(function.place(choose_rows(batch, chosen)))
    if not parts:
        return None
    try:
        return join(parts)
    except RuntimeError:  # batches of different lengths, as with padded sequences
        return parts[0]


def _look(function: LossFunction, batch: Any, generator: torch.Generator, effective: set[int]) -> list[str | None]:
    """The defect of each tensor in words, None for a tensor that passes.

    Tensors with an effect on the outputs are added to ``effective``.
    """
    wrong: list[str | None] = [None] * len(function.theta)

    def directions() -> list[torch.Tensor]:
        return [_direction(p, generator) for p in function.theta]

    with part("certificate", 0, 4):
        _curvature_of_outputs(function, batch, directions(), generator, wrong, effective)
    with part("certificate", 1, 4):
        _gradients_between_points(function, batch, directions(), generator, wrong)
    with part("certificate", 2, 4):
        _loss_forms(function, batch, directions(), wrong)
    with _moved(function.theta, directions(), 0.1), part("certificate", 3, 4):
        _curvature_of_outputs(function, batch, directions(), generator, wrong, effective)
    return wrong


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


def _direction(p: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A random direction as long as the tensor (``0.1`` per entry for a tensor of zeros)."""
    v = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.device)
    length = float(p.detach().norm()) or 0.1 * math.sqrt(p.numel())
    return v * (length / float(v.norm()))


def _weighted(
    function: LossFunction, batch: Any, weights: list[torch.Tensor], generator: torch.Generator | None
) -> torch.Tensor | None:
    """``r.z``; weights are drawn into the list if it is empty. None if the outputs depend on no parameter."""
    outputs = outputs_of(function.output(batch))
    if not outputs:
        return None
    if not weights:
        for z in outputs:
            weights.append(torch.randn(z.shape, generator=generator, dtype=z.dtype).to(z.device))
    return torch.stack([(r * z).sum() for r, z in zip(weights, outputs)]).sum()


def _curvature_of_outputs(
    function: LossFunction,
    batch: Any,
    vectors: list[torch.Tensor],
    generator: torch.Generator,
    wrong: list[str | None],
    effective: set[int],
) -> None:
    value = _weighted(function, batch, [], generator)
    if value is None:
        return
    slope = torch.autograd.grad(value, function.theta, create_graph=True, allow_unused=True)
    for index, (g, v, p) in enumerate(zip(slope, vectors, function.theta)):
        phase("", index, len(slope))
        if g is not None and bool((g != 0).any()):
            effective.add(index)
        if g is None or not g.requires_grad or wrong[index]:
            continue
        along = (g * v).sum()
        (product,) = torch.autograd.grad(along, [p], retain_graph=True, allow_unused=True)
        form = 0.0 if product is None else float((product * v).sum())
        size = float(g.detach().norm() * v.norm()) / math.sqrt(p.numel())
        if not abs(form) <= _FLAT * size:
            wrong[index] = f"relative second derivative {abs(form) / size if size else math.inf:.2g}"


def _gradients_between_points(
    function: LossFunction,
    batch: Any,
    vectors: list[torch.Tensor],
    generator: torch.Generator,
    wrong: list[str | None],
) -> None:
    weights: list[torch.Tensor] = []
    value = _weighted(function, batch, weights, generator)
    if value is None:
        return
    slope = torch.autograd.grad(value, function.theta, allow_unused=True)
    for index, (g, v, p) in enumerate(zip(slope, vectors, function.theta)):
        phase("", index, len(slope))
        if g is None or wrong[index]:
            continue
        size = float(g.norm() * v.norm()) / math.sqrt(p.numel())
        change = math.inf
        for step in _STEPS:
            with _moved([p], [v], step):
                moved = _weighted(function, batch, weights, None)
                assert moved is not None
                (gradient,) = torch.autograd.grad(moved, [p], allow_unused=True, materialize_grads=True)
            change = float((gradient - g).mul(v).sum().abs()) / step
            if change <= _UNCHANGED * size:
                break
        else:
            wrong[index] = f"its gradient changes along the tensor (relative rate {change / size if size else 0:.2g})"


def _loss_forms(function: LossFunction, batch: Any, vectors: list[torch.Tensor], wrong: list[str | None]) -> None:
    output = function.output(batch)
    target = function.task.target_of(batch)
    outputs, theta = outputs_of(output), function.theta
    cotangents = [torch.zeros_like(z, requires_grad=True) for z in outputs]
    pulled = torch.autograd.grad(outputs, theta, cotangents, create_graph=True, allow_unused=True)
    points, slope = slope_of(function, output, target, create_graph=True)
    value = function.criterion(output, target)
    gradient = torch.autograd.grad(value, theta, create_graph=True, allow_unused=True)
    equal = max(_EQUAL, _ROUNDINGS * torch.finfo(carried_dtype(value)).eps)
    for index, (v, p) in enumerate(zip(vectors, theta)):
        phase("", index, len(theta))
        g, back = gradient[index], pulled[index]
        if wrong[index] or g is None or back is None:
            continue
        product = None
        if g.requires_grad:
            (product,) = torch.autograd.grad(g, [p], v, retain_graph=True, allow_unused=True)
        hessian_form = 0.0 if product is None else float((product * v).sum())
        # pushed = J v
        pushed = torch.autograd.grad(back, cotangents, v, retain_graph=True, allow_unused=True, materialize_grads=True)
        square = sum(float(u.square().sum()) for u in pushed)
        curved = criterion_product(slope, points, pushed)
        ggn_form = sum(float((c * u).sum()) for c, u in zip(curved, pushed))
        if not abs(hessian_form - ggn_form) <= equal * (abs(hessian_form) + abs(ggn_form)) + 1e-13 * square:
            wrong[index] = f"v'Hv = {hessian_form:.6g} and v'Gv = {ggn_form:.6g}"
