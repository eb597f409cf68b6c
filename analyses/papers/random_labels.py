"""Which sharpness measure goes with the generalization gap when part of the labels is random?

    python analyses/papers/random_labels.py --quick --data DIR --out papers

Minimum sharpness (section 4) and Normalized flat minima (figure 1): networks are trained on labels of which a fraction
is noise, and the measures are plotted against the accuracy gap. Correlations are over all trainings, where the ratio of
noise drives both columns, and among trainings of one ratio, where it does not. Without --data: the 8 x 8 digits.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np
from arms import (
    HOLDS,
    IN_PART,
    UNTESTED,
    Claim,
    analyzed,
    arguments_of,
    correlations,
    difference_of_pearson,
    interval,
    mean_spread,
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

MEASURES = (
    "trace",
    "minimum_sharpness",
    "matrix_normalized_sharpness",
    "normalized_sharpness",
    "normalized_sharpness_of_normalized_loss",
    "fisher_rao_diagonal",
    "fisher_rao_liang",
    "squared_norm",
)
BN_MEASURE = "bn_sharpness"
ENOUGH = 10  # trainings: with fewer an interval by resampling is too narrow, and no verdict rests on it


@dataclass(frozen=True, eq=False)  # a key of dictionaries
class Family:
    """A network that is trained with every ratio of noise and every seed."""

    name: str
    recipe: str
    data: str | None
    ratios: tuple[float, ...]
    seeds: int
    epochs: int
    train: int = 1000
    test: int = 2000
    batch_norm: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    samples: int = 0  # of the training images, for the analysis; 0: all


_SMALL = (0.0, 0.25, 0.5, 0.75, 1.0)
_NINE = tuple(round(0.1 * i, 1) for i in range(11))
_SHUFFLED = {"label_noise_kind": "shuffled", "batch_size": 100}
_ADAM = {"optimizer": "adam", **_SHUFFLED}
QUICK = (
    Family("MLP, MNIST", "mnist-mlp", "mnist", _SMALL, 5, 60, settings={**_ADAM, "depth": 2, "hidden": 64}),
    Family(
        "LeNet with batch norm, MNIST", "mnist-lenet-bn", "mnist", (0.0, 0.5, 1.0), 2, 30, 600, 500, True, _ADAM, 150
    ),
)
FULL = (
    Family("MLP, MNIST", "ms-mnist-mlp", "mnist", _NINE, 5, 500, 10000, 10000, settings={"batch_size": 256}),
    Family("LeNet, CIFAR-10", "na-cifar10-lenet", "cifar10", _SMALL, 3, 100, 10000, 2000),
    Family("LeNet with batch norm, MNIST", "mnist-lenet-bn", "mnist", _SMALL, 3, 60, 2000, 5000, True, _ADAM),
)
DIGITS = (Family("MLP, digits", "digits-mlp", None, _SMALL, 3, 100, settings={**_ADAM, "hidden": 64}),)


@dataclass(frozen=True)
class Arm:
    """A training: its ratio of noise, its gap, and the measures with what was clipped of the diagonal."""

    ratio: float
    seed: int
    gap: float
    train_accuracy: float
    values: Mapping[str, float]
    clipped: Mapping[str, float]


def main(arguments: Sequence[str] | None = None) -> None:
    asked = arguments_of(__doc__, arguments)
    families = DIGITS if asked.data is None else QUICK if asked.quick else FULL
    with tempfile.TemporaryDirectory() as work:
        found = {family: arms_of(family, asked.data, Path(work)) for family in families}
    rows = [row for family, arms in found.items() for row in claims(family, arms, asked.quick)]
    save(rows, figure_of(found), asked.out, "random_labels")


def arms_of(family: Family, data: Path | None, work: Path) -> list[Arm]:
    """Every training of a family, analysed."""
    images = None if family.data is None else subset(data, family.data, family.train, family.test, work)
    few = ("--samples", family.samples) if family.samples else ()
    arms = []
    for ratio in family.ratios:
        for seed in range(family.seeds):
            folder = work / f"{family.recipe}-{ratio}-{seed}"
            noise = {"label_noise": ratio, "label_noise_seed": seed} if ratio else {}
            last = trained(
                family.recipe, folder, data=images, epochs=family.epochs, seed=seed, **family.settings, **noise
            )
            names = ",".join(name for name in MEASURES if name != "trace")
            records = analyzed(
                last, folder / "eval.h5", "-m", 4, "-k", 2, "--metrics", names, "--test-data", "--check", *few
            )  # the trace is the exact one; the spectrum is not used
            if family.batch_norm:
                records += analyzed(
                    last, folder / "train.h5", "-m", 4, "-k", 2, "--metrics", BN_MEASURE, "--bn", "train",
                    "--batch-size", 50, *few,
                )  # fmt: skip
            arms.append(_arm(ratio, seed, records))
            print(f"{family.name}: noise {ratio:g}, seed {seed}: gap {arms[-1].gap:.3f}, "
                  f"trace {arms[-1].values['trace']:.4g}")  # fmt: skip
    return arms


def _arm(ratio: float, seed: int, records: Sequence[Any]) -> Arm:
    evaluated = records[0]
    values = {name: value_of(evaluated, name) for name in MEASURES}
    if len(records) > 1:
        values[BN_MEASURE] = value_of(records[1], BN_MEASURE)
    clipped = {name: nan if m.clipped is None else m.clipped for name, m in evaluated.sharpness.items()}
    facts = evaluated.facts
    return Arm(ratio, seed, float(facts["accuracy_gap"]), float(facts["accuracy"]), values, clipped)


def claims(family: Family, arms: Sequence[Arm], quick: bool) -> list[Claim]:
    """The rows of a family: the papers' claims, then every measure's correlations, and its mean by ratio."""
    gaps, levels = [arm.gap for arm in arms], [arm.ratio for arm in arms]
    scale = f"{family.name}; {len(arms)} trainings of {family.train if family.data else 1437} images"
    scale += f", analysed on {family.samples} of them" if family.samples else ""
    scale += ", too few for a verdict" if len(arms) < ENOUGH else ""
    scale += ", a quick form" if quick else ""
    rows, columns = [], {}
    for name in (*MEASURES, BN_MEASURE):
        column = [arm.values.get(name, nan) for arm in arms]
        if sum(map(isfinite, column)) >= 4:
            columns[name] = column
    if {"normalized_sharpness", "trace"} <= columns.keys():
        rows.append(_against_trace(columns, gaps, scale))
    for name, column in columns.items():
        overall, rank, within, rank_within = correlations(column, gaps, levels)
        inside = "one training per ratio" if within is None else f"within ratios: {within.value:+.2f}"
        error = f"95 % {interval(overall.lower, overall.upper)}"
        if within is not None and rank_within is not None:
            error += f"; within {interval(within.lower, within.upper)}"
            inside += f", Kendall {rank_within.value:+.2f} {interval(rank_within.lower, rank_within.upper)}"
        by_ratio = "; ".join(
            "{:g}: {:.3g} +- {:.2g}".format(ratio, *mean_spread([v for v, r in zip(column, levels) if r == ratio]))
            for ratio in family.ratios
        )
        clipped = max((arm.clipped.get(name, nan) for arm in arms), default=nan)
        words = f"clipped at most {clipped:.2g}; " if isfinite(clipped) else ""
        rows.append(Claim(
            f"{name.replace('_', ' ')} rises with the accuracy gap ({family.name})", _PAPERS.get(name, "no figure"),
            f"Pearson {overall.value:+.3f}, Kendall {rank.value:+.2f} {interval(rank.lower, rank.upper)}; {inside}",
            error, _verdict(overall.value, overall.lower, overall.upper, within, len(arms)),
            f"by ratio: {by_ratio}; {words}{scale}",
        ))  # fmt: skip
    return rows


_PAPERS = {
    "trace": "r = .708 (NA figure 1)",
    "normalized_sharpness": "r = .911 (NA figure 1)",
    "minimum_sharpness": "a valid correlation (MS)",
}


def _verdict(value: float, low: float, high: float, within: Any, arms: int) -> str:
    """Holds: over all trainings, and among those of one ratio; in part: over all alone. Few trainings settle little."""
    if not isfinite(value) or (arms < ENOUGH and low <= 0):
        return UNTESTED
    if arms < ENOUGH:
        return IN_PART
    if low <= 0:
        return verdict_of_sign(value, low, high)
    return HOLDS if within is not None and within.lower > 0 else IN_PART


def _against_trace(columns: Mapping[str, Sequence[float]], gaps: Sequence[float], scale: str) -> Claim:
    more, low, high = difference_of_pearson(columns["normalized_sharpness"], columns["trace"], gaps)
    one, other = (correlations(columns[name], gaps, range(len(gaps)))[0].value
                  for name in ("normalized_sharpness", "trace"))  # fmt: skip
    return Claim(
        "normalized sharpness goes better with the gap than the trace", "r = .911 against .708 (NA figure 1)",
        f"r = {one:.3f} against {other:.3f}; difference {more:+.3f}", f"95 % {interval(low, high)}, resampled in pairs",
        UNTESTED if len(gaps) < ENOUGH else verdict_of_sign(more, low, high), scale,
    )  # fmt: skip


def figure_of(found: Mapping[Family, Sequence[Arm]]) -> Figure:
    """A row of panels per family: every measure against the gap, a look per ratio of noise."""
    shown = {family: [name for name in (*MEASURES, BN_MEASURE) if any(isfinite(a.values.get(name, nan)) for a in arms)]
             for family, arms in found.items()}  # fmt: skip
    across = 5 if max(map(len, shown.values())) > 8 else 4
    lines = {family: -(-len(names) // across) for family, names in shown.items()}
    down = sum(lines.values())
    with style():
        figure = blank(2.7 * across, 0.9 + 2.5 * down)
        axes = figure.subplots(down, across, squeeze=False)
        top = 0
        for family, arms in found.items():
            panels = axes[top : top + lines[family]].ravel()
            top += lines[family]
            for ax, name in zip(panels, shown[family]):
                _panel(ax, family, arms, name)
            panels[0].legend(title="noise", loc="best", fontsize=7, title_fontsize=7)
            for ax in panels[len(shown[family]) :]:
                ax.remove()
        caption = (
            "A point per training: the measure at the end against the accuracy on the training labels less that on "
            "test data. r: Pearson over all trainings, and among those of the same ratio of noise; 95 % by resampling."
        )
        figure.supxlabel(wrapped(caption, figure.get_figwidth() * 16.5), x=0.012, ha="left", fontsize=7.5)
        return figure


def _panel(ax: Any, family: Family, arms: Sequence[Arm], name: str) -> None:
    values, gaps = [arm.values[name] for arm in arms], [arm.gap for arm in arms]
    for index, ratio in enumerate(family.ratios):
        look = ARMS[index % len(ARMS)]
        mine = [i for i, arm in enumerate(arms) if arm.ratio == ratio]
        ax.plot([values[i] for i in mine], [gaps[i] for i in mine], look.marker, color=look.colour,
                markerfacecolor=look.face, label=f"{ratio:g}")  # fmt: skip
    finite = [value for value in values if isfinite(value)]
    if min(finite) > 0 and max(finite) > 100 * min(finite):
        ax.set_xscale("log")
    text = ""
    if len(finite) >= 4:
        overall, _, within, _ = correlations(values, gaps, [arm.ratio for arm in arms])
        text = f"r = {overall.value:.2f} {interval(overall.lower, overall.upper)}"
        if within is not None and np.isfinite(within.value):
            text += f"\nwithin {within.value:+.2f} {interval(within.lower, within.upper)}"
    ax.set_title(f"{family.name}\n{text}", loc="left", fontsize=7)
    ax.set_xlabel(name.replace("_", " ").replace(" of normalized loss", ", normalised loss"), fontsize=7.5)
    ax.set_ylabel("accuracy gap", fontsize=7.5)


if __name__ == "__main__":
    run(main)
