"""FF: more weight decay, sharper minima, better generalization

Granziol (2020), section 4: with more L2 regularization the minima that SGD finds generalize better, although their
Hessians have larger eigenvalues. Here: curvature of the loss without its L2 term (which adds the coefficient to every
eigenvalue), weights, loss and accuracy at the end of training, for several coefficients. The quick form has logistic
regression and an MLP of 100 units on 10,000 images of MNIST, and LeNet with batch norm on 4000; the full one has the
paper's 1000 epochs on all of MNIST, and All-CNN-C, PreResNet and WRN on CIFAR-100.

    python analyses/papers/weight_decay.py --quick --data data --out papers
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from experiment import Experiment, Outcome, outcome, started

import spectra


class Network(NamedTuple):
    """A recipe with its options, the coefficients of L2, and how it is analysed."""

    name: str
    recipe: str
    epochs: int
    decays: tuple[float, ...]
    options: dict[str, Any]
    analysis: tuple[object, ...]


class End(NamedTuple):
    """The curvature at the end of a training, and its outcome."""

    record: spectra.Record
    outcome: Outcome


Runs = dict[tuple[str, str], dict[float, End]]  # network and mode of batch norm -> weight decay -> end of training
_SGD = {"learning_rate": 0.03, "batch_size": 128, "schedule": "linear"}
LOGISTIC, MLP, LENET = "logistic regression", "MLP", "LeNet with batch norm"
QUICK = (
    Network(LOGISTIC, "mnist-logistic", 60, (0, 1e-4, 5e-4), _SGD | {"validation": 50000}, ("-m", 40, "-k", 4)),
    Network(MLP, "mnist-mlp", 40, (0, 1e-4, 5e-4), _SGD | {"validation": 50000}, ("-m", 25, "-k", 4)),
    Network(
        LENET, "mnist-lenet-bn", 6, (0, 5e-4), _SGD | {"validation": 56000},
        ("-m", 20, "-k", 4, "--bn", "both", "--samples", 500),
    ),
)  # fmt: skip
_PAPER = ("-m", 100, "-k", 1, "--bn", "both")
FULL = (
    Network(LOGISTIC, "ff-mnist-logistic", 1000, (0, 1e-4, 5e-4), {}, ("-m", 100, "-k", 4)),
    Network(MLP, "mnist-mlp", 1000, (0, 1e-4, 5e-4), _SGD, ("-m", 100, "-k", 4)),
    *(
        Network(name, f"ff-cifar100-{name}-sgd", 300, (0, 5e-4), {}, _PAPER)
        for name in ("allcnn", "preresnet", "wrn")
    ),
)  # fmt: skip
DATA = {"mnist": "MNIST/raw", "cifar100": "cifar-100-binary"}  # part of a recipe's name -> its data; digits have none
SEEN = ("lambda_max", "frobenius_norm", "mean_eigenvalue", "trace")
PRINTED = {"lambda_max": (12.26, 14.17, 15.84), "test_accuracy": (0.9348, 0.94, 0.9408)}  # logistic regression


def main(arguments: Sequence[str] | None = None) -> None:
    exp = Experiment(__file__, __doc__, arguments)
    found: Runs = {}
    for network in QUICK if exp.quick else FULL:
        data = next((exp.needs(path) for name, path in DATA.items() if name in network.recipe), None)
        for decay in network.decays:
            chosen = [w for k, v in (network.options | {"weight_decay": decay}).items() for w in ("--set", f"{k}={v}")]
            every = ("--epochs", network.epochs, "--every", network.epochs)
            folder = exp.train(network.recipe, *every, *chosen, data=data)
            for record in exp.analyze(folder, *network.analysis, "--last", "--metrics", "none", "--no-check"):
                found.setdefault((network.name, record.bn_mode), {})[decay] = End(record, outcome(folder))
    report(exp, found)
    draw(exp, found)
    exp.write()


def report(exp: Experiment, found: Runs) -> None:
    setting = "10,000 images and 60 epochs in place of 60,000 and 1000." if exp.quick else ""
    ends = {name: list(runs.values()) for (name, _), runs in found.items()}
    logistic, mlp = ([end.record for end in ends[name]] for name in (LOGISTIC, MLP))
    accuracies = {name: [end.outcome.test_accuracy for end in ends[name]] for name in (LOGISTIC, MLP)}
    gain, error = ends[LOGISTIC][-1].outcome.gain_over(ends[LOGISTIC][0].outcome)
    exp.add(
        "logistic regression: the largest eigenvalue rises with the decay (0, 1e-4, 5e-4)",
        ", ".join(map(str, PRINTED["lambda_max"])),
        ", ".join(f"{record.estimates['lambda_max'].value:.4g}" for record in logistic),
        _width(logistic, "lambda_max"),
        _rising([record.estimates["lambda_max"] for record in logistic]),
        setting,
    )
    exp.add(
        "logistic regression: the test accuracy rises with the decay",
        ", ".join(f"{100 * one:.2f} %" for one in PRINTED["test_accuracy"]),
        ", ".join(f"{100 * one:.2f} %" for one in accuracies[LOGISTIC]),
        f"{100 * error:.2f} % (standard error of the difference of the last and the first, on the same images)",
        _order(accuracies[LOGISTIC], gain, error),
        setting + " Held: each higher than the one before, the last by two standard errors above the first.",
    )
    norms = [record.estimates["frobenius_norm"] for record in mlp]
    exp.add(
        "MLP: the Frobenius norm rises with the decay",
        "0.12 to 0.16, a factor of 1.33 (perhaps in another normalisation)",
        f"{', '.join(f'{one.value:.3g}' for one in norms)}, a factor of {norms[-1].value / norms[0].value:.2f}",
        _width(mlp, "frobenius_norm"),
        _rising(norms),
        "Test accuracy: " + ", ".join(f"{100 * one:.2f} %" for one in accuracies[MLP]) + ".",
    )
    for (name, mode), runs in found.items():
        (first, before), *_, (last, after) = runs.values()
        mine = name if len({m for n, m in found if n == name}) == 1 else f"{name}, {mode} mode"
        largest, former = last.estimates["lambda_max"], first.estimates["lambda_max"]
        sharper = _sign(largest.value - former.value, largest.lower > former.upper or largest.upper < former.lower)
        gain, error = after.gain_over(before)
        better = _sign(gain, abs(gain) > 2 * error)
        exp.add(
            f"{mine}: the most decay gives both larger curvature and better generalization than none",
            "both",
            "; ".join(
                f"{key.replace('_', ' ')} {first.estimates[key].value:.3g} to {last.estimates[key].value:.3g}"
                for key in SEEN
            )
            + f"; norm of the weights {first.facts['weight_norm']:.3g} to {last.facts['weight_norm']:.3g}"
            f"; test accuracy {100 * before.test_accuracy:.2f} to {100 * after.test_accuracy:.2f} %; training loss "
            f"{before.train_loss:.3g} to {after.train_loss:.3g}; test loss "
            f"{before.test_loss:.3g} to {after.test_loss:.3g}",
            f"largest eigenvalue {_width([first, last], 'lambda_max')}, trace {_width([first, last], 'trace')}, "
            f"difference of the accuracies {100 * error:.2f} % (one standard error)",
            _both(sharper, better),
            f"Larger curvature: {sharper}; better accuracy: {better}. One seed; curvature on "
            f"{first.facts['n_samples']} of the training images, the same for both.",
        )


def _sign(difference: float, beyond_error: bool) -> str:
    """Whether a number rose: yes, no, or less than its error."""
    return ("yes" if difference > 0 else "no") if beyond_error else "within the error"


def _both(sharper: str, better: str) -> str:
    """The verdict on a larger curvature with a better accuracy."""
    if sharper == better == "yes":
        return "holds"
    if "yes" in (sharper, better):
        return "holds in part"
    return "does not hold" if "no" in (sharper, better) else "not testable here"


def _width(records: Sequence[spectra.Record], name: str) -> str:
    """The largest relative half-width of the intervals of an estimate."""
    found = [record.estimates[name] for record in records]
    return f"{100 * max((one.upper - one.lower) / 2 / abs(one.value) for one in found):.2g} %"


def _rising(estimates: Sequence[Any]) -> str:
    if all(a.upper < b.lower for a, b in pairwise(estimates)):
        return "holds"
    return "holds in part" if estimates[-1].lower > estimates[0].upper else "does not hold"


def _order(values: Sequence[float], gain: float, error: float) -> str:
    """The verdict on rising accuracies, of which the last is above the first by a gain with a standard error."""
    if gain > 2 * error:
        return "holds" if all(b > a for a, b in pairwise(values)) else "holds in part"
    return "does not hold" if gain < -2 * error else "not testable here"


def draw(exp: Experiment, found: Runs) -> None:
    looks = ("o-", "s--", "^-.", "D:", "v-", "P--", "X-.", "*:")
    with exp.figure(10, 3.4) as figure:
        panels = figure.subplots(1, 3)
        for (key, mode), look in zip(found, looks):
            runs = found[key, mode]
            x = [("0", "1e-4", "5e-4")[(0, 1e-4, 5e-4).index(decay)] for decay in runs]
            label = key if len({m for n, m in found if n == key}) == 1 else f"{key}, {mode}"
            for panel, name in zip(panels, ("lambda_max", "frobenius_norm")):
                estimates = [end.record.estimates[name] for end in runs.values()]
                base = estimates[0].value
                bars = [
                    [(e.value - e.lower) / base for e in estimates],
                    [(e.upper - e.value) / base for e in estimates],
                ]
                panel.errorbar(x, [e.value / base for e in estimates], bars, fmt=look, label=label)
            panels[2].plot(x, [100 * (1 - end.outcome.test_accuracy) for end in runs.values()], look)
        for panel, name in zip(panels, ("largest eigenvalue", "Frobenius norm")):
            panel.set(ylabel=f"{name}, relative to no decay", xlabel="weight decay")
        panels[2].set(ylabel="test error (%)", xlabel="weight decay", ylim=(0, None))
        panels[1].legend(fontsize=7)


if __name__ == "__main__":
    started(main)
