"""How the time of spectra grows with the parameters, the samples, the Lanczos steps and the probes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from side_by_side.networks import images
from side_by_side.rounds import timed
from spectra import HessianOperator, Task, slq
from spectra.zoo.networks.building import seeded

_WIDTH, _SAMPLES, _STEPS = 256, 256, 25
SWEEPS: dict[str, tuple[int, ...]] = {
    "n": (128, 256, 512, 1024),  # as widths of the hidden layers
    "N": (128, 256, 512, 1024),
    "m": (25, 50, 100, 200),
    "k": (1, 2, 4, 8),
}


def operator_of(width: int, samples: int) -> HessianOperator:
    """The Hessian of an MLP 784-width-width-10."""
    model = seeded(
        lambda: nn.Sequential(
            nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
        ),
        0,
    )
    data = images(784)(samples, torch.Generator().manual_seed(1))
    operator = HessianOperator(Task(model, nn.CrossEntropyLoss(), [data]))
    _ = operator.self_test  # the set-up is measured elsewhere
    return operator


def sweep(variable: str, values: tuple[int, ...]) -> dict[str, Any]:
    """CPU seconds at each value, and the exponent fitted to them."""
    seconds, abscissae = [], []
    for value in values:
        operator = operator_of(value if variable == "n" else _WIDTH, value if variable == "N" else _SAMPLES)
        steps, probes = value if variable == "m" else _STEPS, value if variable == "k" else 1
        seconds.append(timed(lambda: slq(operator, steps, probes))[1])  # noqa: B023
        abscissae.append(operator.n if variable == "n" else value)
    exponent = float(np.polyfit(np.log(abscissae), np.log(seconds), 1)[0])
    return {"variable": variable, "values": abscissae, "seconds": seconds, "exponent": exponent}


def measure() -> list[dict[str, Any]]:
    """All sweeps, one variable at a time."""
    return [sweep(variable, values) for variable, values in SWEEPS.items()]
