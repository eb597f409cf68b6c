"""Records without a network: spectra of known matrices, with everything that a record can hold. No torch."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from spectra.results.identity import Place
from spectra.results.record import Record
from spectra.results.storage.attributes import checksum
from spectra.results.storage.record_codec import PLACE
from spectra.results.storage.runfile import RunFile
from spectra.results.trace_checks import Check, compare
from spectra.spectrum.spectrum import Spectrum
from spectra.spectrum.tridiagonal import Tridiagonal

SETTINGS: dict[str, Any] = {
    "task": "digits-convnet",
    "loss": "cross-entropy, mean over the data (samples)",
    "reduction": "mean",
    "l2": 0.0,
    "data": "sha256:0123",
    "batch_sizes": [[64, 2], [10, 1]],
    "lanczos_steps": 12,
    "num_probes": 4,
    "seed": 0,
    "distribution": "sphere",
    "params": None,
    "dtype": "float32",
}
TENSORS = {"conv.weight": 120, "conv.bias": 8, "fc.weight": 72}


def lanczos(eigenvalues: np.ndarray, start: np.ndarray, steps: int) -> Tridiagonal:
    """Lanczos with full re-orthogonalisation on a diagonal matrix."""
    q = start / np.linalg.norm(start)
    basis, alphas, betas = [q], [], []
    for _ in range(steps):
        r = eigenvalues * basis[-1]
        alphas.append(float(basis[-1] @ r))
        Q = np.array(basis)
        for _ in range(2):
            r = r - Q.T @ (Q @ r)
        betas.append(float(np.linalg.norm(r)))
        if betas[-1] < 1e-12:
            break
        basis.append(r / betas[-1])
    Q = np.array(basis[: len(alphas)])
    exhausted = betas[-1] < 1e-12
    return Tridiagonal(
        np.array(alphas), np.array(betas), exhausted=exhausted, orthogonality=abs(Q @ Q.T - np.eye(len(Q))).max()
    )


@functools.cache  # a spectrum is never changed, and remembers its curve
def make_spectrum(seed: int = 0, *, num_probes: int = 4, steps: int = 12, ragged: bool = True) -> Spectrum:
    """Of a matrix of 200 rows: outliers, a small bulk, and 150 exact zeros. The probes differ in length."""
    random = np.random.default_rng(seed)
    eigenvalues = np.concatenate([[9.0, 5.0, 3.0, -1.0], random.normal(0.0, 0.05, 46), np.zeros(150)]) * (1 + seed)
    starts = random.standard_normal((num_probes, 200))
    starts /= np.linalg.norm(starts, axis=1, keepdims=True)
    forms = starts**2 * eigenvalues
    edges = np.cumsum([0, *TENSORS.values()])
    return Spectrum(
        [lanczos(eigenvalues, start, steps - (i % 3 if ragged else 0)) for i, start in enumerate(starts)],
        200,
        noise=1e-7,
        seed=0,
        tensor_sizes=TENSORS,
        tensor_forms=np.stack([forms[:, a:b].sum(1) for a, b in itertools.pairwise(edges)], axis=1),
    )


def make_record(epoch: float = 0.0, /, operator: str = "hessian", bn_mode: str = "eval", **changes: Any) -> Record:
    place = Place(checkpoint=f"run/ckpt_{epoch:g}.pt", sha256=f"{int(epoch):064x}", epoch=epoch, step=int(100 * epoch))
    record = Record(
        place=place,
        operator=operator,
        bn_mode=bn_mode,
        settings=SETTINGS | {"width": 1},
        facts={"loss": 2.5 / (1 + epoch), "accuracy": 0.75, "n_parameters": 200, "n_samples": 138, "other": None},
        spectrum=make_spectrum(int(epoch)),
        provenance={"device": "cpu", "threads": 2, "products": 46, "seconds": 1.5, "noise": 1e-7, "spectra": "0.1.0"},
        notes=("TF32 was off",),
    )
    return changed(record, **changes)


def changed(record: Record, **changes: Any) -> Record:
    """A copy with other fields; those of its place by the names that a record has for them."""
    parts = {PLACE[name]: changes.pop(name) for name in PLACE.keys() & changes}
    return dataclasses.replace(record, place=dataclasses.replace(record.place, **parts), **changes)


def failed_record(epoch: float = 0.0, /, **changes: Any) -> Record:
    return make_record(
        epoch, **({"status": "failed", "reason": "NaN weights", "spectrum": None, "facts": {}} | changes)
    )


def checks_of_probes(k: int, count: int = 5, z: float = 26.0) -> tuple[Check, ...]:
    """Comparisons whose estimates are `z` standard errors below the exact values, at the level of a record."""
    each = 1 - 0.99 ** (1 / count)
    samples = np.linspace(-1.0, 1.0, k)
    error = samples.std(ddof=1) / np.sqrt(k)
    return tuple(
        compare(f"trace of layer{i}", 10.0 + samples, 10.0 + z * error, level=each, of="hessian") for i in range(count)
    )


def sealed_anew(group: Any) -> None:
    """The checksums of a group and those around it, as far as they can be computed."""
    while True:
        try:
            group.attrs["checksum"] = checksum(group)
        except Exception:  # of what cannot be read here either
            return
        if group.name == "/":
            return
        group = group.parent


def write(path: Path, *records: Record, settings: dict[str, Any] = SETTINGS) -> Path:
    """The path, after adding records to the file."""
    with RunFile.open(path, settings) as run:
        for record in records:
            run.append(record)
    return path


def same_bits(a: Any, b: Any) -> None:
    """Compare arrays to the last bit, NaN included."""
    np.testing.assert_array_equal(np.asarray(a).view(np.uint8), np.asarray(b).view(np.uint8))
