"""The optimizers against their formulas, written out step by step in float64, and against closed forms."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spectra import BNSharpnessOptimizer
from spectra.errors import ArgumentError
from spectra.zoo.data import ImageSet
from spectra.zoo.entropy_sgd import EntropySGD
from spectra.zoo.options import training_options
from spectra.zoo.training_state import TrainingState

pytestmark = pytest.mark.usefixtures("float64")


def images(n=12):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (n, 1, 2, 2), dtype=torch.uint8, generator=generator)
    return ImageSet(pixels, torch.randint(3, (n,), generator=generator), 255.0, (0.5,), (0.3,), 3)


class Double(nn.Module):
    """The images are float32; the network is not."""

    def forward(self, x):
        return x.double()


def network(norm=False):
    torch.manual_seed(1)
    return nn.Sequential(
        Double(), nn.Flatten(), nn.Linear(4, 5), *([nn.BatchNorm1d(5)] if norm else []), nn.Tanh(), nn.Linear(5, 3)
    )


def state(model=None, **options):
    return TrainingState(model or network(), images(), training_options(options), 0, torch.device("cpu"))


def batches_of(epochs, size, n=12, seed=0):
    """The batches of training, epoch by epoch."""
    order, data = torch.Generator().manual_seed(seed), images(n)
    return [[data.batch(rows) for rows in torch.randperm(n, generator=order).split(size)] for _ in range(epochs)]


def gradient(model, weights, batch):
    """Of the mean cross-entropy at given weights."""
    with torch.no_grad():
        for p, w in zip(model.parameters(), weights):
            p.copy_(torch.as_tensor(w))
    loss = F.cross_entropy(model(batch[0]), batch[1])
    return [g.numpy() for g in torch.autograd.grad(loss, list(model.parameters()))]


def numbers(model):
    return [p.detach().numpy().copy() for p in model.parameters()]


def close(found, expected, rtol=1e-12):
    for a, b in zip(found, expected):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-14)


@pytest.mark.parametrize("kind", ["adam", "adamw", "gadam"])
@pytest.mark.parametrize("average", ["epoch", "step"])
def test_adam_with_either_decay_and_the_average_are_their_formulas(kind, average):
    """Kingma and Ba's algorithm 1; L2 in the gradient or decay of the weights; a running mean of the weights."""
    options = {"learning_rate": 0.05, "beta1": 0.8, "beta2": 0.95, "eps": 1e-3, "weight_decay": 0.3, "batch_size": 4}
    made = state(optimizer=kind, epochs=4, average=average, average_from=2, **options)
    shadow = copy.deepcopy(made.model)
    w = numbers(shadow)
    m, v, mean, count, t = [np.zeros_like(x) for x in w], [np.zeros_like(x) for x in w], None, 0, 0

    def averaged():
        nonlocal mean, count
        mean = [x.copy() for x in w] if mean is None else [(count * a + x) / (count + 1) for a, x in zip(mean, w)]
        count += 1

    for epoch, batches in enumerate(batches_of(4, 4), 1):
        made.train_epoch(lambda step: None)
        for batch in batches:
            t += 1
            g = gradient(shadow, w, batch)
            if kind == "adam":
                g = [a + 0.3 * x for a, x in zip(g, w)]
            else:
                w = [x - 0.05 * 0.3 * x for x in w]
            m = [0.8 * a + 0.2 * b for a, b in zip(m, g)]
            v = [0.95 * a + 0.05 * b**2 for a, b in zip(v, g)]
            w = [x - 0.05 * (a / (1 - 0.8**t)) / (np.sqrt(b / (1 - 0.95**t)) + 1e-3) for x, a, b in zip(w, m, v)]
            if average == "step" and epoch >= 2:
                averaged()
        if average == "epoch" and epoch >= 2:
            averaged()
        close(numbers(made.model), w)
        assert made.averaged == count
        close(numbers(made.final_model()), w if mean is None else mean)
    assert made.averaged == (3 if average == "epoch" else 9)


def test_gadam_averages_per_epoch_by_default_and_sgd_can_be_averaged_too():
    """Stochastic weight averaging is SGD with the same average."""
    assert training_options({"optimizer": "gadam", "epochs": 300})["average"] == "epoch"
    assert training_options({"optimizer": "gadam", "epochs": 300})["average_from"] == 200
    made = state(epochs=3, average="epoch", average_from=1, batch_size=6)
    seen = []
    for _ in range(3):
        made.train_epoch(lambda step: None)
        seen.append(numbers(made.model))
    close(numbers(made.final_model()), [np.mean(parts, axis=0) for parts in zip(*seen)])


def test_the_averaged_network_has_batch_norm_statistics_of_its_own():
    made = state(network(norm=True), epochs=3, average="epoch", average_from=2, batch_size=6, learning_rate=0.5)
    for _ in range(3):
        made.train_epoch(lambda step: None)
    final = made.final_model()
    x = images().batch(slice(None))[0]
    hidden = final[2](x.double().flatten(1))
    means = torch.stack([part.mean(0) for part in hidden.split(6)])
    variances = torch.stack([part.var(0) for part in hidden.split(6)])
    torch.testing.assert_close(final[3].running_mean, means.mean(0).detach())
    torch.testing.assert_close(final[3].running_var, variances.mean(0).detach())
    assert not torch.allclose(final[3].running_mean, made.model[3].running_mean, rtol=1e-3)
    before = numbers(made.average.module)
    made.final_model()
    close(numbers(made.average.module), before, rtol=0)


def test_sgd_with_nesterovs_momentum_is_its_formula():
    made = state(epochs=2, momentum=0.7, nesterov=True, weight_decay=0.1, learning_rate=0.2, batch_size=5)
    shadow = copy.deepcopy(made.model)
    w, velocity = numbers(shadow), None
    for batches in batches_of(2, 5):
        made.train_epoch(lambda step: None)
        for batch in batches:
            g = [a + 0.1 * x for a, x in zip(gradient(shadow, w, batch), w)]
            velocity = g if velocity is None else [0.7 * a + b for a, b in zip(velocity, g)]
            w = [x - 0.2 * (b + 0.7 * a) for x, a, b in zip(w, velocity, g)]
    close(numbers(made.model), w)


@pytest.mark.parametrize("form", ["corrected", "printed"])
def test_sgds_is_the_optimizer_of_bn_sharpness_with_its_growing_strength(form):
    given = {"strength": 0.5, "growth": 1.5, "delta": 1e-3, "ascent_steps": 1, "max_norm": 0.1, "form": form}
    made = state(network(norm=True), optimizer="sgds", epochs=3, batch_size=6, learning_rate=0.2, **given)
    by_hand = copy.deepcopy(made.model)
    sgd = torch.optim.SGD(by_hand.parameters(), lr=0.2, momentum=0.9)
    optimizer = BNSharpnessOptimizer(sgd, by_hand, **given)
    for epoch, batches in enumerate(batches_of(3, 6)):
        made.train_epoch(lambda step: None)
        optimizer.set_epoch(epoch)
        for x, y in batches:
            optimizer.step(lambda x=x, y=y: F.cross_entropy(by_hand(x), y))
        close(numbers(made.model), numbers(by_hand), rtol=0)
        assert made.sharpness.scheduled_strength == 0.5 * 1.5**epoch


# -- Entropy-SGD


def quadratic(a, b, start, **options):
    """``0.5 a w^2 - b w`` for each weight; the closure of one Langevin step."""
    w = nn.Parameter(torch.tensor(start))
    optimizer = EntropySGD([w], **options)

    def closure():
        optimizer.zero_grad()
        (0.5 * torch.tensor(a) * w**2 - torch.tensor(b) * w).sum().backward()

    return w, optimizer, closure


@pytest.mark.parametrize("times_gamma", [False, True])
def test_entropy_sgd_is_algorithm_1_with_scoping_momentum_and_noise(times_gamma):
    """A literal transcription, with the same draws of the noise."""
    a, b, start = [1.0, 3.0], [0.5, -0.2], [0.3, -0.7]
    options = {
        "lr": 0.6,
        "langevin_rate": 0.1,
        "langevin_noise": 0.02,
        "gamma": 0.4,
        "gamma_growth": 0.5,
        "alpha": 0.75,
    }
    w, optimizer, closure = quadratic(a, b, start, momentum=0.8, weight_decay=0.1, times_gamma=times_gamma, **options)
    torch.manual_seed(9)
    for _ in range(4):
        optimizer.step([closure] * 3)

    torch.manual_seed(9)
    x = np.array(start)
    for t in range(4):
        gamma = 0.4 * (1 + 0.5) ** t
        y, mu, velocity = x.copy(), x.copy(), np.zeros(2)
        for _ in range(3):
            g = np.array(a) * y - np.array(b) + 0.1 * y
            velocity = 0.8 * velocity + g
            slope = g + 0.8 * velocity - gamma * (x - y)
            y = y - 0.1 * slope + math.sqrt(0.1) * 0.02 * torch.randn(2).numpy()
            mu = (1 - 0.75) * mu + 0.75 * y
        x = x - 0.6 * (gamma if times_gamma else 1.0) * (x - mu)
    close([w.detach().numpy()], [x])
    assert optimizer.param_groups[0]["steps"] == 4


def test_entropy_sgd_on_a_quadratic_is_its_closed_form_without_noise():
    """``y_l - y* = r^l (x - y*)`` with ``y* = (b + gamma x) / (a + gamma)`` and ``r = 1 - eta (a + gamma)``."""
    a, b, x, eta, gamma, alpha, steps = 2.0, 1.0, 3.0, 0.1, 0.5, 0.75, 7
    w, optimizer, closure = quadratic(
        [a],
        [b],
        [x],
        lr=1.0,
        langevin_rate=eta,
        langevin_noise=0.0,
        gamma=gamma,
        gamma_growth=0.0,
        alpha=alpha,
        momentum=0.0,
    )
    optimizer.step([closure] * steps)
    rest, ratio = (b + gamma * x) / (a + gamma), 1 - eta * (a + gamma)
    mu = (1 - alpha) ** steps * x + sum(
        alpha * (1 - alpha) ** (steps - i) * (rest + ratio**i * (x - rest)) for i in range(1, steps + 1)
    )
    assert float(w.detach()) == pytest.approx(mu, rel=1e-13)


def test_entropy_sgd_converges_to_the_gradient_of_the_local_entropy():
    """Many Langevin steps of a quadratic: ``mu -> y*``, and ``gamma (x - mu)`` is the gradient of its local entropy,
    ``a' = a gamma / (a + gamma)`` times the distance from the minimum."""
    a, b, x, gamma = 2.0, 1.0, 3.0, 0.5
    options = {
        "lr": 1.0,
        "langevin_noise": 0.0,
        "gamma": gamma,
        "gamma_growth": 0.0,
        "momentum": 0.0,
        "times_gamma": True,
    }
    w, optimizer, closure = quadratic([a], [b], [x], **options)
    optimizer.step([closure] * 400)
    assert x - float(w.detach()) == pytest.approx(a * gamma / (a + gamma) * (x - b / a), rel=1e-12)


def test_the_noise_of_entropy_sgd_has_its_standard_deviation():
    w, optimizer, closure = quadratic(
        [0.0] * 20000, [0.0] * 20000, [0.0] * 20000, langevin_noise=0.3, gamma=0.0, alpha=1.0
    )
    torch.manual_seed(0)
    optimizer.step([closure])
    assert float(w.detach().std()) == pytest.approx(math.sqrt(0.1) * 0.3, rel=0.02)


def test_training_gives_entropy_sgd_its_batches_in_groups_that_end_with_the_epoch():
    options = {"optimizer": "entropy-sgd", "langevin_steps": 4, "langevin_noise": 0.0, "batch_size": 2, "epochs": 2}
    made = state(**options)
    by_hand = copy.deepcopy(made.model)
    optimizer = EntropySGD(by_hand.parameters(), 1.0, langevin_noise=0.0)
    for batches in batches_of(2, 2):
        made.train_epoch(lambda step: None)
        closures = []
        for x, y in batches:

            def closure(x=x, y=y):
                optimizer.zero_grad()
                F.cross_entropy(by_hand(x), y).backward()

            closures.append(closure)
        optimizer.step(closures[:4])
        optimizer.step(closures[4:])
    close(numbers(made.model), numbers(by_hand), rtol=0)
    assert (made.step, optimizer.param_groups[0]["steps"]) == (12, 4)


@pytest.mark.parametrize("option", [{"lr": -1.0}, {"alpha": 1.5}, {"gamma": math.nan}, {"momentum": -0.1}])
def test_entropy_sgd_refuses_what_is_outside_its_range(option):
    ((name, value),) = option.items()
    with pytest.raises(ArgumentError, match=f"{name}={value}"):
        EntropySGD([nn.Parameter(torch.zeros(1))], **option)
