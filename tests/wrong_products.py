"""Products that are wrong by a factor, which the cross-checks must find."""

from __future__ import annotations

from collections.abc import Callable


def multiplied(factor: float, product: Callable) -> Callable:
    """A product with a batch, as `linearise` returns it, times a factor."""
    return lambda vector: [None if piece is None else factor * piece for piece in product(vector)]
