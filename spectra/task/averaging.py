"""What a criterion averages over, and the resulting weight of a batch in the mean over all data.

The mean over all data is ``sum_b w_b L_b / sum_b w_b``. The weight ``w_b`` is the number that the criterion divides by
in batch ``b``: samples, targets that are not ignored, their class weights, or elements. Other weights give the Hessian
of another function (for example, the last, shorter batch would count too much).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from spectra.task.batches import rows_of


@dataclass(frozen=True)
class Averaging:
    """How a criterion reduces a batch, and the resulting weight of the batch."""

    reduction: str  # "mean" or "sum": what the criterion returns for a batch
    over: str  # what the mean is over, in words
    by_row: Callable[[Any], torch.Tensor]  # of the target of a batch: the weight of each of its rows, (rows,)
    known: bool = True  # False: assumed, and to be tested on split batches

    def weight(self, target: Any) -> float:
        """The weight of a batch with this target: the sum over its rows."""
        return float(self.by_row(target).sum())


def averaging_of(criterion: Any) -> Averaging | None:
    """The averaging of a criterion, from its type and settings; None if its ``reduction`` returns no single number.

    The losses of ``torch.nn`` and ``torch.nn.functional`` are known (also wrapped in ``functools.partial`` with
    keywords). Any other criterion is assumed to be a mean over the rows of the target, with ``known=False``.
    """
    kind, settings = _identity(criterion)
    reduction = str(settings.get("reduction", "mean"))
    if reduction == "none":
        return None
    if kind in (nn.CrossEntropyLoss, nn.NLLLoss):
        weight, ignored = settings.get("weight"), int(settings.get("ignore_index", -100))
        over = "targets not ignored" if weight is None else "class weights of the targets not ignored"
        return Averaging(reduction, over, functools.partial(_class_targets, weight=weight, ignored=ignored))
    if kind is nn.KLDivLoss and reduction == "batchmean":
        return Averaging("mean", "samples", rows_of_target)
    if kind in _OVER_ELEMENTS:
        return Averaging(reduction, "elements of the target", _elements)
    if kind in _OVER_ROWS:
        return Averaging(reduction, "samples", rows_of_target)
    return Averaging("sum" if reduction == "sum" else "mean", "rows of the target", rows_of_target, known=False)


def ignored_class(criterion: Any) -> int | None:
    """The ``ignore_index`` of a cross-entropy or NLL criterion, None for any other criterion."""
    kind, settings = _identity(criterion)
    if kind in (nn.CrossEntropyLoss, nn.NLLLoss):
        return int(settings.get("ignore_index", -100))
    return None


def kind_of(criterion: Any) -> type | None:
    """The loss class of ``torch.nn`` that the criterion is an instance or a functional form of; None for any other."""
    return _identity(criterion)[0]


def settings_of(criterion: Any) -> dict[str, Any]:
    """The known settings of a criterion by name: attributes of a module, or keywords of a partial."""
    return _identity(criterion)[1]


def is_elementwise(criterion: Any) -> bool:
    """Whether the criterion is a sum over elements, each a function of one output alone."""
    return _identity(criterion)[0] in _OVER_ELEMENTS


def is_convex(criterion: Any) -> bool:
    """Whether the criterion is a loss of ``torch.nn``, or its functional form, that is convex in its outputs."""
    kind, settings = _identity(criterion)
    weights = [settings.get(name) for name in ("weight", "pos_weight")]
    return kind in _CONVEX and not any(w is not None and bool((torch.as_tensor(w) < 0).any()) for w in weights)


def describe(criterion: Any) -> str:
    """A short name of the criterion for records: its class or function, with the settings that are not defaults."""
    kind, settings = _identity(criterion)
    if kind is None:
        return str(getattr(criterion, "__name__", type(criterion).__name__))
    shown = []
    for name, default in (("ignore_index", -100), ("label_smoothing", 0.0), ("reduction", "mean")):
        if name in settings and settings[name] != default:
            shown.append(f"{name}={settings[name]}")
    for name in ("weight", "pos_weight"):
        if settings.get(name) is not None:
            shown.append(f"{name}=...")
    return kind.__name__ + (f"({', '.join(shown)})" if shown else "")


_OVER_ELEMENTS: frozenset[type] = frozenset(
    {nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss, nn.BCEWithLogitsLoss, nn.SoftMarginLoss}
    | {nn.PoissonNLLLoss, nn.KLDivLoss, nn.HingeEmbeddingLoss}
)
_OVER_ROWS: frozenset[type] = frozenset({nn.MultiMarginLoss, nn.MultiLabelMarginLoss, nn.MultiLabelSoftMarginLoss})

_CONVEX: frozenset[type] = frozenset(
    {nn.CrossEntropyLoss, nn.NLLLoss, nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss}
    | {nn.BCELoss, nn.BCEWithLogitsLoss, nn.SoftMarginLoss}
)

_FUNCTIONS: Mapping[Any, type] = {
    F.cross_entropy: nn.CrossEntropyLoss,
    F.nll_loss: nn.NLLLoss,
    F.mse_loss: nn.MSELoss,
    F.l1_loss: nn.L1Loss,
    F.smooth_l1_loss: nn.SmoothL1Loss,
    F.huber_loss: nn.HuberLoss,
    F.binary_cross_entropy: nn.BCELoss,
    F.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
    F.soft_margin_loss: nn.SoftMarginLoss,
    F.poisson_nll_loss: nn.PoissonNLLLoss,
    F.kl_div: nn.KLDivLoss,
    F.multi_margin_loss: nn.MultiMarginLoss,
}


def _identity(criterion: Any) -> tuple[type | None, dict[str, Any]]:
    """The loss class of ``torch.nn`` and the settings of a criterion; None for subclasses, which may differ."""
    settings: dict[str, Any] = {}
    function = criterion
    if isinstance(criterion, functools.partial):
        if criterion.args:
            return None, {}
        function, settings = criterion.func, dict(criterion.keywords)
    if isinstance(function, nn.Module):
        names = ("reduction", "ignore_index", "label_smoothing", "weight", "pos_weight")
        settings = {name: getattr(function, name) for name in names if hasattr(function, name)}
        if not isinstance(settings.get("reduction", "mean"), str):
            settings.pop("reduction")
        kind = type(function)
        known = kind in (nn.CrossEntropyLoss, nn.NLLLoss) or kind in _OVER_ELEMENTS or kind in _OVER_ROWS
        return (kind if known else None), settings
    try:
        return _FUNCTIONS.get(function), settings
    except TypeError:  # a callable that cannot be hashed
        return None, {}


def _class_targets(target: torch.Tensor, *, weight: torch.Tensor | None, ignored: int) -> torch.Tensor:
    """The divisor of cross-entropy: class probabilities count their positions, class indices their weights."""
    if target.is_floating_point():  # probabilities, (C,) or (N, C, ...): torch divides by the positions, weights or not
        classes = target.shape[1] if target.ndim > 1 else target.shape[0]
        return _elements(target) / classes if target.ndim > 1 else torch.ones(1, dtype=torch.float64)
    kept = target != ignored
    if weight is None:
        counts = kept.to(torch.float64)
    else:
        inside = torch.where(kept, target, torch.zeros_like(target))
        counts = weight.detach().to(kept.device, torch.float64)[inside] * kept
    return counts.flatten(1).sum(1) if counts.ndim > 1 else counts.reshape(-1)


def _elements(target: torch.Tensor) -> torch.Tensor:
    if target.ndim == 0:
        return torch.ones(1, dtype=torch.float64)
    return torch.full((target.shape[0],), float(math.prod(target.shape[1:])), dtype=torch.float64)


def rows_of_target(target: Any) -> torch.Tensor:
    """A weight of one for each row of the target, ``(rows,)``; a scalar target has one row."""
    if isinstance(target, torch.Tensor):
        rows: int | None = target.shape[0] if target.ndim else 1
    else:
        rows = rows_of(target)
    return torch.full((1,), math.nan) if rows is None else torch.ones(rows, dtype=torch.float64)
