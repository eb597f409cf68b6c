"""Which weights are BN neurons is read off the network's own calls, and believed only if rescaling proves it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spectra.sharpness.bn_neurons import find_neurons
from spectra.zoo.networks.residual import preresnet

pytestmark = pytest.mark.usefixtures("float64")


def neurons(model, *shape, verify=True):
    model.train()
    x = torch.randn(6, *shape)
    return find_neurons(lambda: model(x).square().mean(), dict(model.named_parameters()), verify)


def test_linear_maps_and_convolutions_before_batch_norm_are_found():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 6, 2, groups=2, bias=False),
        nn.BatchNorm2d(6, affine=False),
        nn.Flatten(),
        nn.Linear(54, 5),
        nn.BatchNorm1d(5, track_running_stats=False),
        nn.Linear(5, 3),
    )
    found = neurons(model, 2, 4, 4)
    assert list(found.channels) == ["0.weight", "3.weight", "6.weight"]
    assert (found.count, found.refused) == (15, ())


def test_the_channels_of_a_grouped_transposed_convolution_are_those_of_its_output():
    model = nn.Sequential(nn.ConvTranspose2d(4, 6, 2, groups=2, bias=False), nn.BatchNorm2d(6))
    owner = neurons(model, 4, 3, 3).channels["0.weight"]
    x = torch.randn(1, 4, 3, 3)
    weight = model[0].weight
    for channel in range(6):
        image = F.conv_transpose2d(x, weight * (owner == channel), groups=2)
        others = [c for c in range(6) if c != channel]
        assert not image[:, others].any()
        assert torch.equal(image[:, channel], model[0](x)[:, channel])


def test_in_a_residual_network_those_that_end_in_the_stream_are_not_taken():
    """Each unit is norm, convolution, norm, convolution, sum: only its first convolution goes straight into a norm."""
    found = neurons(preresnet(depth=8, block="basic"), 3, 32, 32)
    assert list(found.channels) == ["stem.weight", *(f"units.{unit}.convolutions.0.weight" for unit in range(3))]


class Odd(nn.Module):
    """One linear map before batch norm, used otherwise as well."""

    def __init__(self, how):
        super().__init__()
        self.first, self.norm, self.how = nn.Linear(4, 5), nn.BatchNorm1d(5), how
        self.same = [self.first.weight.detach()]  # another tensor on the same memory, which no name leads to

    def forward(self, x):
        h = self.first(x)
        if self.how == "relu":
            return self.norm(torch.relu(h))
        out = self.norm(h)
        if self.how == "skip":
            return out + h
        if self.how == "penalty":
            return out + self.first.weight.square().sum()
        if self.how == "hidden":
            return out + self.same[0].square().sum()
        if self.how == "twice":
            return out + self.norm(self.first(x + 1))
        if self.how == "shape":
            return out * h.shape[0] * h.size(1)
        return out


@pytest.mark.parametrize("how", ["plain", "shape", "twice"])
def test_a_weight_whose_every_output_is_normalised_is_found(how):
    assert list(neurons(Odd(how), 4).channels) == ["first.weight"]


@pytest.mark.parametrize("how", ["relu", "skip", "penalty"])
def test_a_weight_that_is_used_in_another_way_is_not(how):
    found = neurons(Odd(how), 4)
    assert (dict(found.channels), found.refused) == ({}, ())


def test_a_use_that_cannot_be_watched_is_found_out_by_rescaling():
    found = neurons(Odd("hidden"), 4)
    assert (dict(found.channels), found.refused) == ({}, ("first.weight",))


def test_batch_norm_by_running_statistics_makes_no_weight_scale_invariant():
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5))
    x = torch.randn(6, 4)
    model.eval()
    weights = dict(model.named_parameters())
    assert find_neurons(lambda: model(x).square().mean(), weights, verify=True).refused == ("0.weight",)
    assert list(find_neurons(lambda: model(x).square().mean(), weights, verify=False).channels) == ["0.weight"]


def test_a_linear_map_over_positions_is_not_normalised_channel_by_channel():
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(3))  # (6, 3, 5): batch norm is over the positions
    assert not neurons(model, 3, 4).channels


@pytest.mark.parametrize("eps", [1e-30, 1e-5, 1.0])
def test_the_proof_does_not_depend_on_eps(eps):
    model = nn.Sequential(nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3, eps=eps), nn.ReLU(), nn.Flatten(), nn.Linear(9, 2))
    assert neurons(model, 2, 4).count == 3


def test_weights_are_put_back_to_the_bit():
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5))
    before = [p.detach().clone() for p in model.parameters()]
    neurons(model, 4)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before))
