"""The exact trace and diagonal of the Hessian against brute force: errors and times.

Follows the accuracy experiment of Ibayashi et al. (2021), "Minimum sharpness": untrained networks on n = 10, 100, 1000
images of handwritten digits, ten seeds; an MLP with two hidden layers of 20 units, and a CNN of two convolutions with
20 channels (kernel 5), each followed by 2x2 max-pooling, and one linear layer. Brute force is one Hessian-vector
product per parameter, which gives the diagonal and, summed, the trace.

    python analyses/exact_trace_accuracy.py --data MNIST/raw --out figures/

The figure shows, for each network and n, the relative error of the trace, the largest error of a diagonal entry
relative to the largest entry, and the time of both ways. The errors are those of the arithmetic (float64).
"""

from __future__ import annotations

import argparse
import csv
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
import torch
from matplotlib import pyplot as plt
from torch import nn

import spectra
from spectra.zoo.data import load_mnist


@dataclass
class Run:
    """One network on one sample of images."""

    network: str
    n: int
    seed: int
    trace: float
    trace_error: float  # relative; NaN where not every entry was computed by brute force
    diagonal_error: float  # the largest, relative to the largest entry
    exact_seconds: float
    brute_seconds: float  # of every entry; extrapolated where some of them were computed


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 10))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(20, 20, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(320, 10),
    )  # fmt: skip


NETWORKS = {"MLP 20-20": mlp, "CNN 20-20": cnn}


def task_of(network: str, images: torch.Tensor, labels: torch.Tensor, seed: int) -> spectra.Task:
    torch.manual_seed(seed)
    model = NETWORKS[network]().double()
    return spectra.Task(model, nn.CrossEntropyLoss(), [(images, labels)])


def brute_force(task: spectra.Task, entries: torch.Tensor) -> torch.Tensor:
    """These entries of the diagonal of the Hessian: a Hessian-vector product each."""
    params = list(task.model.parameters())
    ((images, labels),) = task.data
    slope = torch.autograd.grad(nn.functional.cross_entropy(task.model(images), labels), params, create_graph=True)
    flat = torch.cat([part.flatten() for part in slope])
    found = []
    for index in entries.tolist():
        rows = torch.autograd.grad(flat[index], params, retain_graph=True)
        found.append(torch.cat([row.flatten() for row in rows])[index])
    return torch.stack(found)


def measure(network: str, seed: int, images: torch.Tensor, labels: torch.Tensor, most: int | None) -> Run:
    task = task_of(network, images, labels, seed)
    start = time.perf_counter()
    exact = spectra.exact_trace(task)
    diagonal = spectra.exact_diagonal(task)
    middle = time.perf_counter()
    assert exact.applies, exact.reasons
    entries = torch.cat([diagonal[name].flatten() for name, _ in task.model.named_parameters()])
    every = torch.randperm(len(entries), generator=torch.Generator().manual_seed(seed))
    chosen = every if most is None else every[:most]
    start_brute = time.perf_counter()
    truth = brute_force(task, chosen)
    brute = (time.perf_counter() - start_brute) * len(entries) / len(chosen)
    trace = float(truth.sum()) if len(chosen) == len(entries) else float("nan")
    return Run(
        network=network,
        n=len(images),
        seed=seed,
        trace=exact.total,
        trace_error=abs(exact.total - trace) / trace,
        diagonal_error=float((entries[chosen] - truth).abs().max() / truth.abs().max()),
        exact_seconds=middle - start,
        brute_seconds=brute,
    )


def draw(runs: list[Run], path: Path) -> None:
    with plt.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained")
        looks = {"MLP 20-20": ("#0072B2", "o", -0.08), "CNN 20-20": ("#D55E00", "s", 0.08)}
        sizes = sorted({run.n for run in runs})
        for network, (colour, marker, shift) in looks.items():
            mine = [run for run in runs if run.network == network]
            if not mine:
                continue
            x = [sizes.index(run.n) + shift for run in mine]
            options = {"color": colour, "marker": marker, "linestyle": "none", "markersize": 4, "alpha": 0.7}
            axes[0].plot(x, [max(run.trace_error, 1e-17) for run in mine], **options)
            axes[1].plot(x, [max(run.diagonal_error, 1e-17) for run in mine], label=network, **options)
            axes[2].plot(x, [run.exact_seconds for run in mine], label=f"{network}, exact", **options)
            hollow = options | {"markerfacecolor": "none"}
            axes[2].plot(x, [run.brute_seconds for run in mine], label=f"{network}, brute force", **hollow)
        for ax in axes:
            ax.set_yscale("log")
            ax.set_xticks(range(len(sizes)), [str(n) for n in sizes])
            ax.set_xlim(-0.5, len(sizes) - 0.5)
            ax.set_xlabel("images n")
            ax.grid(axis="y", color="#E6E6E6")
            ax.set_axisbelow(True)
        axes[0].set_ylabel("relative error of the trace")
        axes[1].set_ylabel("largest error of a diagonal entry,\nrelative to the largest entry")
        axes[2].set_ylabel("seconds for trace and diagonal")
        for ax in axes[:2]:
            ax.axhline(np.finfo(float).eps, color="#666666", linewidth=0.8, linestyle=":")
            ax.set_ylim(1e-17, 1e-13)
        axes[0].text(0.02, 1e-13, "dotted: float64 roundoff;\nno error at all is drawn at the foot", va="top",
                     color="#666666", fontsize=7, transform=axes[0].get_yaxis_transform())  # fmt: skip
        axes[0].set_title("where every entry was computed by brute force", fontsize=8, color="#666666", loc="left")
        axes[1].legend(frameon=False, fontsize=8)
        axes[2].legend(frameon=False, fontsize=7)
        figure.suptitle("Exact trace and diagonal of the loss Hessian against one product per parameter", fontsize=10)
        figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the folder of MNIST's IDX files, or an .npz file")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for the figure and the table; must exist")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 1000], help="numbers of images")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument(
        "--entries", type=int, metavar="M", help="for the CNN, brute force for M entries of the diagonal, drawn at "
        "random (at n = 1000 all of them take hours); its time is then extrapolated, and its trace not compared",
    )  # fmt: skip
    asked = parser.parse_args()
    if not asked.out.is_dir():
        parser.error(f"--out {asked.out}: is not a folder; create it first")
    digits = load_mnist(asked.data, "train")
    runs = []
    for network in asked.networks:
        most = asked.entries if network.startswith("CNN") else None
        for n in asked.sizes:
            for seed in range(asked.seeds):
                rows = torch.randperm(len(digits), generator=torch.Generator().manual_seed(seed))[:n]
                images, labels = digits.batch(rows)
                runs.append(measure(network, seed, images.double(), labels, most))
            mine = runs[-asked.seeds :]
            worst = np.max([r.trace_error for r in mine])
            trace = "trace not compared" if np.isnan(worst) else f"trace off by at most {worst:.1e}"
            print(
                f"{network}, n = {n}: {trace}, diagonal off by at most "
                f"{max(r.diagonal_error for r in mine):.1e}; {np.median([r.exact_seconds for r in mine]):.3g} s "
                f"exactly, {np.median([r.brute_seconds for r in mine]):.3g} s by brute force"
            )
    with (asked.out / "exact_trace_accuracy.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(asdict(runs[0])))
        writer.writeheader()
        writer.writerows(asdict(run) for run in runs)
    draw(runs, asked.out / "exact_trace_accuracy.png")


if __name__ == "__main__":
    main()
