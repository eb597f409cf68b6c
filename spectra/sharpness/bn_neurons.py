"""Finds the weights that batch norm normalises, from one forward pass, and verifies them by rescaling.

A *BN neuron* is one output channel of a linear map or convolution whose output is used only as the input of batch norm.
With batch norm in train mode the network depends only on the direction of its weights, up to ``eps``.

References:
    Yi et al., "BN-invariant sharpness regularizes the training model to better generalization", IJCAI 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from spectra.runtime.exclusive import exclusively
from spectra.runtime.rng_state import random_state

_FORWARD = {F.linear: 0, F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}  # and the number of spatial dimensions
_TRANSPOSED = {F.conv_transpose1d: 1, F.conv_transpose2d: 2, F.conv_transpose3d: 3}
# Attributes that can be read from a tensor without using its values.
_ABOUT = {"__get__", "dim", "ndimension", "size", "numel", "stride", "is_contiguous", "is_floating_point", "__len__"}
_ROUNDOFF = {torch.float32: 1e-3, torch.float64: 1e-8}


@dataclass(frozen=True)
class Neurons:
    """The weights whose output channels are BN neurons.

    ``channels[name]`` has the shape of the weight and numbers, for each entry, the output channel that it belongs to.
    """

    channels: Mapping[str, torch.Tensor]  # int64, on the device of the weight
    refused: tuple[str, ...] = ()  # weights followed by batch norm whose rescaling nevertheless changed the loss

    @property
    def count(self) -> int:
        """The number of BN neurons."""
        return sum(int(owner.max()) + 1 for owner in self.channels.values())


@dataclass
class _Use:
    output: torch.Tensor
    channels: torch.Tensor
    normalised: bool = False
    elsewhere: bool = False


@dataclass
class _Watch(TorchFunctionMode):
    """Records which of the tensors are used only to compute the input of a batch norm."""

    names: Mapping[int, str]
    uses: dict[str, list[_Use]] = field(default_factory=dict)
    spoilt: set[str] = field(default_factory=set)  # used in another way than as the weight of a linear map

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if getattr(func, "__name__", "") in _ABOUT and not isinstance(result, torch.Tensor):
            return result
        weight = _weight_of(func, args, kwargs)
        for tensor in _tensors((args, kwargs)):
            name = self.names.get(id(tensor))
            if name is not None and tensor is not weight:
                self.spoilt.add(name)
        self._consume(func, args, kwargs)
        name = self.names.get(id(weight)) if weight is not None else None
        if name is not None and weight is not None:
            channels = _channels(func, weight, result, args, kwargs)
            if channels is None:
                self.spoilt.add(name)
            else:
                self.uses.setdefault(name, []).append(_Use(result, channels))
        return result

    def _consume(self, func: Any, args: Any, kwargs: Any) -> None:
        first = args[0] if args else kwargs.get("input")
        normalises = func in (F.batch_norm, torch.batch_norm)
        for tensor in _tensors((args, kwargs)):
            for use in (use for uses in self.uses.values() for use in uses if use.output is tensor):
                if normalises and tensor is first and not use.normalised:
                    use.normalised = True
                else:
                    use.elsewhere = True

    def found(self) -> dict[str, torch.Tensor]:
        return {
            name: uses[0].channels
            for name, uses in self.uses.items()
            if name not in self.spoilt and all(use.normalised and not use.elsewhere for use in uses)
        }


@dataclass
class _Rescaled(TorchFunctionMode):
    """Batch norm in elementary operations, with ``eps`` of each channel times the square of its neuron's factor.

    If the neuron is multiplied by the factor, the output of batch norm is then unchanged for every ``eps``.
    """

    factors: Mapping[int, torch.Tensor]  # by the identity of the weight
    outputs: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        weight = _weight_of(func, args, kwargs)
        if weight is not None and id(weight) in self.factors:
            result = func(*args, **kwargs)
            self.outputs.append((result, self.factors[id(weight)]))
            return result
        if func is F.batch_norm or func is torch.batch_norm:
            first = args[0] if args else kwargs["input"]
            for output, factor in self.outputs:
                if output is first:
                    written = _written_out(factor, func is torch.batch_norm, *args, **kwargs)
                    return func(*args, **kwargs) if written is None else written
        return func(*args, **kwargs)


@exclusively
def find_neurons(call: Callable[[], torch.Tensor], weights: Mapping[str, torch.Tensor], verify: bool) -> Neurons:
    """The weights whose outputs are used only by batch norm in one call of the loss.

    Args:
        call: computes the loss of a batch, a scalar, with the tensors of ``weights`` themselves.
        weights: tensors by name; those that are verified are rescaled for the length of a call and put back.
        verify: check that the loss does not change when each neuron is multiplied by a factor of its own between 1/2
            and 2 (and ``eps`` by its square, so that the check is exact). It holds with batch norm in train mode only.
            A weight that fails the check has another, unrecorded use, and is no BN neuron.
    """
    watch = _Watch({id(tensor): name for name, tensor in weights.items()})
    state = random_state()
    with torch.enable_grad(), watch:  # the loss may take derivatives of its own
        call()
    state()
    channels = watch.found()
    if not verify or not channels:
        return Neurons(channels)
    if _unchanged(call, weights, channels, state):
        return Neurons(channels)
    good = {name: owner for name, owner in channels.items() if _unchanged(call, weights, {name: owner}, state)}
    return Neurons(good, tuple(name for name in channels if name not in good))


def _unchanged(
    call: Callable[[], torch.Tensor],
    weights: Mapping[str, torch.Tensor],
    channels: Mapping[str, torch.Tensor],
    state: Callable[[], None],
) -> bool:
    generator = torch.Generator().manual_seed(6)
    factors = {}
    for name, owner in channels.items():
        drawn = 4.0 ** (torch.rand(int(owner.max()) + 1, generator=generator, dtype=torch.float64) - 0.5)
        factors[name] = drawn.to(weights[name].device, weights[name].dtype)
    values = []
    for scaled in (False, True):
        use = factors if scaled else {name: torch.ones_like(factor) for name, factor in factors.items()}
        with _multiplied({name: (weights[name], use[name][channels[name]]) for name in channels}):
            state()
            with torch.enable_grad(), _Rescaled({id(weights[name]): factor for name, factor in use.items()}):
                values.append(float(call().detach()))
    state()
    # If only rounding errors remain of the input of batch norm, as in a dead channel, the loss is inexact as well.
    tolerance = _ROUNDOFF.get(next(iter(factors.values())).dtype, 1e-2)
    return abs(values[1] - values[0]) <= tolerance * max(abs(values[0]), abs(values[1]), tolerance)


@contextmanager
def _multiplied(pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> Any:
    kept = [(weight, weight.detach().clone()) for weight, _ in pairs.values()]
    try:
        with torch.no_grad():
            for weight, factor in pairs.values():
                weight.mul_(factor)
        yield
    finally:
        with torch.no_grad():
            for weight, original in kept:
                weight.copy_(original)


def _written_out(
    factor: torch.Tensor,
    low_level: bool,
    input: torch.Tensor,
    *rest: Any,
    **kwargs: Any,
) -> torch.Tensor | None:
    """Batch norm of ``(N, C, ...)`` by the statistics of the batch, with ``eps`` of each channel times ``factor**2``.

    None if it normalises by running statistics; its output then depends on the factors.
    """
    # torch.batch_norm takes weight and bias before the running statistics, F.batch_norm after them.
    orders = (
        ("weight", "bias", "running_mean", "running_var", "training", "momentum", "eps", "cudnn_enabled")
        if low_level
        else ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    )
    arguments = {"weight": None, "bias": None, "eps": 1e-5, **dict(zip(orders, rest)), **kwargs}
    if not arguments.get("training"):
        return None
    others = [d for d in range(input.ndim) if d != 1]
    shape = (1, -1, *[1] * (input.ndim - 2))
    centred = input - input.mean(others, keepdim=True)
    output = centred / torch.sqrt(
        centred.square().mean(others, keepdim=True) + (arguments["eps"] * factor**2).view(shape)
    )
    if arguments["weight"] is not None:
        output = output * arguments["weight"].view(shape)
    return output if arguments["bias"] is None else output + arguments["bias"].view(shape)


def _weight_of(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    if func not in _FORWARD and func not in _TRANSPOSED:
        return None
    weight = args[1] if len(args) > 1 else kwargs.get("weight")
    return weight if isinstance(weight, torch.Tensor) else None


def _channels(
    func: Any, weight: torch.Tensor, output: torch.Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> torch.Tensor | None:
    """The output channel of each entry of the weight; None where dimension 1 of the output is not the channels."""
    dimensions = _FORWARD.get(func, _TRANSPOSED.get(func))
    if dimensions is None or output.ndim != dimensions + 2:
        return None  # no batch dimension, or a linear map over positions, whose channels come last
    trailing = [1] * (weight.ndim - 2)
    if func in _FORWARD:
        owner = torch.arange(weight.shape[0], device=weight.device).view(-1, 1, *trailing)
    else:  # (inputs, outputs / groups, ...): the inputs of a group make the outputs of that group
        groups = int(kwargs.get("groups", args[6] if len(args) > 6 else 1))
        group = torch.arange(weight.shape[0], device=weight.device) // (weight.shape[0] // groups)
        within = torch.arange(weight.shape[1], device=weight.device)
        owner = (group[:, None] * weight.shape[1] + within[None]).view(*weight.shape[:2], *trailing)
    return owner.expand(weight.shape)


def _tensors(tree: Any) -> list[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return [tree]
    if isinstance(tree, Mapping):
        tree = list(tree.values())
    return [tensor for item in tree for tensor in _tensors(item)] if isinstance(tree, (list, tuple)) else []
