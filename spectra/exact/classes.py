"""Quadratic forms of the Gauss-Newton matrix by class of the targets, for cross-entropy with class targets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from spectra.errors import TaskError
from spectra.operators.ggn import GGNOperator
from spectra.operators.jacobian import Jacobian, criterion_product, slope_of
from spectra.runtime.exclusive import exclusively
from spectra.task.averaging import ignored_class, kind_of
from spectra.task.batches import tensors_of

#: More classes than this are not attributed one by one.
MOST_CLASSES = 1000


@dataclass(frozen=True)
class ClassForms:
    """Quadratic forms ``v'Gv`` of the Gauss-Newton matrix, without the l2 term, by class."""

    labels: np.ndarray  # (C,) int64, the classes that have targets, ascending
    weights: np.ndarray  # (C,), the fraction of each class in the number of targets; sums to 1
    forms: np.ndarray  # (C, K), the sum over the targets of a class; each column sums to v'Gv


@exclusively
def class_forms(ggn: GGNOperator, vectors: Iterable[np.ndarray]) -> ClassForms:
    """The part of ``v'Gv`` that comes from the targets of each class, for vectors ``v``.

    ``v'Gv = sum_i u_i' A_i u_i`` with ``u = J v`` and ``A_i`` the Hessian of the criterion in the outputs of target
    ``i``, weighted as in the loss. Each term belongs to one target, and so to its class. It costs about half of a
    product per vector. Ignored targets have no term.

    Args:
        ggn: the Gauss-Newton matrix.
        vectors: ``K`` vectors ``(n,)``.

    Raises:
        TaskError: the criterion is not cross-entropy with class targets, or there are more than ``MOST_CLASSES``
            classes.
    """
    _ = ggn.self_test
    function, task = ggn.function, ggn.task
    divisor = task.divisor(task.survey().total_weight)
    rows = [torch.as_tensor(np.ascontiguousarray(v)).to(function.device, function.dtype) for v in vectors]
    forms = counts = torch.zeros(0)
    with function.evaluation():
        for batch, weight in ggn.batches():
            output, target = function.output(batch), task.target_of(batch)
            logits, kept = class_targets(task.criterion, output, target)
            if not counts.numel():
                counts = torch.zeros(logits.shape[1], dtype=torch.float64, device=function.device)
                forms = torch.zeros(len(rows), logits.shape[1], dtype=torch.float64, device=function.device)
            counts += torch.bincount(target[kept], minlength=counts.numel())
            jacobian = Jacobian(function, output)
            points, slope = slope_of(function, output, target, create_graph=True)
            factor = task.total_factor(weight) / divisor
            for row, sums in zip(rows, forms):
                pushed = jacobian.push(function.unflatten(row))
                if pushed is not None:
                    (curved,) = criterion_product(slope, points, pushed)
                    each = (pushed[0].double() * curved.double()).sum(1)
                    sums.index_add_(0, target[kept].long(), each[kept], alpha=factor)
    there = torch.nonzero(counts).flatten()
    shares = counts[there] / counts.sum()
    return ClassForms(there.cpu().numpy(), shares.cpu().numpy(), forms[:, there].T.cpu().numpy())


def class_targets(criterion: Any, output: Any, target: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits ``(N, C, ...)`` of a batch, and which of its targets ``(N, ...)`` are not ignored.

    Raises:
        TaskError: the criterion is not cross-entropy with class targets, or there are too many classes.
    """
    outputs = [tensor for tensor in tensors_of(output) if tensor.is_floating_point()]
    known = kind_of(criterion) is nn.CrossEntropyLoss and isinstance(target, torch.Tensor) and len(outputs) == 1
    if not known or target.is_floating_point() or outputs[0].ndim != target.ndim + 1 or target.ndim < 1:
        raise TaskError("no classes: the criterion is not cross-entropy with a class index for each target")
    if outputs[0].shape[1] > MOST_CLASSES:
        raise TaskError(f"{outputs[0].shape[1]} classes: at most {MOST_CLASSES} are told apart")
    return outputs[0], target != ignored_class(criterion)
