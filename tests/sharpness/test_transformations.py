"""The helpers that leave a function alone do so, and would notice if they did not."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformations import (
    TwoPaths,
    changed,
    scale_bn_filters,
    scale_bn_filters_eval,
    scale_layers,
    scale_logits,
    scale_nodes,
    shift_logits,
    split_skip,
)

pytestmark = pytest.mark.usefixtures("float64")


def small():
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), torch.randn(6, 4)


def test_a_change_of_the_function_is_noticed():
    model, x = small()
    with pytest.raises(AssertionError, match="changes the function"):
        scale_layers(model, x, [2.0, 0.6])

    def weights_only(other):
        other[0].weight.mul_(2)
        other[2].weight.mul_(0.5)

    with pytest.raises(AssertionError, match="changes the function"):
        changed(model, x, weights_only)


def test_logits_move_as_said():
    model, x = small()
    scale_logits(model, x, 2.5)
    shift_logits(model, x, 0.7)


def test_convolutions_before_a_flatten_are_rescaled_by_channel():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 3))
    scale_nodes(model, torch.randn(5, 1, 6, 6), 0, torch.tensor([0.3, 2.0, 5.0]))


def test_batch_norm_filters_are_free_in_both_modes():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, eps=1e-30), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3))
    x, factors = torch.randn(5, 1, 6, 6), [torch.tensor([0.3, 2.0, 5.0])]
    scale_bn_filters(model, x, factors)
    model(x)  # gives the running statistics values of their own
    scale_bn_filters_eval(model.eval(), x, factors)


def test_two_equal_paths_are_one():
    split_skip(TwoPaths(torch.randn(3, 4)), torch.randn(6, 4))
