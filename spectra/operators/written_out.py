"""Normalisation layers written in elementary operations, for losses that differentiate the network.

The Hessian of such a loss needs third derivatives of every layer. Those of ``batch_norm``, ``instance_norm`` and
``layer_norm`` are wrong on torch 2.13, by tens of per cent: their second derivative takes the saved statistics for
constants. After a ``jvp`` the wrong Hessian is symmetric, so that no self-test shows it. Plain operations have right
derivatives of every order.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from spectra.operators.twice import computed

_NORM = ("input", "running_mean", "running_var", "weight", "bias")
_LOW_LEVEL = ("input", "weight", "bias", "running_mean", "running_var")
# Function -> (kind, the names of its arguments in order).
_ARGUMENTS: dict[Any, tuple[str, tuple[str, ...]]] = {
    F.batch_norm: ("batch", (*_NORM, "training", "momentum", "eps")),
    torch.batch_norm: ("batch", (*_LOW_LEVEL, "training", "momentum", "eps")),
    F.instance_norm: ("instance", (*_NORM, "use_input_stats", "momentum", "eps")),
    torch.instance_norm: ("instance", (*_LOW_LEVEL, "use_input_stats", "momentum", "eps")),
    F.layer_norm: ("layer", tuple(inspect.signature(F.layer_norm).parameters)),
    torch.layer_norm: ("layer", ("input", "normalized_shape", "weight", "bias", "eps")),
}


class WrittenOut(TorchFunctionMode):
    """While active, normalisation layers are computed in elementary operations and update no running statistics."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _ARGUMENTS:
            return computed(func, args, kwargs)
        kind, names = _ARGUMENTS[func]
        arguments = {"eps": 1e-5, **dict(zip(names, args)), **kwargs}
        return _normalised(kind, arguments)


def _normalised(kind: str, arguments: dict[str, Any]) -> Any:
    x, weight, bias = arguments["input"], arguments.get("weight"), arguments.get("bias")
    if kind == "layer":
        over: Sequence[int] = range(x.ndim - len(arguments["normalized_shape"]), x.ndim)
        shape = list(arguments["normalized_shape"])
    else:
        over = [d for d in range(x.ndim) if d != 1 and (kind == "batch" or d != 0)]
        shape = [1, -1, *[1] * (x.ndim - 2)]
    of_input = arguments.get("training", False) if kind == "batch" else arguments.get("use_input_stats", True)
    if of_input:
        mean = x.mean(tuple(over), keepdim=True)
        variance = (x - mean).square().mean(tuple(over), keepdim=True)
    else:
        mean, variance = arguments["running_mean"].view(shape), arguments["running_var"].view(shape)
    output = (x - mean) / torch.sqrt(variance + arguments["eps"])
    if weight is not None:
        output = output * weight.view(shape)
    return output if bias is None else output + bias.view(shape)
