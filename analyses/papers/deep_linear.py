"""FF: the deep linear example, its Hessian, its rank and its gradient

Granziol (2020), section 2: the loss `exp(X w_1 ... w_D)`. The paper prints a Hessian of rank one whose trace is its
largest eigenvalue, and that changes when weights are rescaled without a change of the loss. Here Lanczos, on
checkpoints of this loss, against the closed form `L (X^2 u u' + X V)` (`u`: first, `V`: second derivatives of the
product).

    python analyses/papers/deep_linear.py --quick --out papers

There is no larger form: `--quick` changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.ticker import NullFormatter
from torch import nn

import spectra

X = -0.3
SCALES = (1.0, 1.5, 2.0, 2.5, 3.0)  # of the weights (1, 1.1, 1.2), with X = -1
FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)  # w_1 times the factor, w_2 divided by it: the same function


class DeepLinear(nn.Module):
    """The product of all weights, times the input."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(depth, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.w.prod()


def task(depth: int = 3, x: float = X) -> spectra.Task:
    """The task of the checkpoints: one input, and the mean of the exponentials of the outputs as the loss."""
    data = [(torch.full((1, 1), float(x), dtype=torch.float64), torch.zeros(1))]
    return spectra.Task(DeepLinear(int(depth)), lambda output, _: output.exp().mean(), data, name="deep linear")


def closed_form(w: Sequence[float], x: float) -> tuple[float, np.ndarray, np.ndarray]:
    """Loss, gradient (D,) and Hessian (D, D) of `exp(x prod w)`."""
    weights, product = np.asarray(w), math.prod(w)
    loss, u = math.exp(x * product), product / weights
    v = product / np.outer(weights, weights)
    np.fill_diagonal(v, 0)
    return loss, x * loss * u, loss * (x**2 * np.outer(u, u) + x * v)


def main(arguments: Sequence[str] | None = None) -> None:
    from experiment import Experiment  # here, because `spectra analyze` imports this file for its task alone

    exp = Experiment(__file__, __doc__, arguments)
    (exp.out / "runs").mkdir(parents=True, exist_ok=True)

    def measured(w: Sequence[float], x: float) -> tuple[Any, np.ndarray]:
        """The record of a checkpoint with these weights, and its Ritz values: D steps find all D eigenvalues."""
        model = DeepLinear(len(w))
        model.w.data = torch.tensor(w, dtype=torch.float64)
        path = exp.out / "runs" / f"{exp.name}-{'_'.join(f'{one:g}' for one in w)}.pt"
        spectra.save_checkpoint(path, model)
        of_task = [
            "--task",
            f"{Path(__file__).resolve()}:task",
            "--task-arg",
            f"depth={len(w)}",
            "--task-arg",
            f"x={x}",
        ]
        record = exp.analyze(path, *of_task, "-m", len(w), "-k", 2, "--metrics", "none", "--no-check")[0]
        return record, np.sort(record.spectrum.nodes[0])

    w = [1.0, 2.0, 3.0]
    ritz = measured(w, X)[1]
    loss, _, hessian = closed_form(w, X)
    exact = np.linalg.eigvalsh(hessian)
    printed = loss * abs(X) * float(np.sum((math.prod(w) / np.asarray(w)) ** 2))
    off = float(np.abs(ritz - exact).max())
    exp.add(
        "equations 2 and 3: the Hessian's only eigenvalue that is not 0, which is its trace",
        f"{printed:.5g} at w = (1, 2, 3), X = -0.3",
        f"eigenvalues {', '.join(f'{one:.5g}' for one in ritz)}; trace {ritz.sum():.5g}",
        f"{off:.1e}",
        "does not hold",
        "The square of X and the second derivatives of the product are missing in print. The error is the largest "
        "distance of a Ritz value from the closed form.",
    )
    spectra_of_depth = {depth: measured([1.0 + 0.3 * i for i in range(depth)], 0.1)[1] for depth in (2, 3, 4, 5)}
    smallest = {depth: float(np.abs(one).min() / np.abs(one).max()) for depth, one in spectra_of_depth.items()}
    exp.add(
        "section 2: longer products keep rank one",
        "1",
        "rank 2, 3, 4, 5 for products of 2, 3, 4, 5 weights" if min(smallest.values()) > 1e-6 else f"{smallest}",
        "-",
        "does not hold",
        f"Smallest eigenvalue over the largest, by magnitude: {', '.join(f'{one:.2g}' for one in smallest.values())}.",
    )
    along = [measured([scale, 1.1 * scale, 1.2 * scale], -1.0)[1] for scale in SCALES]
    shares = [float(np.sort(np.abs(one))[-2] / one.sum()) for one in along]
    exp.add(
        "the picture of one large eigenvalue (rank one)",
        "exact",
        ", ".join(f"{share:.2g} at s = {scale:g}" for share, scale in zip(shares, SCALES)),
        "-",
        "holds in part",
        "Second largest eigenvalue over the trace, w = s (1, 1.1, 1.2), X = -1: the picture becomes right as "
        "|X prod w| grows.",
    )
    rescaled = [measured([factor, 2 / factor, 3.0], X) for factor in FACTORS]
    losses = [float(one.facts["loss"]) for one, _ in rescaled]
    gradients = [float(one.facts["gradient_norm"]) for one, _ in rescaled]
    largest = [float(one[-1]) for _, one in rescaled]
    truth = [closed_form([factor, 2 / factor, 3.0], X) for factor in FACTORS]
    exp.add(
        "the Hessian changes under a rescaling of the weights that leaves the loss unchanged",
        "-",
        f"lambda_max from {min(largest):.3g} to {max(largest):.3g}, loss equal to {max(losses) - min(losses):.0e}",
        f"{max(abs(one - np.linalg.eigvalsh(h)[-1]) for one, (_, _, h) in zip(largest, truth)):.0e}",
        "holds",
        f"w_1 times c, w_2 divided by c, c = {FACTORS[0]:g} to {FACTORS[-1]:g}; error: distance from the closed form.",
    )
    exp.add(
        "the gradient changes under the same rescaling",
        "-",
        f"norm of the gradient from {min(gradients):.3g} to {max(gradients):.3g}",
        f"{max(abs(one - np.linalg.norm(g)) for one, (_, g, _) in zip(gradients, truth)):.0e}",
        "holds",
        "Its square grows as the first term of the trace does: a rescaling speaks against both, and not against "
        "curvature alone.",
    )
    with exp.figure(9, 3.2) as figure:
        left, middle, right = figure.subplots(1, 3)
        left.plot(range(1, 4), exact, "o", markersize=9, fillstyle="none", label="closed form")
        left.plot(range(1, 4), ritz, "x", label="Lanczos")
        left.axhline(printed, linestyle="--", color="#D55E00", label="as printed: one eigenvalue")
        left.set(xlabel="eigenvalue", ylabel="w = (1, 2, 3), X = -0.3", xticks=range(1, 4), ylim=(0, 1.25 * printed))
        left.legend(loc="center left")
        middle.plot([1.32 * s**3 for s in SCALES], shares, "o-")
        middle.set(xlabel="|X prod w|", ylabel="second largest eigenvalue / trace", xscale="log", yscale="log")
        middle.xaxis.set_minor_formatter(NullFormatter())
        middle.set_title("0 for a matrix of rank one", loc="left", fontsize=8)
        right.plot(FACTORS, [one / losses[0] for one in losses], "k:", label="loss")
        right.plot(FACTORS, [one / gradients[2] for one in gradients], "o-", label="norm of the gradient")
        right.plot(FACTORS, [one / largest[2] for one in largest], "s--", label="largest eigenvalue")
        right.set(xscale="log", yscale="log", xlabel="c of (c w1, w2 / c, w3)", ylabel="relative to c = 1")
        right.legend()
    exp.write()


if __name__ == "__main__":
    from experiment import started

    started(main)
