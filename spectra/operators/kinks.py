"""Kinks: which piece of every piecewise-linear function the network is on, and how many change over a displacement.

Second derivatives by autograd are those of the piece that is active. They leave out the jumps of the gradient between
the pieces, so a count of the pieces that change tells how far these derivatives hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from spectra.operators.function import LossFunction
from spectra.operators.passes import Passes
from spectra.runtime.exclusive import exclusively

Piece = Callable[[Any, Sequence[Any]], torch.Tensor | None]  # (result, arguments) -> a number per unit


def _above(*points: float) -> Piece:
    """The number of these points that an input is above."""
    return lambda result, arguments: _pieces_of(arguments[0], points)


def _pieces_of(x: torch.Tensor, points: Sequence[Any]) -> torch.Tensor:
    return torch.stack([(x > point).to(torch.uint8) for point in points]).sum(0, dtype=torch.uint8)


def _between(result: Any, arguments: Sequence[Any]) -> torch.Tensor | None:
    return _pieces_of(arguments[0], [bound for bound in arguments[1:3] if bound is not None])


def _hardtanh(result: Any, arguments: Sequence[Any]) -> torch.Tensor | None:
    return _between(result, arguments if len(arguments) > 1 else [arguments[0], -1.0, 1.0])


def _shrunk(result: Any, arguments: Sequence[Any]) -> torch.Tensor | None:
    x, width = arguments[0], float(arguments[1]) if len(arguments) > 1 else 0.5
    return _above(-width, width)(result, (x,))


def _elu(result: Any, arguments: Sequence[Any]) -> torch.Tensor | None:
    alpha, input_scale = (arguments[i] if len(arguments) > i else 1.0 for i in (1, 3))
    return None if alpha * input_scale == 1 else arguments[0] > 0  # None: the slope is continuous


def _indices(result: Any, arguments: Sequence[Any]) -> torch.Tensor | None:
    return result[1]  # type: ignore[no-any-return]


def _largest(result: Any, arguments: Sequence[Any]) -> torch.Tensor | None:
    x, dims = arguments[0], arguments[1] if len(arguments) > 1 else None
    dims = [dims] if isinstance(dims, int) else list(dims or [])
    return x.argmax(dims[0]) if len(dims) == 1 else x.argmax() if not dims else None


# The name of an operation of torch's dispatcher -> its pieces. In-place and out-of-place forms have the same.
_PIECES: dict[str, Piece] = {
    **dict.fromkeys(("relu", "leaky_relu", "prelu", "_prelu_kernel", "abs", "rrelu_with_noise"), _above(0.0)),
    **dict.fromkeys(("hardswish", "hardsigmoid"), _above(-3.0, 3.0)),
    **dict.fromkeys(("softshrink", "hardshrink"), _shrunk),
    **dict.fromkeys(("clamp", "clamp_min", "clamp_max"), _between),
    "hardtanh": _hardtanh,
    "elu": _elu,
    "threshold": lambda result, arguments: arguments[0] > arguments[1],
    "maximum": lambda result, arguments: arguments[0] > arguments[1],
    "minimum": lambda result, arguments: arguments[0] > arguments[1],
    "amax": _largest,
    "amin": lambda result, arguments: _largest(result, (-arguments[0], *arguments[1:])),
    **dict.fromkeys(("max_pool2d_with_indices", "max_pool3d_with_indices"), _indices),
    **dict.fromkeys(("adaptive_max_pool2d", "adaptive_max_pool3d"), _indices),
}


class _Pieces(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records, while active, the pieces of every call of a piecewise-linear function."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[torch.Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        piece = _PIECES.get(name) or _PIECES.get(name.removesuffix("_"))
        x = args[0] if args else None
        if name == "max" and len(args) > 1:
            piece = _indices if func._overloadname == "dim" else None
        if piece is None or not (isinstance(x, torch.Tensor) and x.is_floating_point() and x.numel()):
            return func(*args, **(kwargs or {}))
        own = _kept(args) if name.endswith("_") else args  # before it is overwritten
        result = func(*args, **(kwargs or {}))
        pieces = piece(result, (*own, *(v for k, v in (kwargs or {}).items() if k in ("min", "max"))))
        if pieces is not None:
            self.found.append(pieces.detach())
        return result


def _kept(arguments: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(a.clone() if isinstance(a, torch.Tensor) else a for a in arguments)


class Switches:
    """Counts the pairs of a sample and a unit of piecewise-linear functions whose piece changes over a displacement.

    A unit is an entry of the input of ReLU, LeakyReLU, clamp and the like, or of the output of max pooling. Functions
    of the user that choose a piece by themselves (``torch.where``, a custom autograd function) are not seen.

    Args:
        function: the loss; its parameters move and return.
        passes: over the data.
    """

    def __init__(self, function: LossFunction, passes: Passes) -> None:
        self.function, self.passes = function, passes

    @exclusively
    def share(self, theta: torch.Tensor, direction: torch.Tensor, steps: Sequence[float]) -> tuple[int, list[float]]:
        """The number of pairs, and for each step the share of them on another piece than at ``theta``.

        Args:
            theta: ``(n,)``, the parameters.
            direction: ``(n,)``, in the dtype of ``theta``.
            steps: along the direction.

        Returns:
            ``(pairs, shares)``; without piecewise-linear functions ``(0, zeros)``. A share is NaN if the calls differ
            between the two points.
        """
        pairs, changed = 0, [0.0] * len(steps)
        try:
            with self.function.evaluation():
                for batch, _ in self.passes.batches():
                    at_centre = self._pieces(batch, theta)
                    pairs += sum(piece.numel() for piece in at_centre)
                    if not at_centre:
                        continue
                    for index, step in enumerate(steps):
                        changed[index] += _changes(at_centre, self._pieces(batch, theta + step * direction))
        finally:
            self.function.move_to(theta)
        return pairs, [change / pairs if pairs else 0.0 for change in changed]

    def _pieces(self, batch: Any, theta: torch.Tensor) -> list[torch.Tensor]:
        self.function.move_to(theta)
        with recorded_pieces() as found:
            self.function.loss(batch)
        return found


@contextmanager
def recorded_pieces() -> Iterator[list[torch.Tensor]]:
    """A list that receives the pieces of each call of a piecewise-linear function within the block."""
    with _Pieces() as mode:
        yield mode.found


def _changes(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> float:
    if [piece.shape for piece in before] != [piece.shape for piece in after]:
        return float("nan")
    return float(sum(int((a != b).sum()) for a, b in zip(before, after)))
