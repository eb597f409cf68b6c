"""Factors the criterion's Hessian in each sample's outputs into signed squares: the cotangents to propagate.

For the criterion's value of a batch and sample ``n`` with all its outputs ``z_n`` (``M`` numbers: classes times
positions)::

    A_n = d^2 L_b / dz_n^2 = sum_c sign_nc s_nc s_nc'

so the contribution of the batch to the Gauss-Newton matrix is ``sum_n sum_c sign_nc (J_n' s_nc)(J_n' s_nc)'``. It takes
one back-propagation of the whole batch for each column ``c``, and no difference of large numbers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from spectra.errors import TaskError
from spectra.operators.function import LossFunction
from spectra.operators.jacobian import criterion_product, slope_of
from spectra.task import averaging as reduction

Slope = list[torch.Tensor | None]  # the criterion's gradient in each output; None for an unused output

# The largest block of unknown structure that is factored: its eigenvectors take M^2 numbers per sample.
LARGEST_BLOCK = 256


class Layout:
    """Converts the outputs of a batch to a matrix ``(B, M)``, one row per sample, and back.

    Args:
        outputs: the tensors of the output that depend on the parameters.
        samples: ``B``; the leading length of each tensor is a multiple of it, the rows of a sample next to each other.
    """

    def __init__(self, outputs: Sequence[torch.Tensor], samples: int) -> None:
        self.shapes = [tensor.shape for tensor in outputs]
        self.samples = samples
        self.sizes = [tensor.numel() // samples for tensor in outputs]
        self.width = sum(self.sizes)  # M

    def flatten(self, pieces: Sequence[torch.Tensor]) -> torch.Tensor:
        """Tensors shaped like the outputs as ``(B, M)``."""
        return torch.cat([piece.reshape(self.samples, -1) for piece in pieces], 1)

    def unflatten(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """``(B, M)`` as tensors shaped like the outputs."""
        return [piece.reshape(shape) for piece, shape in zip(torch.split(flat, self.sizes, 1), self.shapes)]


class Factor(ABC):
    """``A_n`` of every sample of a batch as signed columns; flat columns are ``(B, M)`` in the order of a Layout."""

    columns: int
    signs: torch.Tensor | None = None  # (columns, B) of -1, 0 and 1; None: all 1

    @abstractmethod
    def column(self, index: int) -> torch.Tensor:
        """``s_nc`` for every sample: ``(B, M)``."""

    @abstractmethod
    def drawn(self, generator: torch.Generator) -> list[tuple[float, torch.Tensor]]:
        """``(sign, S_n eps)`` with ``eps`` of random signs, independent over columns and samples.

        The expectation of the signed squares is the sum over the columns. A second pair, of sign -1, exists only if
        ``A`` has negative eigenvalues.
        """


class SoftmaxFactor(Factor):
    """Cross-entropy: ``A = a (diag(p) - p p')`` at every position, by ``C - 1`` columns.

    Let ``S = diag(q) - p q'`` with ``q = sqrt(p)``. Then ``S S' = diag(p) - p p'`` and ``S q = 0``, so the columns
    ``S Q`` for any orthonormal complement ``Q`` of ``q`` are a factor. With the Householder reflector that maps ``q``
    to ``-e_m``, ``m`` the most likely class, they are, for ``j`` other than ``m``::

        (S Q)_ij = q_i (delta_ij - (q + e_m)_i q_j / (1 + q_m))

    No cancellation occurs in this form, however confident the network is.

    Args:
        logits: ``(R, C, *positions)``.
        factor: ``a``, ``(R, *positions)``: the weight of the position in the criterion's value.
        samples: ``B``.

    References:
        Ibayashi et al., Minimum sharpness (2021), Proposition 1, with the norms squared.
    """

    def __init__(self, logits: torch.Tensor, factor: torch.Tensor, samples: int) -> None:
        rows, classes = logits.shape[:2]
        self.p = logits.detach().reshape(samples, rows // samples, classes, -1).softmax(2)
        self.q = self.p.sqrt()
        self.root = factor.to(self.p).clamp(min=0).sqrt().reshape(samples, rows // samples, 1, -1)
        self.scale = float(self.root.square().max()) if self.root.numel() else 0.0  # of A, for judging rounding
        self.classes, self.inner = classes, self.p.shape[3]
        self.top = self.p.argmax(2, keepdim=True)  # (B, r, 1, positions)
        self.q_top = self.q.gather(2, self.top)
        self.columns = (classes - 1) * self.p.shape[1] * self.inner

    def column(self, index: int) -> torch.Tensor:
        place, class_index = divmod(index, self.classes - 1)
        row, position = divmod(place, self.inner)
        index_at = (slice(None), row, slice(None), slice(position, position + 1))
        p, q, top, q_top = self.p[index_at], self.q[index_at], self.top[index_at], self.q_top[index_at]
        j = class_index + (class_index >= top).to(top.dtype)  # the classes without the most likely one, in order
        q_j = q.gather(1, j)
        values = -p * q_j / (1 + q_top)
        values = values.scatter_add(1, j, q_j).scatter(1, top, -q_top * q_j)
        column = torch.zeros_like(self.p)
        column[index_at] = values * self.root[index_at]
        return column.reshape(len(column), -1)

    def product(self, flat: torch.Tensor) -> torch.Tensor:
        u = flat.view_as(self.p)
        centred = self.p * (u - (self.p * u).sum(2, keepdim=True))
        return (centred * self.root.square()).reshape(flat.shape)

    def drawn(self, generator: torch.Generator) -> list[tuple[float, torch.Tensor]]:
        eps = random_signs(self.p.shape, generator, self.p)
        column = (self.q * eps - self.p * (self.q * eps).sum(2, keepdim=True)) * self.root
        return [(1.0, column.reshape(len(column), -1))]


class DiagonalFactor(Factor):
    """A criterion that is a sum over elements: ``A`` diagonal, one column for each output of a sample."""

    def __init__(self, diagonal: torch.Tensor) -> None:
        self.diagonal = diagonal  # (B, M)
        self.root = diagonal.abs().sqrt()
        self.columns = diagonal.shape[1]
        self.signs = None if bool((diagonal >= 0).all()) else diagonal.sign().T.contiguous()
        self.scale = float(diagonal.abs().max()) if diagonal.numel() else 0.0

    def column(self, index: int) -> torch.Tensor:
        column = torch.zeros_like(self.root)
        column[:, index] = self.root[:, index]
        return column

    def product(self, flat: torch.Tensor) -> torch.Tensor:
        return self.diagonal * flat

    def drawn(self, generator: torch.Generator) -> list[tuple[float, torch.Tensor]]:
        eps = random_signs(self.root.shape, generator, self.root)
        return by_sign(self.root * eps, self.diagonal.sign(), self.signs is not None)


class DenseFactor(Factor):
    """Any criterion that is a sum over samples: ``A_n`` as a dense matrix, split by its eigenvectors.

    A column that is negligible in every sample (below ``M`` roundoffs of the largest eigenvalue of that sample) is
    dropped, such as the constant direction of a cross-entropy.

    Args:
        blocks: ``(B, M, M)``.
    """

    def __init__(self, blocks: torch.Tensor) -> None:
        wide = (0.5 * (blocks + blocks.mT)).to(torch.float64)
        values, self.vectors = torch.linalg.eigh(wide)  # (B, M), (B, M, M)
        largest = values.abs().amax(1, keepdim=True)
        values = torch.where(values.abs() <= values.shape[1] * 2.3e-16 * largest, torch.zeros_like(values), values)
        self.kept = (values != 0).any(0).nonzero().reshape(-1).tolist()
        self.columns = len(self.kept)
        self.values, self.dtype = values, blocks.dtype
        signs = values[:, self.kept].sign().T.to(blocks.dtype).contiguous()
        self.signs = None if bool((values >= 0).all()) else signs

    def column(self, index: int) -> torch.Tensor:
        kept_index = self.kept[index]
        root = self.values[:, kept_index : kept_index + 1].abs().sqrt()
        column: torch.Tensor = self.vectors[:, :, kept_index] * root
        return column.to(self.dtype)

    def drawn(self, generator: torch.Generator) -> list[tuple[float, torch.Tensor]]:
        eps = random_signs(self.values.shape, generator, self.values) * self.values.abs().sqrt()
        pairs = by_sign(eps, self.values.sign(), self.signs is not None)
        return [(sign, (self.vectors @ part[:, :, None])[:, :, 0].to(self.dtype)) for sign, part in pairs]


def random_signs(shape: Sequence[int], generator: torch.Generator, like: torch.Tensor) -> torch.Tensor:
    """Independent random signs, drawn on the CPU so that they are the same on every device."""
    return (2 * torch.randint(2, tuple(shape), generator=generator) - 1).to(like)


def by_sign(column: torch.Tensor, signs: torch.Tensor, mixed: bool) -> list[tuple[float, torch.Tensor]]:
    """A column split by sign: pairs of a sign and the column of the samples with that sign."""
    if not mixed:
        return [(1.0, column)]
    return [(1.0, column * (signs > 0)), (-1.0, column * (signs < 0))]


def factor_of(function: LossFunction, output: Any, target: Any, layout: Layout) -> Factor:
    """The factor of the criterion's Hessian for a batch, verified against a product with the Hessian itself.

    Raises:
        TaskError: the criterion is not a sum over the samples, or its structure is unknown and a sample has too many
            outputs.
    """
    with torch.enable_grad():
        points, slope = slope_of(function, output, target, create_graph=True)
    factor = _known(function, points, target, slope, layout) or _dense(points, slope, layout)
    _check(factor, points, slope, layout, torch.finfo(function.carried).eps)
    return factor


def _known(
    function: LossFunction, points: list[torch.Tensor], target: Any, slope: Slope, layout: Layout
) -> Factor | None:
    criterion = function.task.criterion
    kind = reduction.kind_of(criterion)
    if len(points) != 1 or not isinstance(target, torch.Tensor):
        return None
    if kind is nn.CrossEntropyLoss:
        logits = points[0].detach()
        logits = logits if logits.ndim > 1 else logits[None]
        share = _softmax_weights(criterion, logits, target)
        return SoftmaxFactor(logits, share, layout.samples)
    if reduction.is_elementwise(criterion):
        return DiagonalFactor(layout.flatten(criterion_product(slope, points, [torch.ones_like(p) for p in points])))
    return None


def _softmax_weights(criterion: Any, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """``a`` of every position, ``(R, *positions)``: ``sum_c w_c t_c`` with the smoothed target ``t``, over the divisor.

    As torch defines it: class weights and smoothing act on ``t``; the mean is over the weights of the targets that are
    not ignored, or for class probabilities over the positions.
    """
    settings = reduction.settings_of(criterion)
    classes, smoothing = logits.shape[1], float(settings.get("label_smoothing") or 0.0)
    weight = settings.get("weight")
    weights = torch.ones(classes) if weight is None else weight.detach()
    weights = weights.to(logits.device, torch.float64)
    if target.is_floating_point():
        soft = target.reshape(logits.shape).to(torch.float64).movedim(1, -1)
        share = (soft * (1 - smoothing) + smoothing / classes) @ weights
        divisor = float(share.numel())
    else:
        ignored = int(settings.get("ignore_index", -100))
        labels = target.reshape(logits.shape[0], *logits.shape[2:])
        kept = labels != ignored
        own = weights[torch.where(kept, labels, torch.zeros_like(labels))]
        share = ((1 - smoothing) * own + smoothing / classes * weights.sum()) * kept
        divisor = float((own * kept).sum())
    return share if settings.get("reduction", "mean") == "sum" else share / divisor


def _dense(points: list[torch.Tensor], slope: Slope, layout: Layout) -> DenseFactor:
    size, samples = layout.width, layout.samples
    if size > LARGEST_BLOCK:
        raise TaskError(
            f"a sample has {size} outputs and the criterion's structure is not known: its Hessian is factored up to "
            f"{LARGEST_BLOCK}. Use nn.CrossEntropyLoss on outputs (N, C, positions), or another loss of torch.nn"
        )
    columns = []
    for index in range(size):
        direction = torch.zeros(samples, size, dtype=points[0].dtype, device=points[0].device)
        direction[:, index] = 1
        columns.append(layout.flatten(criterion_product(slope, points, layout.unflatten(direction))))
    return DenseFactor(torch.stack(columns, 2))


def _check(factor: Factor, points: list[torch.Tensor], slope: Slope, layout: Layout, unit: float) -> None:
    """Compare the blocks with ``A u`` by autograd for a random ``u``: tests the formulas and the coupling of samples.

    Dense blocks come from autograd, and may be pure rounding for a saturated criterion. For them ``u`` is nonzero on
    every second sample only, and ``A u`` must vanish on the others. ``unit`` is the roundoff of the loss.
    """
    generator = torch.Generator().manual_seed(11)
    draw = torch.randn(layout.samples, layout.width, generator=generator, dtype=torch.float64)
    flat = draw.to(points[0].device, points[0].dtype)
    eps = max(torch.finfo(flat.dtype).eps, unit)
    if not isinstance(factor, SoftmaxFactor | DiagonalFactor):
        flat[1::2] = 0
        expected = layout.flatten(criterion_product(slope, points, layout.unflatten(flat)))
        wrong = float(expected[1::2].norm()) > math.sqrt(eps) * float(expected.norm())
    else:
        expected = layout.flatten(criterion_product(slope, points, layout.unflatten(flat)))
        allowed = math.sqrt(eps) * float(expected.norm()) + 1e3 * eps * factor.scale * float(flat.norm())
        wrong = not float((factor.product(flat) - expected).norm()) <= allowed
    if wrong:
        raise TaskError(
            "the criterion is not a sum over the samples of a batch (its Hessian in the outputs couples them), so no "
            "sample has a curvature of its own"
        )
