"""How fast do drawn diagonals of the Hessian converge to the exact one? (Minimum sharpness, appendix G.)

    python analyses/papers/finite_differences.py --quick --data DIR --out papers

Four estimators on a trained ReLU network, against `spectra.exact_diagonal`: Hutchinson's probes, the finite differences
of Normalized flat minima, arXiv (61) ("na"), and those of its ICML version (29)-(31) ("ni"), corrected and with
equation (30) as printed, where the sign does not multiply the whole bracket. Without --data the network is one for the
8 x 8 digits of scikit-learn.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from math import hypot
from pathlib import Path

import numpy as np
import torch
from arms import FAILS, HOLDS, IN_PART, Claim, arguments_of, run, save, subset, task_of, trained
from matplotlib.figure import Figure
from scipy import stats

import spectra
from spectra.figures.frame import blank, wrapped
from spectra.figures.style import ARMS, style
from spectra.operators.displaced import DisplacedLoss
from spectra.sharpness.drawn_diagonals import drawn_diagonal

METHODS = {
    "probes": "probes",
    "na": "differences, NA (61)",
    "ni": "differences, NI (30) corrected",
    "ni printed": "differences, NI (30) printed",
}
RADIUS = 1e-3


@dataclass(frozen=True)
class Size:
    """How much is computed."""

    images: int = 1000
    hidden: int = 32
    epochs: int = 10
    draws: tuple[int, ...] = (4, 16, 64, 256)
    seeds: int = 3


QUICK, FULL = Size(), Size(images=10000, hidden=100, draws=(4, 16, 64, 256, 1024), seeds=5)


@dataclass(frozen=True)
class Errors:
    """Relative errors against the exact diagonal, each ``(seeds, draws)``."""

    draws: tuple[int, ...]
    entries: Mapping[str, np.ndarray]  # |d - exact| / |exact| over all entries, by method
    trace: Mapping[str, np.ndarray]  # with its sign
    sharpness: Mapping[str, np.ndarray]  # normalized sharpness over that of the exact diagonal; 1 is right
    clipped: Mapping[str, np.ndarray]

    def slope(self, method: str) -> tuple[float, float]:
        """The exponent of the error of the entries in the draws, and its standard error over seeds."""
        x = np.log(self.draws)
        slopes = [float(np.polyfit(x, np.log(row), 1)[0]) for row in self.entries[method]]
        return float(np.mean(slopes)), float(np.std(slopes, ddof=1) / np.sqrt(len(slopes)))


def main(arguments: Sequence[str] | None = None) -> None:
    asked = arguments_of(__doc__, arguments)
    size = QUICK if asked.quick else FULL
    with tempfile.TemporaryDirectory() as work:
        task = _network(asked.data, size, Path(work))
        errors, gradients = measured(task, size)
        control = without_kinks(task, size.draws[-1])
    save(_claims(errors, gradients, control, asked.quick), _figure(errors, task), asked.out, "finite_differences")


def _network(data: Path | None, size: Size, work: Path) -> spectra.Task:
    given = {"epochs": size.epochs, "depth": 2, "hidden": size.hidden}
    if data is None:
        return task_of(trained("digits-mlp", work / "run", data=None, **given))
    images = subset(data, "mnist", size.images, 100, work)
    return task_of(trained("mnist-mlp", work / "run", data=images, **given))


def measured(task: spectra.Task, size: Size) -> tuple[Errors, dict[str, int]]:
    """The errors of every method, and the gradients that the most draws cost."""
    exact = spectra.exact_diagonal(task, dtype="float64")
    if not exact.applies:
        raise spectra.SpectraError(f"no exact diagonal of the Hessian: {'; '.join(exact.reasons)}")
    names = list(exact)
    truth = torch.cat([exact[name].flatten() for name in names])
    whole = spectra.normalized_sharpness(task).value
    weights = torch.cat([p.detach().flatten() for p in task.model.parameters()])
    eps = float(weights.abs().median())
    shape = (size.seeds, len(size.draws))
    entries, trace, sharpness, clipped = ({name: np.full(shape, np.nan) for name in METHODS} for _ in range(4))
    cost = {}
    for method in METHODS:
        for seed in range(size.seeds):
            for column, draws in enumerate(size.draws):
                if method == "ni printed":
                    found = printed_ni(task, draws, eps, seed)
                    cost[method] = 2 * draws
                else:
                    given = {"draws": draws, "radius": RADIUS, "seed": seed, "eps": eps if method == "ni" else 0.0}
                    drawn = drawn_diagonal(task, method, **given)
                    found = torch.cat([drawn.values[name].flatten() for name in names])
                    cost[method] = drawn.gradients
                    if seed == 0:
                        measure = spectra.normalized_sharpness(task, diagonal=method, **given)
                        sharpness[method][0, column] = measure.value / whole
                        clipped[method][0, column] = measure.clipped
                entries[method][seed, column] = float((found - truth).norm() / truth.norm())
                trace[method][seed, column] = float((found.sum() - truth.sum()) / truth.sum())
    return Errors(size.draws, entries, trace, sharpness, clipped), cost


def printed_ni(task: spectra.Task, draws: int, eps: float, seed: int) -> torch.Tensor:
    """The mean over draws of ``s (g(w + d) - g(w - d)) / (2 D)`` with ``d = r (|w| s + eps)``, ``D = r (|w| + eps)``.

    Equation (30) as printed: the sign is not on ``eps``, so an entry is too small by ``|w| / (|w| + eps)``.
    """
    loss = DisplacedLoss(task)
    generator = torch.Generator().manual_seed(seed)
    size, total = loss.theta.abs(), torch.zeros_like(loss.theta)
    with loss.prepared():
        for _ in range(draws):
            signs = (2 * torch.randint(2, (loss.n,), generator=generator) - 1).to(loss.theta)
            moved = RADIUS * (size * signs + eps)
            change = loss.gradient(moved)[1] - loss.gradient(-moved)[1]
            total += signs * change / (2 * RADIUS * (size + eps))
    return total / draws


def without_kinks(task: spectra.Task, draws: int) -> dict[str, tuple[float, float]]:
    """With softplus in place of ReLU: the trace by differences over that by probes, less 1, and its standard error."""
    model = deepcopy(task.model)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, torch.nn.ReLU):
                setattr(parent, name, torch.nn.Softplus(beta=5))
    smooth = replace(task, model=model)
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    found = {}
    for method in ("probes", "na", "ni"):
        eps = float(weights.abs().median()) if method == "ni" else 0.0
        traces = []
        for seed in range(8):
            drawn = drawn_diagonal(smooth, method, draws=max(2, draws // 8), radius=RADIUS, eps=eps, seed=seed)
            traces.append(sum(float(values.sum()) for values in drawn.values.values()))
        found[method] = (float(np.mean(traces)), float(np.std(traces, ddof=1) / np.sqrt(8)))
    base, error = found["probes"]
    return {name: (found[name][0] / base - 1, hypot(found[name][1], error) / base) for name in ("na", "ni")}


def _claims(
    errors: Errors, gradients: Mapping[str, int], control: Mapping[str, tuple[float, float]], quick: bool
) -> list[Claim]:
    most = errors.draws[-1]
    scale = "quick form: a small network on a part of the data" if quick else ""
    last = {name: errors.entries[name][:, -1] for name in METHODS}
    spread = {name: float(np.std(values, ddof=1)) for name, values in last.items()}
    rows = []
    for name in ("probes", "na", "ni"):
        slope, stderr = errors.slope(name)
        half = abs(slope + 0.5) <= max(0.05, 3 * stderr)
        rows.append(Claim(
            f"{METHODS[name]}: the error of the diagonal falls as one over the root of the draws", "exponent -0.5",
            f"{slope:+.3f}", f"+- {stderr:.3f} over {len(last[name])} seeds",
            HOLDS if half else IN_PART if slope < -0.35 else FAILS,
            f"error {last[name].mean():.3g} at {most} draws; {scale}".rstrip("; "),
        ))  # fmt: skip
    for name in ("na", "ni"):
        off, smooth = 100 * errors.trace[name][:, -1], control[name]
        half_width = float(stats.t.ppf(0.975, len(off) - 1) * off.std(ddof=1) / np.sqrt(len(off)))
        rows.append(Claim(
            f"{METHODS[name]} is an estimate of the diagonal of the Hessian of a ReLU network", "unbiased",
            f"trace off by {off.mean():+.1f} %", f"95 % +- {half_width:.1f} % over {len(off)} seeds",
            HOLDS if abs(off.mean()) < max(2.0, half_width) else FAILS,
            "differences see the kinks of ReLU, the exact diagonal and probes do not; with softplus in its place: "
            f"off by {100 * smooth[0]:+.1f} +- {100 * smooth[1]:.1f} %; radius {RADIUS:g}; {scale}".rstrip("; "),
        ))  # fmt: skip
    wrong, right = last["ni printed"].mean(), last["ni"].mean()
    bias = errors.trace["ni printed"][:, -1]
    rows.append(Claim(
        "NI (30) as printed estimates the diagonal", "unbiased",
        f"trace off by {100 * bias.mean():+.0f} %, against {100 * errors.trace['ni'][:, -1].mean():+.1f} % corrected",
        f"+- {100 * bias.std(ddof=1) / np.sqrt(len(bias)):.1f} % over seeds",
        FAILS if abs(bias.mean()) > 4 * bias.std(ddof=1) / np.sqrt(len(bias)) + 0.02 else HOLDS,
        f"entries: error {wrong:.3g} printed, {right:.3g} corrected, at {most} draws; "
        f"eps = the median weight; {scale}".rstrip("; "),
    ))  # fmt: skip
    drawn = min(("probes", "na", "ni"), key=lambda name: float(last[name].mean()))
    error = float(last[drawn].mean())
    rows.append(Claim(
        "the exact form costs less than drawn diagonals of useful accuracy", "cheaper, without error",
        f"K - 1 = 9 back-propagations exact; the best drawn one, {METHODS[drawn]}, is off by {100 * error:.1f} % "
        f"after {gradients[drawn]} gradients",
        f"+- {100 * spread[drawn]:.1f} % over seeds", HOLDS if error > 0.01 else IN_PART,
        f"ReLU network of 10 classes, where the exact form exists; {scale}".rstrip("; "),
    ))  # fmt: skip
    best = {name: float(errors.sharpness[name][0, -1]) for name in ("probes", "na", "ni")}
    clipped = ", ".join(f"{name} {errors.clipped[name][0, -1]:.2g}" for name in best)
    off = max(abs(value - 1) for value in best.values())
    rows.append(Claim(
        "normalized sharpness can be computed from drawn diagonals", "by finite differences",
        "over that of the exact diagonal: " + ", ".join(f"{name} {value:.2f}" for name, value in best.items()),
        "one seed", HOLDS if off < 0.05 else IN_PART if off < 0.25 else FAILS,
        f"at {most} draws; clipped: {clipped} (negative over positive entries); the scatter biases it; {scale}"
        .rstrip("; "),
    ))  # fmt: skip
    return rows


def _figure(errors: Errors, task: spectra.Task) -> Figure:
    with style():
        figure = blank(10.8, 3.9)
        axes = figure.subplots(1, 3)
        draws = np.array(errors.draws)
        for (name, words), look in zip(METHODS.items(), ARMS):
            given = {"color": look.colour, "marker": look.marker, "linestyle": look.line, "markerfacecolor": look.face,
                     "label": words}  # fmt: skip
            for ax, table in zip(axes, (errors.entries, {name: np.abs(errors.trace[name])})):
                mean, spread = table[name].mean(axis=0), table[name].std(axis=0, ddof=1)
                ax.errorbar(draws, mean, yerr=np.minimum(spread, 0.9 * mean), **given)
            if np.isfinite(errors.sharpness[name]).any():
                axes[2].plot(draws, errors.sharpness[name][0], **given)
        start = errors.entries["probes"][:, 0].mean()
        axes[0].plot(draws, start * np.sqrt(draws[0] / draws), color="#666666", linewidth=0.9, label="draws$^{-1/2}$")
        axes[2].axhline(1, color="#666666", linewidth=0.9)
        titles = ("entries of the diagonal", "trace", "normalized sharpness")
        labels = ("|estimate - exact| / |exact|", "relative error, absolute value", "from draws / from the exact one")
        for ax, title, label in zip(axes, titles, labels):
            ax.set_xscale("log", base=2)
            ax.set_yscale("log" if ax is not axes[2] else "linear")
            ax.set_xticks(draws, [str(value) for value in draws])
            ax.set_title(title, loc="left")
            ax.set_xlabel("draws (two gradients, or a product, each)")
            ax.set_ylabel(label)
        handles, words = axes[0].get_legend_handles_labels()
        figure.legend(handles, words, loc="outside upper center", ncols=5)
        parameters = sum(p.numel() for p in task.model.parameters())
        caption = (
            f"Drawn diagonals of the Hessian against the exact one; {task.name.split('(')[0]}, {parameters:,} "
            f"parameters, radius {RADIUS:g}. Mean and standard deviation over {errors.entries['probes'].shape[0]} "
            "seeds; normalized sharpness: one seed. NI (30) as printed is biased; differences see the kinks of ReLU."
        )
        figure.supxlabel(wrapped(caption, figure.get_figwidth() * 16.5), x=0.012, ha="left", fontsize=7.5)
        return figure


if __name__ == "__main__":
    run(main)
