"""Entropy-SGD: gradient descent on the local entropy, whose gradient is estimated by Langevin steps.

References:
    Chaudhari et al., "Entropy-SGD: biasing gradient descent into wide valleys", ICLR 2017 (algorithm 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from spectra.errors import ArgumentError


class EntropySGD(torch.optim.Optimizer):
    """Gradient descent on the local entropy of the loss.

    One step from ``x`` makes a Langevin step per batch, ``y`` from ``y_0 = x`` and ``mu`` from ``mu_0 = x``::

        g  = gradient of the batch at y, plus weight_decay y, with momentum from zero at each step
        y  <- y - langevin_rate (g - gamma_t (x - y)) + sqrt(langevin_rate) langevin_noise xi,    xi ~ N(0, I)
        mu <- (1 - alpha) mu + alpha y

    and then ``x <- x - lr (x - mu)``. With ``times_gamma`` it is ``x <- x - lr gamma_t (x - mu)``, the gradient of the
    local entropy as printed in line 7; the authors' code leaves the factor to the learning rate, as the default does.
    ``gamma_t = gamma (1 + gamma_growth)^t`` after ``t`` steps ("scoping").

    The authors' PyTorch code differs in three ways: the noise is larger by sqrt 2, ``mu`` has the weight ``1 - alpha``
    for the new ``y``, and ``t`` stays 0. Here all three are as printed.

    Args:
        params: tensors, or parameter groups.
        lr: of the outer step; 1 in the paper.
        langevin_rate: step size of the Langevin steps; 0.1 in the paper.
        langevin_noise: thermal noise; 1e-4 in the paper.
        gamma: scope: how strongly the Langevin steps are held near ``x``.
        gamma_growth: of gamma per step.
        alpha: weight of the newest ``y`` in the average; 0.75 in the paper.
        momentum: Nesterov's, of the Langevin steps.
        weight_decay: adds ``weight_decay y`` to the gradients.
        times_gamma: multiply the outer step by ``gamma_t``.

    Raises:
        ArgumentError: an argument outside its range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        *,
        langevin_rate: float = 0.1,
        langevin_noise: float = 1e-4,
        gamma: float = 1e-4,
        gamma_growth: float = 1e-3,
        alpha: float = 0.75,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        times_gamma: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "langevin_rate": langevin_rate,
            "langevin_noise": langevin_noise,
            "gamma": gamma,
            "gamma_growth": gamma_growth,
            "alpha": alpha,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "times_gamma": times_gamma,
        }
        for name, value in defaults.items():
            if not 0 <= value <= (1 if name in ("alpha", "momentum") else float("inf")):
                raise ArgumentError(f"{name}={value}: outside its range")
        super().__init__(params, {**defaults, "steps": 0})

    @torch.no_grad()
    def step(self, closures: Sequence[Callable[[], Any]]) -> None:  # type: ignore[override]
        """One step, with a Langevin step for each closure: it computes the gradients of a batch into ``.grad``."""
        groups = [(group, [p for p in group["params"] if p.requires_grad]) for group in self.param_groups]
        start = [[p.clone() for p in params] for _, params in groups]
        mean = [[p.clone() for p in params] for _, params in groups]
        velocity = [[torch.zeros_like(p) for p in params] for _, params in groups]
        for closure in closures:
            with torch.enable_grad():
                closure()
            for (group, params), *states in zip(groups, start, mean, velocity):
                for p, x, mu, v in zip(params, *states):
                    _langevin_step(group, p, x, mu, v)
        for (group, params), xs, mus in zip(groups, start, mean):
            rate = group["lr"] * (_scope(group) if group["times_gamma"] else 1.0)
            for p, x, mu in zip(params, xs, mus):
                p.copy_(x - rate * (x - mu))
            group["steps"] += 1


def _langevin_step(group: dict[str, Any], p: torch.Tensor, x: torch.Tensor, mu: torch.Tensor, v: torch.Tensor) -> None:
    """Move ``p``, and with it ``mu`` and the velocity, in place; no gradient counts as zero."""
    g = torch.zeros_like(p) if p.grad is None else p.grad + group["weight_decay"] * p
    v.mul_(group["momentum"]).add_(g)
    g = g + group["momentum"] * v
    rate = group["langevin_rate"]
    noise = rate**0.5 * group["langevin_noise"] * torch.randn_like(p)
    p.add_(g - _scope(group) * (x - p), alpha=-rate).add_(noise)
    mu.mul_(1 - group["alpha"]).add_(p, alpha=group["alpha"])


def _scope(group: dict[str, Any]) -> float:
    gamma: float = group["gamma"] * (1 + group["gamma_growth"]) ** group["steps"]
    return gamma
