"""Tables of exact traces, of their comparisons with the estimates, and of sharpness measures."""

from __future__ import annotations

import math

from rich.console import Console

from spectra.results.finding_text import checks_in_short as checks_in_short
from spectra.results.finding_text import checks_in_words as checks_in_words
from spectra.results.finding_text import conditions
from spectra.results.finding_text import kind_of as kind_of
from spectra.results.finding_text import measure_in_short as measure_in_short
from spectra.results.finding_text import second_trace as second_trace
from spectra.results.record import Record
from spectra.results.trace_checks import too_few_probes, why_inconclusive
from spectra_cli.layout import grouped, new_table, print_heading, print_line, print_pairs
from spectra_cli.numbers import plain, rounded, with_error


def print_cross_check(record: Record, console: Console) -> None:
    """The exact and the estimated traces: a row per comparison, with the error it can detect and its result."""
    exact = record.exact
    if exact is None and not record.checks:
        return
    print_heading(console, f"cross-check: estimated against {kind_of(exact)} traces")
    if exact is not None:
        for words in exact.reasons:
            print_line(console, f"  {words}")
        if exact.total is not None:
            error = "" if exact.stderr is None else f" +- {plain(exact.stderr, 2)}"
            print_line(
                console,
                f"  {kind_of(exact)} trace of the {'Hessian' if exact.applies else 'Gauss-Newton matrix'}: "
                f"{plain(exact.total, 7)}{error} ({exact.method})",
            )
    if record.remainder is not None:
        words = with_error(record.remainder.value, record.remainder.stderr)
        print_line(console, f"  trace of the Hessian less that of the Gauss-Newton matrix: {words}")
    if too_few_probes(record.checks):
        print_line(console, f"  {checks_in_words(record)}")
    elif record.checks:
        _print_checks(record, console)


def _print_checks(record: Record, console: Console) -> None:
    table = new_table(
        "comparison", "estimate", "+-", kind_of(record.exact), "z", "would notice", "verdict", left=(0, 6)
    )
    for check in record.checks:
        value, deviation = rounded(check.estimate, check.error)
        name = check.name if check.of == record.operator else f"{check.name} (of the {check.of})"
        table.add_row(
            name, value, deviation, plain(check.exact), f"{check.z:+.2f}", plain(check.detectable, 2), check.verdict
        )
    console.print(table)
    print_line(
        console,
        f"z on Student's t with {record.checks[0].dof} degrees of freedom, {len(record.checks)} comparisons corrected "
        "for (Sidak); would notice: the smallest discrepancy found with a chance of 80 %",
        style="dim",
    )
    if why := why_inconclusive(record.checks):
        words = f"inconclusive: a discrepancy as large as the value would go unnoticed; {why}"
        print_line(console, words, style="dim")


def print_exact_spectrum(record: Record, console: Console) -> None:
    """The exact spectrum of the Gauss-Newton matrix, and the largest rank that counting alone allows."""
    exact = record.exact_spectrum
    if exact is None:
        return
    print_heading(console, f"all eigenvalues of the Gauss-Newton matrix on {plain(exact.num_samples)} samples")
    pairs = [
        ("trace", plain(exact.trace, 7)),
        ("Frobenius norm", plain(exact.frobenius_norm, 7)),
        ("spectral norm", plain(exact.spectral_norm, 7)),
        ("largest", ", ".join(plain(float(value), 5) for value in exact.eigenvalues[:5])),
        ("numerical rank", f"{plain(exact.rank())} of at most {plain(exact.rank_bound)} by counting alone"),
    ]
    ranks = [f"{plain(exact.rank(10.0**-power))} above 1e-{power}" for power in (1, 2, 3, 4, 6)]
    print_pairs(console, [*pairs, ("relative to |G|_2", ", ".join(ranks))])


def print_sharpness(record: Record, console: Console) -> None:
    """Every measure with its error, its form and its basis; notes on a measure are below the table."""
    if not record.sharpness:
        return
    print_heading(console, "sharpness measures")
    table = new_table("measure", "value", "+-", "form", "curvature", "certificate", "", left=(0, 3, 4, 6))
    remarks: dict[str, list[str]] = {}
    for name, measure in record.sharpness.items():
        missing = math.isnan(measure.value)
        value, error = ("-", "") if missing else rounded(measure.value, measure.stderr)
        table.add_row(
            name,
            value,
            error,
            measure.form,
            measure.curvature or "",
            "" if measure.certificate is None else f"{measure.certificate:.0e}",
            "; ".join(conditions(measure, record.bn_mode)) + (" *" if measure.reason else ""),
        )
        if measure.reason:
            remarks[name] = [measure.reason]
    console.print(table)
    for note, names in grouped(remarks).items():
        print_line(console, f"* {', '.join(names)}: {note}")
