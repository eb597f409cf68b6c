"""drawn_diagonal: the diagonal of the Hessian estimated from random directions, by products or finite differences.

Each estimate is an average over draws, with a standard error for every entry. The exact diagonal, if it exists, is
cheaper and has no error. These estimates are for networks without one (batch norm in train mode, smooth networks) and
for comparison with the papers. Their scatter **biases** measures that set negative entries to 0 or minimise over
scales.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf, sqrt

import torch

from spectra.errors import ArgumentError
from spectra.operators.displaced import DisplacedLoss
from spectra.operators.hessian import HessianOperator
from spectra.task.task import Task

METHODS = ("probes", "na", "ni")
PRINTED = "ni-printed"


@dataclass(frozen=True)
class DrawnDiagonal:
    """An estimate of the diagonal of the Hessian, by tensor, float64."""

    values: dict[str, torch.Tensor]
    stderr: dict[str, torch.Tensor]  # of each entry, over draws
    method: str
    draws: int
    gradients: int  # that it cost, a product counted as the two to three that it costs

    @property
    def relative_error(self) -> float:
        """The standard error of the entries over the entries, both in the root mean square."""
        errors, values = (sum(float(t.square().sum()) for t in part.values()) for part in (self.stderr, self.values))
        return sqrt(errors / values) if values > 0 else inf


def drawn_diagonal(
    task: Task,
    method: str = "probes",
    *,
    draws: int = 32,
    radius: float = 1e-3,
    eps: float = 0.0,
    seed: int = 0,
    bn_mode: str = "eval",
) -> DrawnDiagonal:
    """The mean over draws of an estimator of ``diag H``, unbiased up to the radius in all forms but ``"ni-printed"``.

    ``"probes"``: ``v * H v`` with random signs ``v`` (Hutchinson), by exact products. Per entry the variance of a draw
    is ``sum_{j != i} H_ij^2``.

    ``"na"``: ``e * (g(w + R e) - g(w - R e)) / (2 R)`` with normal ``e`` and ``R = radius |w_l|_F`` for each tensor
    ``l``, NA (61); the variance is ``sum_j H_ij^2 (R_j / R_i)^2 + H_ii^2``. Covariant under a rescaling of whole layers
    only.

    ``"ni"``: ``s * (g(w + D s) - g(w - D s)) / (2 D)`` with random signs ``s`` and ``D_i = radius (|w_i| + eps)``,
    NI (29)-(31), with the sign on the whole bracket: as printed it is biased by the factor ``|w_i| / (|w_i| + eps)``.
    At ``eps = 0`` exactly covariant under a rescaling of units, at any radius; the variance
    ``sum_{j != i} H_ij^2 (D_j / D_i)^2`` explodes for small weights, and a weight of 0 has no estimate.

    ``"ni-printed"``: ``"ni"`` with NI (30) as printed, ``w +- radius (|w| s + eps)``: an estimate of
    ``H_ii |w_i| / (|w_i| + eps)``, for comparison only.

    Finite differences include the kinks of ReLU networks; ``"probes"`` and the exact diagonal do not.

    Args:
        task: the task; its ``l2`` has no part.
        method: one of the four.
        draws: at least 2; two gradients each, or a product.
        radius: of the displacement, relative to the weights.
        eps: of ``"ni"`` and ``"ni-printed"``.
        seed: of the draws.
        bn_mode: ``"eval"``, ``"recalibrated"`` or ``"train"``.

    Raises:
        ArgumentError: an argument outside its range; or a weight of 0 with ``"ni"`` and ``eps=0``.
        DataError, TaskError, NumericsError: as for the operators.

    References:
        Hutchinson (1989); Tsuzuku, Sato and Sugiyama, Normalized flat minima, arXiv:1901.04653 (NA) and ICML 2020 (NI).
    """
    if method not in (*METHODS, PRINTED):
        raise ArgumentError(f"diagonal={method!r}: one of {', '.join(map(repr, (*METHODS, PRINTED)))} is needed")
    if draws < 2:
        raise ArgumentError(f"draws={draws}: at least 2 are needed for a standard error; 32 is the default")
    if not (radius > 0 and eps >= 0):
        raise ArgumentError(f"radius={radius}, eps={eps}: a radius above 0 and an eps of at least 0 are needed")
    generator = torch.Generator().manual_seed(seed)
    if method == "probes":
        operator = HessianOperator(replace(task, l2=0.0), bn_mode, dtype="float64")
        names, sizes, n = operator.function.names, operator.function.sizes, operator.n
        shapes = [p.shape for p in operator.function.theta]
        with operator.prepared():
            _ = operator.self_test
            mean, error = _averaged(draws, n, lambda: _product(operator, _signs(n, generator)))
        cost = 3 * draws
    else:
        loss = DisplacedLoss(task, bn_mode)
        loss.for_differences()  # of gradients here, so float32 does
        names, sizes, n = loss.function.names, loss.function.sizes, loss.n
        shapes = [p.shape for p in loss.function.theta]
        steps = _steps(loss, method, radius, eps)
        with loss.prepared():
            shift = radius * eps if method == PRINTED else 0.0
            mean, error = _averaged(draws, n, lambda: _difference(loss, steps, _direction(method, n, generator), shift))
        cost = 2 * draws

    def by_tensor(vector: torch.Tensor) -> dict[str, torch.Tensor]:
        pieces = torch.split(vector, sizes)
        return {name: piece.reshape(shape).cpu() for name, piece, shape in zip(names, pieces, shapes)}

    return DrawnDiagonal(by_tensor(mean), by_tensor(error), method, draws, cost)


def _averaged(draws: int, n: int, draw: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean and its standard error by entry, summed as deviations from the first draw."""
    first = draw()
    total, squares = torch.zeros_like(first), torch.zeros_like(first)
    for _ in range(draws - 1):
        deviation = draw() - first
        total += deviation
        squares += deviation**2
    mean = total / draws
    variance = ((squares - draws * mean**2) / (draws - 1)).clamp(min=0)
    return first + mean, variance.sqrt() / sqrt(draws)


def _product(operator: HessianOperator, signs: torch.Tensor) -> torch.Tensor:
    vector = signs.to(operator.device)
    return vector * operator.apply(vector[None])[0]


def _difference(loss: DisplacedLoss, steps: torch.Tensor, direction: torch.Tensor, shift: float) -> torch.Tensor:
    """``shift`` is the part of the steps that the signs do not multiply."""
    moved = direction.to(loss.device)
    by = (steps - shift) * moved + shift
    ahead, behind = loss.gradient(by)[1], loss.gradient(-by)[1]
    return moved * (ahead - behind) / (2 * steps)


def _steps(loss: DisplacedLoss, method: str, radius: float, eps: float) -> torch.Tensor:
    """The displacement of each parameter, ``(n,)``."""
    if method in ("ni", PRINTED):
        steps = radius * (loss.theta.abs() + eps)
        if not bool((steps > 0).all()):
            count = int((steps == 0).sum())
            raise ArgumentError(f"eps=0: {count} parameters are 0 and would not move; take eps above 0")
        return steps
    norms = [float(piece.norm()) or 1.0 for piece in torch.split(loss.theta, loss.function.sizes)]
    return radius * torch.cat([torch.full((s,), norm) for s, norm in zip(loss.function.sizes, norms)]).to(loss.theta)


def _direction(method: str, n: int, generator: torch.Generator) -> torch.Tensor:
    if method in ("ni", PRINTED):
        return _signs(n, generator)
    return torch.randn(n, generator=generator, dtype=torch.float64)


def _signs(n: int, generator: torch.Generator) -> torch.Tensor:
    return (2 * torch.randint(2, (n,), generator=generator) - 1).to(torch.float64)
