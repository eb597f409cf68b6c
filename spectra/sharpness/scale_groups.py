"""ScaleGroups: the rescalings of the parameter tensors that preserve a network's function.

Tensor ``g`` scales by ``exp(a_g . u)`` for free log-scales ``u``. The exponents are found from one forward pass
(:mod:`spectra.sharpness.degrees`). Before use, random rescalings verify that the outputs do not change.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from spectra.errors import ArgumentError, TaskError
from spectra.sharpness.degrees import Degrees, Form, Layer, record_degrees
from spectra.sharpness.float64_copy import difference, few_samples, outputs
from spectra.task.task import Task

SAME = 1e-9  # the largest relative difference in float64 of outputs that are called the same


@dataclass(frozen=True)
class ScaleGroups:
    """The exponents of the trainable parameter tensors; a layer's call order comes with those found from a network."""

    names: tuple[str, ...]  # (G,) trainable parameter tensors
    exponents: npt.NDArray[np.float64]  # (G, s)
    layers: tuple[Layer, ...] = ()

    @property
    def free(self) -> int:
        """How many scales are free."""
        return int(self.exponents.shape[1])


def find_scale_groups(task: Task, model: nn.Module) -> ScaleGroups:
    """The rescalings of a float64 model in eval mode that preserve its outputs, found from one forward pass.

    Frozen parameters are not rescaled. Parameters that the pass does not use have exponent 0.

    Args:
        task: the task that says how the model is called, and with what.
        model: in place of the task's own: without batch norm (:func:`spectra.sharpness.folding.fold_batch_norm`).

    Raises:
        TaskError: the network is not positively homogeneous, or the rescalings found change its outputs.
    """
    batch = few_samples(task, model)
    degrees = record_degrees(model, batch, lambda: outputs(task, model, batch))
    names = tuple(name for name, p in model.named_parameters() if p.requires_grad and p.numel())
    if not degrees.exponents:
        raise TaskError("no trainable parameter of the model takes part in its outputs as the task calls it")
    groups = ScaleGroups(names, _solved(names, degrees), degrees.layers)
    check_scale_groups(task, model, groups)
    return groups


def given_scale_groups(model: nn.Module, exponents: Mapping[str, Sequence[float] | float]) -> ScaleGroups:
    """Scale groups as a user states them: ``{parameter tensor: its exponents}``; tensors left out do not scale.

    Raises:
        ArgumentError: a name that is no trainable parameter, or rows of different lengths.
    """
    names = tuple(name for name, p in model.named_parameters() if p.requires_grad and p.numel())
    unknown = [name for name in exponents if name not in names]
    if unknown:
        raise ArgumentError(f"scale_groups: {unknown[0]!r} is no trainable parameter of the model")
    rows = {name: np.atleast_1d(np.asarray(row, float)) for name, row in exponents.items()}
    lengths = {row.shape for row in rows.values()}
    if len(lengths) != 1 or len(next(iter(lengths))) != 1:
        raise ArgumentError("scale_groups: each tensor needs a list of exponents, one per free scale, all as long")
    (width,) = next(iter(lengths))
    return ScaleGroups(names, np.stack([rows.get(name, np.zeros(width)) for name in names]))


def check_scale_groups(task: Task, model: nn.Module, groups: ScaleGroups, seed: int = 0) -> None:
    """Compare the outputs under random rescalings with those of the original float64 model.

    Raises:
        TaskError: they differ.
    """
    generator = np.random.default_rng(seed)
    batch = few_samples(task, model)
    before = outputs(task, model, batch)
    for u in generator.standard_normal((2, groups.free)) * 0.5:
        factors = dict(zip(groups.names, np.exp(groups.exponents @ u)))
        gap = difference(before, outputs(task, rescaled(model, factors), batch))
        if not gap <= SAME:
            raise TaskError(
                f"the scale groups do not leave the network's function alone: its outputs differ by {gap:.1e} under a "
                "random rescaling of them"
            )


def rescaled(model: nn.Module, factors: Mapping[str, float]) -> nn.Module:
    """A copy of a model with parameter tensors multiplied by the factors of their names."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            parameter.mul_(float(factors.get(name, 1.0)))
    return other


def _solved(names: Sequence[str], degrees: Degrees) -> npt.NDArray[np.float64]:
    """The exponents in terms of the unknowns that remain free under the constraints, by exact elimination."""
    pivots: dict[int, Form] = {}  # unknown -> the form that it equals, in unknowns that are no pivots
    for constraint in degrees.constraints:
        form = _substituted(constraint, pivots)
        if not form:
            continue
        key = min(form, key=lambda k: (abs(abs(form[k]) - 1), -k))  # a coefficient of 1 keeps the exponents whole
        equal = {k: -v / form[key] for k, v in form.items() if k != key}
        pivots = {k: _substituted(v, {key: equal}) for k, v in pivots.items()}
        pivots[key] = equal
    free = {k: i for i, k in enumerate(k for k in range(degrees.unknowns) if k not in pivots)}
    exponents = np.zeros((len(names), len(free)))
    for row, name in enumerate(names):
        for key, value in _substituted(degrees.exponents.get(name, {}), pivots).items():
            exponents[row, free[key]] = float(value)
    return exponents[:, exponents.any(axis=0)]


def _substituted(form: Form, equal: Mapping[int, Form]) -> Form:
    result: Form = {}
    for key, value in form.items():
        for other, factor in equal[key].items() if key in equal else ((key, Fraction(1)),):
            result[other] = result.get(other, Fraction(0)) + value * factor
    return {key: value for key, value in result.items() if value}
