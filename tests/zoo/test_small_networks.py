"""The small networks have the sizes that are known for them; a seed leaves the global random state alone."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from spectra.errors import ArgumentError
from spectra.zoo.networks.building import seeded
from spectra.zoo.networks.small import convnet, lenet, logistic_regression, mlp

WRONG = (
    (lambda: mlp(4, depth=0), "depth=0"),
    (lambda: mlp(4, widths="3-0"), "widths='3-0': at least 1"),
    (lambda: mlp(4, widths="3,4"), "widths='3,4': units of each hidden layer"),
    (lambda: mlp(4, dropout=1.0), "dropout=1.0"),
    (lambda: lenet(dropout=-0.1), "dropout=-0.1"),
)


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("model", "shape", "parameters"),
    [
        (logistic_regression(784), (1, 28, 28), 7850),
        (mlp(784), (1, 28, 28), 79510),
        (mlp(64, 32), (1, 8, 8), 64 * 32 + 32 + 330),
        (lenet(1, 28), (1, 28, 28), 61706),  # the count known for LeNet-5 with full connections
        (lenet(3, 32), (3, 32, 32), 62006),
        (lenet(1, 28, batch_norm=True), (1, 28, 28), 61706 - 22 + 44),  # two biases less, two batch norms more
        (lenet(1, 28, third_convolution=True), (1, 28, 28), 61706),
        (lenet(3, 32, batch_norm=True, linear_norm=True), (3, 32, 32), 62006 - 22 + 44 - 204 + 408),
        (lenet(1, 28, batch_norm=True, third_convolution=True), (1, 28, 28), 61706 - 142 + 284),
        (mlp(784, widths="512-128-512"), (1, 28, 28), 784 * 512 + 512 * 128 + 128 * 512 + 512 * 10 + 1162),
        (mlp(3072, 32, depth=4), (3, 32, 32), 3072 * 32 + 3 * 32 * 32 + 320 + 4 * 32 + 10),
        (mlp(784, 20, depth=2, dropout=0.5), (1, 28, 28), 784 * 20 + 400 + 200 + 50),
        (convnet(), (1, 8, 8), 144 + 32 + 4608 + 64 + 1290),
        (convnet(width=1), (1, 8, 8), 9 + 2 + 18 + 4 + 90),
        (convnet(3, 9), (3, 9, 9), 432 + 32 + 4608 + 64 + 2890),
    ],
)
def test_networks_have_their_known_sizes(model, shape, parameters):
    assert size(model) == parameters
    assert model(torch.zeros(2, *shape)).shape == (2, 10)


def test_batch_norm_is_where_it_is_asked_for():
    def norms(model: nn.Module) -> int:
        return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())

    assert [norms(m) for m in (lenet(), lenet(batch_norm=True), convnet(), mlp(4))] == [0, 2, 2, 0]
    full = lenet(batch_norm=True, linear_norm=True)
    followed = [type(b).__name__ for a, b in pairwise(full) if isinstance(a, (nn.Conv2d, nn.Linear))]
    assert followed == ["BatchNorm2d", "BatchNorm2d", "BatchNorm1d", "BatchNorm1d"]  # all but the last


def test_the_third_convolution_of_lenet_is_its_first_linear_map():
    linear, convolution = lenet(), lenet(third_convolution=True)
    weights = {k.replace("6.", "7.", 1) if k.startswith("6.") else k: v for k, v in convolution.state_dict().items()}
    own = linear.state_dict()
    weights = {key: value.view(own[name].shape) for (key, value), name in zip(weights.items(), own)}
    linear.load_state_dict(dict(zip(own, weights.values())))
    x = torch.randn(3, 1, 28, 28)
    torch.testing.assert_close(linear(x), convolution(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("build", [mlp, lenet])
def test_dropout_of_zero_adds_no_layer_and_keeps_the_names(build):
    size = {"inputs": 784} if build is mlp else {}
    assert not any(isinstance(module, nn.Dropout) for module in build(**size).modules())
    dropped = build(**size, dropout=0.4)
    assert {module.p for module in dropped.modules() if isinstance(module, nn.Dropout)} == {0.4}


def test_a_seed_decides_the_weights_and_leaves_the_global_state_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (seeded(convnet, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first[0].weight, again[0].weight)
    assert not torch.equal(first[0].weight, other[0].weight)
    torch.manual_seed(1)
    assert torch.equal(convnet()[0].weight, first[0].weight)


def test_sizes_that_make_no_network_are_refused():
    for build, words in ((lambda: convnet(width=0), "width=0"), (lambda: mlp(4, 0), "hidden=0"), *WRONG):
        with pytest.raises(ArgumentError, match=words):
            build()
    with pytest.raises(ArgumentError, match="side=30"):
        lenet(side=30)
