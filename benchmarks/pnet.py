"""MTCNN's P-Net with its published weights: what spectra states beside the eigenvalues of the dense Hessian.

    python benchmarks/pnet.py [--samples 64] [--lanczos-steps 100] [--probes 8] [--seed 0] [--threads 1]

The weights are in the package facenet-pytorch, which `make foreign` puts into a folder; none of its code is run. The
network has 6,632 parameters, so that its Hessian and its Gauss-Newton matrix can be formed in float64, by double
backward and from the Jacobian, of a loss that is written here without spectra. Then `spectra.analyze` is asked for the
same numbers from probes, with its defaults (float32). It takes some minutes. docs/foreign-models.md has the table.

The loss is that of the paper's first stage on 12 x 12 patches of scikit-learn's two photographs: the cross-entropy of
face against no face, and half the mean square error of the box. The labels are arbitrary: they only fix a loss.

References:
    Zhang, Zhang, Li and Qiao, "Joint face detection and alignment using multitask cascaded convolutional networks",
    IEEE Signal Processing Letters 23 (2016).
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from spectra import Task, analyze
from spectra.spectrum.estimates import Estimate
from spectra.spectrum.spectrum import Spectrum

SIDE = 12  # of the patches that the network sees whole
BOX_WEIGHT = 0.5  # of the box in the loss, as in the paper
Batches = list[tuple[torch.Tensor, dict[str, torch.Tensor]]]


class PNet(nn.Module):
    """Three convolutions with PReLU and two heads, its tensors named as those of the published weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 10, 3), nn.PReLU(10)
        self.conv2, self.prelu2 = nn.Conv2d(10, 16, 3), nn.PReLU(16)
        self.conv3, self.prelu3 = nn.Conv2d(16, 32, 3), nn.PReLU(32)
        self.conv4_1, self.conv4_2 = nn.Conv2d(32, 2, 1), nn.Conv2d(32, 4, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Patches (N, 3, 12, 12) to scores before the softmax (N, 2) and boxes (N, 4)."""
        x = F.max_pool2d(self.prelu1(self.conv1(x)), 2, 2, ceil_mode=True)
        x = self.prelu3(self.conv3(self.prelu2(self.conv2(x))))
        return {"face": self.conv4_1(x).flatten(1), "box": self.conv4_2(x).flatten(1)}


def loss_of(output: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The criterion: a mean over patches."""
    return F.cross_entropy(output["face"], target["face"]) + BOX_WEIGHT * F.mse_loss(output["box"], target["box"])


def published_weights() -> Path | None:
    """The file of the weights inside facenet-pytorch, or None where that is not installed. Nothing is imported."""
    spec = importlib.util.find_spec("facenet_pytorch")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "data" / "pnet.pt"
    return path if path.is_file() else None


def patches(samples: int, sizes: Sequence[int], seed: int = 0) -> Batches:
    """Random patches of two photographs, normalised as the network expects, with every other one labelled a face."""
    from sklearn.datasets import load_sample_images

    draw = np.random.default_rng(seed)
    photographs = [image[::8, ::8].astype(np.float32) for image in load_sample_images().images]
    cut = []
    for _ in range(samples):
        image = photographs[draw.integers(len(photographs))]
        row, column = draw.integers(image.shape[0] - SIDE), draw.integers(image.shape[1] - SIDE)
        cut.append((image[row : row + SIDE, column : column + SIDE].transpose(2, 0, 1) - 127.5) / 128)
    x, face = torch.from_numpy(np.stack(cut)), torch.arange(samples) % 2
    box = torch.from_numpy(draw.normal(0, 0.2, (samples, 4)).astype(np.float32))
    pieces = zip(x.split(sizes), face.split(sizes), box.split(sizes))
    return [(images, {"face": labels, "box": corners}) for images, labels, corners in pieces]


class Dense:
    """The two curvature matrices of the loss in float64, of the network written again with plain functions.

    Args:
        weights: the state dict.
        batches: all are taken at once.
        names: of the tensors that are differentiated; the others are constants.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor], batches: Batches, names: Sequence[str]) -> None:
        self.constants = {name: tensor.double() for name, tensor in weights.items()}
        self.chosen = {name: self.constants[name].clone().requires_grad_() for name in names}
        self.x = torch.cat([x for x, _ in batches]).double()
        self.face = torch.cat([target["face"] for _, target in batches])
        self.box = torch.cat([target["box"] for _, target in batches]).double()

    def outputs(self) -> torch.Tensor:
        """Scores and boxes side by side, (N, 6)."""
        p = {**self.constants, **self.chosen}

        def layer(x: torch.Tensor, i: int) -> torch.Tensor:
            x = F.conv2d(x, p[f"conv{i}.weight"], p[f"conv{i}.bias"])
            return torch.where(x > 0, x, p[f"prelu{i}.weight"].view(-1, 1, 1) * x)

        x = layer(self.x, 1)
        x = layer(layer(x.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5)), 2), 3).flatten(1)
        heads = [x @ p[f"conv4_{i}.weight"].flatten(1).T + p[f"conv4_{i}.bias"] for i in (1, 2)]
        return torch.cat(heads, 1)

    def loss(self, z: torch.Tensor) -> torch.Tensor:
        """The mean over all patches, of outputs (N, 6)."""
        scores = z[:, :2] - z[:, :2].logsumexp(1, keepdim=True)
        face = -scores[torch.arange(len(z)), self.face].mean()
        return face + BOX_WEIGHT * (z[:, 2:] - self.box).square().mean()

    def _rows(self, of: torch.Tensor) -> torch.Tensor:
        leaves = list(self.chosen.values())
        rows = []
        for entry in of.reshape(-1):
            pieces = torch.autograd.grad(entry, leaves, retain_graph=True, allow_unused=True)
            flat = [(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in zip(pieces, leaves)]
            rows.append(torch.cat(flat))
        return torch.stack(rows)

    def hessian(self) -> torch.Tensor:
        """(n, n), row by row."""
        pieces = torch.autograd.grad(self.loss(self.outputs()), list(self.chosen.values()), create_graph=True)
        return self._rows(torch.cat([piece.reshape(-1) for piece in pieces]))

    def ggn(self) -> torch.Tensor:
        """(n, n): ``J' A J`` with the curvature of the criterion in closed form."""
        z = self.outputs()
        jacobian = self._rows(z).view(len(z), 6, -1).detach()
        p = z[:, :2].softmax(1).detach()
        curvature = torch.zeros(len(z), 6, 6, dtype=torch.float64)
        curvature[:, :2, :2] = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
        curvature[:, 2:, 2:] = 2 * BOX_WEIGHT / 4 * torch.eye(4)
        return torch.einsum("nap,nab,nbq->pq", jacobian, curvature, jacobian) / len(z)


class Row(NamedTuple):
    """A quantity: what it is, and what was stated."""

    name: str
    truth: float
    stated: Estimate

    @property
    def covers(self) -> bool | None:
        """Whether the interval holds the truth to six digits; None where there is none."""
        lower, upper = self.stated.lower, self.stated.upper
        if lower is None or upper is None or not np.isfinite([lower, upper]).all():
            return None
        slack = 1e-6 * abs(self.truth)
        return bool(lower - slack <= self.truth <= upper + slack)


TAUS = (1e-1, 1e-2, 1e-3, 1e-4)  # of the largest magnitude


def rows_of(eigenvalues: np.ndarray[Any, Any], spectrum: Spectrum) -> Iterator[Row]:
    """Every quantity of a spectrum, beside its value from all eigenvalues."""
    size = np.abs(eigenvalues)
    share = size / size.sum()
    yield Row("trace", eigenvalues.sum(), spectrum.trace())
    yield Row("Frobenius norm", float(np.linalg.norm(eigenvalues)), spectrum.frobenius_norm())
    yield Row("lambda_max", eigenvalues[-1], spectrum.lambda_max())
    yield Row("lambda_min", eigenvalues[0], spectrum.lambda_min())
    for relative in TAUS:
        tau = relative * size.max()
        yield Row(f"rank degeneracy, tau = {tau:.2g}", float((size <= tau).mean()), spectrum.rank_degeneracy(tau))
        yield Row(f"negative mass, tau = {tau:.2g}", float((eigenvalues < -tau).mean()), spectrum.negative_mass(tau))
    yield Row("stable rank", float((size**2).sum() / size.max() ** 2), spectrum.stable_rank())
    yield Row("participation rank", float(size.sum() ** 2 / (size**2).sum()), spectrum.participation_rank())
    entropy = -float((share[share > 0] * np.log(share[share > 0])).sum())
    yield Row("entropy rank", float(np.exp(entropy)), spectrum.entropy_rank())


def table(rows: Sequence[Row]) -> Iterator[str]:
    """The lines of a table in Markdown."""
    yield "| quantity | dense, float64 | spectra | interval | covers |"
    yield "| --- | --- | --- | --- | --- |"
    for row in rows:
        lower, upper = row.stated.lower, row.stated.upper
        interval = "none" if row.covers is None else f"{lower:.5g} to {upper:.5g}"
        covers = {True: "yes", False: "**no**", None: "-"}[row.covers]
        yield f"| {row.name} | {row.truth:.5g} | {row.stated.value:.5g} | {interval} | {covers} |"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--lanczos-steps", type=int, default=100)
    parser.add_argument("--probes", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args(argv)
    torch.set_num_threads(asked.threads)
    path = published_weights()
    if path is None:
        raise SystemExit("facenet-pytorch is not installed: `make foreign` installs it without its dependencies")
    weights = torch.load(path, weights_only=True)
    model = PNet()
    model.load_state_dict(weights)
    batches = patches(asked.samples, [asked.samples - asked.samples // 4, asked.samples // 4])
    task = Task(model, loss_of, batches, name="MTCNN's P-Net")
    names = [name for name, _ in model.named_parameters()]
    dense = Dense(weights, batches, names)
    options = {"lanczos_steps": asked.lanczos_steps, "num_probes": asked.probes, "seed": asked.seed}
    records = analyze(task, operators=("hessian", "ggn"), metrics="none", **options)
    for record, matrix in zip(records, (dense.hessian(), dense.ggn())):
        assert record.spectrum is not None
        assert record.exact is not None
        print(f"\n{record.operator}, {record.facts['n_parameters']} parameters, loss {record.facts['loss']:.5f}")
        print(f"exact trace {record.exact.total:.8g}, of the dense matrix {float(matrix.trace()):.8g}\n")
        print("\n".join(table(list(rows_of(np.linalg.eigvalsh(matrix.numpy()), record.spectrum)))), flush=True)


if __name__ == "__main__":
    main()
