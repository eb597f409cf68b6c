"""Node-wise minimum sharpness: one free scale per hidden unit or channel instead of one per layer.

For a chain of layers, with ``d_ij`` the entries of the curvature's diagonal and ``u`` the log-scales of the units::

    inf_u  sum over layers, i, j of  d_ij exp(-2 (u_i - u_j))  +  sum over biases  d_i exp(-2 u_i)

with ``u = 0`` at the inputs and the outputs. It is invariant under node-wise rescaling, where minimum sharpness is only
so layer by layer, and never larger. An extension of this package: the paper (Ibayashi et al. 2021) has layers only.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from spectra.errors import ArgumentError, NumericsError, TaskError
from spectra.results.measure import Measure, not_measured
from spectra.sharpness.balancing import Array, Link, balance
from spectra.sharpness.float64_copy import difference, few_samples, outputs
from spectra.sharpness.layouts import Layout
from spectra.sharpness.minimum import Homogeneous, described
from spectra.sharpness.rescaling import minimise_rescaled

SAME = 1e-9
FORM = "node-wise"


@dataclass(frozen=True)
class Stage:
    """A layer of a chain: its weight as a matrix (outputs, columns), each column of a unit of the layer before."""

    weight: str
    bias: str | None
    layout: Layout
    outputs: int
    columns: int
    units: int  # of the layer before, each of columns / units columns in order (a flatten gives a channel several)

    def matrix(self, tensor: torch.Tensor) -> Array:
        """(outputs, units) of a tensor of the weight's shape, summed over kernels and the columns of a unit."""
        whole = self.layout.matrix(tensor)
        return np.asarray(whole.reshape(self.outputs, self.units, -1).sum(axis=2))


def chain_of(network: Homogeneous) -> list[Stage]:
    """The layers of a network as a chain, verified by a random rescaling of its units.

    Raises:
        TaskError: the network is no chain: a parameter of another kind, a layer called twice, or a skip connection.
    """
    model = network.folded.model
    parameters = dict(model.named_parameters())
    layers, used = network.groups.layers, set()
    for layer in layers:
        used |= {layer.weight, layer.bias} - {None}
    names = [layer.weight for layer in layers]
    others = [name for name in network.groups.names if name not in used]
    if not layers or others or len(set(names)) < len(names):
        defect = f"{others[0]} belongs to no linear layer or convolution" if others else "a layer is called twice"
        raise TaskError(f"scales of single units are there for a chain of linear layers and convolutions: {defect}")
    stages: list[Stage] = []
    for layer in layers:
        layout = Layout(layer.groups, "transpose" in layer.kind)
        rows, columns = layout.matrix(parameters[layer.weight]).shape
        units = stages[-1].outputs if stages else columns
        if columns % units:
            raise TaskError(f"{layer.weight} takes {columns} inputs from a layer of {units} units: not a chain")
        stages.append(Stage(layer.weight, layer.bias, layout, rows, columns, units))
    _check(network, stages)
    return stages


def _check(network: Homogeneous, stages: list[Stage]) -> None:
    """Compare the outputs under a random rescaling of all hidden units with those of the original network."""
    generator = np.random.default_rng(0)
    batch = few_samples(network.task, network.folded.model)
    factors = [np.exp(0.5 * generator.standard_normal(stage.outputs)) for stage in stages[:-1]]
    before = outputs(network.task, network.folded.model, batch)
    gap = difference(before, outputs(network.task, rescale_units(network, stages, factors), batch))
    if not gap <= SAME:
        raise TaskError(
            f"scales of single units are there for a chain of layers: the outputs of this network differ by {gap:.1e} "
            "under a random rescaling of its units, so it has a skip, or joins or mixes them"
        )


def rescale_units(network: Homogeneous, stages: list[Stage], factors: list[Array]) -> nn.Module:
    """A float64 copy with the hidden units of each layer scaled by their factors; the next layer compensates."""
    model = copy.deepcopy(network.folded.model)
    parameters = dict(model.named_parameters())
    ends = [np.ones(stages[0].units), *factors, np.ones(stages[-1].outputs)]
    with torch.no_grad():
        for stage, incoming, outgoing in zip(stages, ends, ends[1:]):
            weight = parameters[stage.weight]
            scale = outgoing[:, None] / np.repeat(incoming, stage.columns // stage.units)[None, :]
            weight.mul_(stage.layout.spread(scale, weight))
            if stage.bias is not None:
                bias = parameters[stage.bias]
                bias.mul_(torch.as_tensor(outgoing, dtype=bias.dtype, device=bias.device))
    return model


def minimum_of_diagonals(
    network: Homogeneous, diagonal: Mapping[str, torch.Tensor], curvature: str, bn_mode: str = "eval"
) -> Measure:
    """The infimum over the scales of all hidden units, from the diagonal of the curvature.

    Args:
        network: what :func:`spectra.sharpness.minimum.prepare_rescaling` made of the task.
        diagonal: by trainable tensor of ``network.task``, in its shape, without ``l2``.
        curvature: ``"hessian"`` or ``"ggn"``, whose diagonal it is.
        bn_mode: as given to :func:`spectra.sharpness.minimum.prepare_rescaling`.

    Returns:
        The measure, with the minimum over the scales of layers in ``details``; NaN with the reason if an entry is
        negative.

    Raises:
        ArgumentError: a tensor without a diagonal.
        NumericsError: the minimum could not be certified, or is above that over the scales of layers.
        TaskError: the network is no chain.
    """
    stages = chain_of(network)
    conditions: dict[str, Any] = {"form": FORM, "bn_mode": bn_mode, "curvature": curvature}
    trainable = set(network.groups.names)
    for name in network.groups.names:
        if name not in diagonal:
            raise ArgumentError(f"diagonal: {name} has none; the tensors are those of the network without batch norm")
        if float(diagonal[name].min()) < 0:
            return not_measured(
                f"the diagonal of {name} has a negative entry ({float(diagonal[name].min()):.6g}), so that rescaling "
                "makes the total as negative as one likes: the Gauss-Newton matrix has none that are",
                **conditions,
            )
    fixed = [name for stage in stages for name in (stage.weight, stage.bias) if name and name not in trainable]
    if fixed:
        raise TaskError(
            f"scales of single units are there for networks that train all their layers: {fixed[0]} does not"
        )
    sizes = [1, *(stage.outputs for stage in stages[:-1])]
    links, constant = [], 0.0
    for i, stage in enumerate(stages):
        entries = stage.matrix(diagonal[stage.weight])
        if i == 0:
            entries = entries.sum(axis=1, keepdims=True)
        last = i + 1 == len(stages)
        if last:
            entries = entries.sum(axis=0, keepdims=True)
        if stage.bias is not None:
            bias = diagonal[stage.bias].detach().to("cpu", torch.float64).numpy().reshape(-1, 1)
            if last:
                constant = float(bias.sum())
            else:
                links.append(Link(i + 1, 0, bias))
        if last and i == 0:
            constant += float(entries.sum())
        else:
            links.append(Link(0 if last else i + 1, i, entries))
    balanced = balance(links, sizes, fixed=0)
    value = balanced.value + constant
    traces = np.array([float(diagonal[name].double().sum()) for name in network.groups.names])
    layered = minimise_rescaled(traces, network.groups.exponents, network.groups.names)
    if not value <= layered.value * (1 + 1e-9):
        raise NumericsError(f"the node-wise minimum {value:.12g} is above that over layers, {layered.value:.12g}")
    return Measure(
        value=value,
        attained=balanced.attained,
        certificate=balanced.certificate,
        details={
            "trace": float(traces.sum()),
            "over_layers": layered.value,
            "free_scales": sum(sizes[1:]),
            "log_scales": {s.weight: (-p / 2).tolist() for s, p in zip(stages, balanced.potentials[1:])},
            **described(network),
        },
        **conditions,
    )
