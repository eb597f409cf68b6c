"""class_structure: the class means of the gradients in the Gauss-Newton matrix, without probes."""

from __future__ import annotations

import numpy as np
import torch

from spectra.errors import OutOfMemory, TaskError
from spectra.exact.classes import class_targets
from spectra.operators.ggn import GGNOperator
from spectra.runtime.exclusive import exclusively
from spectra.runtime.memory import available_bytes, in_words
from spectra.runtime.phases import part
from spectra.spectrum.class_structure import ClassStructure
from spectra.task.averaging import ignored_class, settings_of

#: With more classes the cost, which grows with their square, is refused.
MOST = 100


def class_structure(ggn: GGNOperator, total: float, total_error: float | None = 0.0) -> ClassStructure:
    """The decomposition of the Gauss-Newton matrix by class means of gradients.

    A mean over the targets of a class is one product of ``J'`` with a weighted vector of the outputs. So no gradients
    of single samples are needed: it costs ``C^2`` backward passes over the data, and ``C`` forward passes.

    Args:
        ggn: the Gauss-Newton matrix of cross-entropy with class targets.
        total: its trace, without l2.
        total_error: the standard error of the trace, where it is an estimate; None: not known.

    Raises:
        OutOfMemory: two vectors of ``n`` numbers for each class do not fit in half of the free memory.
        TaskError: other losses, class weights with label smoothing, or more than ``MOST`` classes.
    """
    _ = ggn.self_test
    labels = _labels(ggn)
    settings = settings_of(ggn.task.criterion)
    if settings.get("weight") is not None and settings.get("label_smoothing", 0.0):
        raise TaskError("the class means are not computed for class weights together with label smoothing")
    need = 16 * ggn.n * (len(labels) + 1)
    if need > (free := available_bytes(ggn.device)) // 2:
        raise OutOfMemory(f"class means need {in_words(need)}, more than half of the {in_words(free)} that are free")
    means = torch.zeros(len(labels), ggn.n, dtype=torch.float64, device=ggn.device)
    other, same, cross = np.zeros(len(labels)), np.zeros(len(labels)), 0.0
    for row, label in enumerate(labels):
        with part("class structure", row, len(labels)):
            weights, sums = _sums(ggn, label)
        away = torch.arange(len(weights), device=weights.device) != label
        other[row], same[row] = float(weights[away].sum()), float(weights[label])
        if other[row] > 0:
            means[row] = sums[away].sum(0) / other[row]
        for weight, vector in zip(weights[away].tolist(), sums[away]):
            if weight > 0:
                cross += weight * float((vector / weight - means[row]).square().sum())
    gram = (means @ means.T).cpu().numpy()
    return ClassStructure(np.array(labels), other, same, gram, cross, total, total_error)


@exclusively
def _labels(ggn: GGNOperator) -> list[int]:
    """The classes that have targets, ascending."""
    found: set[int] = set()
    task = ggn.task
    with ggn.function.evaluation(twice=False):
        for index, (batch, _) in enumerate(ggn.batches()):
            target = task.target_of(batch)
            if not index:
                logits, _ = class_targets(task.criterion, ggn.function.output(batch), target)
                if logits.shape[1] > MOST:
                    raise TaskError(f"{logits.shape[1]} classes: class means are computed for at most {MOST}")
            found |= set(target.unique().tolist())
    return sorted(found - {ignored_class(task.criterion)})


@exclusively
def _sums(ggn: GGNOperator, label: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``w_cd`` and ``w_cd delta_cd`` of one class ``c``, for every ``d``: ``(C,)`` and ``(C, n)`` float64."""
    function, task = ggn.function, ggn.task
    divisor = task.divisor(task.survey().total_weight)
    class_weights = settings_of(task.criterion).get("weight")
    weight_of_class = 1.0 if class_weights is None else float(class_weights[label])
    weights, sums = torch.zeros(0), torch.zeros(0)
    with function.evaluation(twice=False):
        for batch, weight in ggn.batches():
            target = task.target_of(batch)
            if not bool((target == label).any()):
                continue
            logits, kept = class_targets(task.criterion, function.output(batch), target)
            count = logits.shape[1]
            if not weights.numel():
                weights = torch.zeros(count, dtype=torch.float64, device=function.device)
                sums = torch.zeros(count, function.n, dtype=torch.float64, device=function.device)
            own = task.averaging.weight(target) if task.averaging.reduction == "mean" else 1.0
            factor = task.total_factor(weight) / divisor / own * weight_of_class
            p = logits.detach().softmax(1) * ((target == label) & kept).unsqueeze(1)  # zero for other classes
            for d in range(count):
                chosen = p[:, d : d + 1]
                cotangent = -chosen * p
                cotangent[:, d : d + 1] += chosen
                pieces = torch.autograd.grad(logits, function.theta, cotangent, retain_graph=True, allow_unused=True)
                sums[d].add_(function.flatten(pieces), alpha=factor)
                weights[d] += factor * float(chosen.sum(dtype=torch.float64))
    return weights, sums
