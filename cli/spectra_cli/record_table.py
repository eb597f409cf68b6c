"""The full report of one record: every number with its error, facts, degeneracy over tau, traces by tensor, origin."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from spectra.results.record import Record
from spectra.results.record_text import FACTS as FACTS
from spectra.results.record_text import estimate_cells as estimate_cells
from spectra.results.record_text import facts_of as facts_of
from spectra.results.record_text import origin_of as origin_of
from spectra.spectrum.estimates import Estimate
from spectra_cli.block_table import print_blocks
from spectra_cli.budget_table import limited_by, print_advice, print_budgets
from spectra_cli.class_structure_table import print_class_structure
from spectra_cli.edge_table import edge_lines
from spectra_cli.eigenvector_table import print_eigenvectors
from spectra_cli.findings_table import print_cross_check, print_exact_spectrum, print_sharpness
from spectra_cli.layout import grouped, new_table, print_heading, print_line, print_notes, print_pairs
from spectra_cli.numbers import interval, number, plain, rounded
from spectra_cli.preset_table import print_preset


def print_record(record: Record, console: Console, *, budget: bool = False) -> None:
    """Every number of one record: estimates, facts, degeneracy over tau, traces by tensor, origin and notes.

    Args:
        record: the record.
        console: where to.
        budget: also the parts of every error.
    """
    print_heading(console, f"{record.operator}, BN {record.bn_mode}: {record.where}".removesuffix(": "))
    if record.status == "failed":
        print_line(console, f"! failed: {record.reason}")
        return
    _print_estimates(record, console)
    if budget:
        print_budgets(record, console)
    console.print()
    print_pairs(console, [*facts_of(record), *edge_lines(record)])
    print_preset([record], console)
    for table in (_eigenpairs_table(record), _curve_table(record), _tensor_table(record)):
        if table is not None:
            console.print()
            console.print(table)
    print_eigenvectors(record, console)
    print_class_structure(record, console)
    print_blocks(record, console)
    print_cross_check(record, console)
    print_exact_spectrum(record, console)
    print_sharpness(record, console)
    console.print()
    print_pairs(console, origin_of(record))
    print_notes(console, {}, [record])


def _print_estimates(record: Record, console: Console) -> None:
    """Every estimate with its error and its interval; notes on starred ones are below the table."""
    tested = record.test_spectrum is not None
    test_columns = ["test data", "+-", "interval", ""] * tested
    table = new_table("quantity", "value", "+-", "interval", "limited by", "", *test_columns, left=(0, 4, 5, -1))
    remarks: dict[str, list[str]] = {}
    for name, estimate in record.headlines.items():
        *cells, marks = estimate_cells(name, estimate, remarks)
        cells += [limited_by(record, name), marks]
        if tested:
            cells += estimate_cells(f"{name} (test data)", record.test_estimates[name], remarks)
        table.add_row(name, *cells)
    console.print(table)
    for note, names in grouped(remarks).items():
        print_line(console, f"* {', '.join(names)}: {note}")
    print_advice(record, console)


def print_requested(found: Mapping[str, Estimate], console: Console, *, of: str) -> None:
    """The quantities that the reader asked for with ``--at``."""
    print_heading(console, f"on request, of {of}")
    table = new_table("quantity", "value", "+-", "interval", "", left=(0, 4))
    for name, estimate in found.items():
        value, error = ("-", "") if estimate.resolved is False else number(estimate)
        table.add_row(name, value, error, interval(estimate.lower, estimate.upper), estimate.note or "")
    console.print(table)


def _eigenpairs_table(record: Record) -> Table | None:
    pairs = None if record.spectrum is None else record.spectrum.eigenpairs
    if pairs is None:
        return None
    table = new_table("", "eigenvalue", "residual", "interval", "", title="largest eigenvalues in magnitude", left=(4,))
    for i, (value, residual) in enumerate(zip(pairs.values, pairs.residuals)):
        bounds = interval(*pairs.interval(i))
        table.add_row(
            str(i + 1), f"{value:.6g}", f"{residual:.1e}", bounds, "" if pairs.converged[i] else "not converged"
        )
    return table


def _curve_table(record: Record) -> Table | None:
    if record.spectrum is None:
        return None
    curve = record.spectrum.degeneracy_curve()
    scale = record.spectrum.spectral_norm().value
    table = new_table("tau", "tau/|H|_2", "fraction within", "+-", "bracket", "", title="rank degeneracy over tau")
    for tau, value, error, low, high, resolved in zip(
        curve.tau, curve.value, curve.stderr, curve.lower, curve.upper, curve.resolved
    ):
        fraction, deviation = rounded(float(value), float(error) if math.isfinite(error) else None)
        table.add_row(
            f"{tau:.2e}",
            f"{tau / scale:.1e}" if scale > 0 else "-",
            fraction if resolved else "-",
            deviation if resolved else "",
            f"[{low:.4f}, {high:.4f}]",
            "" if resolved else "not resolved",
        )
    return table


def _tensor_table(record: Record) -> Table | None:
    if record.spectrum is None:
        return None
    traces = record.headline_tensor_traces()
    if not traces:
        return None
    sizes = record.spectrum.tensor_sizes or {}
    table = new_table("tensor", "size", "trace", "+-", title="traces by tensor", left=(0,))
    for name, estimate in traces.items():
        size = sizes.get(name)
        table.add_row(name, plain(size), *number(estimate))
    return table
