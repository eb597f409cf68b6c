"""What filters before batch norm have in train mode: unmoved by their scale, estimated without bias, never added."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call
from transformations import scale_bn_filters

import spectra
from spectra import Task
from spectra.errors import ArgumentError
from spectra.sharpness.folding import fold_batch_norm
from spectra.sharpness.train_part import train_mode_part

pytestmark = pytest.mark.usefixtures("float64")


def normed_task() -> Task:
    model = nn.Sequential(
        nn.Conv2d(1, 3, 2, bias=False), nn.BatchNorm2d(3, eps=1e-30), nn.ReLU(), nn.Flatten(), nn.Linear(27, 3)
    )
    model(torch.randn(20, 1, 4, 4))  # running statistics of its own
    return Task(model, nn.CrossEntropyLoss(), [(torch.randn(6, 1, 4, 4), torch.randint(3, (6,)))])


def dense_part(task: Task) -> float:
    """sum_i T_i |w_i|^2 from the coupled Jacobian of the whole batch, written out."""
    ((x, _),) = task.data
    model = task.model.train()
    weight = model[0].weight.detach()

    def logits(w):
        buffers = {name: b.clone() for name, b in model.named_buffers()}
        return functional_call(model, {"0.weight": w, **buffers}, (x,))

    jacobian = torch.autograd.functional.jacobian(logits, weight).flatten(2)  # (N, C, weights)
    p = logits(weight).softmax(1).detach()
    bend = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    diagonal = torch.einsum("ncw,ncd,ndw->w", jacobian, bend, jacobian) / len(x)
    return float((diagonal.view(3, -1).sum(1) * weight.flatten(1).square().sum(1)).sum())


def test_it_does_not_move_with_the_scale_of_a_filter():
    task = normed_task()
    moved = scale_bn_filters(task.model.train(), next(iter(task.data))[0], [torch.tensor([0.1, 3.0, 20.0])])
    assert dense_part(Task(moved, task.criterion, task.data)) == pytest.approx(dense_part(task), rel=1e-9)


def test_the_estimate_is_that_of_the_coupled_gauss_newton_matrix():
    task = normed_task()
    found = train_mode_part(task, fold_batch_norm(task), draws=300)
    assert found["stderr"] < 0.15 * found["value"]
    assert abs(found["value"] - dense_part(task)) < 4 * found["stderr"]
    assert found["by_layer"] == {"0.weight": pytest.approx(found["value"])}


def test_it_is_in_the_details_and_not_in_the_value():
    task = normed_task()
    plain, detailed = spectra.minimum_sharpness(task), spectra.minimum_sharpness(task, train_draws=4)
    assert detailed.value == plain.value
    assert detailed.details["train_mode_part"]["draws"] == 4
    assert detailed.details["train_mode_part"]["stderr"] > 0
    assert "train_mode_part" not in plain.details
    with pytest.raises(ArgumentError, match="train_draws=1"):
        spectra.minimum_sharpness(task, train_draws=1)


def test_where_train_mode_does_not_exist_the_value_does():
    """One sample of one position per channel has no variance in train mode."""
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 3))
    task = Task(model, nn.CrossEntropyLoss(), [(torch.randn(1, 4), torch.tensor([1]))])
    found = spectra.minimum_sharpness(task, train_draws=4)
    assert found.value > 0
    assert found.details["train_mode_part"]["value"] is None
    assert found.details["train_mode_part"]["reason"]
