"""Identifies the weight matrices among the parameter tensors, and their output and input axes.

A matrix has a row per output unit or channel and a column per input unit or channel. For a convolution the kernel
positions are summed, because scales belong to channels. Each group of a grouped convolution is a separate block,
because its columns connect to its own rows only. Biases, and the scales and shifts of normalisation layers, contribute
nothing: with a separate scale they become constants (Tsuzuku et al. 2019, footnote 5).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from spectra.errors import TaskError
from spectra.sharpness.balancing import Array

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, *((nn.RMSNorm,) if hasattr(nn, "RMSNorm") else ()))


@dataclass(frozen=True)
class Block:
    """A block of a matrix in which every row is connected to every column."""

    row: int  # the first row, counted over all outputs
    column: int  # the first column, counted over all inputs
    entries: Array  # (rows, columns), summed over the positions of a kernel


@dataclass(frozen=True)
class Layout:
    """How a weight tensor maps to a matrix (outputs, inputs)."""

    groups: int = 1
    transposed: bool = False  # (inputs, outputs, ...), as in a transposed convolution

    def blocks(self, tensor: torch.Tensor) -> list[Block]:
        """The blocks of a tensor of the weight's shape, in float64."""
        entries = tensor.detach().to("cpu", torch.float64).flatten(2).sum(2) if tensor.dim() > 2 else tensor.detach()
        groups = np.split(entries.to("cpu", torch.float64).numpy(), self.groups, axis=0)
        if self.transposed:
            groups = [part.T for part in groups]
        rows, columns = groups[0].shape
        return [Block(g * rows, g * columns, np.ascontiguousarray(part)) for g, part in enumerate(groups)]

    def matrix(self, tensor: torch.Tensor) -> Array:
        """The whole matrix (outputs, inputs), 0 between groups."""
        blocks = self.blocks(tensor)
        rows, columns = blocks[0].entries.shape
        result = np.zeros((rows * self.groups, columns * self.groups))
        for block in blocks:
            result[block.row : block.row + rows, block.column : block.column + columns] = block.entries
        return result

    def spread(self, matrix: Array, weight: torch.Tensor) -> torch.Tensor:
        """A number per (output, input), in the shape, dtype and device of a weight: the same all over a kernel."""
        rows, columns = matrix.shape[0] // self.groups, matrix.shape[1] // self.groups
        groups = [matrix[g * rows : (g + 1) * rows, g * columns : (g + 1) * columns] for g in range(self.groups)]
        spread_matrix = np.concatenate([part.T if self.transposed else part for part in groups], axis=0)
        entries = torch.as_tensor(spread_matrix, dtype=weight.dtype, device=weight.device)
        return entries.reshape(*entries.shape, *[1] * (weight.dim() - 2)).expand(weight.shape)


def weight_layouts(model: nn.Module) -> tuple[dict[str, Layout], tuple[str, ...]]:
    """The layout of every trainable weight matrix, and the names of the other trainable tensors.

    An embedding has a row per token and a column per feature. A tensor of two axes in a module of another kind is taken
    for a matrix (outputs, inputs).

    Raises:
        TaskError: a tensor of three or more axes in a module of another kind: which of them are outputs is unknown.
    """
    layouts: dict[str, Layout] = {}
    excluded: list[str] = []
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix, recurse=False):
            if id(parameter) in seen or not parameter.requires_grad or not parameter.numel():
                continue
            seen.add(id(parameter))
            if parameter.dim() < 2 or isinstance(module, _NORMS) or "bias" in name.rpartition(".")[2]:
                excluded.append(name)
            elif isinstance(module, _ConvNd):
                layouts[name] = Layout(module.groups, isinstance(module, _ConvTransposeNd))
            elif parameter.dim() == 2:
                layouts[name] = Layout()
            else:
                raise TaskError(
                    f"{name} has shape {tuple(parameter.shape)} in a {type(module).__name__}: which of its axes are "
                    "outputs and inputs is not known"
                )
    return layouts, tuple(excluded)
