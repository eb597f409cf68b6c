"""Training with BN-sharpness: its gradient against quadrature, what a step leaves alone, and that it trains."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from bn_cases import bn_task
from torch import nn
from torch.nn import functional as F

from spectra import BNSharpnessOptimizer
from spectra.errors import ArgumentError
from spectra.operators.displaced import DisplacedLoss
from spectra.sharpness.bn_sharpness import neurons_of
from spectra.sharpness.interval import Interval, theta_slope
from spectra.sharpness.search import Search
from spectra.zoo.data import load_mnist
from spectra.zoo.networks.small import convnet, lenet

MNIST = Path(os.environ.get("SPECTRA_TEST_DATA", Path(__file__).parents[3] / "shared" / "data")) / "MNIST"


def flat_grads(model):
    return torch.cat([p.grad.reshape(-1) for p in model.parameters()])


def one_step(model, closure, other=None, **options):
    """The gradient of the sharpness in one step of learning rate 0, unclipped and of strength 1, ``(n,)``."""
    options = {"strength": 1.0, "max_norm": 1e9, **options}
    sgd = torch.optim.SGD(model.parameters(), lr=0.0)
    plain = torch.cat([g.reshape(-1) for g in torch.autograd.grad(closure(), list(model.parameters()))])
    optimizer = BNSharpnessOptimizer(sgd, model, **options)
    optimizer.step(closure, other)
    return flat_grads(model) - plain, optimizer


def single_batch(eps=1e-30):
    task = bn_task(eps)
    x, y = task.data[0]
    task = type(task)(task.model, task.criterion, [(x, y)])
    model = task.model.train()
    return task, model, lambda: F.cross_entropy(model(x), y)


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


def quadrature_gradient(search, v):
    """``grad_theta V^p`` for a fixed ``v``."""
    interval, p = search.interval, search.interval.p
    both = [search.loss.gradient(t * v) for t in interval.t]
    changes = np.array([loss - search.base for loss, _ in both])
    shares = interval.shares(changes)
    return p * interval.value(changes) ** (p - 1) * sum(a * (g - search.centre) for a, (_, g) in zip(shares, both))


# -- the gradient


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("p", [2, 3])
@pytest.mark.parametrize("project", [True, False])
def test_a_step_goes_along_the_gradient_of_the_sharpness_to_second_order(p, project):
    errors = []
    for delta in (1e-2, 1e-3):
        torch.manual_seed(0)
        task, model, closure = single_batch()
        loss = DisplacedLoss(task, "train")
        search = Search(loss, neurons_of(loss), Interval(delta, p, 16), "quadrature", 0)
        exact = quadrature_gradient(search, search.start().v)
        if project:
            exact = search.blocks.without_radial(exact, loss.theta)
        found, _ = one_step(model, closure, delta=delta, p=p, project_radial=project)
        errors.append(relative(found, exact))
    assert errors[1] < 1e-3
    # v is the limit for delta -> 0 in training and in the search's start alike, so the order is that of the formula
    assert errors[0] > 50 * errors[1]


@pytest.mark.usefixtures("float64")
def test_ascent_steps_lead_to_the_direction_that_the_search_finds():
    task, model, closure = single_batch()
    loss = DisplacedLoss(task, "train")
    search = Search(loss, neurons_of(loss), Interval(0.03, 2, 16), "quadrature", 0)
    v = search.ascend("power", search.start(), 100)[0].v
    slope = theta_slope(lambda t: loss.gradient(t * v)[1], float(search.centre @ v), 0.03, 2, centre=None)
    exact = search.blocks.without_radial(slope, loss.theta)
    errors = [relative(one_step(model, closure, delta=0.03, ascent_steps=k)[0], exact) for k in (0, 5)]
    assert errors[1] < 0.5 * errors[0]  # what is left is the error of order delta^2 of equation 16


@pytest.mark.usefixtures("float64")
def test_without_its_radial_part_it_has_none_along_the_filters_and_with_it_it_does():
    _, model, closure = single_batch()
    for project in (True, False):
        h, optimizer = one_step(model, closure, project_radial=project)
        assert optimizer.neurons == {"0.weight": 3, "4.weight": 5}
        rows = h[: model[0].weight.numel()].view(3, -1), model[0].weight.detach().view(3, -1)
        radial = float((rows[0] * rows[1]).sum(1).abs().max() / h.norm())
        assert (radial < 1e-14) if project else (radial > 1e-4)


@pytest.mark.usefixtures("float64")
def test_the_printed_form_is_nearly_no_regularisation():
    _, model, closure = single_batch()
    right, _ = one_step(model, closure)
    printed, _ = one_step(model, closure, form="printed")
    assert float(printed.norm()) < 0.01 * float(right.norm())


@pytest.mark.usefixtures("float64")
def test_two_batches_give_noise_over_delta():
    task = bn_task()
    model = task.model.train()
    (x, y), (u, z) = task.data
    one, _ = one_step(model, lambda: F.cross_entropy(model(x), y))
    two, _ = one_step(model, lambda: F.cross_entropy(model(x), y), lambda: F.cross_entropy(model(u), z))
    assert float(two.norm()) > 50 * float(one.norm())


@pytest.mark.usefixtures("float64")
def test_it_is_scaled_by_the_schedule_and_clipped():
    _, model, closure = single_batch()
    whole, optimizer = one_step(model, closure)
    assert optimizer.sharpness_norm == pytest.approx(float(whole.norm()), rel=1e-12)
    clipped, _ = one_step(model, closure, max_norm=0.1)
    assert torch.allclose(clipped, 0.1 * whole / whole.norm(), rtol=1e-6, atol=1e-12)
    sgd = torch.optim.SGD(model.parameters(), lr=0.0)
    scheduled = BNSharpnessOptimizer(sgd, model)
    scheduled.set_epoch(10)
    assert scheduled.scheduled_strength == pytest.approx(1e-4 * 1.02**10, rel=1e-15)
    scheduled.step(closure)
    assert scheduled.sharpness_norm == pytest.approx(1e-4 * 1.02**10 * float(whole.norm()), rel=1e-9)


# -- what is left alone


class Counting(nn.Module):
    """A layer that writes to a buffer at every call, in place and by assignment."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(()))

    def forward(self, x):
        self.calls.add_(1)
        self.last = x.detach().mean()
        return x


def test_buffers_and_random_states_are_those_of_plain_training():
    """Learning rate 0: the parameters stay, so all that a plain training run would have left is to be found."""
    x, y = torch.randn(12, 1, 8, 8), torch.randint(10, (12,))
    left = []
    for strength in (0.0, 1e-2):
        torch.manual_seed(0)
        model = nn.Sequential(convnet(width=4), Counting(), nn.Dropout(0.3)).train()
        sgd = torch.optim.SGD(model.parameters(), lr=0.0)
        optimizer = BNSharpnessOptimizer(sgd, model, strength=strength, ascent_steps=1)
        losses = [float(optimizer.step(lambda model=model: F.cross_entropy(model(x), y))) for _ in range(3)]
        left.append((losses, {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()))
    assert left[0][0] == left[1][0]
    assert all(torch.equal(left[0][1][name], left[1][1][name]) for name in left[0][1])
    assert torch.equal(left[0][2], left[1][2])
    assert int(left[1][1]["1.calls"]) == 3


def test_without_strength_it_is_the_optimizer_within():
    x, y = torch.randn(12, 1, 8, 8), torch.randint(10, (12,))
    torch.manual_seed(0)
    plain = convnet(width=4).train()
    wrapped = copy.deepcopy(plain)
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}
    sgd = torch.optim.SGD(plain.parameters(), **options)
    optimizer = BNSharpnessOptimizer(torch.optim.SGD(wrapped.parameters(), **options), wrapped, strength=0.0)
    for _ in range(3):
        sgd.zero_grad()
        F.cross_entropy(plain(x), y).backward()
        sgd.step()
        optimizer.step(lambda: F.cross_entropy(wrapped(x), y))
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), wrapped.parameters()))


def test_a_parameter_without_a_part_in_the_loss_is_passed_over():
    model = nn.ModuleDict({"used": nn.Linear(3, 2), "unused": nn.Linear(3, 2)})
    before = model["unused"].weight.detach().clone()
    x = torch.randn(4, 3)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    BNSharpnessOptimizer(sgd, model).step(lambda: model["used"](x).square().mean())
    assert torch.equal(model["unused"].weight, before)
    assert model["unused"].weight.grad is None


def test_a_dropout_mask_is_the_same_in_the_displaced_passes():
    """With other masks the difference of the two gradients would be noise over delta."""
    torch.manual_seed(0)
    x, y = torch.randn(12, 1, 8, 8), torch.randint(10, (12,))
    dry = convnet(width=4).train()
    wet = nn.Sequential(dry, nn.Dropout(0.2)).train()
    norms = []
    for model in (dry, wet):
        sgd = torch.optim.SGD(model.parameters(), lr=0.0)
        optimizer = BNSharpnessOptimizer(sgd, model, strength=1.0)
        optimizer.step(lambda model=model: F.cross_entropy(model(x), y))
        norms.append(optimizer.sharpness_norm)
    assert norms[1] < 10 * norms[0]


def test_it_continues_from_its_state_and_works_with_schedulers_and_other_optimizers():
    x, y = torch.randn(12, 1, 8, 8), torch.randint(10, (12,))
    torch.manual_seed(0)
    model = convnet(width=4).train()
    optimizer = BNSharpnessOptimizer(torch.optim.Adam(model.parameters(), lr=0.01), model, strength=1e-2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer.optimizer, 1, 0.5)

    def epoch(opt, net, number):
        opt.set_epoch(number)
        opt.step(lambda: F.cross_entropy(net(x), y))

    epoch(optimizer, model, 0)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.005)
    again = copy.deepcopy(model)
    resumed = BNSharpnessOptimizer(torch.optim.Adam(again.parameters()), again, strength=1e-2)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # torch hands out its own tensors
    assert resumed.epoch == 0
    for number in (1, 2):
        epoch(optimizer, model, number)
        epoch(resumed, again, number)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters()))


def test_what_cannot_work_is_refused():
    model = nn.Linear(3, 2)
    x = torch.randn(4, 3)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)

    def backward():
        loss = model(x).square().mean()
        loss.backward()
        return loss

    with pytest.raises(ArgumentError, match="calls backward itself"):
        BNSharpnessOptimizer(sgd, model).step(backward)
    with pytest.raises(ArgumentError, match="returns no loss"):
        BNSharpnessOptimizer(sgd, model).step(lambda: torch.zeros(()))
    with pytest.raises(ArgumentError, match="no parameter of the model"):
        BNSharpnessOptimizer(sgd, nn.Linear(2, 2))
    with pytest.raises(ArgumentError, match="not the model's"):
        BNSharpnessOptimizer(torch.optim.SGD([*model.parameters(), nn.Parameter(x)], lr=0.1), model)
    for arguments, words in (
        ({"p": float("inf")}, "p=inf: an integer of at least 1 is needed"),
        ({"form": "exact"}, "form='exact'"),
        ({"ascent_steps": -1}, "ascent_steps=-1"),
        ({"strength": -1.0}, "strength=-1.0"),
        ({"growth": 0.0}, "growth=0.0"),
        ({"delta": 0.0}, "delta=0.0"),
    ):
        with pytest.raises(ArgumentError, match=words):
            BNSharpnessOptimizer(sgd, model, **arguments)
    with pytest.raises(ArgumentError, match="epoch=-1"):
        BNSharpnessOptimizer(sgd, model).set_epoch(-1)


# -- it trains


def trained(make, batches, tests, strength, epochs, rate):
    """The test accuracy after a few epochs of SGD, seeded; of strength 0 that of plain SGD."""
    torch.manual_seed(0)
    model = make()
    sgd = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4)
    optimizer = BNSharpnessOptimizer(sgd, model, strength=strength)
    for epoch in range(epochs):
        model.train()
        optimizer.set_epoch(epoch)
        for x, y in batches:
            optimizer.step(lambda x=x, y=y: F.cross_entropy(model(x), y))
    model.eval()
    with torch.no_grad():
        return float((model(tests[0]).argmax(1) == tests[1]).double().mean())


def test_it_trains_as_well_as_plain_sgd_on_noisy_patterns():
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(10, 1, 8, 8, generator=generator)
    labels = torch.randint(10, (1200,), generator=generator)
    images = patterns[labels] + 1.5 * torch.randn(1200, 1, 8, 8, generator=generator)
    batches = list(zip(images[:600].split(60), labels[:600].split(60)))
    tests = images[600:], labels[600:]
    plain, sharp = (trained(lambda: convnet(width=8), batches, tests, strength, 5, 0.05) for strength in (0.0, 1e-2))
    assert plain > 0.8
    assert sharp > plain - 0.02


@pytest.mark.slow
@pytest.mark.skipif(not (MNIST / "raw").is_dir(), reason="MNIST is not in SPECTRA_TEST_DATA")
def test_a_lenet_with_batch_norm_trains_as_well_as_by_plain_sgd_on_mnist():
    images, tests = load_mnist(MNIST, "train"), load_mnist(MNIST, "test").batch(torch.arange(2000))
    order = torch.randperm(3000, generator=torch.Generator().manual_seed(0))
    batches = [images.batch(rows) for rows in order.split(50)]
    plain, sharp = (
        trained(lambda: lenet(batch_norm=True), batches, tests, strength, 2, 0.02) for strength in (0.0, 1e-4)
    )
    assert plain > 0.9
    assert sharp > plain - 0.02
