"""The settings of the optimizer in a checkpoint, and the edge of stability that follows from them.

Near a minimum, an optimizer with fixed settings is a linear recurrence in each eigendirection of the loss. It is stable
while the eigenvalue ``h`` of the Hessian is below the edge; the conditions are those of Jury for its 2 x 2 matrix. With
``lr`` the learning rate, ``w`` the weight decay, ``b`` the momentum and ``d`` the dampening:

* gradient descent, heavy ball: ``h + w < 2 (1 + b) / (lr (1 - d))``
* Nesterov's momentum as in torch: ``h + w < 2 (1 + b) / ((1 + 2 b) lr)``
* Adam, with its denominators ``P`` fixed: the eigenvalues of ``P^-1/2 (H + w) P^-1/2`` are below
  ``2 (1 + beta1) / ((1 - beta1) lr)``, which is ``38 / lr`` at ``beta1 = 0.9``
* AdamW, whose decay is decoupled: those of ``P^-1/2 H P^-1/2`` are below
  ``(1 + beta1) (2 - lr w) / ((1 - beta1) lr)``

These are the edges of training with the gradient of all data. Noise of mini-batches makes training unstable earlier.

References:
    J. Cohen et al., Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability, ICLR 2021.
    J. Cohen et al., Adaptive Gradient Methods at the Edge of Stability, arXiv:2207.14484 (2022).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from spectra.errors import ArgumentError

#: The words for the kinds that have a formula.
NAMES = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "adam or adamw": "Adam or AdamW"}
_PRECONDITIONED = ("adam", "adamw", "adam or adamw")
#: The settings that are kept, in the order in which they are printed.
SETTINGS = (
    *("lr", "momentum", "dampening", "nesterov", "betas", "eps", "amsgrad"),
    *("weight_decay", "decoupled_weight_decay", "maximize"),
)
#: What must be equal in all groups of parameters for a single edge.
_SHARED = ("lr", "momentum", "dampening", "nesterov", "betas", "maximize")


@dataclass(frozen=True)
class OptimizerSettings:
    """The settings of an optimizer, as they are in the groups of parameters of its state.

    Raises:
        ArgumentError: a group without a learning rate, or a setting that is not a number.

    Example:
        >>> OptimizerSettings("sgd", ({"lr": 0.1, "momentum": 0.9},)).words
        'SGD, lr 0.1, momentum 0.9'
    """

    kind: str  # "sgd", "adam", "adamw", "adam or adamw", another class of torch in lower case, or "unknown"
    groups: tuple[Mapping[str, Any], ...]  # the distinct settings of the groups: lr, momentum, betas, weight_decay, ...
    steps: int | None = None  # taken by the optimizer, where its state counts them

    def __post_init__(self) -> None:
        for group in self.groups:
            if not isinstance(group, Mapping) or "lr" not in group or not group.keys() <= set(SETTINGS):
                raise ArgumentError(f"groups: settings with lr among {', '.join(SETTINGS)} are needed")
            for name, value in group.items():
                numbers = value if name == "betas" and isinstance(value, list) and len(value) == 2 else [value]
                if not all(isinstance(number, int | float) and isfinite(number) for number in numbers):
                    raise ArgumentError(f"groups: {name}={value!r:.40}: a finite number is needed")

    @property
    def learning_rates(self) -> tuple[float, ...]:
        """The distinct learning rates of the groups."""
        return tuple(dict.fromkeys(group["lr"] for group in self.groups))

    @property
    def adaptive(self) -> bool:
        """Whether it is Adam or AdamW, whose edge is that of the preconditioned Hessian."""
        return self.kind in _PRECONDITIONED

    @property
    def words(self) -> str:
        """Kind and settings in one line; of several groups, the values that differ are all listed."""
        names = [name for name in SETTINGS if any(name in group for group in self.groups)]
        cells = [NAMES.get(self.kind, self.kind if self.kind != "unknown" else "unknown optimizer")]
        for name in names:
            values = list(dict.fromkeys(_text(group.get(name)) for group in self.groups))
            if name == "lr" or values not in (["0"], ["False"]):
                cells.append(f"{name.replace('_', ' ')} {' and '.join(values)}")
        return ", ".join([*cells, *([] if self.steps is None else [f"{self.steps} steps"])])

    def to_json(self) -> dict[str, Any]:
        """The fields as a dictionary for JSON."""
        return {"kind": self.kind, "groups": [dict(group) for group in self.groups], "steps": self.steps}


@dataclass(frozen=True)
class Edge:
    """The largest eigenvalue at which an optimizer is stable, or why there is none."""

    value: float | None
    words: str  # the formula; or the reason without a value


def edge_of(optimizer: OptimizerSettings, *, preconditioned: bool = False, l2: float = 0.0) -> Edge:
    """The edge of stability for the largest eigenvalue of a record's matrix, which includes ``l2`` times the identity.

    If the groups differ only in weight decay, it is the smallest of their edges.

    Args:
        optimizer: the settings.
        preconditioned: the matrix is ``P^-1/2 H P^-1/2`` with the ``P`` of the optimizer.
        l2: the coefficient of the term that the matrix includes.

    Example:
        >>> edge_of(OptimizerSettings("sgd", ({"lr": 0.1},)))
        Edge(value=20.0, words='2 / lr')
    """
    if why := _no_edge(optimizer, preconditioned):
        return Edge(None, why)
    found = [_edge(optimizer.kind, group, l2) for group in optimizer.groups]
    if any(edge.value is None for edge in found):
        return next(edge for edge in found if edge.value is None)
    smallest = min(found, key=lambda edge: edge.value or 0.0)
    several = len({edge.value for edge in found}) > 1
    return Edge(smallest.value, f"{smallest.words}, of the largest weight decay") if several else smallest


def _no_edge(optimizer: OptimizerSettings, preconditioned: bool) -> str:
    """Why the optimizer has no single edge for the matrix; empty if it has one."""
    if optimizer.kind not in NAMES:
        return f"no formula for this optimizer ({optimizer.kind})"
    if len(optimizer.learning_rates) > 1:
        return f"the groups of parameters have {len(optimizer.learning_rates)} learning rates: no single edge"
    if not optimizer.groups or optimizer.learning_rates[0] <= 0:
        return "the learning rate is 0"
    for name in _SHARED:
        if len({_text(group.get(name)) for group in optimizer.groups}) > 1:
            return f"the groups of parameters differ in {name}: no single edge"
    if optimizer.groups[0].get("maximize"):
        return "the optimizer maximizes"
    if optimizer.adaptive and not preconditioned:
        return "the edge of Adam is that of the preconditioned Hessian (--precondition optimizer)"
    return ""


def _edge(kind: str, group: Mapping[str, Any], l2: float) -> Edge:
    rate, decay = float(group["lr"]), float(group.get("weight_decay", 0.0))
    if kind == "sgd":
        momentum, dampening = float(group.get("momentum", 0.0)), float(group.get("dampening", 0.0))
        if not 0 <= momentum < 1 or not dampening < 1:
            return Edge(None, "momentum and dampening below 1 are needed for an edge")
        shift, words = l2 - decay, "" if l2 == decay else f" - weight decay {decay:g}" + f" + l2 {l2:g}" * bool(l2)
        if not momentum:
            return Edge(2 / rate + shift, f"2 / lr{words}")
        if group.get("nesterov"):
            return Edge(2 * (1 + momentum) / ((1 + 2 * momentum) * rate) + shift, f"2 (1 + b) / ((1 + 2 b) lr){words}")
        return Edge(
            2 * (1 + momentum) / (rate * (1 - dampening)) + shift,
            f"2 (1 + b) / {'((1 - dampening) lr)' if dampening else 'lr'}{words}",
        )
    beta1 = float(group["betas"][0])
    if not 0 <= beta1 < 1:
        return Edge(None, "beta1 below 1 is needed for an edge")
    if kind == "adamw":
        if l2:
            return Edge(None, "AdamW trains without the l2 of this matrix")
        factor, words = 2 - rate * decay, "2" if not decay else "(2 - lr w)"
    elif kind == "adam or adamw" and decay:
        return Edge(None, "the state does not tell whether its weight decay is that of Adam or of AdamW")
    elif l2 != decay:
        return Edge(None, f"Adam adds its weight decay to the gradient: analyse the loss with --l2 {decay:g}")
    else:
        factor, words = 2.0, "2"
    if factor <= 0:
        return Edge(None, "the weight decay alone is unstable")
    return Edge(factor * (1 + beta1) / ((1 - beta1) * rate), f"{words} (1 + beta1) / ((1 - beta1) lr)")


def _text(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "/".join(map(_text, value))
    return f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)
