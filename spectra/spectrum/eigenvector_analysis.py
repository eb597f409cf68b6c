"""EigenvectorAnalysis: shares of parameter tensors, of the gradient and of the classes in the leading eigenvectors."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np

from spectra.errors import ArgumentError, NumericsError
from spectra.jsonable import to_jsonable
from spectra.spectrum.eigenpairs import Eigenpairs

#: How exactly `eigsh` resolves the first eigenvalue after the wanted ones, relative to its distance to them.
_UNRESOLVED = 0.1


@dataclass(frozen=True, eq=False)
class EigenvectorAnalysis:
    """Shares of parameter tensors, of the gradient and of the classes in ``K`` computed unit eigenvectors ``v_k``.

    All numbers are of the computed vectors. ``gradient_bounds`` relates them to the exact eigenspaces.

    Raises:
        ArgumentError: shapes that do not belong together.
        NumericsError: NaN or infinity among the shares of tensors or the forms of classes.
    """

    tensors: tuple[str, ...]  # names of the T parameter tensors
    tensor_shares: np.ndarray  # (T, K), the squared norm of v_k in each tensor; each column sums to 1
    gradient_norm: float  # |g|, of the loss with its l2 term
    gradient_shares: np.ndarray  # (K,), (v_k'g)^2 / |g|^2; NaN where the gradient is zero
    gradient_bounds: np.ndarray  # (K,), of `gradient_cumulative`, see :func:`subspace_bounds`; NaN: none is known
    gradient_curvature: float | None  # g'Mg / |g|^2 of the record's matrix M; None where the gradient is zero
    curvature_error: float | None  # a bound of the arithmetic error of it
    labels: np.ndarray | None = None  # (C,), the classes that have targets; None: no attribution to classes
    label_weights: np.ndarray | None = None  # (C,), the fraction of each class in the weight of the data; sums to 1
    class_forms: np.ndarray | None = None  # (C, K), the part of v_k'Gv_k that comes from the targets of each class
    beyond_ggn: np.ndarray | None = None  # (K,), v_k'Mv_k - v_k'Gv_k, where the matrix M is the Hessian
    forms_error: float | None = None  # a bound of the arithmetic error of each v_k'Gv_k, and of v_k'(M - G)v_k
    class_reason: str | None = None  # why there is no attribution to classes

    def __post_init__(self) -> None:
        tensors, pairs = len(self.tensors), np.size(self.gradient_shares)
        classes = 0 if self.labels is None else np.size(self.labels)
        shapes = {
            "tensor_shares": (tensors, pairs),
            **dict.fromkeys(("gradient_shares", "gradient_bounds", "beyond_ggn"), (pairs,)),
            "label_weights": (classes,),
            "class_forms": (classes, pairs),
        }
        for name, shape in shapes.items():
            if (value := getattr(self, name)) is None:
                continue
            array = np.asarray(value, dtype=np.float64)
            if array.shape != shape:
                raise ArgumentError(f"{name} has shape {array.shape}: {shape} is needed")
            if len(shape) == 2 and not np.isfinite(array).all():
                raise NumericsError(f"{name} has NaN or infinite entries")
            object.__setattr__(self, name, array)
        if self.labels is not None:
            object.__setattr__(self, "labels", np.asarray(self.labels, dtype=np.int64))
            if self.class_forms is None or self.label_weights is None:
                raise ArgumentError("labels without a form and a weight of each class")

    @property
    def effective_tensors(self) -> np.ndarray:
        """(K,) the effective number of tensors of each vector, ``1 / sum_t p_t^2``: from 1 to T."""
        return np.asarray(1 / (self.tensor_shares**2).sum(axis=0))

    @property
    def gradient_cumulative(self) -> np.ndarray:
        """(K,) ``|V_k'g|^2 / |g|^2``: the share of the gradient in the span of the first ``k`` vectors."""
        return np.cumsum(self.gradient_shares)

    @property
    def class_shares(self) -> np.ndarray | None:
        """(C, K) the parts of the classes relative to ``v_k'Gv_k``; NaN where that is zero. None: no attribution."""
        if self.class_forms is None:
            return None
        totals = self.class_forms.sum(axis=0)
        return np.asarray(self.class_forms / np.where(totals == 0, np.nan, totals))

    def to_json(self) -> dict[str, Any]:
        """The fields and what follows from them as a dictionary for JSON."""
        classes: dict[str, Any] | None = None
        if self.class_forms is not None:
            classes = {
                "labels": self.labels,
                "weights": self.label_weights,
                "forms": self.class_forms,
                "shares": self.class_shares,
                "beyond_ggn": self.beyond_ggn,
                "error": self.forms_error,
            }
        found: dict[str, Any] = to_jsonable(
            {
                "tensors": self.tensors,
                "tensor_shares": self.tensor_shares,
                "effective_tensors": self.effective_tensors,
                "gradient": {
                    "norm": self.gradient_norm,
                    "shares": self.gradient_shares,
                    "cumulative": self.gradient_cumulative,
                    "bounds": self.gradient_bounds,
                    "curvature": self.gradient_curvature,
                    "curvature_error": self.curvature_error,
                },
                "classes": classes,
                "class_reason": self.class_reason,
            }
        )
        return found


def subspace_bounds(pairs: Eigenpairs) -> np.ndarray:
    """Bounds of ``| |V_k'x|^2 - |W_k'x|^2 |`` for unit vectors ``x``, with ``W_k`` the exact eigenvectors of ``V_k``.

    By the sin theta theorem of Davis and Kahan, the distance of the projectors is at most the norm of the residuals of
    the first ``k`` pairs (with the error of the products), divided by their distance to the other eigenvalues. These
    are not larger in magnitude than the next pair. After the last pair it is the largest Ritz value found orthogonal to
    all pairs, which ``eigsh`` resolves to a tenth of that distance. So a bound assumes that no eigenvalue is missing.

    Args:
        pairs: eigenpairs of largest magnitude (``which="LM"``).

    Returns:
        (K,) below 1; NaN where the eigenvalues are not separated, or it is not known that none is missing.

    References:
        C. Davis, W. Kahan, The rotation of eigenvectors by a perturbation III, SIAM J. Numer. Anal. 7 (1970).

    Example:
        >>> pairs = Eigenpairs([3.0, 2.0], [0.1, 0.1], [True, True], noise=0, complete=True, rest=[1.0, -0.5])
        >>> subspace_bounds(pairs).round(3)  # 0.1 / (3 - 2.1), then sqrt(0.02) / (0.9 (2 - 1))
        array([0.111, 0.157])
    """
    found = np.full(pairs.count, np.nan)
    if pairs.which != "LM" or not pairs.complete:
        return found
    reach = pairs.residuals + pairs.noise * pairs.scale
    sizes = np.abs(pairs.values)
    for k in range(1, pairs.count + 1):
        if k < pairs.count:
            following = float((sizes[k:] + reach[k:]).max())
        elif pairs.rest is not None and pairs.rest.size:
            best = float(np.abs(pairs.rest).max()) + pairs.noise * pairs.scale
            following = best + _UNRESOLVED * max(0.0, float(sizes.min()) - best)
        else:
            continue
        gap = float(sizes[:k].min()) - following
        distance = sqrt(float((reach[:k] ** 2).sum()))
        if gap > distance:
            found[k - 1] = distance / gap
    return found
