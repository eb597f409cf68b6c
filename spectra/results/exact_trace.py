"""ExactTrace: the trace of the Gauss-Newton matrix without probes, and whether it is also that of the Hessian."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from spectra.jsonable import to_jsonable


@dataclass(frozen=True, kw_only=True)
class ExactTrace:
    """The trace of the Gauss-Newton matrix, and whether it is the Hessian's.

    ``kind`` is ``"hessian"`` where every tensor passed the certificate, else ``"ggn"``; None where there is no number.
    ``applies`` says whether ``total`` is the trace of the Hessian. Where ``certified`` is true for a tensor, its entry
    of ``by_layer`` is the trace of its own block of the Hessian, also where the total is not the Hessian's.

    Example:
        >>> trace = ExactTrace(total=3.0, by_layer={"0.weight": 2.0, "0.bias": 1.0}, kind="ggn", reasons=("a tanh",))
        >>> trace.by_module, trace.applies
        ({'0': 3.0}, False)
    """

    total: float | None  # None where it does not exist: ``reasons`` says why
    by_layer: Mapping[str, float] = field(default_factory=dict)  # by trainable tensor, in the model's order
    kind: str | None = None
    reasons: tuple[str, ...] = ()  # sentences: why it is not the Hessian's, or why there is no number
    certified: Mapping[str, bool] = field(default_factory=dict)  # by tensor: the trace is that of its Hessian block
    stderr: float | None = None  # of the total, over draws; None where nothing is drawn
    stderr_by_layer: Mapping[str, float] | None = None
    draws: int | None = None  # None where nothing is drawn
    method: str = "exact"  # in words: number of columns or draws, and how per-sample gradients were computed
    bn_mode: str = "eval"
    l2: float = 0.0  # the numbers include l2 times the number of entries

    @property
    def applies(self) -> bool:
        """Whether the total is the trace of the Hessian."""
        return self.total is not None and self.kind == "hessian"

    @property
    def drawn(self) -> bool:
        """Whether the numbers are Monte-Carlo means over draws, with standard errors, and not exact."""
        return self.stderr is not None

    @property
    def how(self) -> list[str]:
        """The remark to print with a quantity that depends on drawn numbers; empty where nothing is drawn."""
        return drawn_words(self.method, self.stderr)

    @property
    def by_module(self) -> dict[str, float]:
        """The sums over the tensors of each module, by the module's name (empty for the model itself)."""
        sums: dict[str, float] = {}
        for name, value in self.by_layer.items():
            module = name.rpartition(".")[0]
            sums[module] = sums.get(module, 0.0) + value
        return sums

    def to_json(self) -> dict[str, Any]:
        """The fields as a dictionary for JSON, and ``applies``."""
        entries: dict[str, Any] = to_jsonable({f.name: getattr(self, f.name) for f in fields(self)})
        return entries | {"applies": self.applies}


def drawn_words(method: str, stderr: object) -> list[str]:
    """The remark to print with Monte-Carlo numbers, in a list; empty where ``stderr`` is None."""
    return [] if stderr is None else [f"not exact ({method}); the standard error is at most the one given"]
