"""The error of the noisy network and its bounds: against closed forms, quadrature and sums that are made by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from dense_curvature import dense_diagonal
from scipy.stats import binom, norm
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

import spectra
from spectra import Task, analyze
from spectra.errors import ArgumentError
from spectra.exact.trace import exact_diagonal
from spectra.results.storage.runfile import RunFile, load_trajectory
from spectra.sharpness.bounds import LAMBDAS
from spectra.sharpness.bounds import NAMES as BOUNDS
from spectra.sharpness.hoeffding import draws_for, hoeffding_interval
from spectra.sharpness.noisy_error import NAMES
from spectra.sharpness.noisy_network import NoisyNetwork, log_variances

pytestmark = pytest.mark.usefixtures("float64")


def linear(dims: int, rows: int = 12, flipped: float = 0.0) -> Task:
    """Two classes of a linear network; the true class is that of the first input's sign, up to flipped labels."""
    model = nn.Linear(dims, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.5, -0.4], [-0.8, 0.3]])[:, :dims])
    x = torch.randn(rows, dims)
    y = ((x[:, 0] < 0) ^ (torch.rand(rows) < flipped)).long()
    return Task(model, nn.CrossEntropyLoss(), [(x[: rows // 2], y[: rows // 2]), (x[rows // 2 :], y[rows // 2 :])])


def relu_net() -> Task:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    return Task(model, nn.CrossEntropyLoss(), [(torch.randn(9, 4), torch.randint(3, (9,)))])


def noise_of(task: Task, kappa: float, single: bool = False) -> tuple[torch.Tensor, int]:
    """The variances of the noise by entry, and the number of scales."""
    t, scales = log_variances(NoisyNetwork(task, "eval"), exact_diagonal(task), np.linspace(-20, 20, 81), single)
    return t.exp() / math.sqrt(kappa), scales


def exact_error(task: Task, variances: torch.Tensor) -> float:
    """The margin of a sample is Gaussian: its error is the probability that it is negative."""
    x, y = (torch.cat(parts) for parts in zip(*task.data))
    sign = 1.0 - 2 * y
    w, s = task.model.weight.detach(), variances.view_as(task.model.weight)
    margin = sign * (x @ (w[0] - w[1]))
    return float(norm.cdf(-(margin / (x.square() @ s.sum(0)).sqrt()).numpy()).mean())


@pytest.mark.parametrize("dims", [1, 2])
def test_the_error_of_a_noisy_linear_classifier_is_its_closed_form(dims):
    task = linear(dims)
    variances = 4 * torch.tensor([1.0, 0.5, 2.0, 0.1])[: 2 * dims]
    errors = [look.error for _, look in NoisyNetwork(task, "eval").under_noise(variances.sqrt(), 400, 3)]
    truth, mean = exact_error(task, variances), np.mean(errors)
    assert 0.02 < truth < 0.5
    assert abs(mean - truth) < 4.5 * np.std(errors, ddof=1) / 20
    lower, upper = hoeffding_interval(float(mean), 400, 0.05)
    assert lower < truth < upper


@pytest.mark.slow
@pytest.mark.parametrize("dims", [1, 2])
def test_the_intervals_of_a_classifier_hold_the_closed_form_at_several_seeds(dims):
    task = linear(dims)
    for seed in range(5):
        found = spectra.noisy_error_bounds(task, samples=10**5, width=0.15, seed=seed)
        terms = found["bound_error_units"].details
        variances, scales = noise_of(task, terms["kappa"])
        assert (terms["lower"], terms["upper"]) == (
            found["noisy_error"].details["lower"],
            found["noisy_error"].details["upper"],
        )
        assert terms["lower"] < exact_error(task, variances) < terms["upper"]
        assert terms["scales"] == scales == 2 + dims


def test_the_interval_holds_with_at_least_its_confidence_whatever_the_expectation():
    """Of coins, the widest variable in [0, 1] with a mean: an exact sum over all outcomes."""
    for draws, delta in ((1, 0.1), (7, 0.05), (40, 0.2), (185, 0.05)):
        hits = np.arange(draws + 1)
        ends = np.array([hoeffding_interval(k / draws, draws, delta) for k in hits])
        for p in (1e-6, 0.01, 0.2, 0.5, 0.77, 0.999, 1 - 1e-9):
            inside = (ends[:, 0] <= p) & (p <= ends[:, 1])
            assert binom.pmf(hits[inside], draws, p).sum() >= 1 - delta
        assert (ends[:, 0] <= hits / draws).all()
        assert (ends[:, 1] >= hits / draws).all()
        assert (abs(ends - hits[:, None] / draws) <= math.sqrt(math.log(2 / delta) / (2 * draws)) * (1 + 1e-12)).all()
    assert hoeffding_interval(1.0, 185, 0.05)[1] == 1.0


@pytest.mark.parametrize(("width", "delta"), [(0.1, 0.05), (0.31, 0.01), (0.02, 0.3)])
def test_as_many_draws_as_the_asked_width_needs_and_no_more(width, delta):
    draws = draws_for(width, delta)
    assert math.sqrt(math.log(2 / delta) / (2 * draws)) <= width
    assert math.sqrt(math.log(2 / delta) / (2 * (draws - 1))) > width


def test_every_term_of_the_bounds_makes_their_value():
    task, delta, m = relu_net(), 0.1, 10**5
    found = spectra.noisy_error_bounds(task, samples=m, delta=delta, width=0.3)
    assert list(found) == list(NAMES)
    w = torch.cat([p.detach().flatten() for p in task.model.parameters()])
    for name, single, scales in (("bound_error_units", False, (5 + 4) + 5 + (3 + 5) + 3),
                                 ("bound_error_matrices", True, 2 + 5 + 3)):  # fmt: skip
        terms = found[name].details
        std = noise_of(task, terms["kappa"], single)[0].sqrt()
        divergence = float(kl_divergence(Normal(w, std), Normal(torch.zeros_like(w), std)).sum())
        assert terms["divergence"] == pytest.approx(divergence, rel=1e-12)
        constant = math.log(2 / delta) + scales * math.log(81) + 2 * math.log(61)
        assert terms["constant"] == pytest.approx(constant, rel=1e-12)
        excess = min((divergence + constant) / lam + lam / (2 * m) for lam in LAMBDAS.tolist())
        assert terms["excess"] == pytest.approx(excess, rel=1e-12)
        assert found[name].value == pytest.approx(terms["upper"] + excess, rel=1e-12)
        assert f"not a guarantee: the error is of 9 samples, not of the {m}" in found[name].reason
    assert found["divergence"].value == found["bound_error_units"].details["divergence"]


def test_the_remainder_of_the_quadratic_model_is_that_of_a_quadrature():
    """In one dimension the loss is of one Gaussian number, the difference of the two weights."""
    task = linear(1, flipped=0.2)
    found = spectra.noisy_error_bounds(task, samples=10**4, width=0.08)["noise_remainder"]
    variances, _ = noise_of(task, found.details["kappa"])
    x, y = (torch.cat(parts) for parts in zip(*task.data))
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    gap = (
        float(task.model.weight.detach()[:, 0] @ torch.tensor([1.0, -1.0])) + math.sqrt(float(variances.sum())) * nodes
    )
    margins = ((1.0 - 2 * y) * x[:, 0]).numpy()[:, None] * gap
    noisy = float((np.logaddexp(0, -margins).mean(0) * weights).sum() / weights.sum())
    loss = float(F.cross_entropy(task.model(x), y).detach())
    whole = replace(task, data=[(x, y)])
    quadratic = float(torch.cat([d.flatten() for d in dense_diagonal(whole).values()]) @ variances) / 2
    assert found.details["loss"] == pytest.approx(loss, rel=1e-12)
    assert found.details["quadratic"] == pytest.approx(quadratic, rel=1e-9)
    assert abs(found.value - (noisy - loss - quadratic)) < 4.5 * found.stderr
    assert found.stderr < 0.15 * quadratic


def test_the_description_length_is_the_bits_of_labels_weights_and_scales():
    task, m = relu_net(), 1000
    found = spectra.noisy_error_bounds(task, samples=m, width=0.3)
    length, rest = found["description_length"], found["noise_remainder"].details
    nats = m * (rest["loss"] + rest["rise"]) + found["divergence"].value + 25 * math.log(81) + math.log(61)
    assert length.value == pytest.approx(nats / math.log(2), rel=1e-12)
    assert length.value > m * rest["loss"] / math.log(2)
    assert length.stderr == pytest.approx(m * found["noise_remainder"].stderr / math.log(2), rel=1e-12)
    smooth = replace(task, criterion=nn.CrossEntropyLoss(label_smoothing=0.1))
    other = spectra.noisy_error_bounds(smooth)
    assert math.isnan(other["description_length"].value)
    assert "no code length" in other["description_length"].reason
    assert other["noisy_error"].value >= 0


def test_the_bounds_fall_with_the_samples_and_are_vacuous_with_few():
    task = relu_net()
    few, more, most = (spectra.noisy_error_bounds(task, samples=m, width=0.3) for m in (None, 10**4, 10**7))
    for name in NAMES[:2]:
        assert few[name].details["samples"] == 9
        assert few[name].details["draws"] == 16 < more[name].details["draws"] == 21
        assert few[name].reason.startswith("vacuous: not below 1, whatever the noisy error is; holds with probability")
        assert few[name].value > more[name].value > most[name].value


def test_rescaled_layers_have_the_same_noisy_error_and_divergence():
    """Where the factor moves the scales from point to point of the set the noisy networks are the same functions."""
    task = relu_net()
    model = task.model
    before = spectra.noisy_error_bounds(task, samples=10**5, width=0.3)["bound_error_matrices"]
    with torch.no_grad():
        model[0].weight *= math.exp(0.75)
        model[0].bias *= math.exp(0.75)
        model[2].weight /= math.exp(0.75)
    after = spectra.noisy_error_bounds(task, samples=10**5, width=0.3)["bound_error_matrices"]
    assert after.value == pytest.approx(before.value, rel=1e-9)
    assert after.details["divergence"] == pytest.approx(before.details["divergence"], rel=1e-9)


@pytest.mark.slow
def test_the_true_error_of_the_noisy_network_is_below_the_bound():
    """Labels of the sign of x, a tenth flipped: the noisy network's true error is known."""
    for seed in range(4):
        torch.manual_seed(seed)
        task = linear(1, rows=400, flipped=0.1)
        found = spectra.noisy_error_bounds(task, seed=seed)
        for single, name in enumerate(NAMES[:2]):
            variances, _ = noise_of(task, found[name].details["kappa"], bool(single))
            gap = float(task.model.weight.detach()[:, 0] @ torch.tensor([1.0, -1.0]))
            wrong = norm.cdf(-gap / math.sqrt(float(variances.sum())))
            assert 0.9 * wrong + 0.1 * (1 - wrong) < found[name].value < 1


def test_the_scales_of_a_convolution_belong_to_channels_within_their_group():
    model = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3, bias=False))
    task = Task(model, nn.CrossEntropyLoss(), [(torch.randn(8, 2, 5, 5), torch.randint(3, (8,)))])
    variances, scales = noise_of(task, 4.0)
    kernel, _, last = variances.split([36, 4, 108])
    assert scales == (4 + 2) + 4 + (3 + 36)
    logs = kernel.log().view(4, 1, 9)
    torch.testing.assert_close(logs, logs[:, :, :1].expand(4, 1, 9))
    logs = last.log().view(3, 36)
    torch.testing.assert_close(logs - logs[:1], (logs - logs[:1])[:, :1].expand(3, 36))  # rank one
    single, scales = noise_of(task, 4.0, single=True)
    kernel, _, last = single.split([36, 4, 108])
    assert scales == 1 + 4 + 1
    assert kernel.unique().numel() == last.unique().numel() == 1
    h, u = (sum(float(d.sum()) for d in parts) for parts in (
        [exact_diagonal(task)["3.weight"]], [model[3].weight.detach().square()]))  # fmt: skip
    assert abs(float(last[0].log()) + math.log(4) / 2 - math.log(u / h) / 2) <= 0.25 + 1e-2  # half a step of the set


def test_vacuous_bounds_are_of_the_noise_that_suits_the_description_length():
    task = relu_net()
    found = spectra.noisy_error_bounds(task, samples=40)["bound_error_units"].details
    assert found["kappa"] == 2**5.5  # nearest to 40
    assert found["excess"] > 1


def test_what_depends_on_the_samples_is_no_guarantee():
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    task = Task(model, nn.CrossEntropyLoss(), [(torch.randn(9, 4), torch.randint(3, (9,)))])
    assert "not a guarantee: the running statistics" in spectra.noisy_error_bounds(task)["bound_error_units"].reason
    model[0].requires_grad_(False)
    assert "frozen parameters must not" in spectra.noisy_error_bounds(task)["bound_error_units"].reason
    for measure in spectra.noisy_error_bounds(task, "train").values():
        assert math.isnan(measure.value)


@pytest.mark.parametrize(
    ("criterion", "target", "words"),
    [
        (nn.MSELoss(), torch.randn(9, 3), "one class for each sample"),
        (nn.CrossEntropyLoss(reduction="sum"), torch.randint(3, (9,)), "is a sum"),
        (nn.CrossEntropyLoss(), torch.randn(9, 3).softmax(1), "one class for each sample"),
    ],
)
def test_other_tasks_are_refused_with_the_reason(criterion, target, words):
    task = replace(relu_net(), criterion=criterion)
    task = replace(task, data=[(task.data[0][0], target)])
    found = spectra.noisy_error_bounds(task)
    assert list(found) == list(NAMES)
    for measure in found.values():
        assert math.isnan(measure.value)
        assert words in measure.reason


def test_ignored_targets_are_no_samples():
    task = relu_net()
    x, y = task.data[0]
    y[:4] = -100
    found = spectra.noisy_error_bounds(task)["bound_error_units"].details
    assert found["samples"] == 5
    right = float((task.model(x[4:]).argmax(1) == y[4:]).double().mean())
    assert found["error"] == pytest.approx(1 - right)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"samples": 0}, "samples=0"),
        ({"delta": 1.0}, "delta=1.0"),
        ({"width": 0.0}, "width=0.0"),
        ({"radius": -1.0}, "radius=-1.0"),
        ({"points": 1}, "points=1"),
    ],
)
def test_arguments_outside_their_range_are_refused(arguments, words):
    with pytest.raises(ArgumentError, match=words):
        spectra.noisy_error_bounds(relu_net(), **arguments)


def test_a_record_and_a_file_keep_them_beside_the_other_bounds(tmp_path):
    task = relu_net()
    (record,) = analyze(task, lanczos_steps=2, num_probes=2, metrics="none", bounds=True)
    assert list(record.sharpness) == [*BOUNDS, *NAMES]
    alone = spectra.noisy_error_bounds(task)
    with RunFile.open(tmp_path / "run.h5", {"seed": 0}) as run:
        run.append(record)
    (back,) = load_trajectory(tmp_path / "run.h5")
    for name in NAMES:
        assert back.sharpness[name].to_json() == alone[name].to_json()
    assert json.loads(json.dumps(record.to_json()))["sharpness"]["noisy_error"]["details"]["draws"] == 16
