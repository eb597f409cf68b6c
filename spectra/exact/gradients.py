"""Per-sample gradients as rows of a matrix, computed a block of columns at a time, for Gram matrices."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional as F

from spectra.exact.capture import Use
from spectra.exact.layers import each_of, grouped, padding_of, summed, unfolded


def weight_rows(use: Use, d: torch.Tensor, samples: int, units: slice) -> torch.Tensor:
    """The gradients of the use's weight, for some of its leading units: ``(G, B, units * rest)``.

    Args:
        use: the call, of any kind but that of an embedding.
        d: the cotangents of its output, ``(G, *shape)``.
        samples: ``B``.
        units: of the weight's first dimension within a group; for a transposed convolution those are inputs.
    """
    if use.kind == "scale":
        normal = use.function(**(use.settings | {"weight": None, "bias": None}))
        return torch.stack([_by_sample(use, piece * normal, samples) for piece in d]).flatten(2)
    if use.kind == "linear":
        x = use.input.reshape(samples, -1, use.input.shape[-1])  # (B, L, I)
        cotangents = d.reshape(len(d), samples, x.shape[1], -1)[..., units]
        return torch.einsum("gblo,bli->gboi", cotangents, x).flatten(2)
    left, right = _factors(use, d, samples)  # (G|1, B, g, O, L) and (G|1, B, g, I, L)
    return (left[:, :, :, units] @ right.mT).flatten(2)


def bias_rows(use: Use, d: torch.Tensor, samples: int) -> torch.Tensor:
    """The gradients of the use's bias, ``(G, B, size)``."""
    if use.kind == "scale":
        return torch.stack([_by_sample(use, piece, samples) for piece in d]).flatten(2)
    channel = -1 if use.kind == "linear" else 1
    return torch.stack([summed(piece, samples, channel) for piece in d])


def units_of(use: Use) -> tuple[int, int]:
    """How many leading units the weight has within a group, and how many entries of all groups belong to one."""
    weight = use.settings["weight"]
    if use.kind == "scale":
        return 1, weight.numel()
    groups = int(use.settings.get("groups", 1))
    units = weight.shape[0] // groups
    return units, weight.numel() // units


def is_vector(use: Use, samples: int) -> bool:
    """Whether it is a linear layer on one vector per sample, whose gradients are products of two vectors."""
    return use.kind == "linear" and use.input.numel() == samples * use.input.shape[-1]


def embedding_rows(use: Use, d: torch.Tensor, samples: int, tokens: torch.Tensor) -> Iterator[torch.Tensor]:
    """The gradients of an embedding's table in the rows of these tokens, ``(G, B, tokens)`` for each of its columns."""
    token_ids = use.input.reshape(samples, -1).to(torch.int64)
    place = torch.searchsorted(tokens, token_ids)
    padding = use.settings.get("padding_idx")
    size = use.settings["weight"].shape[0]
    counts = torch.ones_like(token_ids, dtype=d.dtype)
    if padding is not None:
        counts = (token_ids != padding % size).to(d.dtype)
    width = d.shape[-1]
    flat = d.reshape(len(d), samples, -1, width) * counts[None, :, :, None]
    for column in range(width):
        rows = torch.zeros(len(d), samples, len(tokens), dtype=d.dtype, device=d.device)
        yield rows.scatter_add_(2, place.expand(len(d), -1, -1), flat[..., column])


def _by_sample(use: Use, d: torch.Tensor, samples: int) -> torch.Tensor:
    if use.function is F.layer_norm:  # over the trailing dimensions; else over the channels, dimension 1
        shaped = next(use.settings[name] for name in ("weight", "bias") if use.settings.get(name) is not None)
        return d.reshape(samples, -1, shaped.numel()).sum(1)
    return summed(d, samples, 1)


def _factors(use: Use, d: torch.Tensor, samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A convolution's gradient as a product over positions; transposed ones have the roles swapped."""
    x, weight, groups = use.input, use.settings["weight"], int(use.settings.get("groups", 1))
    kernel = weight.shape[2:]
    stride, dilation = (each_of(use.settings.get(name, 1), len(kernel)) for name in ("stride", "dilation"))
    padding = padding_of(use.settings.get("padding", 0), kernel, dilation)

    def windows(tensor: torch.Tensor, count: Any) -> torch.Tensor:
        return grouped(unfolded(tensor, kernel, stride, dilation, padding, count), samples, groups)

    if use.kind == "conv_transpose":
        return (
            grouped(x.flatten(2), samples, groups)[None],
            torch.stack([windows(piece, x.shape[2:]) for piece in d]),
        )
    return torch.stack([grouped(piece.flatten(2), samples, groups) for piece in d]), windows(x, d.shape[3:])[None]


def numbers_of(use: Use) -> int:
    """How many numbers the cotangent of the use's output has."""
    return math.prod(use.shape)
