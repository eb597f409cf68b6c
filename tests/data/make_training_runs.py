"""Write the small results files on which the scripts in `analyses/` are tested: a network trained for three epochs.

    python tests/data/make_training_runs.py

`training.h5` has two matrices, both batch-norm modes, exact spectra and held-out data; `training-A-0.h5` and its like
are two runs of two ways of training, with held-out data.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import spectra

HERE = Path(__file__).parent


def data(seed: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three noisy classes in five dimensions."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (rows,), generator=generator)
    centres = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    return centres[y] + torch.randn(rows, 5, generator=generator), y


def train(out: Path, *, seed: int, learning_rate: float, **options: object) -> None:
    out.unlink(missing_ok=True)
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    x, y = data(1, 48)
    task = spectra.Task(model, nn.CrossEntropyLoss(), [(x[:24], y[:24]), (x[24:], y[24:])], test_data=[data(2, 48)],
                        name="blobs")  # fmt: skip
    sgd = torch.optim.SGD(model.parameters(), lr=learning_rate)
    with spectra.Tracker(task, out=out, lanczos_steps=12, num_probes=3, test_data=True, **options) as tracker:
        for epoch in range(3):
            tracker(epoch=epoch)
            for _ in range(10):
                sgd.zero_grad()
                task.loss_of((x, y)).backward()
                sgd.step()


if __name__ == "__main__":
    both = {"operators": ("hessian", "ggn"), "bn_modes": ("eval", "train")}
    train(HERE / "training.h5", seed=0, learning_rate=0.1, exact_spectrum=16, **both)
    for arm, learning_rate in (("A", 0.05), ("B", 0.5)):
        for seed in range(2):
            out = HERE / f"training-{arm}-{seed}.h5"
            train(out, seed=seed, learning_rate=learning_rate, every=2, metrics=("squared_norm", "minimum_sharpness"))
