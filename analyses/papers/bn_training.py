"""Does training with BN-sharpness as a regulariser (SGDS) reach a higher test accuracy than SGD?

    python analyses/papers/bn_training.py --quick --data DIR --out papers

BN-invariant sharpness (Yi et al. 2019), LeNet with batch norm on a part of CIFAR-10 (--quick: of MNIST), two batch
sizes, the same seeds for every optimizer: SGD, SGDS with the gradient of its sharpness corrected, and as printed in
equation 15, which is a third derivative times delta where the loss is smooth. Without --data: a small network on the
8 x 8 digits.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
from arms import (
    UNTESTED,
    Claim,
    analyzed,
    arguments_of,
    mean_spread,
    run,
    save,
    subset,
    trained,
    value_of,
    verdict_of_sign,
)
from matplotlib.figure import Figure
from scipy import stats

import spectra
from spectra.figures.frame import blank, wrapped
from spectra.figures.style import ARMS, style

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {"optimizer": "sgd"},
    "SGDS corrected": {"optimizer": "sgds", "form": "corrected"},
    "SGDS printed": {"optimizer": "sgds", "form": "printed"},
}


@dataclass(frozen=True)
class Size:
    """The network, its data and how long it is trained."""

    recipe: str = "mnist-lenet-bn"
    data: str | None = "mnist"
    train: int = 500
    test: int = 1000
    epochs: int = 5
    seeds: int = 3
    batches: tuple[int, ...] = (25, 125)
    samples: int = 100  # of the training images, for the BN-sharpness
    settings: Mapping[str, Any] = field(default_factory=lambda: {
        "linear_norm": True, "learning_rate": 0.1, "weight_decay": 5e-4,
    })  # fmt: skip


QUICK = Size()
FULL = Size(
    "cifar10-lenet-bn", "cifar10", train=10000, test=2000, epochs=100, seeds=5, batches=(128, 2000), samples=1000
)
DIGITS = Size("digits-convnet", None, epochs=4, batches=(64, 256), settings={"width": 8, "weight_decay": 5e-4})


@dataclass(frozen=True)
class Arm:
    """A training: its accuracy on test data and on the training data, and its BN-sharpness."""

    optimizer: str
    batch_size: int
    seed: int
    test_accuracy: float
    train_accuracy: float
    bn_sharpness: float  # NaN where it was not computed


def main(arguments: Sequence[str] | None = None) -> None:
    asked = arguments_of(__doc__, arguments)
    size = DIGITS if asked.data is None else QUICK if asked.quick else FULL
    with tempfile.TemporaryDirectory() as work:
        arms = arms_of(size, asked.data, Path(work))
    save(claims(arms, size, asked.quick), figure_of(arms, size), asked.out, "bn_training")


def arms_of(size: Size, data: Path | None, work: Path) -> list[Arm]:
    """Every optimizer, batch size and seed; the BN-sharpness of the first seed alone."""
    images = None if size.data is None else subset(data, size.data, size.train, size.test, work)
    arms = []
    for batch in size.batches:
        for name, options in OPTIMIZERS.items():
            for seed in range(size.seeds):
                folder = work / f"{name}-{batch}-{seed}".replace(" ", "-")
                given = {**size.settings, **options, "batch_size": batch}
                last = trained(size.recipe, folder, data=images, epochs=size.epochs, seed=seed, **given)
                reached = spectra.load_checkpoint(last).metadata
                sharpness = nan
                if seed == 0:
                    (record,) = analyzed(last, folder / "run.h5", "-m", 2, "-k", 2, "--bn", "train", "--no-check",
                                         "--metrics", "bn_sharpness", "--samples", size.samples)  # fmt: skip
                    sharpness = value_of(record, "bn_sharpness")
                arms.append(Arm(name, batch, seed, float(reached["test_accuracy"]),
                                float(reached["train_accuracy"]), sharpness))  # fmt: skip
                print(f"{name}, batch size {batch}, seed {seed}: test accuracy {arms[-1].test_accuracy:.3f}")
    return arms


def claims(arms: Sequence[Arm], size: Size, quick: bool) -> list[Claim]:
    """Per batch size: each SGDS less SGD in test accuracy, over the same seeds, and their BN-sharpness."""
    rows = []
    scale = f"{size.recipe}, {size.train if size.data else 1437} images, {size.epochs} epochs"
    scale += "; quick form" if quick else ""
    for batch in size.batches:
        reached = {name: [arm.test_accuracy for arm in arms if (arm.optimizer, arm.batch_size) == (name, batch)]
                   for name in OPTIMIZERS}  # fmt: skip
        sharp = {arm.optimizer: arm.bn_sharpness for arm in arms if arm.batch_size == batch and arm.seed == 0}
        for name in list(OPTIMIZERS)[1:]:
            more, half = paired(reached[name], reached["SGD"])
            mean, spread = mean_spread(reached["SGD"])
            rows.append(Claim(
                f"{name} reaches a higher test accuracy than SGD, batch size {batch}", "higher (table of results)",
                f"{100 * more:+.2f} points", f"95 % +- {100 * half:.2f} points over {size.seeds} seeds, paired",
                verdict_of_sign(more, more - half, more + half),
                f"SGD {100 * mean:.1f} +- {100 * spread:.1f} % (spread over seeds); {scale}",
            ))  # fmt: skip
        rows.append(Claim(
            f"SGDS lowers the BN-sharpness, batch size {batch}", "lower",
            ", ".join(f"{name} {value:.3g}" for name, value in sharp.items()), "one seed; each a lower bound", UNTESTED,
            f"one seed has no error; on {size.samples} training images in train mode; {scale}",
        ))  # fmt: skip
    rows.append(Claim("the same on CIFAR-100", "higher", "-", "-", UNTESTED, "CIFAR-100 is not at hand"))
    return rows


def paired(values: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """The mean of the differences, and half of its 95 % interval by Student's t (NaN for one pair)."""
    differences = np.subtract(values, others)
    n = len(differences)
    if n < 2:
        return float(differences.mean()), nan
    return float(differences.mean()), float(stats.t.ppf(0.975, n - 1) * differences.std(ddof=1) / np.sqrt(n))


def figure_of(arms: Sequence[Arm], size: Size) -> Figure:
    """The test accuracy of every seed and its mean, and the differences to SGD of the same seed."""
    with style():
        figure = blank(8.4, 3.7)
        left, right = figure.subplots(1, 2)
        for shift, (name, look) in enumerate(zip(OPTIMIZERS, ARMS)):
            for place, batch in enumerate(size.batches):
                mine = {arm.seed: arm.test_accuracy for arm in arms if (arm.optimizer, arm.batch_size) == (name, batch)}
                base = {arm.seed: arm.test_accuracy for arm in arms
                        if (arm.optimizer, arm.batch_size) == ("SGD", batch)}  # fmt: skip
                x = place + 0.2 * (shift - 1)
                given = {"color": look.colour, "markerfacecolor": look.face}
                label = name if place == 0 else None
                left.plot([x] * len(mine), [100 * v for v in mine.values()], look.marker, label=label, **given)
                left.plot(x, 100 * np.mean(list(mine.values())), "_", color=look.colour, markersize=16)
                if name != "SGD":
                    mean, half = paired(list(mine.values()), list(base.values()))
                    right.plot([x - 0.04] * len(mine), [100 * (mine[s] - base[s]) for s in mine], look.marker, **given)
                    right.errorbar(x + 0.04, 100 * mean, yerr=100 * half, fmt="_", color=look.colour, markersize=12)
        right.axhline(0, color="#666666", linewidth=0.9)
        for ax, words in ((left, "test accuracy, %"), (right, "test accuracy less SGD's, points")):
            ax.set_xticks(range(len(size.batches)), [str(batch) for batch in size.batches])
            ax.set_xlim(-0.5, len(size.batches) - 0.5)
            ax.set_xlabel("batch size")
            ax.set_ylabel(words)
        left.legend(loc="best")
        caption = (
            f"{size.recipe} on {size.train if size.data else 1437} training images, {size.epochs} epochs: a point per "
            "seed. Left: dashes are means. Right: less SGD of the same seed, with the mean and its 95 % interval."
        )
        figure.supxlabel(wrapped(caption, figure.get_figwidth() * 16.5), x=0.012, ha="left", fontsize=7.5)
        return figure


if __name__ == "__main__":
    run(main)
