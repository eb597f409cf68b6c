"""The tables of the leading eigenvectors of a record: their tensors, the gradient in them, and the classes."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import numpy as np
from rich.console import Console

from spectra.results.record import Record
from spectra.spectrum.eigenvector_analysis import EigenvectorAnalysis
from spectra_cli.layout import new_table, print_line
from spectra_cli.numbers import rounded

_MOST_NAMED = 3  # tensors or classes of a vector


def print_eigenvectors(record: Record, console: Console) -> None:
    """For each computed eigenvector its tensors, its share of the gradient, and the classes that it comes from.

    Args:
        record: the record; one without this analysis prints nothing.
        console: where to.
    """
    found, pairs = record.eigenvector_analysis, None if record.spectrum is None else record.spectrum.eigenpairs
    if found is None or pairs is None:
        return
    console.print()
    table = new_table(
        *("", "eigenvalue", "|V_k'g|^2/|g|^2", "+-", "effective tensors", "largest shares of the squared norm"),
        title="computed eigenvectors",
        left=(5,),
    )
    rows = zip(pairs.values, found.gradient_cumulative, found.gradient_bounds, found.effective_tensors)
    for k, (value, share, bound, count) in enumerate(rows):
        largest = _largest(found.tensor_shares[:, k], found.tensors)
        within = f"{bound:.1e}" if isfinite(bound) else "-"
        table.add_row(str(k + 1), f"{value:.6g}", f"{share:.4g}", within, f"{count:.2f}", largest)
    console.print(table)
    if found.gradient_curvature is not None:
        number, error = rounded(found.gradient_curvature, found.curvature_error)
        print_line(console, f"curvature along the gradient, g'Mg/|g|^2: {number} +- {error} (arithmetic)")
    words = "|V_k'g|^2/|g|^2: of the gradient g in the span of the first k; +-: to the exact eigenvectors"
    print_line(console, f"{words}, - where the eigenvalues are not separated", style="dim")
    _print_classes(found, pairs.values, console)


def _print_classes(found: EigenvectorAnalysis, values: np.ndarray, console: Console) -> None:
    if found.class_reason is not None:
        print_line(console, f"classes of the eigenvectors: not computed: {found.class_reason}")
    shares = found.class_shares
    if shares is None or found.labels is None or found.class_forms is None:
        return
    beyond = [] if found.beyond_ggn is None else ["v'(H - G)v"]
    title = "classes of the data in the eigenvectors"
    table = new_table("", "eigenvalue", "v'Gv", *beyond, "largest shares of v'Gv", title=title, left=(3 + len(beyond),))
    labels = [str(label) for label in found.labels]
    for k, value in enumerate(values):
        rest = [] if found.beyond_ggn is None else [rounded(float(found.beyond_ggn[k]), found.forms_error)[0]]
        form = f"{found.class_forms[:, k].sum():.6g}"
        table.add_row(str(k + 1), f"{value:.6g}", form, *rest, _largest(shares[:, k], labels))
    console.print()
    console.print(table)
    print_line(console, "G: Gauss-Newton matrix without l2; a share is that of all targets of a class", style="dim")


def _largest(shares: np.ndarray, names: Sequence[str]) -> str:
    """The largest shares with their names; empty where there are none."""
    if not np.isfinite(shares).all():
        return ""
    order = np.argsort(-shares, kind="stable")[:_MOST_NAMED]
    return ", ".join(f"{names[index]} {shares[index]:.2f}" for index in order)
