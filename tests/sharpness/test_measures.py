"""The measures of a task, from the exact trace and diagonal: as from dense Hessians, or NaN with a reason."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from dense_curvature import dense_diagonal, dense_traces
from torch import nn

import spectra
from spectra import Task
from spectra.errors import ArgumentError
from spectra.results.measure import Measure
from spectra.sharpness.minimum import prepare_rescaling
from spectra.sharpness.per_layer import normalized_of_diagonals
from spectra.sharpness.rescaling import minimise_rescaled
from spectra.zoo.networks.residual import preresnet
from spectra.zoo.networks.small import lenet

pytestmark = pytest.mark.usefixtures("float64")


def task_of(model: nn.Module, *shape: int, rows: int = 6, classes: int = 3) -> Task:
    return Task(model, nn.CrossEntropyLoss(), [(torch.randn(rows, *shape), torch.randint(classes, (rows,)))])


def convolutional() -> Task:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 3))
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2)
    nn.init.normal_(model[1].weight)
    return task_of(model, 1, 5, 5)


def mlp(activation: nn.Module | None = None) -> Task:
    return task_of(nn.Sequential(nn.Linear(4, 6), activation or nn.ReLU(), nn.Linear(6, 3)), 4)


def every(task: Task, **options) -> dict[str, Measure]:
    return {
        "minimum": spectra.minimum_sharpness(task, **options),
        "node-wise": spectra.node_minimum_sharpness(task, **options),
        "normalized": spectra.normalized_sharpness(task, **options),
        "matrix": spectra.matrix_normalized_sharpness(task, **options),
    }


@pytest.mark.parametrize("make", [convolutional, mlp])
def test_they_are_those_of_the_dense_hessian(make):
    task = make()
    found = every(task)
    network = prepare_rescaling(task)
    traces = dense_traces(network.task)
    by_hand = minimise_rescaled([traces[n] for n in network.groups.names], network.groups.exponents).value
    assert float(found["minimum"]) == pytest.approx(by_hand, rel=1e-9)
    expected = normalized_of_diagonals(task, dense_diagonal(task), "hessian").value
    assert float(found["normalized"]) == pytest.approx(expected, rel=1e-9)
    traces = dense_traces(task)
    roots = [
        math.sqrt(traces[n] * float(p.detach().square().sum())) for n, p in task.model.named_parameters() if p.dim() > 1
    ]
    assert float(found["matrix"]) == pytest.approx(sum(roots), rel=1e-9)
    assert found["node-wise"].value <= found["minimum"].value
    assert {measure.curvature for measure in found.values()} == {"hessian"}
    assert {measure.reason for measure in found.values()} == {None}
    assert all(measure.certificate is None or measure.certificate <= 1e-9 for measure in found.values())


def test_l2_and_the_split_into_batches_have_no_part():
    task = mlp()
    ((x, y),) = task.data
    other = replace(task, data=[(x[:5], y[:5]), (x[5:], y[5:])], l2=0.7)
    for name, measure in every(other).items():
        assert measure.value == pytest.approx(every(task)[name].value, rel=1e-10), name


def test_a_sum_over_the_data_is_as_many_times_the_curvature():
    task = mlp()
    summed = replace(task, criterion=nn.CrossEntropyLoss(reduction="sum"))
    assert spectra.minimum_sharpness(summed).value == pytest.approx(6 * spectra.minimum_sharpness(task).value)
    for loss in ("task", "normalized"):
        mean, total = (spectra.normalized_sharpness(t, loss=loss).value for t in (task, summed))
        assert total == pytest.approx(math.sqrt(6) * mean, rel=1e-9)


def test_the_normalized_loss_does_not_see_the_scale_of_the_logits():
    task = mlp()
    before = spectra.normalized_sharpness(task, loss="normalized")
    assert before.clipped > 0
    with torch.no_grad():
        task.model[2].weight.mul_(3)
        task.model[2].bias.mul_(3)
    assert spectra.normalized_sharpness(task, loss="normalized").value == pytest.approx(before.value, rel=1e-9)
    assert before.loss == "normalized"


def test_a_smooth_network_has_the_gauss_newton_diagonal_and_says_why():
    task = mlp(nn.GELU())
    found = every(task)
    assert found["normalized"].curvature == found["matrix"].curvature == "ggn"
    assert found["normalized"].reason
    assert found["normalized"].value > 0
    for name in ("minimum", "node-wise"):
        assert math.isnan(found[name].value)
        assert "gelu in 1 (GELU)" in found[name].reason


def test_scale_groups_of_a_smooth_network_may_be_given():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    exponents = {"2.weight": [1], "2.bias": [1], "4.weight": [-1]}
    found = spectra.minimum_sharpness(task_of(model, 4), scale_groups=exponents)
    assert 0 < found.value < found.details["trace"]
    assert found.curvature == "ggn"
    wrong = spectra.minimum_sharpness(task_of(model, 4), scale_groups={"0.weight": [1]})
    assert "do not leave the network's function alone" in wrong.reason
    with pytest.raises(ArgumentError, match="no trainable parameter"):
        spectra.minimum_sharpness(task_of(model, 4), scale_groups={"1.weight": [1]})


def test_train_mode_has_none_with_the_reason():
    for name, measure in every(convolutional(), bn_mode="train").items():
        assert math.isnan(measure.value), name
        assert measure.reason, name
        assert measure.bn_mode == "train"


def test_recalibrated_statistics_give_another_number():
    task = convolutional()
    for name, measure in every(task, bn_mode="recalibrated").items():
        assert measure.value > 0
        assert measure.value != pytest.approx(every(task)[name].value, rel=1e-3), name


def test_two_classes_have_no_normalized_loss():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    found = spectra.normalized_sharpness(task_of(model, 4, classes=2), loss="normalized")
    assert math.isnan(found.value)
    assert "at least 3" in found.reason


def test_a_network_of_the_zoo_in_float32():
    """Folding is exact, a pre-activation network has its batch norm on the stream, and the sums are below the trace."""
    for model, shape in ((lenet(batch_norm=True), (1, 28, 28)), (preresnet(8, "basic", width=2), (3, 8, 8))):
        task = task_of(model.float(), *shape, classes=10)
        task = replace(task, data=[(x.float(), y) for x, y in task.data])
        found = spectra.minimum_sharpness(task)
        assert 0 < found.value < found.details["trace"]
        assert found.curvature == "hessian"
        assert found.certificate <= 1e-9
        assert spectra.normalized_sharpness(task).value > 0


def test_options_out_of_range_are_errors_not_nan():
    task = mlp()
    for call, options in (
        (spectra.normalized_sharpness, {"form": "NS"}),
        (spectra.normalized_sharpness, {"lam": 0}),
        (spectra.normalized_sharpness, {"loss": "normalised"}),
        (spectra.matrix_normalized_sharpness, {"loss": "mse"}),
        (spectra.minimum_sharpness, {"bn_mode": "both"}),
        (spectra.minimum_sharpness, {"zero_tolerance": 2}),
    ):
        with pytest.raises(ArgumentError, match=next(iter(options))):
            call(task, **options)


def test_the_model_is_left_as_it_was():
    task = convolutional()
    task.model.train()
    before = {key: value.clone() for key, value in task.model.state_dict().items()}
    every(task)
    every(task, bn_mode="recalibrated")
    assert task.model.training
    assert all(torch.equal(value, before[key]) for key, value in task.model.state_dict().items())
    assert isinstance(task.model[1], nn.BatchNorm2d)


def half_dead(bias: float = 0.0) -> Task:
    """A network without a live unit for samples 1 and 4: all their logits are the last bias, equal to ``bias``."""
    task = mlp()
    x, y = task.data[0]
    with torch.no_grad():
        x[:, 0] = torch.tensor([1.0, -1, 1, 1, -1, 1])
        task.model[0].weight[:, 0] = 50.0
        task.model[2].bias.fill_(bias)
    return replace(task, data=[(x[:4], y[:4]), (x[4:], y[4:])])


@pytest.mark.parametrize("bias", [0.0, 0.1, 1 / 3])  # the mean of three times 0.1 is not 0.1
def test_samples_whose_logits_are_equal_are_left_out_of_the_normalized_loss_and_counted(bias):
    task = half_dead(bias)
    x, y = (torch.cat(parts) for parts in zip(*task.data))
    live = torch.tensor([0, 2, 3, 5])
    rest = replace(task, data=[(x[live], y[live])])
    for function in (spectra.normalized_sharpness, spectra.matrix_normalized_sharpness):
        found, expected = function(task, loss="normalized"), function(rest, loss="normalized")
        if math.isnan(expected.value):
            assert math.isnan(found.value)
            assert "negative" in found.reason
            continue
        assert found.value == pytest.approx(expected.value, rel=1e-9)
        assert found.details["left_out"] == 2
        assert "2 of 6 samples are left out" in found.reason
        assert expected.details["left_out"] == 0
        assert "left out" not in (expected.reason or "")
    summed = replace(task, criterion=nn.CrossEntropyLoss(reduction="sum"))
    total = spectra.normalized_sharpness(summed, loss="normalized")
    assert total.value == pytest.approx(2 * spectra.normalized_sharpness(rest, loss="normalized").value, rel=1e-9)
    assert total.details["left_out"] == 2


def test_a_network_whose_logits_are_all_equal_has_no_normalized_loss():
    task = mlp()
    with torch.no_grad():
        task.model[2].weight.zero_()
        task.model[2].bias.fill_(0.1)
    found = spectra.normalized_sharpness(task, loss="normalized")
    assert math.isnan(found.value)
    assert "the logits of every sample are equal" in found.reason
