"""Normalised cross-entropy: a cross-entropy that does not depend on the scale of the logits."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from spectra.errors import TaskError


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
    if logits.ndim < 2 or logits.shape[1] < 3:
        classes = logits.shape[1] if logits.ndim > 1 else 1
        raise TaskError(f"the normalised cross-entropy of {classes} classes is constant: at least 3 are needed")
    if bool((logits.detach().std(1, unbiased=False) == 0).any()):
        raise TaskError("the normalised cross-entropy is not defined where all logits of a sample are equal")
    return F.cross_entropy(normalized_logits(logits), target)
