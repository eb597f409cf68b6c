"""Wanted: which eigenvalues a search is for, and how far the others are from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Wanted:
    """``k`` eigenvalues at an end of the spectrum."""

    which: str  # "LA", "SA", "LM" or "BE", as in SciPy
    k: int

    def choose(self, values: np.ndarray, bonus: np.ndarray | float = 0.0) -> np.ndarray:
        """The indices of the ``k`` wanted values, the most wanted first; for BE the upper end, then the lower.

        Args:
            values: (any number,).
            bonus: added to the values in favour of being chosen.
        """
        if self.which == "LM":
            return np.argsort(-(np.abs(values) + bonus), kind="stable")[: self.k]
        if self.which == "SA":
            return np.argsort(values - bonus, kind="stable")[: self.k]
        upper = np.argsort(-(values + bonus), kind="stable")
        if self.which == "LA":
            return upper[: self.k]
        count = (self.k + 1) // 2
        rest = upper[count:]
        lower = rest[np.argsort((values - bonus)[rest], kind="stable")][: self.k - count]
        return np.concatenate([upper[:count], lower])

    def ends(self, nodes: np.ndarray) -> list[int]:
        """The indices of the best of ascending values at each wanted end."""
        last = len(nodes) - 1
        if self.which == "LM":
            return [int(np.argmax(np.abs(nodes)))]
        upper, lower = self.which in ("LA", "BE"), self.which == "SA" or (self.which == "BE" and self.k > 1)
        return [last] * upper + [0] * lower

    def gaps(self, nodes: np.ndarray, values: np.ndarray) -> np.ndarray:
        """The distance of the best of ascending nodes to the least extreme of the wanted values, at each end."""
        chosen = values[self.choose(values)]
        if self.which == "LM":
            gaps = [np.abs(chosen).min() - np.abs(nodes).max()]
        elif self.which == "LA":
            gaps = [chosen.min() - nodes[-1]]
        elif self.which == "SA":
            gaps = [nodes[0] - chosen.max()]
        else:
            upper = (self.k + 1) // 2
            gaps = [chosen[:upper].min() - nodes[-1]]
            gaps += [nodes[0] - chosen[upper:].max()] if self.k > 1 else []
        return np.maximum(gaps, 0.0)
