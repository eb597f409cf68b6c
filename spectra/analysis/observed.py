"""observe: one pass over the data that records which parameters have a gradient and which units are ever active."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from spectra.operators.function import LossFunction
from spectra.task.batches import tensors_of

# Functions that are 0 for negative inputs, and further ones that have a kink at 0.
_RELU = (F.relu, F.relu_, torch.relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_, F.relu6)
_CLAMPED = (F.hardtanh, F.hardtanh_)  # ReLU6 is such a function with the least value 0
_KINKED = (*_RELU, *_CLAMPED, F.leaky_relu, F.leaky_relu_, F.prelu, torch.prelu, F.threshold, F.rrelu)


@dataclass
class Units:
    """The inputs of one call of a piecewise linear function, over all data."""

    relu: bool
    active: torch.Tensor  # (units,): for how many inputs the unit is active
    inputs: int = 0  # per unit
    at_kink: int = 0  # how many inputs of all units are exactly 0

    @property
    def never(self) -> int:
        return int((self.active == 0).sum())

    @property
    def always(self) -> int:
        return int((self.active == self.inputs).sum())


@dataclass
class Observed:
    """What one pass over the data shows."""

    unused: list[str]  # parameter tensors that the loss does not depend on
    zero: list[str]  # parameter tensors whose gradient is exactly 0 in every batch
    units: dict[str, Units]  # by the name of the module that makes the call
    largest_output: float | None  # None for a loss_fn


def observe(function: LossFunction) -> Observed:
    """Evaluate the loss and its gradient on every batch of positive weight.

    Raises:
        SpectraError: a batch cannot be evaluated.
    """
    task, names = function.task, function.names
    used, alive, largest = set(), set(), 0.0
    watch = _Watch(task.model)
    with function.evaluation(twice=False), watch.active():
        for batch in task.batches():
            if task.weight_of(batch) <= 0:
                continue
            watch.calls.clear()
            loss, output = function.evaluate(function.place(batch))
            for name, piece in zip(names, function.gradient_of(loss)):
                used |= {name} if piece is not None else set()
                alive |= {name} if piece is not None and bool(piece.any()) else set()
            for tensor in tensors_of(output):
                if tensor.is_floating_point() and tensor.numel():
                    largest = max(largest, float(tensor.detach().abs().max()))
    return Observed(
        [name for name in names if name not in used],
        [name for name in names if name in used and name not in alive],
        watch.units,
        largest if task.splits else None,
    )


@dataclass
class _Watch(TorchFunctionMode):
    """Counts, while active, the active inputs of piecewise linear functions by the module that calls them."""

    model: nn.Module
    units: dict[str, Units] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)  # of each module in the present forward pass

    def __post_init__(self) -> None:
        super().__init__()
        self._names = {module: name for name, module in self.model.named_modules()}
        self._within = [""]

    @contextmanager
    def active(self) -> Iterator[None]:
        before = register_module_forward_pre_hook(self._enter)
        after = register_module_forward_hook(self._leave, always_call=True)
        try:
            with self:
                yield
        finally:
            before.remove()
            after.remove()

    def _enter(self, module: nn.Module, _: Any) -> None:
        if module in self._names:
            self._within.append(self._names[module])

    def _leave(self, module: nn.Module, *_: Any) -> None:
        if module in self._names and len(self._within) > 1:
            self._within.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _KINKED:
            x = args[0] if args else kwargs.get("input")
            if isinstance(x, torch.Tensor) and x.numel():
                least = kwargs.get("min_val", args[1] if len(args) > 1 and func in _CLAMPED else -1)
                self._count(func in _RELU or (func in _CLAMPED and least == 0), x.detach())
        return func(*args, **kwargs)

    def _count(self, relu: bool, x: torch.Tensor) -> None:
        """Units are channels: the second dimension, or the last of (rows, tokens, features)."""
        name = self._within[-1] or "the model"
        self.calls[name] += 1
        if self.calls[name] > 1:
            name = f"{name} (call {self.calls[name]})"
        by_unit = x.movedim(-1 if x.ndim == 3 else min(1, x.ndim - 1), 0).flatten(1) if x.ndim else x.reshape(1, 1)
        active = (by_unit > 0).sum(1).cpu()
        seen = self.units.setdefault(name, Units(relu, torch.zeros_like(active)))
        if len(seen.active) == len(active):  # a call whose width changes from batch to batch has no fixed units
            seen.active = seen.active + active
            seen.inputs += by_unit.shape[1]
            seen.at_kink += int((by_unit == 0).sum())
