"""Folds batch norm in eval mode into the layer before it: the same function with fewer parameters.

With ``s = gamma / sqrt(var + eps)`` a layer ``W x + b`` followed by batch norm is the layer::

    W~ = s W,    b~ = beta + (b - mean) s

Scaling ``(W, mean, var)`` by ``(a, a, a^2)`` preserves the network's function for every ``a``, so the smallest trace
over rescalings would be that of a network without the layer. Folding removes this freedom. Batch norm that does not
directly follow a layer (on the residual stream of a pre-activation network) becomes a scale and a shift per channel,
``s`` and ``beta - mean s``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.overrides import TorchFunctionMode

from spectra.errors import TaskError
from spectra.operators.modes import batch_norm_layers
from spectra.sharpness.float64_copy import difference, few_samples, float64_copy, leaves, outputs
from spectra.task.task import Task

SAME = 1e-9  # the largest relative difference in float64 of outputs that are called the same


class ChannelAffine(nn.Module):
    """``x * weight + bias`` per channel (dimension 1): batch norm in eval mode as a diagonal linear layer."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, scale: torch.Tensor, shift: torch.Tensor, trained: tuple[bool, bool] | None) -> None:
        super().__init__()
        for name, value, is_trained in zip(("weight", "bias"), (scale, shift), trained or (False, False)):
            if trained is None:  # batch norm without gamma and beta has no parameters
                self.register_buffer(name, value)
            else:
                self.register_parameter(name, nn.Parameter(value, requires_grad=is_trained))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, ...) to the same shape."""
        shape = (1, -1) + (1,) * (x.dim() - 2)
        return x * self.weight.view(shape) + self.bias.view(shape)


@dataclass(frozen=True)
class Folded:
    """A network without batch norm that computes the same function in eval mode, in float64."""

    model: nn.Module
    folded: tuple[tuple[str, str], ...]  # (batch norm, the layer that it went into)
    diagonal: tuple[str, ...]  # batch norms that became a scale and a shift per channel


def fold_batch_norm(task: Task, bn_mode: str = "eval") -> Folded:
    """A float64 copy of a task's model with every batch norm folded or replaced by a diagonal layer.

    A batch norm is folded if it directly follows a linear layer or convolution whose output has no other use, and both
    are called once. The outputs of the copy are compared with the model's own.

    Raises:
        TaskError: a batch norm without running statistics, or a copy that is not the same function.
    """
    model = float64_copy(task, bn_mode)
    norms = batch_norm_layers(model)
    if not norms:
        return Folded(model, (), ())
    names = {id(module): name for name, module in model.named_modules()}
    for norm in norms:
        if norm.running_mean is None or norm.running_var is None:
            raise TaskError(
                f"{names[id(norm)]} has no running statistics: it normalises by the batch also in eval mode, so there "
                "is no network without it"
            )
    batch = few_samples(task, model)
    calls = _Calls(model)
    with calls:
        folded_outputs = outputs(task, model, batch)
    pairs = [(norm, layer) for norm in norms if (layer := calls.layer_before(norm)) is not None]
    folded = tuple((names[id(norm)], names[id(layer)]) for norm, layer in pairs)
    for norm, layer in pairs:
        _fold(norm, layer)
        _replace(model, norm, nn.Identity())
    folded_ids = {id(norm) for norm, _ in pairs}
    unfolded = [norm for norm in norms if id(norm) not in folded_ids]
    for norm in unfolded:
        scale, shift = _affine(norm)
        trained = (norm.weight.requires_grad, norm.bias.requires_grad) if norm.affine else None
        _replace(model, norm, ChannelAffine(scale, shift, trained))
    gap = difference(folded_outputs, outputs(task, model, batch))
    if not gap <= SAME:
        raise TaskError(
            f"batch norm cannot be folded: the network without it differs by {gap:.1e}; does its forward read the "
            "layers of batch norm themselves?"
        )
    return Folded(model.eval(), folded, tuple(names[id(norm)] for norm in unfolded))


def _affine(norm: _BatchNorm) -> tuple[torch.Tensor, torch.Tensor]:
    """(s, beta - mean s) of a batch norm in eval mode, (C,) each."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.affine:
        scale = scale * norm.weight.detach()
    shift = -norm.running_mean * scale
    return scale, shift + norm.bias.detach() if norm.affine else shift


def _fold(norm: _BatchNorm, layer: nn.Module) -> None:
    assert isinstance(layer, (nn.Linear, _ConvNd))
    scale, shift = _affine(norm)
    weight = layer.weight.detach()
    if isinstance(layer, _ConvTransposeNd):  # (inputs, outputs / groups, ...), inputs in the order of the groups
        by_group = weight.reshape(layer.groups, -1, *weight.shape[1:])
        factors = scale.view(layer.groups, 1, -1, *[1] * (weight.dim() - 2))
        scaled = (by_group * factors).flatten(0, 1)
    else:
        scaled = weight * scale.view(-1, *[1] * (weight.dim() - 1))
    gammas = [norm.weight] if norm.affine else []
    betas = [norm.bias] if norm.affine else []
    biases = [layer.bias] if layer.bias is not None else []
    bias = shift + (layer.bias.detach() * scale if layer.bias is not None else 0)
    trained = any(p.requires_grad for p in [layer.weight, *gammas])
    layer.weight = nn.Parameter(scaled.contiguous(), requires_grad=trained)
    layer.bias = nn.Parameter(bias, requires_grad=any(p.requires_grad for p in [*biases, *betas]))


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if child is old:
                setattr(module, name, new)


class _Calls(TorchFunctionMode):
    """Records the calls of a pass: the uses of the outputs of layers, and the number of calls of each layer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.layers: dict[int, list[nn.Module]] = {}  # by weight
        for module in model.modules():
            if isinstance(module, (nn.Linear, _ConvNd)):
                self.layers.setdefault(id(module.weight), []).append(module)
        self.norms = {id(m.running_mean): m for m in batch_norm_layers(model)}
        self.made: dict[int, tuple[nn.Module, torch.Tensor]] = {}  # output -> the layer that made it, and itself
        self.uses: dict[int, int] = {}  # of tensors, as arguments of calls that return tensors
        self.calls: dict[int, int] = {}  # of layers and norms
        self.inputs: dict[int, torch.Tensor] = {}  # of norms, and kept alive so that no address is used twice
        self.kept: list[Any] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        inputs, outputs = leaves([args, kwargs]), leaves(result)
        if not outputs:
            return result
        self.kept += [inputs, outputs]
        for tensor in inputs:
            self.uses[id(tensor)] = self.uses.get(id(tensor), 0) + 1
            for module in self.layers.get(id(tensor), []):
                self.calls[id(module)] = self.calls.get(id(module), 0) + 1
                self.made[id(outputs[0])] = (module, outputs[0])
            norm = self.norms.get(id(tensor))
            if norm is not None:
                self.calls[id(norm)] = self.calls.get(id(norm), 0) + 1
                self.inputs[id(norm)] = inputs[0]
        return result

    def layer_before(self, norm: _BatchNorm) -> nn.Module | None:
        """The layer that a batch norm can be folded into; None if there is none."""
        x = self.inputs.get(id(norm))
        layer, _ = self.made.get(id(x), (None, None))
        if x is None or layer is None or self.uses[id(x)] != 1:
            return None
        if self.calls[id(norm)] != 1 or self.calls[id(layer)] != 1 or len(self.layers[id(layer.weight)]) != 1:
            return None
        if self.uses[id(layer.weight)] != 1 or (isinstance(layer, nn.Linear) and x.dim() != 2):
            return None  # a linear layer normalises its last dimension, batch norm the second
        return layer
