"""Blocks: the directions of BN-sharpness, a product of one sphere per BN neuron and one for all other parameters.

References:
    Yi et al., "BN-invariant sharpness regularizes the training model to better generalization", IJCAI 2019 (the set
    ``phi`` of equation 5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch


class Blocks:
    """Directions ``v`` with ``|v_i| = |theta_i|`` on every BN neuron ``i`` and norm 1 on all other parameters together.

    Vectors are flat, ``(n,)``, in the order of the parameters.

    Args:
        names: of the parameters.
        tensors: the parameters.
        channels: for the weights that are BN neurons, the output channel of each entry.
    """

    def __init__(
        self, names: Sequence[str], tensors: Sequence[torch.Tensor], channels: Mapping[str, torch.Tensor]
    ) -> None:
        self.neurons = sum(int(owner.max()) + 1 for owner in channels.values())
        pieces, start = [], 0
        for name, tensor in zip(names, tensors):
            if name in channels:
                pieces.append((channels[name] + start).reshape(-1))
                start += int(channels[name].max()) + 1
            else:
                pieces.append(torch.full((tensor.numel(),), self.neurons, device=tensor.device))
        self.owner = torch.cat(pieces)  # (n,): the block of each parameter; the last block is that of all the others
        self.rest = int((self.owner == self.neurons).sum())

    def dots(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """The scalar products block by block, ``(neurons + 1,)``."""
        return torch.zeros(self.neurons + 1, dtype=a.dtype, device=a.device).index_add_(0, self.owner, a * b)

    def norms(self, vector: torch.Tensor) -> torch.Tensor:
        """``|v_i|``, block by block."""
        return self.dots(vector, vector).sqrt()

    def radii(self, theta: torch.Tensor) -> torch.Tensor:
        """``|theta_i|`` for the neurons, and 1 for all other parameters (0 where there are none)."""
        radii = self.norms(theta)
        radii[-1] = 1.0 if self.rest else 0.0
        return radii

    def spread(self, numbers: torch.Tensor) -> torch.Tensor:
        """A vector ``(n,)`` that has the number of its block at every parameter."""
        return numbers[self.owner]

    def on_spheres(self, vector: torch.Tensor, radii: torch.Tensor) -> torch.Tensor:
        """The vector with each block scaled to its radius; a zero block stays zero."""
        norms = self.norms(vector)
        return vector * self.spread(torch.where(norms > 0, radii / norms.clamp_min(_least(norms)), norms))

    def tangent(self, vector: torch.Tensor, at: torch.Tensor, radii: torch.Tensor) -> torch.Tensor:
        """The vector without its radial part, block by block: ``x - v (v'x) / r^2``."""
        squares = radii.square()
        shares = torch.where(squares > 0, self.dots(vector, at) / squares.clamp_min(_least(radii)), squares)
        return vector - at * self.spread(shares)

    def without_radial(self, vector: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        """The vector without its part along ``theta_i`` on every BN neuron; other parameters are unchanged."""
        squares = self.dots(theta, theta)
        shares = torch.where(squares > 0, self.dots(vector, theta) / squares.clamp_min(_least(squares)), squares)
        shares[-1] = 0.0
        return vector - theta * self.spread(shares)


def _least(like: torch.Tensor) -> float:
    return float(torch.finfo(like.dtype).tiny)
