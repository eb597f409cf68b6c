"""Normalised cross-entropy: a cross-entropy that does not depend on the scale of the logits."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from spectra.errors import TaskError

_ROUNDINGS = 8  # logits closer than this many roundings of the largest are equal


def normalized_logits(logits: torch.Tensor) -> torch.Tensor:
    """``f' = z / std(z)``, the population standard deviation over the classes (dimension 1).

    References:
        Tsuzuku, Sato, Sugiyama, arXiv:1901.04653, equations (20) and (21).
    """
    return logits / logits.std(1, unbiased=False, keepdim=True)


def normalized_cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the logits divided by their standard deviation, invariant under a rescaling of the output.

    Its Hessian in the outputs is indefinite. For two classes it is constant almost everywhere.

    Raises:
        TaskError: fewer than three classes, or the logits of a sample are all equal, where it is not defined.

    References:
        Tsuzuku, Sato, Sugiyama, arXiv:1901.04653, equation (22).
    """
    if bool(equal_logits(logits).any()):
        raise TaskError("the normalised cross-entropy is not defined where all logits of a sample are equal")
    return F.cross_entropy(normalized_logits(logits), target)


def summed_normalized_cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The sum of the normalised cross-entropy over all samples but those whose logits are all equal.

    Raises:
        TaskError: fewer than three classes.
    """
    equal = equal_logits(logits)
    ramp = torch.arange(logits.shape[1]).to(logits).view(-1, *[1] * (logits.ndim - 2))  # finite derivatives there
    losses = F.cross_entropy(normalized_logits(torch.where(equal.unsqueeze(1), ramp, logits)), target, reduction="none")
    return torch.where(equal, 0.0, losses).sum()


def equal_logits(logits: torch.Tensor) -> torch.Tensor:
    """Whether all logits of a sample, or of a position of it, are equal up to rounding: ``(N, ...)`` without classes.

    Raises:
        TaskError: fewer than three classes, for which the normalised cross-entropy is constant.
    """
    if logits.ndim < 2 or logits.shape[1] < 3:
        classes = logits.shape[1] if logits.ndim > 1 else 1
        raise TaskError(f"the normalised cross-entropy of {classes} classes is constant: at least 3 are needed")
    z = logits.detach()
    return z.amax(1) - z.amin(1) <= _ROUNDINGS * torch.finfo(z.dtype).eps * z.abs().amax(1)
