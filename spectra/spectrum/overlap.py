"""Overlap: the scalar products of the leading eigenvectors of two checkpoints, and of the spaces that they span."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan
from typing import Any

import numpy as np

from spectra.errors import ArgumentError
from spectra.jsonable import to_jsonable


@dataclass(frozen=True, eq=False)
class Overlap:
    """The scalar products of the eigenvectors of one checkpoint with those of an earlier one.

    Single entries mean little where eigenvalues are nearly equal, since their eigenvectors are defined only up to a
    rotation; :attr:`value` does not depend on it.

    Example:
        >>> turned = np.array([[1.0, 1.0], [1.0, -1.0]]) / np.sqrt(2)
        >>> round(overlap_of(np.eye(3, 2), np.vstack([turned, np.zeros(2)]), "epoch 0").value, 12)
        1.0
    """

    before: str  # the checkpoint of the earlier vectors
    matrix: np.ndarray | None = None  # (K_before, K) float64, |<v_i(before), v_j>|; None: not known
    reason: str | None = None  # why it is not known

    @property
    def value(self) -> float:
        """``|V'W|_F^2 / min(K_before, K)``: 1 where one space holds the other, ``K / n`` on average at random.

        References:
            G. Gur-Ari, D. Roberts, E. Dyer (2018), Gradient descent happens in a tiny subspace, arXiv:1812.04754.
        """
        return nan if self.matrix is None else float((self.matrix**2).sum()) / min(self.matrix.shape)

    @property
    def cosines(self) -> np.ndarray:
        """(min(K_before, K),) the largest entry of each row or column of the smaller side; empty if not known.

        Each is the largest cosine between one vector and any single vector of the other checkpoint.
        """
        if self.matrix is None:
            return np.zeros(0)
        best: np.ndarray = self.matrix.max(axis=int(self.matrix.shape[0] <= self.matrix.shape[1]))
        return best

    def to_json(self) -> dict[str, Any]:
        """The fields and the value as a dictionary for JSON."""
        found: dict[str, Any] = to_jsonable(
            {"before": self.before, "value": self.value, "matrix": self.matrix, "reason": self.reason}
        )
        return found


def overlap_of(before: np.ndarray, now: np.ndarray, words: str) -> Overlap:
    """The overlap of two sets of orthonormal vectors.

    Args:
        before: (n, K_before) columns.
        now: (n, K) columns.
        words: a name for the checkpoint of the first set.

    Raises:
        ArgumentError: vectors of different length.
    """
    if before.ndim != 2 or now.ndim != 2 or len(before) != len(now):
        raise ArgumentError(f"vectors of shapes {before.shape} and {now.shape}: columns of one length are needed")
    # Column by column: a copy of all vectors in float64 may not fit.
    matrix = np.array([[abs(np.dot(v.astype(np.float64), w.astype(np.float64))) for w in now.T] for v in before.T])
    return Overlap(words, matrix)
