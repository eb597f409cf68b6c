"""Sums of squared per-sample gradients, from the input of one call and the cotangents of its output.

For ``G`` columns ``c`` and ``B`` samples ``n``, with ``g_cn`` the gradient of a parameter tensor from sample ``n``
alone and signs ``s_cn``::

    diagonal = sum_c sum_n s_cn g_cn^2  (by entry),        trace = sum_c sum_n s_cn |g_cn|^2

Linear layers and convolutions have ``g = D U'`` by group, with ``D`` the cotangent ``(O, L)`` and ``U`` the (unfolded)
input ``(I, L)`` at ``L`` tokens or positions: with ``L = 1`` neither needs the product, and the trace may take the
cheaper of the product and ``sum((D'D) * (U'U))``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from spectra.exact.capture import Use

# Bytes of the largest temporary tensor, small enough for the processor's caches.
CHUNK_BYTES = 2**22

Sums = dict[int, tuple[torch.Tensor, torch.Tensor | None]]  # parameter -> trace (), diagonal in its shape; float64


def squares(
    use: Use, cotangents: Sequence[torch.Tensor], signs: torch.Tensor | None, samples: int, diagonal: bool
) -> Sums:
    """The sums of a use's weight and bias.

    Args:
        use: the call.
        cotangents: those of its output for ``G`` columns, each in its shape.
        signs: ``(G, B)``; None: all 1.
        samples: ``B``.
        diagonal: whether the diagonal is wanted, else only the trace.
    """
    if use.kind == "embedding":
        return {} if use.weight is None else {use.weight: _embedding(use, cotangents, signs, samples, diagonal)}
    if use.kind == "scale":
        return _scale(use, cotangents, signs, samples, diagonal)
    sums: Sums = {}
    shape = use.settings["weight"].shape
    vectors = use.kind == "linear" and use.input.numel() == samples * use.input.shape[-1]
    if use.bias is not None or vectors:
        channel = -1 if use.kind == "linear" else 1
        squared = _squared([summed(d, samples, channel) for d in cotangents], signs)  # (B, O)
        if use.bias is not None:
            sums[use.bias] = _total(squared.sum(0, dtype=torch.float64), diagonal)
        if use.weight is not None and vectors:
            # One vector per sample: |d|^2 |x|^2, and entries (d^2)' (x^2) by one product for all columns.
            x2 = use.input.reshape(samples, -1).square()
            if diagonal:
                sums[use.weight] = _total((squared.T @ x2).to(torch.float64), diagonal)
            else:
                sums[use.weight] = (squared.sum(1) * x2.sum(1)).sum(dtype=torch.float64), None
    if use.weight is not None and not vectors:
        run = _tokens if use.kind == "linear" else _convolved
        trace, entries = run(use, cotangents, signs, samples, diagonal)
        sums[use.weight] = trace, None if entries is None else entries.reshape(shape)
    return sums


def _squared(vectors: Sequence[torch.Tensor], signs: torch.Tensor | None) -> torch.Tensor:
    """``sum_c s_cn d_cn^2``, ``(B, O)``."""
    total = torch.zeros_like(vectors[0])
    for index, d in enumerate(vectors):
        total.addcmul_(d, d if signs is None else d * signs[index].to(d)[:, None])
    return total


def _total(entries: torch.Tensor, diagonal: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    return entries.sum(), entries if diagonal else None


def summed(d: torch.Tensor, samples: int, channel: int) -> torch.Tensor:
    """``(B, channels)``: the sum over all else."""
    if d.ndim == 2 and len(d) == samples:
        return d
    last = d.movedim(channel, -1)
    return last.reshape(samples, -1, last.shape[-1]).sum(1)


def of_gradients(
    gradients: torch.Tensor, signs: torch.Tensor | None, diagonal: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The sums of gradients that are held: ``(G, B, *shape)``."""
    squared = gradients.square()
    if signs is not None:
        squared = squared * signs.to(squared).reshape(*signs.shape, *[1] * (squared.ndim - 2))
    return _total(squared.sum((0, 1), dtype=torch.float64), diagonal)


def _products(d: torch.Tensor, u: torch.Tensor, signs: torch.Tensor | None, diagonal: bool) -> tuple[Any, Any]:
    """The sums for gradients ``D U'``: ``d`` is ``(b, g, G, O, L)``, ``u`` is ``(b, g, I, L)``; entries ``(g, O, I)``.

    The trace takes the cheaper of forming the product (``G O I L`` multiplications for each sample) and the Gram
    matrices of both factors (``L^2 (G O + I)``).
    """
    samples, groups, columns, rows, positions = d.shape
    inner = u.shape[2]
    weights = None if signs is None else signs.to(d).T[:, None, :, None, None]  # (b, 1, G, 1, 1)
    flat = d.reshape(samples, groups, columns * rows, positions)
    if not diagonal and positions * (columns * rows + inner) < columns * rows * inner:
        signed = flat if weights is None else (d * weights).reshape(flat.shape)
        return ((signed.mT @ flat) * (u.mT @ u)).sum(dtype=torch.float64), None
    squared = (flat @ u.mT).square_().reshape(samples, groups, columns, rows, inner)
    if weights is not None:
        squared = squared * weights
    if diagonal:
        return _total(squared.sum((0, 2)).to(torch.float64), diagonal)
    return squared.sum(dtype=torch.float64), None


def _added(parts: Iterable[tuple[Any, Any]]) -> tuple[Any, Any]:
    trace, entries = None, None
    for part, more in parts:
        trace = part if trace is None else trace + part
        entries = more if entries is None else entries.add_(more)
    return trace, entries


def _tokens(
    use: Use, cotangents: Sequence[torch.Tensor], signs: torch.Tensor | None, samples: int, diagonal: bool
) -> tuple[Any, Any]:
    """Linear layers on several vectors per sample."""
    x = use.input.reshape(samples, -1, use.input.shape[-1])  # (B, L, I)
    columns, positions, inner = len(cotangents), x.shape[1], x.shape[2]
    outer = cotangents[0].shape[-1]
    bytes_per_sample = (
        x.element_size() * columns * max(outer * inner if diagonal else 0, outer * positions, positions**2)
    )
    step = max(1, CHUNK_BYTES // bytes_per_sample)

    def parts() -> Iterator[tuple[Any, Any]]:
        for start in range(0, samples, step):
            chunk = slice(start, start + step)
            d = torch.stack([c.reshape(samples, positions, outer)[chunk] for c in cotangents], 1)  # (b, G, L, O)
            chunk_signs = None if signs is None else signs[:, chunk]
            yield _products(d.mT[:, None], x[chunk].mT[:, None], chunk_signs, diagonal)

    return _added(parts())


def _convolved(
    use: Use, cotangents: Sequence[torch.Tensor], signs: torch.Tensor | None, samples: int, diagonal: bool
) -> tuple[Any, Any]:
    """Convolutions, by the windows of the input; transposed ones by those of the cotangent, with the roles swapped."""
    x, weight, groups = use.input, use.settings["weight"], int(use.settings.get("groups", 1))
    kernel = weight.shape[2:]
    stride, dilation = (each_of(use.settings.get(name, 1), len(kernel)) for name in ("stride", "dilation"))
    padding = padding_of(use.settings.get("padding", 0), kernel, dilation)
    per_sample, columns, out = x.shape[0] // samples, len(cotangents), cotangents[0]
    transposed = use.kind == "conv_transpose"
    count = x.shape[2:] if transposed else out.shape[2:]
    unfolded_channels = columns * out.shape[1] if transposed else x.shape[1]
    product = columns * weight.numel() if diagonal else 0
    entries_per_sample = per_sample * max(
        math.prod(kernel) * math.prod(count) * unfolded_channels, columns * math.prod(out.shape[1:])
    )
    step = max(1, CHUNK_BYTES // (max(entries_per_sample, product) * x.element_size()))  # samples at once

    def windows(tensor: torch.Tensor) -> torch.Tensor:
        return unfolded(tensor, kernel, stride, dilation, padding, count)

    def parts() -> Iterator[tuple[Any, Any]]:
        for start in range(0, samples, step):
            rows = slice(start * per_sample, (start + step) * per_sample)
            chunk_signs = None if signs is None else signs[:, start : start + step]
            chunk = x[rows]
            chunk_samples = len(chunk) // per_sample
            if transposed:
                d = torch.stack([grouped(windows(c[rows]), chunk_samples, groups) for c in cotangents], 2)
                trace, entries = _products(d, grouped(chunk.flatten(2), chunk_samples, groups), chunk_signs, diagonal)
                yield trace, None if entries is None else entries.mT.contiguous()  # (g, Cin/g, Cout/g k)
            else:
                d = torch.stack([grouped(c[rows].flatten(2), chunk_samples, groups) for c in cotangents], 2)
                yield _products(d, grouped(windows(chunk), chunk_samples, groups), chunk_signs, diagonal)

    return _added(parts())


def grouped(rows: torch.Tensor, samples: int, groups: int) -> torch.Tensor:
    """``(b r, g C, l)`` as ``(b, g, C, r l)``: the rows of a sample become positions."""
    split = rows.reshape(samples, -1, groups, rows.shape[1] // groups, rows.shape[2])
    return split.permute(0, 2, 3, 1, 4).reshape(samples, groups, split.shape[3], -1)


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


def each_of(value: Any, dimensions: int) -> list[int]:
    """A setting of a convolution for each of its dimensions."""
    values = [value] if isinstance(value, int) else list(value)
    return values * dimensions if len(values) == 1 else values


def padding_of(value: Any, kernel: Sequence[int], dilation: Sequence[int]) -> list[tuple[int, int]]:
    """What a convolution adds on both sides of each dimension."""
    if value == "valid":
        return [(0, 0)] * len(kernel)
    if value == "same":
        totals = [a * (k - 1) for a, k in zip(dilation, kernel)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(p, p) for p in each_of(value, len(kernel))]


def _scale(
    use: Use, cotangents: Sequence[torch.Tensor], signs: torch.Tensor | None, samples: int, diagonal: bool
) -> Sums:
    """The affine part of a normalisation: gradients ``sum d * xhat`` and ``sum d`` over the positions of a sample."""
    shaped = next(use.settings[name] for name in ("weight", "bias") if use.settings.get(name) is not None)
    shape = tuple(shaped.shape)

    def by_sample(d: torch.Tensor) -> torch.Tensor:
        if use.function is F.layer_norm:  # over the trailing dimensions; else over the channels, dimension 1
            return d.reshape(samples, -1, *shape).sum(1)
        return summed(d, samples, 1)

    sums: Sums = {}
    if use.bias is not None:
        sums[use.bias] = of_gradients(torch.stack([by_sample(d) for d in cotangents]), signs, diagonal)
    if use.weight is not None:
        normal = use.function(**(use.settings | {"weight": None, "bias": None}))
        gradients = torch.stack([by_sample(d * normal) for d in cotangents])
        sums[use.weight] = of_gradients(gradients, signs, diagonal)
    return sums


def _embedding(
    use: Use, cotangents: Sequence[torch.Tensor], signs: torch.Tensor | None, samples: int, diagonal: bool
) -> tuple[Any, Any]:
    """One row per token: the gradients of repeated tokens of a sample are summed before squaring."""
    table = use.settings["weight"]
    size, width = table.shape
    tokens = use.input.reshape(samples, -1).to(torch.int64)
    of_sample = torch.arange(samples, device=tokens.device)[:, None] * size
    pairs, place = (of_sample + tokens).reshape(-1).unique(return_inverse=True)
    sample, token = pairs // size, pairs % size
    padding = use.settings.get("padding_idx")
    total = torch.zeros(len(pairs), width, dtype=torch.float64, device=table.device)
    for index, d in enumerate(cotangents):
        gradients = torch.zeros_like(total).index_add_(0, place, d.reshape(-1, width).to(torch.float64))
        total.addcmul_(gradients, gradients if signs is None else gradients * signs[index].to(total)[sample, None])
    if padding is not None:
        total *= (token != padding % size).to(total)[:, None]
    if not diagonal:
        return total.sum(), None
    entries = torch.zeros(table.shape, dtype=torch.float64, device=table.device).index_add_(0, token, total)
    return _total(entries, diagonal)
