"""Records how a forward pass uses each parameter: the calls that take it, with their inputs and outputs.

A ``TorchFunctionMode`` intercepts the calls, so the model does not change and layer types do not matter. If a parameter
is used in exactly one supported call, its per-sample gradients have a closed form in the input of that call and the
cotangent of its output. All other parameters use a fallback.
:mod:`spectra.exact.use_checks` compares the recorded uses with autograd.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, resolve_name

_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")

# Function -> (kind, the names of its arguments in order). Python functions name their own.
UNDERSTOOD: dict[Any, tuple[str, tuple[str, ...]]] = {
    F.linear: ("linear", ("input", "weight", "bias")),
    torch.conv1d: ("conv", _CONV),
    torch.conv2d: ("conv", _CONV),
    torch.conv3d: ("conv", _CONV),
    torch.conv_transpose1d: ("conv_transpose", _TRANSPOSED),
    torch.conv_transpose2d: ("conv_transpose", _TRANSPOSED),
    torch.conv_transpose3d: ("conv_transpose", _TRANSPOSED),
    F.embedding: ("embedding", tuple(inspect.signature(F.embedding).parameters)),
    F.batch_norm: ("scale", tuple(inspect.signature(F.batch_norm).parameters)),
    F.layer_norm: ("scale", tuple(inspect.signature(F.layer_norm).parameters)),
    F.group_norm: ("scale", tuple(inspect.signature(F.group_norm).parameters)),
}
_SPATIAL = {"conv1d": 1, "conv2d": 2, "conv3d": 3}


@dataclass(frozen=True)
class Use:
    """One call that takes trainable parameters as its weight and bias.

    ``weight`` and ``bias`` are indices in ``theta``. They are None if the argument is no trainable parameter, or if the
    gradients of the parameter do not come from this call.
    """

    kind: str  # "linear", "conv", "conv_transpose", "embedding" or "scale"
    function: Callable[..., Any]
    settings: dict[str, Any]  # the arguments by name, the input detached
    weight: int | None
    bias: int | None
    edge: GradientEdge  # where the cotangent of the output arrives
    shape: torch.Size  # of the output

    @property
    def input(self) -> torch.Tensor:
        tensor: torch.Tensor = self.settings["input"]
        return tensor

    @property
    def signature(self) -> tuple[Any, ...]:
        return (self.kind, self.weight, self.bias, tuple(self.input.shape), tuple(self.shape))

    def replay(self, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
        """Repeat the call with the given weight and bias in place of its own, if it has them."""
        settings = dict(self.settings)
        if self.weight is not None:
            settings["weight"] = weight
        if self.bias is not None:
            settings["bias"] = bias
        output: torch.Tensor = self.function(**settings)
        return output

    def restricted(self, usable: set[int]) -> Use | None:
        """The use without the parameters outside a set; None if no parameter remains."""
        weight = self.weight if self.weight in usable else None
        bias = self.bias if self.bias in usable else None
        if weight is None and bias is None:
            return None
        return Use(self.kind, self.function, self.settings, weight, bias, self.edge, self.shape)


class Recorder(TorchFunctionMode):
    """While active, records how the tensors of ``theta`` are used.

    Attributes:
        uses: the supported calls.
        others: parameter index -> the functions that use it in other ways.
    """

    def __init__(self, theta: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self._index = {id(tensor): index for index, tensor in enumerate(theta)}
        self.uses: list[Use] = []
        self.others: dict[int, list[str]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        used = _parameters_in(self._index, args, set()) | _parameters_in(self._index, list(kwargs.values()), set())
        result = func(*args, **kwargs)
        if used and _differentiable(result):
            use = self._understood(func, args, kwargs, result)
            if use is not None:
                self.uses.append(use)
            understood = set() if use is None else {use.weight, use.bias}
            for index in used - understood:
                self.others.setdefault(index, []).append(_name(func))
        return result

    def _understood(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Use | None:
        entry = UNDERSTOOD.get(func)
        if entry is None or not isinstance(result, torch.Tensor) or len(args) > len(entry[1]):
            return None
        kind, names = entry
        arguments = dict(zip(names, args)) | kwargs
        x, weight, bias = arguments.get("input"), arguments.get("weight"), arguments.get("bias")
        if not isinstance(x, torch.Tensor) or self._index.keys() & {id(x)} or (weight is not None and weight is bias):
            return None
        if not _supported(kind, func, arguments, x) or _cast(x, result, weight, bias):
            return None
        settings = arguments | {"input": x.detach()}
        return Use(
            kind, func, settings, self._index.get(id(weight)), self._index.get(id(bias)),
            get_gradient_edge(result), result.shape,
        )  # fmt: skip

    def tied(self) -> dict[int, int]:
        """Parameter index -> the number of calls that use it, for parameters used more than once."""
        counts: dict[int, int] = {index: len(names) for index, names in self.others.items()}
        for use in self.uses:
            for index in (use.weight, use.bias):
                if index is not None:
                    counts[index] = counts.get(index, 0) + 1
        return {index: count for index, count in counts.items() if count > 1}

    def usable(self) -> set[int]:
        """The parameters that are used in exactly one supported call and nowhere else."""
        counts = self.tied()
        indices = set()
        for use in self.uses:
            for index in (use.weight, use.bias):
                if index is not None and index not in counts and index not in self.others:
                    indices.add(index)
        return indices

    def restricted(self, usable: set[int]) -> list[Use]:
        """The uses of these parameters."""
        return [use for use in (use.restricted(usable) for use in self.uses) if use is not None]


def _supported(kind: str, func: Any, arguments: dict[str, Any], x: torch.Tensor) -> bool:
    if kind == "linear":
        return x.ndim >= 2
    if kind == "conv":
        return x.ndim == _SPATIAL[func.__name__] + 2
    if kind == "conv_transpose":
        return x.ndim == _SPATIAL[func.__name__.replace("_transpose", "")] + 2
    if kind == "embedding":
        plain = (
            arguments.get("max_norm") is None
            and not arguments.get("scale_grad_by_freq")
            and not arguments.get("sparse")
        )
        return plain and x.ndim >= 1
    return x.ndim >= 2 and not arguments.get("training", False)


def _cast(x: torch.Tensor, *others: Any) -> bool:
    """Whether a call casts its arguments, as autocast makes it."""
    tensors = [tensor for tensor in (x, *others) if isinstance(tensor, torch.Tensor) and tensor.is_floating_point()]
    return len({tensor.dtype for tensor in tensors}) > 1


def _parameters_in(index: dict[int, int], value: Any, found: set[int]) -> set[int]:
    """The parameters among the arguments, within containers too."""
    if isinstance(value, torch.Tensor):
        if id(value) in index:
            found.add(index[id(value)])
    elif isinstance(value, (list, tuple)):
        for entry in value:
            _parameters_in(index, entry, found)
    elif isinstance(value, dict):
        for entry in value.values():
            _parameters_in(index, entry, found)
    return found


def _differentiable(result: Any) -> bool:
    if isinstance(result, torch.Tensor):
        return result.requires_grad
    if isinstance(result, (list, tuple)):
        return any(_differentiable(entry) for entry in result)
    return isinstance(result, dict) and any(_differentiable(entry) for entry in result.values())


def _name(func: Any) -> str:
    name = resolve_name(func) or getattr(func, "__name__", str(func))
    return str(name).removeprefix("torch.").removesuffix(".__get__")
