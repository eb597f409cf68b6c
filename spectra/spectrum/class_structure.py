"""ClassStructure: the parts of the Gauss-Newton matrix that class means and cross-class means of gradients explain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from spectra.errors import ArgumentError, NumericsError
from spectra.jsonable import to_jsonable


@dataclass(frozen=True, eq=False)
class ClassStructure:
    """The decomposition ``G = G_class + G_same + G_cross + G_within`` for cross-entropy with ``C`` classes, without l2.

    With ``p_i`` the softmax of target ``i`` of class ``c``, ``w_i`` its weight in the loss and
    ``delta_icd = J_i'(e_d - p_i)``, the matrix is a second moment: ``G = sum_i w_i sum_d p_id delta_icd delta_icd'``.
    Its means are ``delta_cd = sum_i w_i p_id delta_icd / w_cd`` with ``w_cd = sum_i w_i p_id`` over the targets of
    class ``c``, and ``delta_c = sum_{d != c} w_cd delta_cd / w_c`` with ``w_c = sum_{d != c} w_cd``. All four matrices
    are positive semidefinite::

        G_class = sum_c w_c delta_c delta_c'                             rank at most C
        G_same  = sum_c w_cc delta_cc delta_cc'                          in the same space: w_cc delta_cc = -w_c delta_c
        G_cross = sum_{c, d != c} w_cd (delta_cd - delta_c)(delta_cd - delta_c)'
        G_within = what varies among the targets of a class

    Raises:
        ArgumentError: shapes that do not belong together.
        NumericsError: NaN or infinity, or a negative weight.

    References:
        V. Papyan, Measurements of three-level hierarchical structure in the outliers in the spectrum of deepnet
        Hessians, ICML 2019; Traces of class/cross-class structure pervade deep learning spectra, JMLR 21 (2020).

    Example:
        >>> found = ClassStructure(np.arange(2), [0.25, 0.25], [0.25, 0.25], np.diag([4.0, 2.0]), 0.5, 4.0)
        >>> found.shares
        {'class': 0.375, 'same_class': 0.375, 'cross_class': 0.125, 'within': 0.125}
        >>> found.eigenvalues
        array([2., 1.])
    """

    labels: np.ndarray  # (C,), the classes that have targets
    other_weights: np.ndarray  # (C,), w_c: the weight that the softmax gives to other classes
    same_weights: np.ndarray  # (C,), w_cc: the weight that the softmax gives to the class itself
    gram: np.ndarray  # (C, C), delta_c'delta_d
    cross_class: float  # Tr G_cross
    total: float  # Tr G
    total_error: float | None = 0.0  # its standard error; 0: it is exact; None: of one probe, not known

    def __post_init__(self) -> None:
        count = np.size(self.labels)
        for name, shape in (("other_weights", (count,)), ("same_weights", (count,)), ("gram", (count, count))):
            array = np.asarray(getattr(self, name), dtype=np.float64)
            if array.shape != shape:
                raise ArgumentError(f"{name} has shape {array.shape}: {shape} is needed")
            if not np.isfinite(array).all() or (name != "gram" and (array < 0).any()):
                raise NumericsError(f"{name} has NaN or infinite entries, or negative weights")
            object.__setattr__(self, name, array)
        object.__setattr__(self, "labels", np.asarray(self.labels, dtype=np.int64))

    @property
    def _between_weights(self) -> np.ndarray:
        """(C,) the factor of ``delta_c delta_c'`` in ``G_class + G_same``."""
        own = np.where(self.same_weights > 0, self.same_weights, np.inf)
        return np.asarray(self.other_weights + self.other_weights**2 / own)

    @property
    def traces(self) -> dict[str, float]:
        """The traces of the four matrices; that of ``G_within`` is what the others leave of the total."""
        squares = np.diag(self.gram)
        of_class = float(self.other_weights @ squares)
        same = float(self._between_weights @ squares) - of_class
        parts = {"class": of_class, "same_class": same, "cross_class": self.cross_class}
        return parts | {"within": self.total - sum(parts.values())}

    @property
    def shares(self) -> dict[str, float]:
        """The traces relative to the total; NaN where that is zero."""
        return {name: trace / self.total if self.total else np.nan for name, trace in self.traces.items()}

    @property
    def class_eigenvalues(self) -> np.ndarray:
        """(C,) the eigenvalues of ``G_class`` that can differ from zero, descending."""
        return self._eigenvalues(self.other_weights)

    @property
    def eigenvalues(self) -> np.ndarray:
        """(C,) those of the between-class matrix ``G_class + G_same``; the k-th is at most the k-th of ``G``."""
        return self._eigenvalues(self._between_weights)

    def _eigenvalues(self, weights: np.ndarray) -> np.ndarray:
        roots = np.sqrt(weights)
        return np.linalg.eigvalsh(roots[:, None] * self.gram * roots)[::-1]

    def to_json(self) -> dict[str, Any]:
        """The fields and what follows from them as a dictionary for JSON."""
        names = ("labels", "other_weights", "same_weights", "gram", "total", "total_error", "traces", "shares")
        found: dict[str, Any] = to_jsonable(
            {name: getattr(self, name) for name in (*names, "class_eigenvalues", "eigenvalues")}
        )
        return found
