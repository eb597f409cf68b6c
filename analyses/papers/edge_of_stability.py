"""Cohen et al.: gradient descent at the edge of stability

Cohen et al. (2021), "Gradient descent on neural networks typically occurs at the edge of stability": under gradient
descent on all images, the largest eigenvalue of the Hessian rises until it reaches 2 / eta, and then stays at or just
above it, while the loss falls, but not at every step. Here: an MLP with tanh, the squared error to one-hot vectors
(mean over images and classes: a fifth of half the sum over classes, so that steps are five times as long), and images
of CIFAR-10. The quick form has 500 images and 2 hidden layers of 100 units; the full one 5000 and 200.

The step sizes were chosen after a first try with 0.1, 0.2 and 0.4. There the eigenvalue is at or above 2 / eta from the
beginning, so that nothing can rise to it; it stayed at 1.06, 1.14 and 1.28 times 2 / eta.

    python analyses/papers/edge_of_stability.py --quick --data data --out papers
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from experiment import Experiment, started


class Run(NamedTuple):
    """Gradient descent with one step size."""

    rate: float
    steps: np.ndarray  # (T,)
    largest: np.ndarray  # (T,) eigenvalues
    error: float  # of these, the largest relative half-width of their intervals
    loss: np.ndarray  # (T,)

    @property
    def crossing(self) -> int | None:
        """Index of the first checkpoint with the largest eigenvalue at 2 / eta or more; None if it begins there."""
        above = np.flatnonzero(self.ratio >= 1)
        return int(above[0]) if len(above) and above[0] > 0 else None

    @property
    def ratio(self) -> np.ndarray:
        """The largest eigenvalue over 2 / eta."""
        ratio: np.ndarray = self.largest * self.rate / 2
        return ratio


QUICK = {0.05: 2000, 0.08: 1500}  # rate: steps
FULL = {0.02: 20000, 0.05: 10000, 0.08: 6000}


def main(arguments: Sequence[str] | None = None) -> None:
    exp = Experiment(__file__, __doc__, arguments)
    data = exp.needs("cifar10.npz" if exp.quick else "cifar-10-batches-bin")
    images, held_back, hidden = (500, 9500, 100) if exp.quick else (5000, 45000, 200)
    runs = []
    for rate, steps in (QUICK if exp.quick else FULL).items():
        options = {
            "loss": "mse",
            "activation": "tanh",
            "depth": 2,
            "hidden": hidden,
            "batch_size": 50000,
            "momentum": 0,
        }
        options |= {"learning_rate": rate, "validation": held_back}
        chosen = [word for pair in options.items() for word in ("--set", f"{pair[0]}={pair[1]}")]
        folder = exp.train("cifar10-mlp", "--epochs", steps, "--every", steps // 40, *chosen, data=data)
        records = [r for r in exp.analyze(folder, "--preset", "sharpness") if r.spectrum is not None]
        found = [record.estimates["lambda_max"] for record in records]
        runs.append(
            Run(
                rate,
                np.array([record.step for record in records]),
                np.array([one.value for one in found]),
                max((one.upper - one.lower) / one.value for one in found),
                np.array([record.facts["loss"] for record in records], dtype=float),
            )
        )
    report(exp, runs, images)
    draw(exp, runs)
    exp.write()


def report(exp: Experiment, runs: list[Run], images: int) -> None:
    setting = f"{images} images, one seed; the paper has more images and wider networks."
    error = f"{100 * max(run.error for run in runs):.1g} % of each eigenvalue"
    reached = [run for run in runs if run.crossing is not None]
    exp.add(
        "the largest eigenvalue rises to 2 / eta (progressive sharpening)",
        "2 / eta",
        "; ".join(_rise(run) for run in runs),
        error,
        "holds" if len(reached) == len(runs) else "holds in part" if reached else "does not hold",
        setting,
    )
    if not reached:
        return
    after = {run.rate: run.ratio[run.crossing :] for run in reached}
    means = [float(ratios.mean()) for ratios in after.values()]
    exp.add(
        "it then stays at 2 / eta or just above",
        "1 times 2 / eta, or just above",
        "; ".join(f"eta = {rate:g}: {ratios.mean():.3f} (sd {ratios.std():.2f})" for rate, ratios in after.items()),
        error,
        _verdict([0.95 <= mean <= 1.15 for mean in means], [0.8 <= mean <= 1.5 for mean in means]),
        "Mean of the largest eigenvalue over 2 / eta from the first crossing on; sd: over the checkpoints. Taken as "
        "just above: up to 1.15; in part: up to 1.5.",
    )
    rises = {run.rate: float(np.mean(np.diff(run.loss[run.crossing :]) > 0)) for run in reached}
    before = max(float(np.mean(np.diff(run.loss[: (run.crossing or 0) + 1]) > 0)) for run in reached)
    falls = [run.loss[-1] < run.loss[run.crossing or 0] for run in reached]
    exp.add(
        "the loss falls over many steps, but not at every one",
        "-",
        "; ".join(f"eta = {rate:g}: higher than before at {100 * share:.0f} %" for rate, share in rises.items()),
        "-",
        _verdict([fall and share > 0 for fall, share in zip(falls, rises.values())], falls),
        f"Of the checkpoints after the crossing; before it at most {100 * before:.0f} %. The loss at the end is "
        f"{', '.join(f'{run.loss[-1] / run.loss[run.crossing or 0]:.2g}' for run in reached)} of that at the crossing.",
    )


def _rise(run: Run) -> str:
    if run.crossing is None:
        return f"eta = {run.rate:g}: from {run.largest[0]:.3g} to {run.largest.max():.3g}, below {2 / run.rate:g}"
    return f"eta = {run.rate:g}: from {run.largest[0]:.3g} past {2 / run.rate:g} by step {run.steps[run.crossing]}"


def _verdict(fully: Sequence[object], partly: Sequence[object]) -> str:
    return "holds" if all(fully) else "holds in part" if any(partly) else "does not hold"


def draw(exp: Experiment, runs: list[Run]) -> None:
    with exp.figure(9, 3.6) as figure:
        left, right = figure.subplots(1, 2)
        for run, colour in zip(runs, ("#0072B2", "#D55E00", "#009E73")):
            left.plot(run.steps, run.largest, "-", color=colour, label=f"eta = {run.rate:g}")
            left.axhline(2 / run.rate, linestyle="--", color=colour)
            right.plot(run.steps, run.loss, "-", color=colour)
            if run.crossing is not None:
                right.plot(run.steps[run.crossing], run.loss[run.crossing], "o", color=colour)
        left.set(xlabel="step", ylabel="largest eigenvalue of the Hessian", ylim=(0, None))
        left.legend(title="dashed: 2 / eta")
        right.set(xlabel="step", ylabel="training loss", yscale="log")
        right.set_title("dot: first checkpoint past 2 / eta", loc="left", fontsize=8)


if __name__ == "__main__":
    started(main)
