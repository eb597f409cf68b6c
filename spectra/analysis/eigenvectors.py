"""The analysis of the leading eigenvectors of a record: shares of tensors, of the gradient and of the classes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from spectra.errors import SpectraError
from spectra.exact.classes import class_forms
from spectra.operators.curvature import CurvatureOperator
from spectra.operators.ggn import GGNOperator
from spectra.operators.point import total_gradient
from spectra.runtime.exclusive import exclusively
from spectra.runtime.faults import refusal_in
from spectra.runtime.phases import phase
from spectra.spectrum.eigenpairs import Eigenpairs
from spectra.spectrum.eigenvector_analysis import EigenvectorAnalysis, subspace_bounds


def analyse_eigenvectors(
    operator: CurvatureOperator, pairs: Eigenpairs | None, vectors: np.ndarray | None
) -> EigenvectorAnalysis | None:
    """The shares of tensors, of the gradient and of the classes in the eigenvectors; None without eigenvectors.

    It costs a gradient and a product, and for a Hessian or Gauss-Newton matrix with class targets about half of a
    product with the Gauss-Newton matrix per vector.

    Args:
        operator: on the training data.
        pairs: its eigenpairs.
        vectors: their vectors, (n, K).
    """
    if pairs is None or vectors is None:
        return None
    phase("eigenvectors")
    with operator.prepared():
        found = _shares(operator, pairs, vectors)
        if operator.kind not in ("hessian", "ggn"):
            return found
        try:
            return _with_classes(found, operator, pairs, vectors)
        except SpectraError as error:
            return replace(found, class_reason=refusal_in(error))


@exclusively
def _shares(operator: CurvatureOperator, pairs: Eigenpairs, vectors: np.ndarray) -> EigenvectorAnalysis:
    """The shares of tensors and of the gradient."""
    sizes = operator.tensor_sizes
    starts = np.cumsum([0, *sizes.values()])[:-1]
    gradient = total_gradient(operator)
    norm, along = float(gradient.norm()), gradient.cpu().numpy()
    tensors, cosines = [], []
    for column in vectors.T:  # one at a time: a copy of all vectors in float64 may not fit
        vector = column.astype(np.float64)
        vector /= np.linalg.norm(vector)
        squares = np.add.reduceat(vector**2, starts)
        tensors.append(squares / squares.sum())
        cosines.append(float(vector @ along) / norm if norm > 0 else np.nan)
    curvature = error = None
    if norm > 0:
        unit = (gradient / norm).to(operator.torch_dtype)
        product = operator.apply(unit[None])[0].to(torch.float64)
        curvature = float(unit.double() @ product / unit.double().square().sum())
        error = operator.noise * max(pairs.scale, abs(curvature))
    return EigenvectorAnalysis(
        tensors=tuple(sizes),
        tensor_shares=np.stack(tensors, axis=1),
        gradient_norm=norm,
        gradient_shares=np.square(cosines),
        gradient_bounds=subspace_bounds(pairs),
        gradient_curvature=curvature,
        curvature_error=error,
    )


def _with_classes(
    found: EigenvectorAnalysis, operator: CurvatureOperator, pairs: Eigenpairs, vectors: np.ndarray
) -> EigenvectorAnalysis:
    """The same with the attribution of ``v'Gv`` to classes; and for the Hessian, what is beyond ``v'Gv``."""
    ggn = operator
    if not isinstance(operator, GGNOperator):
        ggn = GGNOperator(operator.task, operator.bn_mode, dtype=operator.torch_dtype, params=operator.params)
        ggn.function.adopt(operator.function)
    assert isinstance(ggn, GGNOperator)
    by_class = class_forms(ggn, vectors.T)
    beyond = None
    if operator.kind == "hessian":
        beyond = pairs.values - by_class.forms.sum(axis=0) - operator.task.l2
    return replace(
        found,
        labels=by_class.labels,
        label_weights=by_class.weights,
        class_forms=by_class.forms,
        beyond_ggn=beyond,
        forms_error=(operator.noise + ggn.noise) * pairs.scale,
    )
