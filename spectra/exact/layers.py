"""Sums of squared gradients of single samples, from the input of a call and the cotangents of its output.

For ``G`` columns ``c`` and ``B`` samples ``n``, with ``g_cn`` the gradient of a parameter tensor from sample ``n``
alone and signs ``s_cn``::

    trace_c = sum_n s_cn |g_cn|^2,        diagonal = sum_c sum_n s_cn g_cn^2   (by entry)

Linear layers and convolutions have ``g = D U'`` by group, with ``D`` the cotangent ``(O, L)`` and ``U`` the (unfolded)
input ``(I, L)`` at ``L`` tokens or positions: with ``L = 1`` neither needs the product, and the trace may take the
cheaper of the product and ``sum((D'D) * (U'U))``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from spectra.exact.capture import Use

# Bytes of the largest temporary tensor: what is squared at once should stay near the processor.
CHUNK_BYTES = 2**25

Sums = dict[int, tuple[torch.Tensor, torch.Tensor | None]]  # parameter -> trace (G,), diagonal in its shape; float64


def squares(use: Use, d: torch.Tensor, signs: torch.Tensor | None, samples: int, diagonal: bool) -> Sums:
    """The sums of a use's weight and bias.

    Args:
        use: the call.
        d: the cotangents of its output, ``(G, *shape)``.
        signs: ``(G, B)``; None: all 1.
        samples: ``B``.
        diagonal: whether the diagonal is wanted, else only the trace.
    """
    if use.kind == "embedding":
        return {} if use.weight is None else {use.weight: _embedding(use, d, signs, samples, diagonal)}
    if use.kind == "scale":
        return _scale(use, d, signs, samples, diagonal)
    found: Sums = {}
    columns = d.shape[0]
    channels = -1 if use.kind == "linear" else 2
    # (G, B, O, L): the positions of a sample are those of all its rows
    split = d.reshape(columns, samples, -1, *d.shape[2:]).movedim(channels if channels < 0 else channels + 1, 2)
    flat = split.reshape(columns, samples, split.shape[2], -1)
    if use.bias is not None:
        found[use.bias] = of_gradients(flat.sum(3), signs, diagonal)
    if use.weight is None:
        return found
    if use.kind == "linear":
        x = use.input.reshape(samples, -1, use.input.shape[-1]).mT  # (B, I, L)
        trace, entries = _products(flat[:, :, None], x[:, None], signs, diagonal)
        shape = (flat.shape[2], x.shape[1])
    else:
        trace, entries = _convolved(use, d, signs, samples, diagonal)
        shape = tuple(use.settings["weight"].shape)
    found[use.weight] = trace, None if entries is None else entries.reshape(shape)
    return found


def of_gradients(gradients: torch.Tensor, signs: torch.Tensor | None, diagonal: bool) -> tuple[Any, Any]:
    """The sums of gradients that are held: ``(G, B, *shape)``."""
    squared = gradients.to(torch.float64).square()
    if signs is not None:
        squared = squared * signs.to(squared).reshape(*signs.shape, *[1] * (squared.ndim - 2))
    trace = squared.reshape(len(squared), -1).sum(1)
    return trace, squared.sum((0, 1)) if diagonal else None


def _products(d: torch.Tensor, u: torch.Tensor, signs: torch.Tensor | None, diagonal: bool) -> tuple[Any, Any]:
    """The sums for gradients ``D U'``: ``d`` is ``(G, B, g, O, L)``, ``u`` is ``(B, g, I, L)``; ``(g, O, I)``."""
    columns, samples, groups, rows, positions = d.shape
    inner = u.shape[2]
    if positions == 1:
        d2, u2 = d[..., 0].square(), u[..., 0].square()  # (G, B, g, O), (B, g, I)
        if signs is not None:
            d2 = d2 * signs.to(d2)[:, :, None, None]
        trace = (d2.sum(3) * u2.sum(2)).to(torch.float64).sum((1, 2))
        if not diagonal:
            return trace, None
        return trace, torch.einsum("bgo,bgi->goi", d2.sum(0), u2).to(torch.float64)
    formed, gram = columns * rows * inner * positions, positions**2 * (columns * rows + inner)
    by_gram = not diagonal and gram < formed
    each = positions**2 * (columns + 1) if by_gram else columns * rows * inner
    step = max(1, CHUNK_BYTES // (each * groups * d.element_size()))
    trace = torch.zeros(columns, dtype=torch.float64, device=d.device)
    entries = torch.zeros(groups, rows, inner, dtype=torch.float64, device=d.device) if diagonal else None
    for start in range(0, samples, step):
        here = slice(start, start + step)
        left, right = d[:, here].movedim(0, 2), u[here]  # (b, g, G, O, L), (b, g, I, L)
        if by_gram:
            squared = (left.mT @ left) * (right.mT @ right)[:, :, None]  # (b, g, G, L, L)
        else:
            product = left.reshape(*left.shape[:2], columns * rows, positions) @ right.mT
            squared = product.square_().reshape(*left.shape[:4], inner)  # (b, g, G, O, I)
        if signs is None:
            trace += squared.sum((0, 1, 3, 4))
        else:
            weights = signs[:, here].to(squared)
            trace += torch.einsum("bgcoi,cb->c", squared, weights)
        if entries is not None:
            entries += squared.sum((0, 2)) if signs is None else torch.einsum("bgcoi,cb->goi", squared, weights)
    return trace, entries


def _convolved(use: Use, d: torch.Tensor, signs: torch.Tensor | None, samples: int, diagonal: bool) -> tuple[Any, Any]:
    """Convolutions, by the windows of the input; transposed ones by those of the cotangent, with the roles swapped."""
    x, weight, groups = use.input, use.settings["weight"], int(use.settings.get("groups", 1))
    kernel = weight.shape[2:]
    stride, dilation = (_each(use.settings.get(name, 1), len(kernel)) for name in ("stride", "dilation"))
    padding = _padding(use.settings.get("padding", 0), kernel, dilation)
    transposed = use.kind == "conv_transpose"
    seen, count = (d.flatten(0, 1), x.shape[2:]) if transposed else (x, d.shape[3:])
    step = max(1, CHUNK_BYTES // (math.prod(kernel) * math.prod(count) * seen.shape[1] * seen.element_size()))
    columns, per_sample = d.shape[0], x.shape[0] // samples
    if transposed:
        step = max(1, step // (columns * per_sample)) * per_sample
    else:
        step = max(1, step // per_sample) * per_sample
    totals: list[Any] = [0.0, 0.0 if diagonal else None]
    for start in range(0, x.shape[0], step):
        rows = slice(start, start + step)
        mine = None if signs is None else signs[:, start // per_sample : (start + step) // per_sample]
        part = d[:, rows]
        many = part.shape[1] // per_sample  # samples in this chunk
        if transposed:
            windows = unfolded(part.flatten(0, 1), kernel, stride, dilation, padding, count)
            columns_of = _grouped(windows, columns, many, groups)  # (G, b, g, Cout/g k, L)
            inputs = _grouped(x[rows].flatten(2), 1, many, groups)[0]  # (b, g, Cin/g, L)
            trace, entries = _products(columns_of, inputs, mine, diagonal)
            entries = None if entries is None else entries.mT  # (g, Cin/g, Cout/g k)
        else:
            windows = unfolded(x[rows], kernel, stride, dilation, padding, count)
            outputs = _grouped(part.flatten(0, 1).flatten(2), columns, many, groups)
            trace, entries = _products(outputs, _grouped(windows, 1, many, groups)[0], mine, diagonal)
        totals[0] = totals[0] + trace
        totals[1] = None if entries is None else totals[1] + entries
    return totals[0], totals[1]


def _grouped(rows: torch.Tensor, columns: int, samples: int, groups: int) -> torch.Tensor:
    """``(G b r, g C, l)`` as ``(G, b, g, C, r l)``: the rows of a sample become positions."""
    split = rows.reshape(columns, samples, -1, groups, rows.shape[1] // groups, rows.shape[2])
    return split.permute(0, 1, 3, 4, 2, 5).reshape(columns, samples, groups, split.shape[4], -1)


def unfolded(
    x: torch.Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[tuple[int, int]],
    count: Sequence[int],
) -> torch.Tensor:
    """The windows that a convolution sees: ``(B, C, *S)`` to ``(B, C prod(kernel), prod(count))``, in any dimension."""
    padded = F.pad(x, [side for pair in reversed(list(padding)) for side in pair]).contiguous()
    batch, channels = padded.stride()[:2]
    steps = padded.stride()[2:]
    windows = padded.as_strided(
        (*padded.shape[:2], *kernel, *count),
        (batch, channels, *(s * a for s, a in zip(steps, dilation)), *(s * a for s, a in zip(steps, stride))),
    )
    return windows.reshape(x.shape[0], x.shape[1] * math.prod(kernel), math.prod(count))


def _each(value: Any, dimensions: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * dimensions if len(values) == 1 else values


def _padding(value: Any, kernel: Sequence[int], dilation: Sequence[int]) -> list[tuple[int, int]]:
    if value == "valid":
        return [(0, 0)] * len(kernel)
    if value == "same":
        totals = [a * (k - 1) for a, k in zip(dilation, kernel)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(p, p) for p in _each(value, len(kernel))]


def _scale(use: Use, d: torch.Tensor, signs: torch.Tensor | None, samples: int, diagonal: bool) -> Sums:
    """The affine part of a normalisation: gradients ``sum d * xhat`` and ``sum d`` over the positions of a sample."""
    shaped = next(use.settings[name] for name in ("weight", "bias") if use.settings.get(name) is not None)
    columns, shape = d.shape[0], tuple(shaped.shape)
    last = use.function is F.layer_norm  # over the trailing dimensions; else over the channels, dimension 1

    def by_sample(tensor: torch.Tensor) -> torch.Tensor:
        split = tensor.reshape(tensor.shape[0], samples, -1, *tensor.shape[2:])
        if last:
            return split.reshape(tensor.shape[0], samples, -1, *shape).sum(2)
        return split.reshape(*split.shape[:4], -1).sum((2, 4))

    found: Sums = {}
    if use.bias is not None:
        found[use.bias] = of_gradients(by_sample(d), signs, diagonal)
    if use.weight is not None:
        settings = use.settings | {"weight": None, "bias": None}
        normal = use.function(**settings)
        gradients = torch.stack([by_sample((d[column] * normal)[None])[0] for column in range(columns)])
        found[use.weight] = of_gradients(gradients, signs, diagonal)
    return found


def _embedding(use: Use, d: torch.Tensor, signs: torch.Tensor | None, samples: int, diagonal: bool) -> tuple[Any, Any]:
    """A row for each token: what a sample holds of one token adds up before it is squared."""
    table = use.settings["weight"]
    tokens = use.input.reshape(samples, -1).to(torch.int64)
    columns, width = d.shape[0], table.shape[1]
    of_row = torch.arange(samples, device=tokens.device)[:, None] * table.shape[0]
    pairs, place = (of_row + tokens).reshape(-1).unique(return_inverse=True)
    gradients = torch.zeros(columns, len(pairs), width, dtype=torch.float64, device=d.device)
    gradients.index_add_(1, place, d.reshape(columns, -1, width).to(torch.float64))
    sample, token = pairs // table.shape[0], pairs % table.shape[0]
    squared = gradients.square_()
    padding = use.settings.get("padding_idx")
    if padding is not None:
        squared = squared * (token != padding % table.shape[0]).to(squared)[None, :, None]
    if signs is not None:
        squared = squared * signs.to(squared)[:, sample, None]
    if not diagonal:
        return squared.sum((1, 2)), None
    entries = torch.zeros(table.shape, dtype=torch.float64, device=d.device).index_add_(0, token, squared.sum(0))
    return squared.sum((1, 2)), entries
