"""The cheap baselines, against the same sums written again."""

from __future__ import annotations

import pytest
import torch
from cases import conv_batch_norm, tied_weights

from spectra import gradient_norm, squared_norm
from spectra.errors import ArgumentError

pytestmark = pytest.mark.usefixtures("float64")


def test_squared_norms_are_those_of_all_parameters_and_of_the_matrices():
    task, _ = conv_batch_norm()
    model = task.model
    every, matrices = squared_norm(task), squared_norm(task, form="matrices")
    assert every.value == pytest.approx(sum(float(p.detach().square().sum()) for p in model.parameters()), rel=1e-14)
    weights = [model.conv.weight, model.head.weight]
    assert matrices.value == pytest.approx(sum(float(p.detach().square().sum()) for p in weights), rel=1e-14)
    assert list(matrices.details["by_tensor"]) == ["conv.weight", "head.weight"]
    with pytest.raises(ArgumentError, match="form='half'"):
        squared_norm(task, form="half")


def test_a_tied_weight_counts_once():
    task, _ = tied_weights()
    expected = sum(float(p.detach().square().sum()) for p in task.model.parameters())
    assert squared_norm(task).value == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("bn_mode", ["eval", "train"])
def test_the_gradient_norm_is_that_of_the_loss(bn_mode):
    task, written_again = conv_batch_norm()
    task.model.eval()
    slopes = torch.autograd.grad(written_again(bn_mode), list(task.model.parameters()))
    found = gradient_norm(task, bn_mode)
    assert found.value == pytest.approx(float(torch.stack([s.norm() for s in slopes]).norm()), rel=1e-10)
    assert found.details["by_tensor"]["conv.weight"] == pytest.approx(float(slopes[0].norm()), rel=1e-10)
