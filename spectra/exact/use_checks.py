"""Checks of recorded uses of parameters against autograd: no use was missed, and samples do not mix."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch

from spectra.exact.capture import Recorder, Use

# Of each side of the gradient of a linear layer; one already shows any difference almost surely.
PROJECTIONS = 4


def checked(
    recorder: Recorder,
    theta: Sequence[torch.Tensor],
    outputs: Sequence[torch.Tensor],
    flat: torch.Tensor,
    unflatten: Callable[[torch.Tensor], list[torch.Tensor]],
) -> tuple[set[int], set[int]]:
    """Verify the recorded uses by back-propagations of random cotangents.

    Two conditions must hold. For random cotangents on half of the samples, the cotangents of the recorded outputs
    vanish on the other half: the leading dimension is that of the samples, and samples do not mix. For cotangents on
    all samples, the gradients by the formula of each call equal autograd's: no use was missed (by a custom autograd
    function, for example).

    Args:
        recorder: the recorded uses.
        theta: the parameters.
        outputs: of the network, connected to the parameters.
        flat: random cotangents, ``(B, M)``.
        unflatten: maps them to tensors shaped like the outputs.

    Returns:
        Indices of the parameters with a verified use, and of those that need the fallback. The outputs do not depend on
        any other parameter.
    """
    usable = recorder.usable()
    uses = recorder.restricted(usable)
    edges = [use.edge for use in uses]
    half = torch.arange(len(flat), device=flat.device) % 2 == 0
    whole = _pull(outputs, [*edges, *theta], unflatten(flat))
    first = _pull(outputs, edges, unflatten(flat * half[:, None]))
    # Pulled back only if rounding depends on the other half, so that the two results above are not the same.
    second = cache(lambda: _pull(outputs, edges, unflatten(flat * ~half[:, None])))
    expected = whole[len(uses) :]
    idle: set[int] = set()  # met in a call on no rows at all, and nowhere else
    for place, use in enumerate(uses):
        members = [index for index in (use.weight, use.bias) if index is not None]
        d, d_first = whole[place], first[place]
        if d is not None and not d.numel() and not any(_moved(expected[index]) for index in members):
            idle |= set(members)
        apart = (
            d is not None
            and d_first is not None
            and _has_rows(use, d, len(flat))
            and not _any_elsewhere(d_first, half)
            and (torch.equal(_rows(d, half), _rows(d_first, half)) or not _any_elsewhere(second()[place], ~half))
        )
        if d is None or not apart:
            usable -= set(members)
        else:
            usable -= _differing(use, theta, d, {index: expected[index] for index in members})
    reached = {index for index, piece in enumerate(expected) if piece is not None}
    return usable, reached - usable - idle


def _pull(
    outputs: Sequence[torch.Tensor], inputs: Sequence[Any], cotangents: Sequence[torch.Tensor]
) -> tuple[torch.Tensor | None, ...]:
    if not inputs:
        return ()
    return torch.autograd.grad(outputs, inputs, cotangents, retain_graph=True, allow_unused=True)


def _has_rows(use: Use, d: torch.Tensor, samples: int) -> bool:
    """Whether the cotangent of a use's output has rows of samples, as its input does."""
    return d.numel() > 0 and d.shape[0] % samples == 0 and use.input.shape[0] % samples == 0


def _differing(
    use: Use, theta: Sequence[torch.Tensor], d: torch.Tensor, expected: Mapping[int, torch.Tensor | None]
) -> set[int]:
    """The parameters of a use whose gradients by autograd are not those of its input and cotangent alone.

    The weight's gradient in a linear layer, a sum of ``d x'``, is compared in random projections ``A' d x' B``.
    """
    gradients = {index: g for index, g in expected.items() if g is not None and not g.is_sparse}
    if len(gradients) < len(expected):
        return set(expected)
    if use.kind != "linear" or use.settings["weight"].ndim != 2:
        leaves = [None if i is None else theta[i].detach().requires_grad_() for i in (use.weight, use.bias)]
        with torch.enable_grad():
            output = use.replay(*leaves)
        replayed = torch.autograd.grad(output, [leaf for leaf in leaves if leaf is not None], d)
        return {index for (index, g), found in zip(gradients.items(), replayed) if not _close(found, g)}
    rows, x = d.reshape(-1, d.shape[-1]), use.input.reshape(-1, use.input.shape[-1])
    different = set()
    if use.weight is not None:
        g, generator = gradients[use.weight], torch.Generator().manual_seed(5)
        left, right = (
            torch.randn(size, PROJECTIONS, generator=generator, dtype=torch.float64).to(d) for size in g.shape
        )
        if not _close((rows @ left).T @ (x @ right), left.T @ (g @ right)):
            different.add(use.weight)
    if use.bias is not None and not _close(rows.sum(0), gradients[use.bias]):
        different.add(use.bias)
    return different


def _close(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    tolerance = 1e3 * torch.finfo(expected.dtype).eps
    return float((actual - expected).norm()) <= tolerance * float(actual.norm() + expected.norm())


def separated(
    uses: Sequence[Use],
    rest: Sequence[torch.Tensor],
    outputs: Sequence[torch.Tensor],
    flat: torch.Tensor,
    unflatten: Callable[[torch.Tensor], list[torch.Tensor]],
) -> bool:
    """Whether the recorded outputs of another batch keep the samples separate, by one back-propagation.

    For a batch whose calls have the same shapes as a verified one. A network that sorts or selects rows by content may
    still mix samples, and a parameter without effect before (``rest``) may have one. Arguments as in :func:`checked`.
    """
    if any(_moved(piece) for piece in _pull(outputs, rest, unflatten(flat))):
        return False
    even = torch.arange(len(flat), device=flat.device) % 2 == 0
    pulled = _pull(outputs, [use.edge for use in uses], unflatten(flat * even[:, None]))
    return not any(_any_elsewhere(d, even) for d in pulled)


def _moved(gradient: torch.Tensor | None) -> bool:
    return gradient is not None and bool((gradient != 0).any())


def _rows(d: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    return d.reshape(len(chosen), -1)[chosen]


def _any_elsewhere(d: torch.Tensor | None, chosen: torch.Tensor) -> bool:
    return d is None or bool((_rows(d, ~chosen) != 0).any())
