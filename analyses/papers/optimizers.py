"""FF: SGD, Adam and Gadam, curvature and generalization

Granziol (2020), section 4: Gadam (AdamW with an average of the weights) finds minima that are sharper than those of SGD
and generalize at least as well, so that curvature does not explain the difference between optimizers. Here: the largest
eigenvalue, Frobenius norm and trace of the Hessian at the end of training, with loss and accuracy. The quick form has
LeNet on 4000 images of CIFAR-10 and 36 epochs; the full one the paper's All-CNN-C and VGG-16 on CIFAR-100.

    python analyses/papers/optimizers.py --quick --data data --out papers
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from experiment import Experiment, Outcome, outcome, started

import spectra

SEEN = ("lambda_max", "frobenius_norm", "trace")
QUICK: dict[str, dict[str, Any]] = {
    "SGD": {"learning_rate": 0.03, "weight_decay": 5e-4},
    "Adam": {"optimizer": "adam", "learning_rate": 0.001},
    "Gadam": {"optimizer": "gadam", "learning_rate": 0.001, "weight_decay": 0.25},
}
ADAM = ("--set", "optimizer=adam", "--set", "learning_rate=0.0005", "--set", "weight_decay=0")  # in the full form
COMMON = {"validation": 6000, "batch_size": 128, "schedule": "linear", "augment": "true"}


class End(NamedTuple):
    """The curvature at the end of a training, and its outcome."""

    record: spectra.Record
    outcome: Outcome


def trained(exp: Experiment) -> dict[str, dict[str, End]]:
    """Network -> optimizer -> the end of training."""

    def end(folder: Path, *options: object) -> End:
        record = exp.analyze(folder, "--last", "--metrics", "none", "--no-check", *options)[0]
        return End(record, outcome(folder))

    if exp.quick:
        data, found = exp.needs("cifar10.npz"), {}
        for name, options in QUICK.items():
            chosen = [word for k, v in (COMMON | options).items() for word in ("--set", f"{k}={v}")]
            folder = exp.train("cifar10-lenet", "--epochs", 36, "--every", 36, *chosen, data=data)
            found[name] = end(folder, "-m", 30, "-k", 3, "--samples", 500)
        return {"LeNet": found}
    data = exp.needs("cifar-100-binary")
    return {
        network: {
            name: end(
                exp.train(f"ff-cifar100-{network}-{recipe}", "--every", 300, *options, data=data), "-m", 100, "-k", 4
            )
            for name, recipe, options in (
                ("SGD", "sgd", ()),
                ("Adam", "sgd", ADAM),
                ("Gadam", "gadam", ()),
            )
        }
        for network in ("allcnn", "vgg16")
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    exp = Experiment(__file__, __doc__, arguments)
    found = trained(exp)
    for network, ends in found.items():
        report(exp, network, ends)
    draw(exp, next(iter(found.values())))
    exp.write()


def report(exp: Experiment, network: str, ends: dict[str, End]) -> None:
    records = {name: end.record for name, end in ends.items()}
    accuracy = {name: end.outcome.test_accuracy for name, end in ends.items()}
    fit = min(end.outcome.train_accuracy for end in ends.values()) >= 0.9
    holds = "holds" if fit else "holds in part"
    unfit = "" if fit else "These are no minima: no optimizer has fitted the training images."
    for name in SEEN:
        values = {key: record.estimates[name] for key, record in records.items()}
        above, below = values["Gadam"].lower > values["SGD"].upper, values["Gadam"].upper < values["SGD"].lower
        exp.add(
            f"{network}: {name.replace('_', ' ')} is larger with Gadam than with SGD",
            "larger",
            ", ".join(f"{key} {one.value:.3g}" for key, one in values.items()),
            ", ".join(f"{one.lower:.3g} to {one.upper:.3g}" for one in values.values()),
            (holds if above else "does not hold" if below else "not testable here"),
            ("" if above or below else "The intervals overlap. ") + unfit,
        )
    gain, error = ends["Gadam"].outcome.gain_over(ends["SGD"].outcome)
    exp.add(
        f"{network}: and Gadam generalizes at least as well",
        "test accuracy at least that of SGD",
        ", ".join(f"{name} {100 * one:.1f} %" for name, one in accuracy.items()),
        f"{100 * error:.1f} % (standard error of the difference of Gadam and SGD, on the same images)",
        "not testable here"
        if not fit
        else "holds"
        if gain > 2 * error
        else "does not hold"
        if gain < -2 * error
        else "holds in part",
        "Training accuracy "
        + ", ".join(f"{100 * end.outcome.train_accuracy:.1f} %" for end in ends.values())
        + f". In part: equal within two standard errors. One seed, rates not searched. {unfit}",
    )
    disagree = []
    for a, b in combinations(records, 2):
        gain, error = ends[a].outcome.gain_over(ends[b].outcome)
        if abs(gain) > 2 * error and gain * (_largest(records[a]) - _largest(records[b])) > 0:
            disagree.append(f"{a} and {b}")
    exp.add(
        f"{network}: a larger curvature may go with a better accuracy",
        "yes",
        f"so for {'; '.join(disagree)}" if disagree else "for no pair of optimizers",
        "accuracies that differ by two standard errors",
        "holds" if disagree else "does not hold" if fit else "not testable here",
        f"Of three optimizers. {unfit}",
    )


def _largest(record: spectra.Record) -> float:
    return float(record.estimates["lambda_max"].value)


def draw(exp: Experiment, ends: dict[str, End]) -> None:
    with exp.figure(9, 3.2) as figure:
        panels = figure.subplots(1, 3)
        for panel, name in zip(panels, SEEN):
            for (label, (record, reached)), look in zip(ends.items(), ("o", "s", "^")):
                one = record.estimates[name]
                bar = [[one.value - one.lower], [one.upper - one.value]]
                panel.errorbar([one.value], [100 * reached.test_accuracy], None, bar, fmt=look, label=label)
            panel.margins(0.1)
            panel.set(xlabel=f"{name.replace('_', ' ')} of the Hessian", ylabel="test accuracy (%)")
        panels[0].legend()


if __name__ == "__main__":
    started(main)
