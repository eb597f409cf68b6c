"""The summary of one record on one screen: headline numbers, results of the checks, and a few notes."""

from __future__ import annotations

from math import isnan

from rich.console import Console

from spectra.results.headline import is_exact
from spectra.results.record import Record
from spectra.spectrum.estimators import ENDS, SUMMARY
from spectra_cli.block_table import counted, in_words
from spectra_cli.budget_table import limited_by, print_budgets
from spectra_cli.edge_table import edge_lines
from spectra_cli.findings_table import checks_in_words, measure_in_short, second_trace
from spectra_cli.layout import FEW_NOTES, new_table, print_line, print_notes, print_pairs
from spectra_cli.numbers import as_range, in_short, plain
from spectra_cli.preset_table import print_preset
from spectra_cli.record_table import estimate_cells

_FACTS = {"loss": "loss", "accuracy": "accuracy", "gradient_norm": "gradient norm"}
_MOST_MEASURES, _MOST_EIGENVALUES = 3, 5
_LONG = 60  # characters of a task with its arguments

_REST = "tensors, tolerances, checks, measures, origin"


def print_summary(
    record: Record, console: Console, *, header: list[tuple[str, str]], more: str, budget: bool = False
) -> None:
    """Print the summary of a record, in about 24 lines.

    Args:
        record: the record.
        console: where to.
        header: what was analysed, as names and words.
        more: the command that prints the full report.
        budget: also the parts of every error.
    """
    own = ("record", f"{record.operator}, BN {record.bn_mode}: {record.where}".removesuffix(": "))
    print_pairs(console, [own, *_in_few_lines(header), *_facts(record)])
    if record.status == "failed":
        print_line(console, f"! failed: {record.reason}")
        return
    console.print()
    remarks = _print_numbers(record, console)
    print_pairs(console, _findings(record, remarks))
    if budget:
        print_budgets(record, console)
    hidden = print_notes(console, remarks, [record], FEW_NOTES)
    print_preset([record], console)
    notes = "" if not hidden else f"{hidden} more note{'' if hidden == 1 else 's'}, "
    print_line(console, f"for the rest ({notes}{_REST}): {more}", style="dim")


def _in_few_lines(header: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The header with related settings in one line, and without the reduction if it is the usual one."""
    known = dict(header)
    if len(known.get("task", "")) > _LONG:  # all of its arguments are in the full report
        known["task"] = known["task"].partition("(")[0]
    reduction = known.pop("reduction", "")
    merged = {
        "task": (known.pop("task", ""), known.pop("loss", ""), "" if reduction == "mean, l2 = 0" else reduction),
        "data": (known.pop("data", ""), known.pop("parameters", "")),
    }
    return [*((name, "; ".join(filter(None, words))) for name, words in merged.items() if any(words)), *known.items()]


def _facts(record: Record) -> list[tuple[str, str]]:
    cells = []
    for name, words in _FACTS.items():
        if record.facts.get(name) is not None:
            test = record.facts.get(f"test_{name}")
            cells.append(
                f"{words} {plain(record.facts[name])}" + (f" (test {plain(test)})" if test is not None else "")
            )
    return [("values", ", ".join(cells))] if cells else []


def _print_numbers(record: Record, console: Console) -> dict[str, list[str]]:
    """Print the table; returns the notes that its stars refer to."""
    tested = record.test_spectrum is not None
    last, left = ("test data", (0, 5)) if tested else ("limited by", (0, 4, 5))
    table = new_table("quantity", "value", "+-", "interval", last, "", left=left)
    remarks: dict[str, list[str]] = {}
    for name in SUMMARY:
        if name in record.headlines:
            estimate = record.headlines[name]
            *cells, marks = estimate_cells(name, estimate, remarks)
            if estimate.resolved is False and estimate.note:
                marks = marks.replace(estimate.note, "not resolved")
            context = _on_test_data(record, name, remarks) if tested else limited_by(record, name)
            table.add_row(name, *cells, context, marks)
    console.print(table)
    return remarks


def _on_test_data(record: Record, name: str, remarks: dict[str, list[str]]) -> str:
    estimate = record.test_estimates.get(name)
    if estimate is not None and estimate.resolved is False:
        return "not resolved"
    words = as_range(estimate) if name in ENDS else in_short(estimate)
    if estimate is None or estimate.note is None:
        return words
    remarks[f"{name} (test data)"] = [estimate.note]
    return f"{words} *"


def _trace_check(record: Record) -> str:
    """The estimate of the trace with the result of its check, if the table shows the exact trace instead."""
    found = next((check for check in record.checks if (check.name, check.of) == ("trace", record.operator)), None)
    if found is None or not is_exact(record.headlines.get("trace")):
        return ""
    return f"trace {in_short(record.estimates['trace'])} by probes: {found.verdict}; {len(record.checks)} checks: "


def _findings(record: Record, remarks: dict[str, list[str]]) -> list[tuple[str, str]]:
    """A line for each kind of check and measure; notes on single numbers are added to the remarks."""
    lines = []
    if (pairs := record.spectrum.eigenpairs if record.spectrum else None) is not None:
        largest = ", ".join(plain(float(value), 5) for value in pairs.values[:_MOST_EIGENVALUES])
        lines.append(("eigenvalues", largest + (", ..." if pairs.count > _MOST_EIGENVALUES else "")))
    if (second := second_trace(record)) is not None:
        lines.append(second)
    if (blocks := record.blocks) is not None:
        lines.append(("spectra of", f"{counted(blocks)}, mean Jensen-Shannon distance {in_words(blocks)}"))
    lines += edge_lines(record)
    if record.checks:
        lines.append(("cross-check", _trace_check(record) + checks_in_words(record)))
    if (exact := record.exact_spectrum) is not None:
        rank = f"numerical rank {plain(exact.rank())} of at most {plain(exact.rank_bound)} by counting alone"
        lines.append((f"ggn on {plain(exact.num_samples)} samples, exactly", f"trace {plain(exact.trace)}, {rank}"))
    if known := {name: measure for name, measure in record.sharpness.items() if not isnan(measure.value)}:
        shown = []
        for name, measure in list(known.items())[:_MOST_MEASURES]:
            shown.append(f"{name} {measure_in_short(measure)}" + (" *" if measure.reason else ""))
            if measure.reason:
                remarks[name] = [measure.reason]
        rest = len(record.sharpness) - len(shown)
        lines.append(("sharpness", ", ".join(shown) + (f" and {rest} more" if rest else "")))
    return lines
