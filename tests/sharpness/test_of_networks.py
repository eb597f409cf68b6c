"""The measures of networks from dense Hessians: golden numbers, invariances, what is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from dense_curvature import dense_diagonal, dense_traces
from torch import nn
from torch.nn import functional as F
from transformations import (
    TwoPaths,
    away_from_kinks,
    permute_units,
    scale_bn_filters_eval,
    scale_layers,
    scale_logits,
    scale_nodes,
    shift_logits,
    split_skip,
)

from spectra import Task
from spectra.errors import ArgumentError, TaskError
from spectra.operators.modes import batch_norm_layers
from spectra.sharpness.layouts import weight_layouts
from spectra.sharpness.minimum import minimum_of_traces, prepare_rescaling
from spectra.sharpness.node_wise import minimum_of_diagonals
from spectra.sharpness.per_layer import matrix_normalized_of_traces, normalized_of_diagonals
from spectra.sharpness.scale_groups import rescaled

pytestmark = pytest.mark.usefixtures("float64")


def minimum(task: Task, **options):
    network = prepare_rescaling(task, **options)
    return minimum_of_traces(network, dense_traces(network.task), "hessian")


def node_minimum(task: Task):
    network = prepare_rescaling(task)
    return minimum_of_diagonals(network, dense_diagonal(network.task), "hessian")


def normalized(task: Task, **options):
    return normalized_of_diagonals(task, dense_diagonal(task), "hessian", **options)


def matrix_normalized(task: Task):
    return matrix_normalized_of_traces(task, dense_traces(task), "hessian")


def chain(*weights: list[list[float]]) -> nn.Module:
    layers: list[nn.Module] = []
    for weight in weights:
        value = torch.tensor(weight)
        layers += [nn.Linear(value.shape[1], value.shape[0], bias=False), nn.ReLU()]
        layers[-2].weight.data = value
    return nn.Sequential(*layers[:-1])


# -- golden numbers


def scalar_task() -> Task:
    model = chain([[2.0]], [[0.5], [-0.5]])
    return Task(model, nn.CrossEntropyLoss(), [(torch.ones(1, 1), torch.zeros(1, dtype=torch.long))])


def square_task(after: bool = False) -> Task:
    """Before and after the rescaling of Tsuzuku et al. (2019), appendix A.1."""
    model = chain([[1.0, 2], [3, 4]], [[0.5, 0.6], [0.7, -0.8]])
    x = torch.tensor([[1.0, 0], [0, 1], [3, -1], [-3, 2]])
    if after:
        model = scale_nodes(model, x, 0, torch.tensor([0.1, 10.0]))
    return Task(model, nn.CrossEntropyLoss(), [(x, torch.tensor([0, 1, 1, 0]))])


GOLDEN = [
    (scalar_task, {"trace": 0.9449422686, "ms": 0.5939334098, "matrix": 1.2961085473, "arxiv": 2.5922170947}),
    (scalar_task, {"icml": 1.2961085473, "ns1": 1.2961085473, "fr": 0.6299615124}),
    (square_task, {"trace": 0.3303737883, "ms": 0.2354174011, "matrix": 1.9153991498, "arxiv": 3.2296568599}),
    (square_task, {"icml": 1.1448900965, "ns1": 1.6145414224, "fr": 0.3577204783}),
    (lambda: square_task(True), {"trace": 16.9558558526, "ms": 13.3515754749, "matrix": 122.0157339425}),
    (lambda: square_task(True), {"arxiv": 3.2296568599, "icml": 1.1448900965, "ns1": 1.6145414224, "fr": 0.3577204783}),
]


@pytest.mark.parametrize(("make", "expected"), GOLDEN)
def test_golden_numbers(make, expected):
    task = make()
    ms, arxiv = minimum(task), normalized(task)
    found = {
        "trace": ms.details["trace"],
        "ms": ms.value,
        "matrix": matrix_normalized(task).value,
        "arxiv": arxiv.value,
        "icml": normalized(task, form="icml").value,
        "ns1": arxiv.details["parameter_wise"],
        "fr": arxiv.details["fisher_rao_of_diagonal"],
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=6e-11 * max(1, value), rel=1e-10), name
    assert normalized(task, form="pacbayes").value == pytest.approx(arxiv.value / 2, rel=1e-14)
    assert arxiv.clipped == 0.0


def test_the_scalar_network_in_closed_form():
    """MS = 2 sqrt(T1 T2), with v = s (1 - s) and s = sigmoid(2 a b x): T1 = 4 b^2 v, T2 = 2 a^2 v."""
    s = 1 / (1 + math.exp(-2.0))
    v = s * (1 - s)
    assert minimum(scalar_task()).value == pytest.approx(2 * math.sqrt(8) * v, rel=1e-13)
    assert normalized(scalar_task()).value == pytest.approx(8 * math.sqrt(v), rel=1e-13)


# -- minimum sharpness


def with_biases(seed: int = 0) -> Task:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    x, y = torch.randn(8, 5), torch.randint(3, (8,))
    assert away_from_kinks(model, x)
    return Task(model, nn.CrossEntropyLoss(), [(x, y)])


def test_the_optimal_rescaling_has_the_minimum_as_its_trace():
    task = with_biases()
    found = minimum(task)
    best = replace(task, model=rescaled(task.model, found.details["factors"]))
    traces = dense_traces(best)
    assert sum(traces.values()) == pytest.approx(found.value, rel=1e-10)
    assert traces == pytest.approx(found.details["rescaled_traces"], rel=1e-9)
    assert found.value < found.details["trace"]
    assert (found.form, found.attained) == ("with biases", True)
    assert found.certificate < 1e-12


def test_residual_networks_have_their_minimum_at_the_rescaled_network_too():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 4)
            self.shortcut, self.third, self.head = nn.Linear(4, 3, bias=False), nn.Linear(4, 3), nn.Linear(3, 3)

        def forward(self, x):
            x = F.relu(self.stem(x))
            x = F.relu(x + self.second(F.relu(self.first(x))))
            return self.head(F.relu(self.shortcut(x) + self.third(x)))

    task = Task(Residual(), nn.CrossEntropyLoss(), [(torch.randn(7, 3), torch.randint(3, (7,)))])
    found = minimum(task)
    best = replace(task, model=rescaled(task.model, found.details["factors"]))
    assert sum(dense_traces(best).values()) == pytest.approx(found.value, rel=1e-10)
    other = dict.fromkeys(found.details["factors"], 1.0)
    groups = prepare_rescaling(task).groups
    other |= dict(zip(groups.names, np.exp(groups.exponents @ np.linspace(-1, 1, groups.free))))
    moved = replace(task, model=rescaled(task.model, other))
    assert minimum(moved).value == pytest.approx(found.value, rel=1e-10)
    assert sum(dense_traces(moved).values()) > 1.1 * sum(dense_traces(task).values())


def test_batch_norm_is_folded_or_made_a_diagonal_layer_and_said_so():
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(27, 3),
    )
    for norm in batch_norm_layers(model):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    task = Task(model, nn.CrossEntropyLoss(), [(torch.randn(5, 1, 5, 5), torch.randint(3, (5,)))])
    found = minimum(task)
    assert found.details["folded"] == {"1": "0"}
    assert found.details["diagonal"] == ["3"]
    assert set(found.details["traces"]) == {"0.weight", "0.bias", "3.weight", "3.bias", "6.weight", "6.bias"}
    assert found.details["free_scales"] == 2
    x = next(iter(task.data))[0]
    moved = scale_bn_filters_eval(model.eval(), x, [torch.tensor([0.2, 3.0, 7.0])])
    assert minimum(replace(task, model=moved)).value == pytest.approx(found.value, rel=1e-10)


def test_a_dead_layer_leaves_an_infimum_that_is_not_attained():
    task = square_task()
    network = prepare_rescaling(task)
    found = minimum_of_traces(network, {"0.weight": 0.0, "2.weight": 3.0}, "ggn")
    assert (found.value, found.attained, found.curvature) == (0.0, False, "ggn")
    assert found.details["dropped"] == ["2.weight"]
    noisy = minimum_of_traces(network, {"0.weight": 1e-20, "2.weight": 3.0}, "ggn", zero_tolerance=1e-14)
    assert noisy.value == 0.0
    assert "0.weight (a dead layer?)" in noisy.reason


def test_a_negative_block_is_refused_with_its_name():
    found = minimum_of_traces(prepare_rescaling(square_task()), {"0.weight": -0.088, "2.weight": 3.0}, "hessian")
    assert math.isnan(found.value)
    assert "the block of 0.weight is negative (-0.088)" in found.reason
    with pytest.raises(ArgumentError, match=r"2\.weight has none"):
        minimum_of_traces(prepare_rescaling(square_task()), {"0.weight": 1.0}, "hessian")


def test_train_mode_and_losses_without_outputs_are_refused():
    task = with_biases()
    normed = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))
    with pytest.raises(TaskError, match="free scale of its own"):
        prepare_rescaling(replace(task, model=normed), "train")
    assert prepare_rescaling(task, "train").groups.free == 2  # without batch norm there is only one mode
    task = Task.from_loss(chain([[1.0]]), lambda m, b: m(b).sum(), [torch.ones(2, 1)])
    with pytest.raises(TaskError, match="loss_fn"):
        prepare_rescaling(task)


def test_given_scale_groups_take_the_place_of_those_found():
    task = with_biases()
    names = ("0.weight", "0.bias", "2.weight", "2.bias", "4.weight")
    exponents = dict(zip(names, ([1, 0], [1, 0], [-1, 1], [0, 1], [0, -1])))
    assert minimum(task, scale_groups=exponents).value == pytest.approx(minimum(task).value, rel=1e-12)
    fewer = minimum(task, scale_groups={"0.weight": [1], "0.bias": [1], "2.weight": [-1]})
    assert minimum(task).value < fewer.value < fewer.details["trace"]


def test_a_float32_network_is_measured_in_its_own_dtype_and_left_alone():
    task = with_biases()
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)).float()
    network = prepare_rescaling(
        Task(model, task.criterion, [(next(iter(task.data))[0].float(), torch.zeros(8).long())])
    )
    assert {p.dtype for p in network.task.model.parameters()} == {torch.float32}
    assert {p.dtype for p in network.folded.model.parameters()} == {torch.float64}
    assert network.groups.free == 1
    assert isinstance(model[1], nn.BatchNorm1d)


# -- node-wise


@pytest.mark.parametrize("make", [square_task, with_biases])
def test_the_node_wise_minimum_is_below_that_over_layers(make):
    task = make()
    found = node_minimum(task)
    assert found.value < minimum(task).value
    assert found.details["over_layers"] == pytest.approx(minimum(task).value, rel=1e-13)
    assert found.certificate <= 1e-10


def test_the_node_wise_minimum_is_the_trace_of_the_rescaled_network():
    task = with_biases()
    found = node_minimum(task)
    model, x = task.model, next(iter(task.data))[0]
    for layer, name in enumerate(["0.weight", "2.weight"]):
        model = scale_nodes(model, x, layer, torch.tensor(found.details["log_scales"][name]).exp())
    assert sum(dense_traces(replace(task, model=model)).values()) == pytest.approx(found.value, rel=1e-9)


def test_the_node_wise_minimum_of_two_layers_has_a_closed_form():
    """Each hidden unit balances what flows in against what flows out: 2 sqrt(in out)."""
    task = square_task()
    d = dense_diagonal(task)
    expected = 2 * (d["0.weight"].sum(1) * d["2.weight"].sum(0)).sqrt().sum()
    assert node_minimum(task).value == pytest.approx(float(expected), rel=1e-12)


CONVOLUTIONS = {
    "plain": lambda: [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 2)],
    "grouped": lambda: [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 2, groups=2)],
    "transposed": lambda: [nn.ConvTranspose2d(1, 4, 2), nn.ReLU(), nn.ConvTranspose2d(4, 4, 2, groups=2)],
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_channels_of_convolutions_are_units(name):
    body = [*CONVOLUTIONS[name](), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    x = torch.randn(6, 1, 5, 5)
    inputs = nn.Sequential(*body)(x).shape[1]
    model = nn.Sequential(*body, nn.Linear(inputs, 3))
    task = Task(model, nn.CrossEntropyLoss(), [(x, torch.randint(3, (6,)))])
    value = node_minimum(task).value
    assert value < minimum(task).value
    if name == "plain":
        moved = scale_nodes(scale_nodes(model, x, 0, torch.rand(4) + 0.2), x, 1, torch.rand(4) + 0.2)
        assert node_minimum(replace(task, model=moved)).value == pytest.approx(value, rel=1e-9)


def test_networks_that_are_no_chain_have_no_node_wise_minimum():
    task = Task(TwoPaths(torch.randn(3, 4)), nn.CrossEntropyLoss(), [(torch.randn(5, 4), torch.zeros(5).long())])
    with pytest.raises(TaskError, match="chain"):
        node_minimum(task)
    task = with_biases()
    task.model[2].weight.requires_grad_(False)
    with pytest.raises(TaskError, match=r"2\.weight does not"):
        node_minimum(task)
    network = prepare_rescaling(square_task())
    found = minimum_of_diagonals(network, {n: -torch.ones(2, 2) for n in ("0.weight", "2.weight")}, "hessian")
    assert "negative entry (-1)" in found.reason


# -- normalized sharpness


def test_convolutions_are_matrices_over_channels():
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3))
    task = Task(model, nn.CrossEntropyLoss(), [(torch.randn(5, 2, 3, 3), torch.randint(3, (5,)))])
    found, diagonal = normalized(task), dense_diagonal(task)
    h, u = diagonal["0.weight"].sum((2, 3)), model[0].weight.detach().square().sum((2, 3))
    x, y = torch.zeros(3), torch.zeros(2)
    for _ in range(500):  # the two updates of the paper's problem, written out
        x = ((u * (-y).exp()).sum(1) / (h * y.exp()).sum(1)).log() / 2
        y = ((u.T * (-x).exp()).sum(1) / (h.T * x.exp()).sum(1)).log() / 2
    s = (x[:, None] + y[None, :]).exp()
    assert found.details["by_layer"]["0.weight"] == pytest.approx(float((h * s + u / s).sum()), rel=1e-10)
    assert found.details["excluded"] == ["0.bias", "3.bias"]


def test_layouts_of_weights():
    model = nn.ModuleDict(
        {
            "grouped": nn.Conv2d(4, 6, 3, groups=2),
            "transposed": nn.ConvTranspose1d(4, 6, 3, groups=2),
            "tokens": nn.Embedding(7, 5),
            "norm": nn.LayerNorm((3, 4)),
            "recurrent": nn.RNN(3, 4),
        }
    )
    layouts, excluded = weight_layouts(model)
    assert set(excluded) == {"grouped.bias", "transposed.bias", "norm.weight", "norm.bias"} | {
        "recurrent.bias_ih_l0",
        "recurrent.bias_hh_l0",
    }
    shapes = {
        name: [b.entries.shape for b in layouts[name].blocks(p)]
        for name, p in model.named_parameters()
        if name in layouts
    }
    assert shapes["grouped.weight"] == [(3, 2), (3, 2)]
    assert shapes["transposed.weight"] == [(3, 2), (3, 2)]
    assert shapes["tokens.weight"] == [(7, 5)]
    weight = torch.zeros(4, 3, 3)
    weight[2, 1] = 1.0  # from input 2 to the second output of the second group, at three positions
    whole = layouts["transposed.weight"].matrix(weight)
    assert whole.shape == (6, 4)
    assert whole[4, 2] == 3
    assert whole.sum() == 3
    with pytest.raises(TaskError, match="which of its axes"):
        weight_layouts(nn.Bilinear(2, 3, 4))


def test_depthwise_convolutions_are_sums_over_their_groups():
    model = nn.Sequential(nn.Conv2d(3, 6, 2, groups=3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))
    task = Task(model, nn.CrossEntropyLoss(), [(torch.randn(5, 3, 3, 3), torch.randint(3, (5,)))])
    h = dense_diagonal(task)["0.weight"].sum((1, 2, 3)).view(3, 2)
    u = model[0].weight.detach().square().sum((1, 2, 3)).view(3, 2)
    value = normalized(task).details["by_layer"]["0.weight"]
    assert value == pytest.approx(2 * float((h * u).sqrt().sum()), rel=1e-12)  # one column per group


def test_clipping_is_reported():
    task = square_task()
    diagonal = {"0.weight": torch.tensor([[1.0, -2.0], [3.0, 0.5]]), "2.weight": torch.full((2, 2), 0.5)}
    found = normalized_of_diagonals(task, diagonal, "hessian", loss="normalized")
    assert found.clipped == pytest.approx(2 / 6.5)
    assert (found.loss, found.curvature) == ("normalized", "hessian")
    with pytest.raises(ArgumentError, match=r"2\.weight is missing"):
        normalized_of_diagonals(task, {"0.weight": diagonal["0.weight"]}, "hessian")


def test_a_negative_trace_has_no_matrix_normalized_sharpness():
    found = matrix_normalized_of_traces(square_task(), {"0.weight": 1.0, "2.weight": -1e-3}, "hessian")
    assert math.isnan(found.value)
    assert "2.weight is negative (-0.001)" in found.reason


def test_two_paths_or_one():
    """Tsuzuku et al. (2019), (26) to (30): the function is one, and so are both normalized sharpnesses."""
    model, x = TwoPaths(torch.randn(3, 4)), torch.randn(9, 4)
    task = Task(model, nn.CrossEntropyLoss(), [(x, torch.randint(3, (9,)))])
    other = replace(task, model=split_skip(model, x))
    for measure in (normalized, matrix_normalized):
        assert measure(other).value == pytest.approx(measure(task).value, rel=1e-10)
        assert measure(other).details["by_layer"]["second.weight"] == 0.0


# -- invariances: a value, or None where the measure moves


def normalized_loss(task: Task) -> Task:
    def criterion(z, y):
        return F.cross_entropy(z / z.std(1, unbiased=False, keepdim=True), y)

    return replace(task, criterion=criterion)


MEASURES = {
    "trace": lambda t: sum(dense_traces(t).values()),
    "minimum": lambda t: minimum(t).value,
    "matrix-normalized": lambda t: matrix_normalized(t).value,
    "node-wise minimum": lambda t: node_minimum(t).value,
    "normalized": lambda t: normalized(t).value,
    "icml": lambda t: normalized(t, form="icml").value,
    "normalized, normalised loss": lambda t: normalized(normalized_loss(t)).value,
    "parameter-wise": lambda t: normalized(t).details["parameter_wise"],
    "fisher-rao of the diagonal": lambda t: normalized(t).details["fisher_rao_of_diagonal"],
}
CHANGES = {
    "layer": lambda m, x: scale_layers(m, x, [2.0, 0.1, 5.0]),
    "node": lambda m, x: scale_nodes(m, x, 0, torch.tensor([0.1, 10.0, 2.0, 0.5, 1.0, 3.0])),
    "permutation": lambda m, x: permute_units(m, x, 0, torch.tensor([3, 1, 0, 5, 4, 2])),
    "shift": lambda m, x: shift_logits(m, x, 0.7),
    "scale": lambda m, x: scale_logits(m, x, 2.5),
}
MOVES = {
    "trace": {"layer", "node", "scale"},
    "minimum": {"node", "scale"},
    "matrix-normalized": {"node", "scale"},
    "node-wise minimum": {"scale"},
    "normalized": {"scale"},
    "icml": {"scale"},
    "normalized, normalised loss": set(),
    "parameter-wise": {"scale"},
    "fisher-rao of the diagonal": {"scale"},
}


@pytest.mark.parametrize("name", MEASURES)
def test_the_table_of_invariances(name):
    task = with_biases()
    x = next(iter(task.data))[0]
    before = MEASURES[name](task)
    for change, apply in CHANGES.items():
        moved = apply(task.model, x)
        assert away_from_kinks(moved, x)
        after = MEASURES[name](replace(task, model=moved))
        if change in MOVES[name]:
            assert abs(after / before - 1) > 1e-3, change
        else:
            assert after == pytest.approx(before, rel=1e-9), change
