"""What the families share: sizes that are checked, weights drawn as the papers say, and seeds that leave no trace.

References:
    He, Zhang, Ren and Sun, "Delving deep into rectifiers", 2015 (the initialisation).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from spectra.errors import ArgumentError


def seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """The network as ``torch.manual_seed(seed)`` makes it; the global random state is left as found."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU's alone: torch.manual_seed would touch the GPUs' too
        return build()


def initialise_as_he(network: nn.Module) -> None:
    """Draw the weights of every convolution from N(0, 2 / (k^2 c)), for c outputs of k x k; set its bias to zero.

    This is the variance that keeps the size of gradients from layer to layer (equation 14).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def at_least_one(**sizes: int) -> None:
    """Refuse sizes below one, by name."""
    for name, value in sizes.items():
        if value < 1:
            raise ArgumentError(f"{name}={value}: at least 1 is needed")


def dropout_of(probability: float) -> list[nn.Module]:
    """A dropout layer, or no layer for the probability 0."""
    if not 0 <= probability < 1:
        raise ArgumentError(f"dropout={probability}: at least 0 and below 1 is needed")
    return [nn.Dropout(probability)] if probability else []
