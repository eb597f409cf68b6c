"""Folding batch norm, and the rescalings that leave a network alone: found, or refused with the reason."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spectra import Task
from spectra.errors import ArgumentError, TaskError
from spectra.operators.modes import batch_norm_layers
from spectra.sharpness.float64_copy import difference, few_samples, outputs
from spectra.sharpness.folding import ChannelAffine, fold_batch_norm
from spectra.sharpness.rescaling import chain_exponents
from spectra.sharpness.scale_groups import check_scale_groups, find_scale_groups, given_scale_groups
from spectra.zoo.networks.allcnn import all_cnn
from spectra.zoo.networks.residual import preresnet, wide_resnet
from spectra.zoo.networks.small import convnet, lenet, mlp
from spectra.zoo.networks.vgg import vgg

pytestmark = pytest.mark.usefixtures("float64")


def lively(model: nn.Module) -> nn.Module:
    """Batch norm with statistics and parameters of its own."""
    for norm in batch_norm_layers(model):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
        if norm.affine:
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
    return model


def task_of(model: nn.Module, *shape: int) -> Task:
    return Task(lively(model), nn.CrossEntropyLoss(), [(torch.randn(3, *shape), torch.zeros(3, dtype=torch.long))])


class Written(nn.Module):
    """Two linear layers and a parameter, put together by a function."""

    def __init__(self, function):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.p = nn.Parameter(torch.rand(3) + 0.5)
        self.function = function

    def forward(self, x):
        return self.function(self, x)


def groups_of(task: Task):
    return find_scale_groups(task, fold_batch_norm(task).model)


# -- folding

FOLDED = {
    "conv": lambda: (nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()), (2, 5, 5)),
    "conv without bias": lambda: (nn.Sequential(nn.Conv1d(2, 4, 3, bias=False), nn.BatchNorm1d(4)), (2, 5)),
    "grouped": lambda: (nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)), (4, 5, 5)),
    "transposed": lambda: (nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.BatchNorm2d(4)), (3, 4, 4)),
    "grouped transposed": lambda: (nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)), (4, 4, 4)),
    "linear": lambda: (nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)), (5,)),
    "not affine": lambda: (nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, affine=False)), (5,)),
}


@pytest.mark.parametrize("name", FOLDED)
def test_a_folded_network_is_the_same_function(name):
    model, shape = FOLDED[name]()
    task = task_of(model, *shape)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = fold_batch_norm(task)
    assert found.folded == (("1", "0"),)
    assert not batch_norm_layers(found.model)
    x = torch.randn(7, *shape)
    assert torch.allclose(found.model(x), model.eval()(x), rtol=1e-12, atol=1e-12)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_an_output_that_goes_elsewhere_too_is_not_folded():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2)

        def forward(self, x):
            y = self.conv(x)
            return (self.norm(y) + y).flatten(1)

    task = task_of(Branching(), 1, 4, 4)
    found = fold_batch_norm(task)
    assert (found.folded, found.diagonal) == ((), ("norm",))
    assert isinstance(found.model.norm, ChannelAffine)
    assert find_scale_groups(task, found.model).free == 0  # conv and norm both end at the output


def test_a_layer_that_is_called_twice_is_not_folded():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

        def forward(self, x):
            return self.body(torch.relu(self.norm(self.body(x))))

    assert fold_batch_norm(task_of(Twice(), 4)).diagonal == ("norm",)


def test_batch_norm_without_running_statistics_is_refused():
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, track_running_stats=False))
    task = Task(model, nn.CrossEntropyLoss(), [(torch.randn(3, 5), torch.zeros(3, dtype=torch.long))])
    with pytest.raises(TaskError, match="1 has no running statistics"):
        fold_batch_norm(task)


def test_recalibrated_statistics_are_those_that_are_folded():
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4))
    x = 3 + torch.randn(9, 5)
    task = Task(lively(model), nn.CrossEntropyLoss(), [(x, torch.zeros(9, dtype=torch.long))])
    y = F.linear(x, model[0].weight, model[0].bias)
    y = (y - y.mean(0)) / torch.sqrt(y.var(0) + model[1].eps) * model[1].weight + model[1].bias
    assert torch.allclose(fold_batch_norm(task, "recalibrated").model(x), y)


def test_what_does_not_train_stays_so():
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    model.requires_grad_(False)
    model[1].bias.requires_grad_(True)
    found = fold_batch_norm(task_of(model, 5)).model
    assert [name for name, p in found.named_parameters() if p.requires_grad] == ["0.bias"]


# -- scale groups


def test_a_chain_has_the_exponents_of_a_chain():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.LeakyReLU(), nn.Linear(4, 2))
    groups = groups_of(task_of(model, 3))
    assert groups.names == ("0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias")
    chain = chain_exponents(3)
    np.testing.assert_array_equal(groups.exponents, chain[[0, 3, 1, 4, 2, 5]])


ZOO = {
    "mlp": (lambda: mlp(20), (20,), 1),
    "convnet": (convnet, (1, 8, 8), 2),
    "lenet": (lenet, (1, 28, 28), 4),
    "lenet with batch norm": (lambda: lenet(batch_norm=True), (1, 28, 28), 4),
    "vgg": (lambda: vgg(11, width=2), (3, 32, 32), 10),
    "vgg with batch norm": (lambda: vgg(11, True, width=2), (3, 32, 32), 10),
    "all-cnn": (lambda: all_cnn(width=2), (3, 32, 32), 8),
    "basic preresnet": (lambda: preresnet(14, "basic", width=2), (3, 16, 16), 15),
    "bottleneck preresnet": (lambda: preresnet(20, width=2), (3, 16, 16), 22),
    "wide resnet": (lambda: wide_resnet(10, 1), (3, 16, 16), 10),
}


@pytest.mark.parametrize("name", ZOO)
def test_the_networks_of_the_zoo_have_scale_groups(name):
    """How many: one per stream and one per activation within a branch; every tensor but the last bias scales."""
    make, shape, free = ZOO[name]
    groups = groups_of(task_of(make(), *shape))
    assert groups.free == free
    still = [name for name, row in zip(groups.names, groups.exponents) if not row.any()]
    assert len(still) == 1
    assert still[0].endswith("bias")


def test_a_residual_branch_has_a_scale_of_its_own_and_the_stream_another():
    """stem: s, s; first of the branch: v - s, v; second: s - v, s; head: -s, 0."""

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 4)
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            x = self.stem(x)
            return self.head(F.relu(x + self.second(F.relu(self.first(x)))))

    groups = groups_of(task_of(Residual(), 3))
    row = dict(zip(groups.names, groups.exponents))
    s, v = row["stem.weight"], row["first.bias"]
    assert groups.free == 2
    expected = {"stem.bias": s, "first.weight": v - s, "second.weight": s - v, "second.bias": s, "head.weight": -s}
    for name, exponents in expected.items():
        np.testing.assert_array_equal(row[name], exponents)
    assert not row["head.bias"].any()


def test_a_post_activation_residual_network_is_folded_wholly():
    """The usual block: batch norm after each convolution, an in-place sum, a projection with batch norm of its own."""

    class Unit(nn.Module):
        def __init__(self, inputs, width, stride):
            super().__init__()
            self.a, self.norm_a = nn.Conv2d(inputs, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
            self.b, self.norm_b = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
            self.relu, self.down = nn.ReLU(inplace=True), None
            if stride != 1:
                self.down = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))

        def forward(self, x):
            kept = x if self.down is None else self.down(x)
            y = self.norm_b(self.b(self.relu(self.norm_a(self.a(x)))))
            y += kept
            return self.relu(y)

    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2))
    model.extend([Unit(4, 4, 1), Unit(4, 6, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)])
    task = task_of(model, 3, 12, 12)
    found = fold_batch_norm(task)
    assert (len(found.folded), found.diagonal) == (6, ())
    groups = find_scale_groups(task, found.model)
    assert groups.free == 4  # two streams and the inside of two branches
    row = dict(zip(groups.names, groups.exponents))
    np.testing.assert_array_equal(row["4.b.bias"], row["0.bias"])  # what writes to a stream has its scale
    np.testing.assert_array_equal(row["5.down.0.bias"], row["5.b.bias"])
    np.testing.assert_array_equal(row["5.down.0.weight"], row["5.b.bias"] - row["0.bias"])


FUNCTIONAL = {
    "products with parameters": (lambda m, x: m.b(torch.relu(m.p * (m.a.weight @ x.t()).t() + m.a.bias)), 2),
    "a skip from the input": (lambda m, x: m.b(torch.relu(m.a(x) + x)), 0),
    "joined": (lambda m, x: m.b(torch.cat([torch.relu(m.a(x))[:, :2], m.a(x)[:, :1]], 1)), 1),
    "joined with zeros": (lambda m, x: m.b(F.pad(torch.relu(m.a(x))[:, :2], (0, 1))), 1),
    "added to zeros": (lambda m, x: m.b(torch.zeros(3) + torch.relu(m.a(x)).clamp(min=0)), 1),
    "times a number": (lambda m, x: m.b(0.5 * torch.maximum(m.a(x), -m.a(x)) / 3), 1),
    "in place": (lambda m, x: m.b(F.relu_(m.a(x)).add_(m.a(x)).mul_(2)), 1),
    "a weight used twice": (lambda m, x: m.a(torch.relu(m.a(torch.relu(m.b(x))))), 0),
    "a reduction": (lambda m, x: m.b(m.a(x)[:, None].repeat(1, 4, 1).amax(1)), 1),
}


@pytest.mark.parametrize("name", FUNCTIONAL)
def test_functional_calls_are_followed(name):
    function, free = FUNCTIONAL[name]
    assert groups_of(task_of(Written(function), 3)).free == free


REFUSED = {
    "tanh in 1 (Tanh)": nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)),
    "gelu in 1 (GELU)": nn.Sequential(nn.Linear(3, 3), nn.GELU(), nn.Linear(3, 2)),
    "softmax in 1 (Softmax)": nn.Sequential(nn.Linear(3, 3), nn.Softmax(1), nn.Linear(3, 2)),
    "layer_norm in 1 (LayerNorm)": nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 2)),
    "hardtanh in 1 (ReLU6)": nn.Sequential(nn.Linear(3, 3), nn.ReLU6(), nn.Linear(3, 2)),
    "product of two activations, in Written": Written(lambda m, x: m.a(x) * m.b(x)),
    "add of a constant that is not 0 in Written": Written(lambda m, x: m.b(torch.relu(m.a(x) + 1))),
    "sigmoid in Written": Written(lambda m, x: m.b(torch.sigmoid(m.a(x)))),
    "by an activation or a parameter in Written": Written(lambda m, x: m.b(m.a(x) / m.p)),
    "item, which takes numbers": Written(lambda m, x: m.b(m.a(x) / m.a(x).max().item())),
    "dropout, which is active": Written(lambda m, x: m.b(F.dropout(m.a(x), 0.5, True))),
    "padding with 1": Written(lambda m, x: m.b(F.pad(m.a(x)[:, :2], (0, 1), value=1.0))),
    "clamp to": Written(lambda m, x: m.b(m.a(x).clamp(0, 1))),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_not_homogeneous_is_refused_with_its_name_and_place(reason):
    with pytest.raises(TaskError, match="not positively homogeneous") as caught:
        groups_of(task_of(REFUSED[reason], 3))
    assert reason in str(caught.value)


def test_a_bias_that_does_not_train_holds_its_activation():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    model[0].bias.requires_grad_(False)
    assert groups_of(task_of(model, 3)).free == 0
    nn.init.zeros_(model[0].bias)
    assert groups_of(task_of(model, 3)).free == 1
    model[2].weight.requires_grad_(False)
    assert groups_of(task_of(model, 3)).free == 0


def test_given_groups_are_held_against_the_function():
    task = task_of(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), 3)
    model = fold_batch_norm(task).model
    right = given_scale_groups(model, {"2.weight": [1], "2.bias": [1], "4.weight": [-1]})
    check_scale_groups(task, model, right)
    assert right.free == 1
    with pytest.raises(TaskError, match="do not leave the network's function alone"):
        check_scale_groups(task, model, given_scale_groups(model, {"2.weight": [1], "4.weight": [-1]}))
    with pytest.raises(ArgumentError, match=r"'3\.weight' is no trainable parameter"):
        given_scale_groups(model, {"3.weight": [1]})
    with pytest.raises(ArgumentError, match="all as long"):
        given_scale_groups(model, {"2.weight": [1], "4.weight": [-1, 0]})


def test_outputs_that_differ_are_told_apart():
    task = task_of(nn.Sequential(nn.Linear(3, 2)), 3)
    batch = few_samples(task, task.model)
    here = outputs(task, task.model, batch)
    assert difference(here, here) == 0.0
    assert difference(here, [here[0] + 1e-6]) > 1e-8
    assert difference(here, [here[0][:1]]) == float("inf")
    with pytest.raises(TaskError, match="NaN"):
        difference([here[0] * float("nan")], here)


def test_models_that_cannot_be_taken_apart_say_so():
    class Casting(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 2)

        def forward(self, x):
            return self.a(x.float())

    with pytest.raises(TaskError, match="cannot be evaluated in float64"):
        groups_of(task_of(Casting(), 3))
    model = nn.Sequential(nn.Linear(3, 2))
    model[0].scratch = model[0].weight * 2
    with pytest.raises(TaskError, match="cannot be copied"):
        fold_batch_norm(task_of(model, 3))


def test_an_empty_first_batch_is_not_what_a_rescaling_is_tried_on():
    task = task_of(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), 3)
    empty = (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    task = Task(task.model, task.criterion, [empty, *task.data])
    assert len(few_samples(task, task.model)[0]) == 3
    wrong = given_scale_groups(task.model, {"0.weight": [1]})
    with pytest.raises(TaskError, match="do not leave"):
        check_scale_groups(task, task.model, wrong)
