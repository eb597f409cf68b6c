"""Measure: one sharpness measure of a network, with its error and the conditions under which it holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from math import isnan, nan
from typing import Any

from spectra.jsonable import to_jsonable


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A sharpness measure: its value, its error, and the conditions under which it holds.

    Where a measure does not exist its value is NaN (None in JSON), and ``reason`` says why; it is never clipped.

    Example:
        >>> float(Measure(value=6.0, form="bias-free", curvature="hessian"))
        6.0
    """

    value: float
    form: str  # the published definition that is used
    stderr: float | None = None  # over draws; None where nothing is drawn
    loss: str = "task"  # "task": the task's own criterion; "normalized": the normalised cross-entropy
    bn_mode: str = "eval"
    curvature: str | None = None  # "hessian", "ggn" or "empirical_fisher": the matrix in its definition; None: none
    attained: bool | None = None  # of an infimum: whether some rescaling attains it
    certificate: float | None = None  # of an optimum: the relative violation of its optimality conditions
    clipped: float | None = None  # sum of negative diagonal entries set to 0, over the sum of the positive ones
    reason: str | None = None  # why there is no value, or a warning to print with it
    details: Mapping[str, Any] = field(default_factory=dict)  # values by layer, scales, excluded tensors; JSON-able

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        if isnan(self.value):
            return f"not computed: {self.reason}"
        return f"{self.value:.6g}" if self.stderr is None else f"{self.value:.6g} +- {self.stderr:.2g}"

    def to_json(self) -> dict[str, Any]:
        """The fields as a dictionary for JSON: NaN and infinity are None."""
        entries: dict[str, Any] = to_jsonable({f.name: getattr(self, f.name) for f in fields(self)})
        return entries


def remarked(measure: Measure, words: str) -> Measure:
    """The measure with ``words`` appended to its reason; unchanged where ``words`` is empty."""
    return replace(measure, reason="; ".join(filter(None, (measure.reason, words)))) if words else measure


def not_measured(reason: str, **conditions: Any) -> Measure:
    """A measure whose value is NaN, with the reason."""
    return Measure(value=nan, reason=reason, **conditions)
