"""The table of the class structure of a Gauss-Newton matrix: shares of its trace, and between-class eigenvalues."""

from __future__ import annotations

from rich.console import Console

from spectra.results.record import Record
from spectra_cli.layout import new_table, print_heading, print_line
from spectra_cli.numbers import plain, with_error

WORDS = {
    "class": "class means",
    "same_class": "class means, of the class itself",
    "cross_class": "cross-class means",
    "within": "within classes",
}
_MOST = 20  # eigenvalues


def print_class_structure(record: Record, console: Console) -> None:
    """The share of each part in the trace, and the eigenvalues between classes next to those of the whole matrix.

    Args:
        record: the record; one without class structure prints nothing.
        console: where to.
    """
    found = record.class_structure
    if found is None:
        return
    print_heading(console, f"class structure of the Gauss-Newton matrix, {len(found.labels)} classes, without l2")
    table = new_table("part", "trace", "share", left=(0,))
    for name, trace in found.traces.items():
        error = found.total_error or None if name == "within" else None
        share = None if error is None else error / abs(found.total)
        table.add_row(WORDS[name], with_error(trace, error), with_error(found.shares[name], share))
    table.add_row("all", with_error(found.total, found.total_error or None), "1")
    console.print(table)
    if found.total_error != 0:
        print_line(console, "the trace of all is estimated by probes; that within classes is what the others leave")
    console.print()
    pairs = None if record.spectrum is None else record.spectrum.eigenpairs
    whole = [] if pairs is None else [f"{value - _l2(record):.6g}" for value in pairs.values]
    table = new_table("", "between classes", "class means", *(["whole matrix"] if whole else []), title="eigenvalues")
    rows = zip(found.eigenvalues[:_MOST], found.class_eigenvalues)
    for k, (between, of_class) in enumerate(rows):
        mine = [whole[k] if k < len(whole) else ""] if whole else []
        table.add_row(str(k + 1), f"{between:.6g}", f"{of_class:.6g}", *mine)
    console.print(table)
    more = len(found.eigenvalues) - _MOST
    rest = f"; {plain(more)} more" if more > 0 else ""
    words = "between classes: both parts of class means; the k-th eigenvalue is at most that of the whole matrix"
    print_line(console, words + rest, style="dim")


def _l2(record: Record) -> float:
    return float(record.settings.get("l2") or 0.0)
