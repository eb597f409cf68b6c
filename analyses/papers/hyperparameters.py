"""Do sharpness measures go with the generalization gap when L2, decoupled decay or dropout is varied?

    python analyses/papers/hyperparameters.py --quick --data DIR --out papers

Normalized flat minima (ICML 2020), tables 1 and 2: the strength of one regulariser is varied, and a measure should rise
with the generalization gap. The measures are of the unregularised loss. Without --data: the 8 x 8 digits.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, nan
from pathlib import Path
from typing import Any

from arms import (
    HOLDS,
    IN_PART,
    UNTESTED,
    Claim,
    analyzed,
    arguments_of,
    correlations,
    interval,
    run,
    save,
    subset,
    trained,
    value_of,
    verdict_of_sign,
)
from matplotlib.figure import Figure

from spectra.figures.frame import blank, wrapped
from spectra.figures.style import ARMS, style

#: The correlations of tables 1 and 2 on MNIST; of the trace and the squared norm their range.
MEASURES = {
    "normalized_sharpness": {"L2": "+0.73", "decoupled decay": "+0.73", "dropout": "+0.59"},
    "normalized_sharpness_of_normalized_loss": {},
    "minimum_sharpness": {},
    "trace": dict.fromkeys(("L2", "decoupled decay", "dropout"), "-0.42 to -0.79"),
    "squared_norm": dict.fromkeys(("L2", "decoupled decay", "dropout"), "+0.43 to +0.76"),
}


@dataclass(frozen=True)
class Size:
    """The networks and strengths of an experiment."""

    recipe: str = "mnist-mlp"
    data: str | None = "mnist"
    train: int = 1000
    test: int = 2000
    epochs: int = 60
    seeds: int = 3
    network: Mapping[str, Any] = field(default_factory=lambda: {"depth": 2, "hidden": 64, "batch_size": 100})
    regularisers: Mapping[str, tuple[str, str, tuple[float, ...]]] = field(default_factory=lambda: {
        "L2": ("adam", "weight_decay", (0.0, 1e-3, 1e-2, 3e-2, 1e-1)),
        "decoupled decay": ("adamw", "weight_decay", (0.0, 0.3, 3.0, 10.0, 30.0)),
        "dropout": ("adam", "dropout", (0.0, 0.3, 0.5, 0.7, 0.9)),
    })  # fmt: skip


QUICK = Size()
FULL = Size(train=10000, test=10000, epochs=100, seeds=5, network={"depth": 3, "hidden": 256, "batch_size": 128})
DIGITS = Size("digits-mlp", None, epochs=60, network={"hidden": 64, "batch_size": 64})


@dataclass(frozen=True)
class Arm:
    """A training with a regulariser of some strength."""

    strength: float
    seed: int
    gap: float
    accuracy: float  # on the training data
    values: Mapping[str, float]


def main(arguments: Sequence[str] | None = None) -> None:
    asked = arguments_of(__doc__, arguments)
    size = DIGITS if asked.data is None else QUICK if asked.quick else FULL
    with tempfile.TemporaryDirectory() as work:
        found = {name: arms_of(name, size, asked.data, Path(work)) for name in size.regularisers}
    rows = [row for name, arms in found.items() for row in claims(name, arms, size, asked.quick)]
    rows.append(Claim("the same over width and depth (NI figure 2)", "normalized sharpness follows the gap", "-", "-",
                      UNTESTED, "not part of this experiment"))  # fmt: skip
    save(rows, figure_of(found), asked.out, "hyperparameters")


def arms_of(name: str, size: Size, data: Path | None, work: Path) -> list[Arm]:
    """Every strength and seed of a regulariser, trained and analysed."""
    images = None if size.data is None else subset(data, size.data, size.train, size.test, work)
    optimizer, option, strengths = size.regularisers[name]
    arms = []
    for strength in strengths:
        for seed in range(size.seeds):
            folder = work / f"{name}-{strength:g}-{seed}".replace(" ", "-")
            given = {**size.network, "optimizer": optimizer, **({option: strength} if strength else {})}
            last = trained(size.recipe, folder, data=images, epochs=size.epochs, seed=seed, **given)
            names = ",".join(measure for measure in MEASURES if measure != "trace")
            (record,) = analyzed(
                last, folder / "run.h5", "-m", 4, "-k", 2, "--metrics", names, "--test-data", "--check"
            )  # the trace is the exact one; the spectrum is not used
            values = {measure: value_of(record, measure) for measure in MEASURES}
            facts = record.facts
            arms.append(Arm(strength, seed, float(facts["accuracy_gap"]), float(facts["accuracy"]), values))
            print(f"{name} {strength:g}, seed {seed}: gap {arms[-1].gap:.3f}, accuracy {arms[-1].accuracy:.3f}, "
                  f"trace {values['trace']:.4g}")  # fmt: skip
    return arms


def claims(name: str, arms: Sequence[Arm], size: Size, quick: bool) -> list[Claim]:
    """A row per measure: its correlation with the gap over all strengths, and among seeds of one strength."""
    rows = []
    gaps, levels = [arm.gap for arm in arms], [arm.strength for arm in arms]
    scale = f"{len(arms)} trainings of {size.train if size.data else 1437} images, strengths "
    scale += ", ".join(f"{strength:g}" for strength in dict.fromkeys(levels))
    scale += f"; training accuracy {min(a.accuracy for a in arms):.2f} to {max(a.accuracy for a in arms):.2f}"
    scale += f"; gap {min(gaps):.3f} to {max(gaps):.3f}"
    if quick:
        scale += (
            "; quick form; strengths widened after a first grid had moved the gap by at most 0.024 and settled nothing"
        )
    for measure, papers in MEASURES.items():
        column = [arm.values.get(measure, nan) for arm in arms]
        if sum(map(isfinite, column)) < 4:
            continue
        overall, rank, within, _ = correlations(column, gaps, levels)
        inside = "" if within is None else f"; within {interval(within.lower, within.upper)}"
        ours = f"Pearson {overall.value:+.2f}, Kendall {rank.value:+.2f}"
        ours += "" if within is None else f"; within strengths {within.value:+.2f}"
        printed = papers.get(name)
        rows.append(Claim(
            f"{measure.replace('_', ' ')} and the accuracy gap, {name} varied", printed or "no figure", ours,
            f"95 % {interval(overall.lower, overall.upper)}{inside}", _verdict(printed, overall.value, overall.lower,
            overall.upper), scale,
        ))  # fmt: skip
    return rows


def _verdict(printed: str | None, value: float, low: float, high: float) -> str:
    """Holds: the paper's sign, and its value or range meets the interval; in part: the sign alone.

    An interval with 0 in it settles nothing.
    """
    if printed is None:
        return UNTESTED
    ends = [float(part) for part in printed.split(" to ")]
    found = verdict_of_sign(value, low, high, -1 if ends[0] < 0 else 1)
    meets = min(ends) <= high and max(ends) >= low
    return IN_PART if found == HOLDS and not meets else found


def figure_of(found: Mapping[str, Sequence[Arm]]) -> Figure:
    """A row per regulariser, a panel per measure; a look per strength."""
    with style():
        figure = blank(2.4 * len(MEASURES), 0.8 + 2.4 * len(found))
        axes = figure.subplots(len(found), len(MEASURES), squeeze=False)
        for row, (name, arms) in zip(axes, found.items()):
            gaps, levels = [arm.gap for arm in arms], [arm.strength for arm in arms]
            for ax, measure in zip(row, MEASURES):
                values = [arm.values.get(measure, nan) for arm in arms]
                for index, strength in enumerate(dict.fromkeys(levels)):
                    look = ARMS[index % len(ARMS)]
                    mine = [i for i, level in enumerate(levels) if level == strength]
                    ax.plot([values[i] for i in mine], [gaps[i] for i in mine], look.marker, color=look.colour,
                            markerfacecolor=look.face, label=f"{strength:g}")  # fmt: skip
                finite = [value for value in values if isfinite(value)]
                if finite and min(finite) > 0 and max(finite) > 100 * min(finite):
                    ax.set_xscale("log")
                if len(finite) >= 4:
                    overall = correlations(values, gaps, levels)[0]
                    ax.set_title(f"r = {overall.value:.2f} {interval(overall.lower, overall.upper)}", loc="left",
                                 fontsize=7.5)  # fmt: skip
                words = measure.replace("_", " ").replace(" of normalized loss", ",\nnormalised loss")
                ax.set_xlabel(words, fontsize=7.5)
            row[0].set_ylabel(f"{name} varied\naccuracy gap")
            row[-1].legend(title="strength", loc="center left", bbox_to_anchor=(1, 0.5))
        caption = (
            "A point per training: the measure of the unregularised loss at the end, against training less test "
            "accuracy. r: Pearson over all strengths and seeds, 95 % by resampling the trainings."
        )
        figure.supxlabel(wrapped(caption, figure.get_figwidth() * 16.5), x=0.012, ha="left", fontsize=7.5)
        return figure


if __name__ == "__main__":
    run(main)
