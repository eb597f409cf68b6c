"""Checks that the numbers of a record are consistent: shapes before any dataset is read, then the values."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from spectra.results.storage.branch import Branch

_LARGEST = 1e150

_MEASURE = (
    *("name", "form", "loss", "bn_mode", "curvature", "reason", "details"),
    *("value", "stderr", "certificate", "clipped", "attained"),
)

#: Datasets of each group, and a letter for each of their sides; equal letters mean equal sizes. `n` is the number of
#: rows of the matrix. Missing datasets are not checked.
_SHAPES = {
    "spectrum": {
        "lengths": "k",
        "exhausted": "k",
        "orthogonality": "k",
        "alphas": "km",
        "betas": "km",
        "start_overlaps": "ks",
        "batches/weights": "b",
        "batches/forms": "kb",
        "tensors/names": "t",
        "tensors/sizes": "t",
        "tensors/forms": "kt",
        "tensors/deflated_traces": "t",
        "tensors/deflated_forms": "kt",
        "eigenpairs/values": "r",
        "eigenpairs/residuals": "r",
        "eigenpairs/converged": "r",
        "eigenpairs/overlaps": "kr",
        "eigenpairs/vectors": "rn",
        "eigenpairs/rest": "q",
    },
    "estimates": dict.fromkeys(
        ("name", "value", "stderr", "lower", "upper", "confidence", "num_probes", "tau", "resolved", "note"), "e"
    ),
    "exact": dict.fromkeys(("names", "traces", "certified", "stderrs"), "t"),
    "exact_spectrum": {"eigenvalues": "r"},
    "checks": dict.fromkeys(("name", "verdict", "of", "estimate", "exact", "error", "z", "detectable", "dof"), "c"),
    "sharpness": dict.fromkeys(_MEASURE, "s"),
    "overlap": {"matrix": "ab"},
    "eigenvector_analysis": {
        "tensors": "t",
        "tensor_shares": "tr",
        "class_forms": "cr",
        **dict.fromkeys(("gradient_shares", "gradient_bounds", "beyond_ggn"), "r"),
        **dict.fromkeys(("labels", "label_weights"), "c"),
    },
    "class_structure": {"labels": "c", "other_weights": "c", "same_weights": "c", "gram": "cc"},
    "blocks": {"names": "b"},
}


def check_shapes(group: Branch, where: str) -> None:
    """Compare the sides of the datasets of a group with each other; no dataset is read.

    Args:
        group: `spectrum` of a record, or another with datasets.
        where: its path within the record.

    Raises:
        ValueError: two differ that must not, or there are more steps, or more pairs, than rows.
    """
    _compare(group, where, _SHAPES[where.rsplit("/", 1)[-1]])


def _compare(group: Branch, where: str, shapes: dict[str, str]) -> None:
    sides: dict[str, tuple[int, str]] = {}
    if "n" in group.attrs:
        sides["n"] = int(group.attrs["n"]), f"attribute n of {where}"
    for name, letters in shapes.items():
        if name not in group:
            continue
        shape = group[name].shape
        if len(shape) != len(letters):
            raise ValueError(f"{where}/{name} has {len(shape)} dimensions, not {len(letters)}")
        for letter, side in zip(letters, shape, strict=True):
            known, by = sides.setdefault(letter, (side, f"{where}/{name}"))
            if side != known:
                raise ValueError(f"{where}/{name} has shape {shape}: {known} in place of {side} is needed, by {by}")
    if "n" in sides:
        n = sides["n"][0]
        for letter, what in (("m", "alphas"), ("t", "tensors/sizes"), ("r", "values"), ("q", "rest")):
            if sides.get(letter, (0, ""))[0] > n:
                raise ValueError(f"{where}: {sides[letter][0]} {what} of a matrix of {n} rows")


def check_numbers(group: Branch) -> None:
    """Compare the numbers of a spectrum with each other: steps with columns, sizes with rows, all with float64.

    Args:
        group: `spectrum` of a record.

    Raises:
        ValueError: the message has the field, its value and what it may be.
    """
    lengths, most = group["lengths"][()], group["alphas"].shape[1]
    for probe in np.flatnonzero((lengths < 1) | (lengths > most)):
        raise ValueError(f"spectrum/lengths[{probe}] is {lengths[probe]}: a probe has from 1 to {most} steps")
    for name in ("alphas", "betas"):
        for probe, step in np.argwhere(np.abs(group[name][()]) > _LARGEST):
            value = group[name][probe, step]
            raise ValueError(f"spectrum/{name}[{probe}, {step}] is {value:g}: float64 does not hold its square")
    if "tensors" in group:
        sizes, n = group["tensors/sizes"][()].tolist(), int(group.attrs["n"])
        if any(size < 1 for size in sizes) or sum(sizes) != n:
            raise ValueError(f"spectrum/tensors/sizes sum to {sum(sizes)}, not to the n={n} rows of the matrix")
    for name in ("batches/weights", "batches/forms", "tensors/deflated_forms", "tensors/deflated_traces"):
        if name in group and not np.isfinite(group[name][()]).all():
            raise ValueError(f"spectrum/{name} has NaN or infinite entries")
    if "batches" in group and (group["batches/weights"][()] < 0).any():
        raise ValueError("spectrum/batches/weights has negative entries")


def unique(names: list[str], where: Any) -> list[str]:
    """The names, of which none is there twice.

    Raises:
        ValueError: one is.
    """
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise ValueError(f"{where} has {twice!r} twice")
    return names
