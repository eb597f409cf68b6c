"""Functions of torch whose second derivative is wrong or missing, in operations that can be differentiated twice.

On torch 2.13 the second derivative of ``torch._weight_norm`` is wrong; ``hardsigmoid``, ``cdist`` and ``embedding_bag``
have none. Values and first derivatives are the same up to rounding.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional as F

_BAG = tuple(inspect.signature(F.embedding_bag).parameters)


def computed(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The result of a call, by operations that can be differentiated twice where torch's own is not."""
    return _REPLACED.get(func, func)(*args, **kwargs)


def _weight_norm(v: torch.Tensor, g: torch.Tensor, dim: int = 0) -> torch.Tensor:
    """``g v / |v|``, with the norm over all dimensions but one; over all of them for ``dim=-1``."""
    over = [d for d in range(v.ndim) if dim == -1 or d != dim]
    return v * (g / v.square().sum(over, keepdim=True).sqrt())


def _hardsigmoid(input: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    return F.hardtanh(input / 6 + 0.5, 0.0, 1.0)


def _cdist(x1: torch.Tensor, x2: torch.Tensor, p: float = 2.0, compute_mode: str = "") -> torch.Tensor:
    """Distances of all pairs of rows; equal rows have distance and derivatives 0."""
    difference = x1.unsqueeze(-2) - x2.unsqueeze(-3)
    equal = (difference == 0).all(-1, keepdim=True)
    distance: torch.Tensor = torch.linalg.vector_norm(difference.masked_fill(equal, 1.0), ord=p, dim=-1)
    return distance.masked_fill(equal.squeeze(-1), 0.0)


def _embedding_bag(*args: Any, **kwargs: Any) -> Any:
    """Sums or means of rows of a table; a maximum is left to torch."""
    given = dict(zip(_BAG, args)) | kwargs
    mode, offsets, weights = given.get("mode", "mean"), given.get("offsets"), given.get("per_sample_weights")
    ids, table = given["input"], given["weight"]
    if mode == "max" or given.get("max_norm") is not None or given.get("scale_grad_by_freq"):
        return F.embedding_bag(*args, **kwargs)
    if offsets is None:
        count = ids.shape[0]
        bags = torch.arange(count, device=ids.device).repeat_interleave(ids.shape[1])
    else:
        starts = offsets[:-1] if given.get("include_last_offset") else offsets
        count = len(starts)
        bags = torch.searchsorted(starts, torch.arange(len(ids), device=ids.device, dtype=starts.dtype), right=True) - 1
    ids = ids.reshape(-1)
    counted = torch.ones_like(ids, dtype=table.dtype)
    padding = given.get("padding_idx")
    if padding is not None:
        counted = (ids != padding % len(table)).to(table.dtype)
    factors = counted if weights is None else counted * weights.reshape(-1)
    sums = table.new_zeros(count, table.shape[1]).index_add(0, bags, F.embedding(ids, table) * factors[:, None])
    if mode == "sum":
        return sums
    return sums / table.new_zeros(count).index_add(0, bags, counted).clamp(min=1)[:, None]


_REPLACED: dict[Any, Callable[..., Any]] = {
    torch._weight_norm: _weight_norm,
    F.hardsigmoid: _hardsigmoid,
    torch.cdist: _cdist,
    F.embedding_bag: _embedding_bag,
}
