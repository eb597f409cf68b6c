"""Every measure of the catalogue under every change of the weights that leaves the function alone (or its argmax)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformations import (
    TwoPaths,
    away_from_kinks,
    permute_units,
    scale_bn_filters,
    scale_bn_filters_eval,
    scale_layers,
    scale_logits,
    scale_nodes,
    shift_logits,
    split_skip,
)

from spectra import Task
from spectra.results.measure import Measure
from spectra.results.measure_catalogue import CATALOGUE, CHANGES, invariance_table
from spectra.sharpness.suite import measure_all

pytestmark = pytest.mark.usefixtures("float64")

SAME, OTHER = 1e-8, 1e-3  # relative: what rounding leaves, and a change that is one (the smallest is 1e-2, of NS')
# Under a permutation the draws belong to other weights: the same only within the error of the draws.
DRAWN = {"adaptive_sharpness_average", "delta_sharpness_mean", "ns_direct"}


def chain() -> tuple[nn.Module, torch.Tensor]:
    """No unit is dead: where all are, nothing but the last bias matters and everything is invariant."""
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    for layer in (model[0], model[2], model[4]):
        nn.init.normal_(layer.weight, std=0.7)
        nn.init.uniform_(layer.bias, 0.5, 1.0)
    return model, torch.randn(24, 5)


def normed(training: bool) -> tuple[nn.Module, torch.Tensor]:
    """No unit is dead and no variance small, so that the eps of batch norm is far below all of them."""
    norm = nn.BatchNorm1d(6, eps=1e-30)
    model = nn.Sequential(nn.Linear(5, 6), norm, nn.ReLU(), nn.Linear(6, 3))
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return model.train(training), torch.randn(24, 5)


def paths() -> tuple[nn.Module, torch.Tensor]:
    return TwoPaths(torch.randn(3, 5)), torch.randn(24, 5)


def factors(units: int) -> torch.Tensor:
    return torch.exp(torch.randn(units))


Change = Callable[[nn.Module, torch.Tensor], nn.Module]
NORMED, TRAINING = functools.partial(normed, False), functools.partial(normed, True)
HOW: dict[str, tuple[Callable[[], tuple[nn.Module, torch.Tensor]], Change]] = {
    "layers": (chain, lambda model, x: scale_layers(model, x, [3.0, 0.5, 1 / 1.5])),
    "units": (chain, lambda model, x: scale_nodes(scale_nodes(model, x, 0, factors(6)), x, 1, factors(4))),
    "order": (chain, lambda model, x: permute_units(model, x, 0, torch.tensor([2, 0, 5, 1, 4, 3]))),
    "shift": (chain, lambda model, x: shift_logits(model, x, 3.0)),
    "logits": (chain, lambda model, x: scale_logits(model, x, 2.5)),
    "bn_eval": (NORMED, lambda model, x: scale_bn_filters_eval(model, x, [factors(6)])),
    "bn_train": (TRAINING, lambda model, x: scale_bn_filters(model, x, [factors(6)])),
    "split": (paths, split_skip),
}


@functools.cache
def network(make: Callable[[], tuple[nn.Module, torch.Tensor]]) -> tuple[Task, torch.Tensor, str]:
    torch.manual_seed(3)
    model, x = make()
    assert away_from_kinks(model, x)
    task = Task(model, nn.CrossEntropyLoss(), [(x, torch.randint(3, (24,)))])
    return task, x, "train" if make is TRAINING else "eval"


@functools.cache
def measures_before(make: Callable[[], tuple[nn.Module, torch.Tensor]]) -> dict[str, Measure]:
    task, _, mode = network(make)
    return measure_all(task, "all", mode)


@functools.cache
def measures_after(change: str) -> dict[str, Measure]:
    """All measures of the changed network; that its function is the same is asserted by the change itself."""
    make, apply = HOW[change]
    task, x, mode = network(make)
    return measure_all(replace(task, model=apply(task.model, x)), "all", mode)


def test_every_change_that_the_catalogue_names_is_tried():
    assert list(HOW) == list(CHANGES)
    for entry in CATALOGUE.values():
        assert set(entry.keeps) | set(entry.lacks) <= set(CHANGES)
        assert not set(entry.keeps) & set(entry.lacks)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", CATALOGUE)
def test_a_measure_is_unchanged_exactly_where_the_catalogue_says_so(name, change):
    before, after = measures_before(HOW[change][0]).get(name), measures_after(change).get(name)
    claimed = CATALOGUE[name].under(change)
    if claimed == "-":
        assert before is None or math.isnan(before.value) or math.isnan(after.value)
        return
    assert abs(before.value) > 1e-12
    if claimed == "x":
        assert abs(after.value / before.value - 1) > OTHER
    elif change == "order" and name in DRAWN:
        assert abs(after.value - before.value) <= 5 * math.hypot(before.stderr, after.stderr)
        assert after.value != before.value
    else:
        assert after.value == pytest.approx(before.value, rel=SAME)


def test_the_table_in_the_documentation_is_that_of_the_catalogue():
    assert invariance_table() in (Path(__file__).parents[2] / "docs" / "quantities.md").read_text(encoding="utf-8")
