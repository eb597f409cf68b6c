"""Recalibrated batch norm: running statistics estimated anew over the data, on copies."""

from __future__ import annotations

import copy

import pytest
import torch
from cases import batches_of, conv_batch_norm, dense_hessian, parameters
from torch import nn
from torch.nn import functional as F

from spectra import GGNOperator, HessianOperator, Task
from spectra.errors import DataError
from spectra.operators.point import measure_point

pytestmark = pytest.mark.usefixtures("float64")


def two_layers():
    """Two batch-norm layers, so that the statistics of the second depend on how the first one normalises."""
    model = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.5),
        nn.Linear(6, 5), nn.BatchNorm1d(5, momentum=None), nn.Tanh(), nn.Linear(5, 3),
    )  # fmt: skip
    x, y = torch.randn(17, 4) * 3 + 1, torch.randint(3, (17,))
    return Task(model, nn.CrossEntropyLoss(), batches_of(x, y, 8, 6, 3)), x, y


def by_hand(task):
    """A copy of the model whose running statistics are the row-weighted means over batches of the batches' own."""
    model = copy.deepcopy(task.model)
    sums = [(torch.zeros(6), torch.zeros(6)), (torch.zeros(5), torch.zeros(5))]
    for x, _ in task.data:
        h = model[0](x)
        for (mean, var), norm, after in zip(sums, (model[1], model[5]), (model[4], None)):
            mean += len(x) / 17 * h.mean(0).detach()
            var += len(x) / 17 * h.var(0, unbiased=True).detach()
            h = norm.weight * (h - h.mean(0)) / torch.sqrt(h.var(0, unbiased=False) + norm.eps) + norm.bias
            h = after(torch.tanh(h)) if after is not None else h
    for (mean, var), norm in zip(sums, (model[1], model[5])):
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var)
    return model.eval()


@pytest.mark.parametrize("train", [True, False])
def test_the_hessian_is_that_of_a_model_with_the_new_statistics(train):
    task, x, y = two_layers()
    task.model.train(train)
    expected = by_hand(task)
    dense = dense_hessian(F.cross_entropy(expected(x), y), list(expected.parameters()))
    before = copy.deepcopy(task.model.state_dict())
    momenta = [m.momentum for m in task.model.modules() if isinstance(m, nn.BatchNorm1d)]
    operator = HessianOperator(task, bn_mode="recalibrated")
    product = operator @ torch.eye(operator.n)
    assert float((product - dense).norm()) < 1e-12 * float(dense.norm())
    assert float((product - HessianOperator(task) @ torch.eye(operator.n)).norm()) > 1e-2 * float(dense.norm())
    assert all(torch.equal(before[name], tensor) for name, tensor in task.model.state_dict().items())
    assert [m.momentum for m in task.model.modules() if isinstance(m, nn.BatchNorm1d)] == momenta == [0.1, None]
    assert task.model.training is train
    assert measure_point(operator)["loss"] == pytest.approx(float(F.cross_entropy(expected(x), y).detach()), rel=1e-12)


def test_the_ggn_and_another_dtype_use_the_same_statistics():
    task, _, _ = two_layers()
    expected = Task(by_hand(task), task.criterion, task.data)
    v = torch.randn(GGNOperator(task).n)
    assert torch.allclose(GGNOperator(task, "recalibrated") @ v, GGNOperator(expected) @ v, rtol=1e-11, atol=1e-13)
    single = Task(copy.deepcopy(task.model).float(), task.criterion, [(a.float(), b) for a, b in task.data])
    operator = HessianOperator(single, "recalibrated")
    assert float((operator @ v - HessianOperator(expected) @ v).norm()) < 1e-5 * float(v.norm())
    assert operator.noise < 1e-5


def test_the_coupling_of_batches_is_gone_once_the_statistics_are_fixed():
    """Unlike in train mode, w_i' H_ii w_i does not vanish, and products do not depend on the partition afterwards."""
    task, _ = conv_batch_norm()
    operator = HessianOperator(task, "recalibrated")
    filters = torch.zeros(operator.n)
    filters[:9] = parameters(task)[0][0].detach().flatten()
    assert abs(float(filters @ (operator @ filters))) > 1e-3


def test_without_batch_norm_it_is_eval_mode():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    task = Task(model, nn.CrossEntropyLoss(), [(torch.randn(6, 4), torch.randint(3, (6,)))])
    v = torch.randn(HessianOperator(task).n)
    assert torch.equal(HessianOperator(task, "recalibrated") @ v, HessianOperator(task) @ v)


def test_batches_of_one_and_shuffled_data_define_no_statistics():
    task, x, y = two_layers()
    single = Task(task.model, task.criterion, batches_of(x, y, 8, 8, 1))
    with pytest.raises(DataError, match="single sample, which batch norm in recalibrated mode"):
        _ = HessianOperator(single, "recalibrated").self_test
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=5, shuffle=True)
    with pytest.raises(DataError, match="shuffle=False"):
        _ = HessianOperator(Task(task.model, task.criterion, loader), "recalibrated").self_test
