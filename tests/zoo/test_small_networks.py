"""The small networks have the sizes that are known for them; a seed leaves the global random state alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from spectra.errors import ArgumentError
from spectra.zoo.networks.building import seeded
from spectra.zoo.networks.small import convnet, lenet, logistic_regression, mlp


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
    for build, words in ((lambda: convnet(width=0), "width=0"), (lambda: mlp(4, 0), "hidden=0")):
        with pytest.raises(ArgumentError, match=words):
            build()
    with pytest.raises(ArgumentError, match="side=30"):
        lenet(side=30)
