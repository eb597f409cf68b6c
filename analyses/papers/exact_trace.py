"""MS: accuracy and time of the exact trace and diagonal

Ibayashi et al. (2021): untrained networks on 10, 100 and 1000 images of MNIST; the trace and the diagonal of the
Hessian by the closed form against brute force, one Hessian product per parameter. The quick form has two seeds, and
brute force for a few entries of the diagonal drawn at random (for the MLPs on 10 images all of them, so that the trace
is compared too); the full one has ten seeds, and takes hours.

    python analyses/papers/exact_trace.py --quick --data data --out papers
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiment import Experiment, started

from spectra.zoo.data import load_mnist

SIZES = (10, 100, 1000)
ENTRIES = {10: 40, 100: 20, 1000: 4}  # of the diagonal, by brute force in the quick form
LOOKS = {"MLP 20-20": ("#0072B2", "o"), "CNN 20-20": ("#D55E00", "s")}


def main(arguments: Sequence[str] | None = None) -> None:
    exp = Experiment(__file__, __doc__, arguments)
    data = exp.needs("MNIST/raw")
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    from exact_trace_accuracy import measure

    digits = load_mnist(data, "train")
    runs: list[Any] = []
    for network in LOOKS:
        for n in SIZES:
            for seed in range(2 if exp.quick else 10):
                rows = torch.randperm(len(digits), generator=torch.Generator().manual_seed(seed))[:n]
                images, labels = digits.batch(rows)
                every = network.startswith("MLP") and (not exp.quick or n == SIZES[0])
                runs.append(measure(network, seed, images.double(), labels, None if every else ENTRIES[n]))
    report(exp, runs)
    draw(exp, runs)
    exp.write()


def report(exp: Experiment, runs: list[Any]) -> None:
    compared = [run.trace_error for run in runs if run.trace_error == run.trace_error]
    exp.add(
        "the closed form gives the trace of the Hessian",
        "to rounding",
        f"relative difference from brute force at most {max(compared):.1e}",
        f"{np.finfo(float).eps:.1e} (float64)",
        "holds" if max(compared) < 1e-12 else "does not hold",
        f"{len(compared)} untrained networks with ReLU; with squared norms, which are printed without.",
    )
    worst = max(run.diagonal_error for run in runs)
    exp.add(
        "and its diagonal",
        "to rounding",
        f"at most {worst:.1e} of the largest entry",
        f"{np.finfo(float).eps:.1e} (float64)",
        "holds" if worst < 1e-12 else "does not hold",
        f"{len(runs)} networks; entries drawn at random.",
    )
    for network in LOOKS:
        mine = [run for run in runs if run.network == network]
        ratio = {n: np.median([one.brute_seconds / one.exact_seconds for one in mine if one.n == n]) for n in SIZES}
        exp.add(
            f"{network}: it is faster than brute force",
            "-",
            "; ".join(f"n = {n}: {value:.0f} times" for n, value in ratio.items()),
            "median over seeds",
            "holds" if min(ratio.values()) > 1 else "does not hold",
            "Trace and diagonal together; the time of brute force is extrapolated where some entries were computed. "
            "Stochastic estimates of the trace are faster than brute force as well.",
        )


def draw(exp: Experiment, runs: list[Any]) -> None:
    with exp.figure(8, 3.4) as figure:
        errors, times = figure.subplots(1, 2)
        for network, (colour, marker) in LOOKS.items():
            mine = [run for run in runs if run.network == network]
            x, look = [run.n for run in mine], {"color": colour, "linestyle": "none", "marker": marker}
            errors.plot(x, [max(run.diagonal_error, 1e-17) for run in mine], label=network, **look)
            times.plot(x, [run.exact_seconds for run in mine], label=f"{network}, closed form", **look)
            times.plot(
                x, [run.brute_seconds for run in mine], fillstyle="none", label=f"{network}, brute force", **look
            )
        errors.axhline(np.finfo(float).eps, linestyle=":", color="#666666")
        errors.set_title("dotted: float64 rounding", loc="left", fontsize=8)
        errors.set(ylabel="largest error of a diagonal entry,\nrelative to the largest entry", ylim=(1e-17, 1e-13))
        times.set(ylabel="seconds for trace and diagonal")
        for ax in (errors, times):
            ax.set(xscale="log", yscale="log", xlabel="images n")
        errors.legend()
        times.legend(fontsize=7)


if __name__ == "__main__":
    started(main)
