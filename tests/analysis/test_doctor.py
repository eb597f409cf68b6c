"""The doctor: a network with one defect has the finding of this defect, and a healthy one has none."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spectra import Task, analyze
from spectra.analysis import doctor
from spectra.analysis.diagnoses import of_plan
from spectra.analysis.doctor import examine_checkpoints
from spectra.analysis.settings import DataChoice, RunSettings, Settings
from spectra.errors import SpectraError


def network(*inner, width=5):
    return nn.Sequential(nn.Linear(4, width), *(inner or (nn.Tanh(),)), nn.Linear(width, 3))


def data(rows=60, size=25, classes=3):
    x, y = torch.randn(rows, 4), torch.randint(classes, (rows,))
    return list(zip(x.split(size), y.split(size)))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def examine(tmp_path, monkeypatch):
    """The findings that are no mere "ok", as (check, level, reason and remedy); and all of them in ``examine.all``."""
    monkeypatch.chdir(tmp_path)

    def run(task, weights=None, choice=None, paths=("c.pt",), cost=False, asked=None, **settings):
        torch.save(task.model.state_dict() if weights is None else weights, "c.pt")
        if not cost:
            monkeypatch.setattr(doctor, "plan_checkpoints", no_plan)
        asked = RunSettings(Settings(**settings), choice or DataChoice(), **(asked or {}))
        run.all = examine_checkpoints([tmp_path / path for path in paths], lambda checkpoint: task, asked)
        assert [path.name for path in tmp_path.iterdir()] == ["c.pt"]
        run.told = [one for one in run.all if one.level != "ok" and one.reason != "no plan"]
        return [(one.check, one.level, f"{one.reason} -> {one.remedy}") for one in run.told]

    return run


def no_plan(*_):
    raise SpectraError("no plan")


def only(found, check, level, *words):
    """The one finding there is."""
    assert [(one[0], one[1]) for one in found] == [(check, level)], found
    for word in words:
        assert word in found[0][2]


HEALTHY = {
    "tanh": lambda: Task(network(), nn.CrossEntropyLoss(), data()),
    "relu": lambda: Task(network(nn.ReLU(), width=4), nn.CrossEntropyLoss(), data()),
    "mse": lambda: Task(network(nn.GELU()), nn.MSELoss(), [(torch.randn(9, 4), torch.randn(9, 3))]),
    "dropout": lambda: Task(network(nn.Tanh(), nn.Dropout()), nn.CrossEntropyLoss(), data()),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_network_has_no_finding(examine, name):
    assert examine(HEALTHY[name](), operators=["hessian", "ggn", "empirical_fisher"], cost=True) == []
    checks = {one.check for one in examine.all}
    assert {"checkpoint", "data", "range", "parameters", "derivatives", "exact trace", "cost"} <= checks


@pytest.mark.parametrize("mode", ["eval", "recalibrated", "train"])
def test_trained_batch_norm_has_no_finding(examine, mode):
    made = Task(network(nn.BatchNorm1d(5), nn.Tanh()), nn.CrossEntropyLoss(), data())
    for _ in range(50):
        for x, _ in made.data:
            made.model(x)
    before = {name: tensor.clone() for name, tensor in made.model.state_dict().items()}
    assert examine(made, bn_modes=[mode]) == []
    torch.testing.assert_close(made.model.state_dict(), before, rtol=0, atol=0)
    assert made.model.training


# -- the checkpoint


def test_weights_that_do_not_fit_are_told_and_the_other_checks_go_on(examine):
    made = Task(network(), nn.CrossEntropyLoss(), data())
    only(examine(made, network(width=6).state_dict()), "checkpoint", "problem", "of another shape")
    assert "range" in {one.check for one in examine.all}
    weights = made.model.state_dict()
    weights["more"] = weights.pop("0.bias")
    only(examine(made, weights), "checkpoint", "problem", "keys missing", "unexpected")


def test_a_file_that_cannot_be_read_is_the_only_finding(examine):
    only(examine(HEALTHY["tanh"](), paths=["none.pt"]), "checkpoint", "problem", "none.pt")
    only(examine(HEALTHY["tanh"](), {}), "checkpoint", "problem")


def test_weights_that_are_not_finite(examine):
    made = HEALTHY["tanh"]()
    weights = {name: tensor.clone() for name, tensor in made.model.state_dict().items()}
    weights["0.bias"][1] = float("nan")
    only(examine(made, weights), "checkpoint", "problem", "0.bias")


def test_several_weight_sets_and_weights_of_the_task_itself(examine):
    made = HEALTHY["tanh"]()
    weights = made.model.state_dict()
    only(examine(made, {"model": weights, "ema": weights}), "checkpoint", "warning", "'ema'", "--weights")
    assert examine(made, {"model": weights, "ema": weights}, asked={"weights": "ema"}) == []
    without = {name: tensor for name, tensor in weights.items() if name != "2.bias"}
    only(examine(made, without, asked={"partial": True}), "checkpoint", "warning", "3 of 4 tensors", "2.bias")


# -- the data


class Passes:
    """Data that a function changes on every pass."""

    def __init__(self, change):
        self.x, self.y, self.change = torch.randn(40, 4), torch.randint(3, (40,)), change

    def __iter__(self):
        x, order = self.change(self.x)
        return iter(list(zip(x[order].split(20), self.y[order].split(20))))


def test_data_that_differ_are_examined_on_a_snapshot(examine):
    made = Task(network(), nn.CrossEntropyLoss(), Passes(lambda x: (x + torch.randn(x.shape), torch.arange(40))))
    only(examine(made), "data", "problem", "not the same", "--snapshot-data")
    assert "parameters" in {one.check for one in examine.all}
    assert examine(made, choice=DataChoice(snapshot=True)) == []


def test_shuffled_data(examine):
    made = Task(network(), nn.CrossEntropyLoss(), Passes(lambda x: (x, torch.randperm(40))))
    only(examine(made), "hessian, eval", "warning", "shuffled", "--snapshot-data")
    made = Task(network(nn.BatchNorm1d(5)), nn.CrossEntropyLoss(), Passes(lambda x: (x, torch.randperm(40))))
    only(examine(made, bn_modes="train"), "batches", "problem", "shuffled", "--snapshot-data")


def test_no_data_and_test_data_that_are_not_there(examine):
    only(examine(Task(network(), nn.CrossEntropyLoss(), [])), "data", "problem", "empty")
    only(examine(HEALTHY["tanh"](), test_data=True), "test data", "problem", "no test data")


def test_a_batch_of_one_sample_in_train_mode(examine):
    made = Task(network(nn.BatchNorm1d(5), nn.Tanh()), nn.CrossEntropyLoss(), data(51))
    found = examine(made, bn_modes=["train"])
    assert found[0][:2] == ("batches", "problem")
    assert "single sample" in found[0][2]


# -- the loss


def test_labels_beyond_the_outputs(examine):
    found = examine(Task(network(), nn.CrossEntropyLoss(), data(classes=9)))
    assert found[0][:2] == ("loss", "problem")
    assert "3 outputs" in found[0][2]
    assert all("unexpected" not in words for _, _, words in found)


def test_a_batch_whose_targets_are_all_ignored(examine):
    batches = data(50)
    batches[1][1].fill_(-100)
    only(examine(Task(network(), nn.CrossEntropyLoss(), batches)), "data", "warning", "1 of 2 batches have no weight")


def test_an_averaging_that_is_not_known(examine):
    made = Task(network(), lambda out, target: F.cross_entropy(out, target, reduction="sum") ** 2, data())
    only(examine(made), "loss", "problem", "weight=")


def test_dropout_left_on(examine):
    made = Task(network(), nn.CrossEntropyLoss(), data(), forward=lambda m, batch: m(F.dropout(batch[0])))
    found = examine(made)
    assert {check for check, level, words in found if level == "problem"} <= {"loss", "hessian, eval"}
    assert all("random in eval mode" in words for _, level, words in found if level == "problem")


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad * 3 * ctx.saved_tensors[0] ** 2


class Detached(Once):
    @staticmethod
    def backward(ctx, grad):
        return grad * 3 * ctx.saved_tensors[0].detach() ** 2


class Detaching(Once):
    @staticmethod
    def backward(ctx, grad):
        return grad * (3 * ctx.saved_tensors[0] ** 2).detach()


@pytest.mark.parametrize("function", [Once, Detached, Detaching])
def test_a_criterion_without_a_whole_second_derivative(examine, function):
    made = Task(network(), lambda out, t: F.cross_entropy(out, t) + 0.1 * function.apply(out).mean(), data())
    found = examine(made)
    assert found[0][:2] == ("loss", "problem")
    assert "part of its backward without a graph" in found[0][2]


@pytest.mark.parametrize(
    ("function", "words"), [(Once, "once_differentiable"), (Detached, "part of its backward without")]
)
def test_a_network_without_a_whole_second_derivative(examine, function, words):
    made = Task(network(), nn.CrossEntropyLoss(), data(), forward=lambda m, b: function.apply(m(b[0])))
    found = examine(made)
    assert found[0][:2] == ("loss", "problem")
    assert words in found[0][2]


def test_a_piecewise_linear_criterion(examine):
    made = Task(network(), nn.L1Loss(), [(torch.randn(9, 4), torch.randn(9, 3))])
    only(examine(made), "loss", "problem", "piecewise linear")


def test_a_part_without_derivatives(examine):
    def loss(out, target):
        return F.cross_entropy(out * (1 + out.detach().square()), target)

    only(examine(Task(network(), loss, data())), "derivatives", "warning", "detach")
    assert analyze(
        Task(network(), loss, data()), lanczos_steps=3, num_probes=2, metrics="none"
    )  # as the exit code says


def test_the_padding_row_of_an_embedding_that_is_no_padding(examine):
    model = nn.Sequential(nn.Embedding(5, 4, padding_idx=0), nn.Flatten(), nn.Linear(8, 3))
    nn.init.normal_(model[0].weight)
    tokens, y = torch.randint(5, (30, 2)), torch.randint(3, (30,))
    tokens[0] = 0
    only(examine(Task(model, nn.CrossEntropyLoss(), [(tokens, y)])), "derivatives", "warning", "padding_idx")


def test_weights_at_a_kink(examine):
    model = network(nn.ReLU(), width=4)
    nn.init.zeros_(model[0].bias)
    batches = data()
    batches[0][0][:5] = 0  # black images, say
    only(examine(Task(model, nn.CrossEntropyLoss(), batches)), "derivatives", "warning", "jumps", "module 1")
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.ReLU(), nn.Linear(4, 3))
    assert examine(Task(model, nn.CrossEntropyLoss(), batches)) == []  # zeros that stay zero are no kink


# -- the network


def test_unused_parameters(examine):
    model = network()
    model.append(nn.Linear(2, 2))
    made = Task(model, nn.CrossEntropyLoss(), data(), forward=lambda m, batch: m[:3](batch[0]))
    only(examine(made), "parameters", "warning", "does not use 2 tensors: 3.weight, 3.bias", "--params")


@pytest.mark.parametrize("relu", [nn.ReLU, lambda: nn.ReLU(inplace=True), nn.ReLU6])
def test_dead_units(examine, relu):
    model = network(relu(), width=4)
    with torch.no_grad():
        model[0].bias[:2] = -50
    only(examine(Task(model, nn.CrossEntropyLoss(), data())), "units", "warning", "never active", "2 of 4 in module 1")
    with torch.no_grad():
        model[0].bias[:] = -50
    found = examine(Task(model, nn.CrossEntropyLoss(), data()))
    assert [one[:2] for one in found] == [("parameters", "warning"), ("units", "warning")]
    assert "3 tensors: 0.weight, 0.bias, 2.weight" in found[0][2]
    with torch.no_grad():
        model[0].bias[:] = 3 if relu is nn.ReLU6 else 50
        model[0].weight *= 0.1
    only(examine(Task(model, nn.CrossEntropyLoss(), data())), "units", "warning", "always active", "4 of 4")


def test_dead_units_of_a_function_and_of_channels(examine):
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(12, 3))
    with torch.no_grad():
        model[0].bias[1] = -50
    batch = torch.randn(30, 1, 4, 4), torch.randint(3, (30,))
    made = Task(model, nn.CrossEntropyLoss(), [batch], forward=lambda m, b: m[1:](torch.relu(m[0](b[0]))))
    only(examine(made), "units", "warning", "1 of 3 in module the model")


def test_batch_norm_that_was_never_trained(examine):
    made = Task(network(nn.BatchNorm1d(5), nn.Tanh()), nn.CrossEntropyLoss(), data())
    found = examine(made)
    assert [one[:2] for one in found] == [("batch norm", "warning")] * len(found)
    assert "never been updated: 1" in found[0][2]
    assert "--bn recalibrated" in found[0][2]
    for mode in ("train", "recalibrated"):
        assert examine(made, bn_modes=[mode]) == []


def test_stale_statistics_of_batch_norm(examine):
    made = Task(network(nn.BatchNorm1d(5), nn.Tanh()), nn.CrossEntropyLoss(), data())
    for _ in range(50):
        made.model(made.data[0][0])
    with torch.no_grad():
        made.model[0].bias += 2
    only(examine(made), "batch norm", "warning", "not those of the data in 1 of 1 layers: 1", "--bn recalibrated")


def test_a_momentum_that_keeps_no_mean(examine):
    made = Task(network(nn.BatchNorm1d(5, momentum=1.0), nn.Tanh()), nn.CrossEntropyLoss(), data())
    made.model(torch.cat([x for x, _ in made.data]))
    only(examine(made), "batch norm", "warning", "momentum 0 or 1", "--bn recalibrated")


# -- numbers


def test_numbers_that_float32_does_not_hold(examine):
    scale = 1e30
    made = Task(network(), lambda out, t: F.mse_loss(scale * out, scale * t), [(torch.randn(9, 4), torch.randn(9, 3))])
    found = examine(made)
    assert found[0][:2] == ("loss", "problem")
    assert "--dtype float64" in found[0][2]
    assert examine(made, dtype="float64") == []
    made = Task(network(), lambda out, t: out.square().mean() * float("inf"), made.data)
    assert "diverged" in examine(made)[0][2]


def test_float64_is_advised_where_products_are_noisy(examine):
    made = Task(network(), lambda out, t: F.mse_loss((out + 3e4) - 3e4, t), [(torch.randn(9, 4), torch.randn(9, 3))])
    only(examine(made), "hessian, eval", "warning", "noise", "--dtype float64")
    assert examine(made, dtype="float64") == []


def test_too_little_memory_and_a_trace_that_is_not_exact(examine):
    only(examine(HEALTHY["tanh"](), memory="1M", cost=True), "cost", "problem", "would fit")
    reasons = [one.reason for one in examine.all if one.check == "exact trace"]
    assert len(reasons) == 1
    assert "Gauss-Newton matrix alone" in reasons[0]
    assert "not affine" in reasons[0]


def test_memory_that_will_not_be_there():
    class Predicted:
        checkpoints, memory = 3, 2.0**31

        @staticmethod
        def time():
            return (100.0, 90.0)

    found = of_plan(Predicted, 2**30)
    assert (found.check, found.level) == ("cost", "warning")
    assert "2.0 GiB" in found.reason
    assert of_plan(Predicted, 2**32).level == "ok"


def test_an_unexpected_error_is_a_problem_and_the_others_go_on(examine, monkeypatch):
    monkeypatch.setattr(doctor, "observe", lambda function: 1 / 0)
    only(examine(HEALTHY["relu"]()), "parameters", "problem", "unexpected error: ZeroDivisionError", "--debug")
    assert "exact trace" in {one.check for one in examine.all}
