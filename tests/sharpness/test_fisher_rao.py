"""The three forms of the Fisher-Rao norm: golden numbers, brute force over samples, invariances, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spectra import Task, fisher_rao_norm
from spectra.errors import ArgumentError

GOLDEN = {"diagonal": 66.5903330510, "liang": 72.8985535029, "hessian": 0.3577204783}


def golden_task(scaled: bool = False) -> Task:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False)).double()
    first = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    second = torch.tensor([[0.5, 0.6], [0.7, -0.8]], dtype=torch.float64)
    if scaled:  # a rescaling of each hidden unit
        c = torch.tensor([0.1, 10.0], dtype=torch.float64)
        first, second = first * c[:, None], second / c
    with torch.no_grad():
        model[0].weight.copy_(first)
        model[2].weight.copy_(second)
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, -1.0], [-3.0, 2.0]], dtype=torch.float64)
    y = torch.tensor([0, 1, 1, 0])
    return Task(model, nn.CrossEntropyLoss(), [(x[:3], y[:3]), (x[3:], y[3:])])


@pytest.mark.parametrize("form", GOLDEN)
@pytest.mark.parametrize("scaled", [False, True])
def test_the_golden_numbers_before_and_after_a_rescaling_of_the_units(form, scaled):
    assert fisher_rao_norm(golden_task(scaled), form).value == pytest.approx(GOLDEN[form], rel=1e-10)


def by_samples(task: Task, weights: list[float]) -> tuple[float, float]:
    """The diagonal and the full form, sample by sample."""
    params = list(task.model.parameters())
    diagonal = full = 0.0
    x, y = (torch.cat(parts) for parts in zip(*task.data))
    for sample, label, weight in zip(x, y, weights):
        grads = torch.autograd.grad(F.cross_entropy(task.model(sample[None]), label[None]), params)
        diagonal += weight * sum(float((p.detach() * g).square().sum()) for p, g in zip(params, grads))
        full += weight * sum(float((p.detach() * g).sum()) for p, g in zip(params, grads)) ** 2
    return diagonal / sum(weights), full / sum(weights)


@pytest.mark.parametrize("weighted", [False, True])
def test_both_forms_over_samples_are_those_of_single_gradients(weighted):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(2, 3, 3), nn.GELU(), nn.Flatten(), nn.Linear(12, 3)).double()
    x, y = torch.randn(11, 2, 6, dtype=torch.float64), torch.randint(3, (11,))
    classes = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64) if weighted else None
    task = Task(net, nn.CrossEntropyLoss(weight=classes), [(x[:7], y[:7]), (x[7:], y[7:])])
    weights = [1.0] * 11 if classes is None else classes[y].tolist()
    diagonal, full = by_samples(task, weights)
    assert fisher_rao_norm(task).value == pytest.approx(diagonal, rel=1e-12)
    assert fisher_rao_norm(task, "liang").value == pytest.approx(full, rel=1e-12)


def test_for_a_bias_free_relu_network_liangs_norm_needs_no_gradient_in_the_weights():
    """``D^2 mean <dl/dz, z>^2`` with ``D`` layers."""
    task = golden_task()
    x, y = (torch.cat(parts) for parts in zip(*task.data))
    z = task.model(x)
    slope = z.softmax(-1) - F.one_hot(y, 2)
    closed = 4 * (slope * z).sum(-1).square().mean()
    assert fisher_rao_norm(task, "liang").value == pytest.approx(float(closed.detach()), rel=1e-12)


def test_the_weight_decay_of_the_task_has_no_part():
    task = golden_task()
    heavy = Task(task.model, task.criterion, task.data, l2=3.0)
    for form in GOLDEN:
        assert fisher_rao_norm(heavy, form).value == fisher_rao_norm(task, form).value


def test_where_the_diagonal_is_not_the_hessians_it_says_so():
    task = golden_task()
    task.model[1] = nn.Tanh()
    measure = fisher_rao_norm(task, "hessian")
    assert measure.curvature == "ggn"
    assert "Tanh" in measure.reason


def test_what_has_no_loss_per_sample_is_refused_with_the_reason():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    task = Task(net, nn.CrossEntropyLoss(), [(torch.randn(6, 2), torch.randint(2, (6,)))])
    for form in GOLDEN:
        measure = fisher_rao_norm(task, form, bn_mode="train")
        assert math.isnan(measure.value)
        assert "batch norm" in measure.reason
    with pytest.raises(ArgumentError, match=r"form='full': one of 'diagonal', 'liang', 'hessian' is needed"):
        fisher_rao_norm(task, "full")
