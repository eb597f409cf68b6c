"""What the page shows of a record in addition to its JSON: words, which are those of `spectra show`, and curves."""

from __future__ import annotations

from math import nan
from typing import Any

from spectra.errors import escaped
from spectra.jsonable import to_jsonable
from spectra.report.curves import curves_of
from spectra.report.packing import curve
from spectra.results.finding_text import checks_in_words, conditions, kind_of, measure_in_short
from spectra.results.headline import is_exact
from spectra.results.headline_budgets import SHORT, budgets_of
from spectra.results.number_text import in_words, number, plain, rounded
from spectra.results.record import Record
from spectra.results.record_text import estimate_cells, facts_of, origin_of
from spectra.spectrum.error_budget import ADVICE


def view_of(record: Record) -> dict[str, Any]:
    """The words and curves of a record; of a failed one only its reason."""
    view: dict[str, Any] = {
        "where": escaped(record.label),
        "operator": escaped(record.operator),
        "mode": escaped(record.bn_mode),
        "status": record.status,
        "reason": escaped(record.reason or ""),
        "origin": _escaped_pairs(origin_of(record)),
        "sha256": record.checkpoint_sha256,
    }
    if record.spectrum is None:
        return view
    return view | {
        "numbers": numbers_of(record),
        "facts": _escaped_pairs(facts_of(record)),
        "tensors": tensors_of(record),
        "checks": checks_of(record),
        "sharpness": sharpness_of(record),
        "n": record.spectrum.n,
        "probes": record.spectrum.num_probes,
        "steps": record.spectrum.lanczos_steps,
        **curves_of(record),
    }


def numbers_of(record: Record) -> dict[str, dict[str, Any]]:
    """Name -> the words for a headline number: in short, value, error, interval, marks, budget, and on test data."""
    found: dict[str, dict[str, Any]] = {}
    budgets = budgets_of(record)
    for name, estimate in record.headlines.items():
        value, error, bounds, marks = estimate_cells(name, estimate, {})
        entry: dict[str, Any] = {
            "short": in_words(name, estimate),
            "value": value,
            "error": error,
            "interval": bounds,
            "marks": escaped(marks.removesuffix("*").strip("; ")),
            "note": escaped(estimate.note or ""),
            "exact": is_exact(estimate),
        }
        if (budget := budgets.get(name)) is not None:
            entry["budget"] = {SHORT[part]: plain(getattr(budget, part), 2) for part in SHORT}
            entry["unknown"] = {SHORT[part]: escaped(why) for part, why in budget.unknown.items()}
            if budget.largest is not None:
                entry["limited"] = SHORT[budget.largest]
                entry["advice"] = ADVICE[budget.largest]
        if name in record.test_estimates:
            entry["test"] = in_words(name, record.test_estimates[name])
        found[name] = entry
    return found


def tensors_of(record: Record) -> dict[str, dict[str, Any]]:
    """Of every tensor its size, the words for the trace of its block by probes and exactly, and the verdict.

    Returns:
        ``size``, ``words``, ``exact`` and ``verdict``, each by the name of the tensor as it is in the record; the
        numbers themselves are in ``tensor_traces`` and ``exact`` of the record's JSON.
    """
    if record.spectrum is None:
        return {}
    traces, sizes = record.spectrum.tensor_traces(), record.spectrum.tensor_sizes or {}
    quoted = record.headline_tensor_traces()
    verdicts = {check.name.removeprefix("trace of "): check.verdict for check in record.checks}
    return {
        "size": {name: sizes.get(name) for name in quoted},
        "words": {name: " +- ".join(filter(None, number(traces[name]))) for name in quoted if name in traces},
        "exact": {name: plain(headline.value) for name, headline in quoted.items() if headline.exact},
        "verdict": {name: verdicts[name] for name, headline in quoted.items() if headline.exact and name in verdicts},
    }


def checks_of(record: Record) -> dict[str, Any]:
    """The comparisons of estimated with exact traces, in words."""
    exact = record.exact
    rows = []
    for check in record.checks:
        value, error = rounded(check.estimate, check.error)
        name = check.name if check.of == record.operator else f"{check.name} (of the {check.of})"
        z, seen = f"{check.z:+.2f}", plain(check.detectable, 2)
        rows.append([escaped(name), f"{value} ± {error}", plain(check.exact), z, seen, check.verdict])
    return {
        "kind": kind_of(exact),
        "words": checks_in_words(record),
        "rows": rows,
        "reasons": [] if exact is None else [escaped(reason) for reason in exact.reasons],
    }


def sharpness_of(record: Record) -> list[dict[str, Any]]:
    """A row per sharpness measure, in words."""
    return [
        {
            "name": escaped(name),
            "words": measure_in_short(measure).replace("+-", "±"),
            "form": escaped(measure.form),
            "conditions": escaped("; ".join(conditions(measure, record.bn_mode))),
            "reason": escaped(measure.reason or ""),
            "ends": curve([measure.value, *_band(measure.value, measure.stderr)]),
        }
        for name, measure in record.sharpness.items()
    ]


def record_json(record: Record, file: str) -> dict[str, Any]:
    """The entry of a record in `spectra show --json`."""
    entry: dict[str, Any] = to_jsonable({"file": file, **record.to_json()})
    return entry


def _band(value: float, stderr: float | None) -> tuple[float, float]:
    return (nan, nan) if stderr is None else (value - stderr, value + stderr)


def _escaped_pairs(pairs: list[tuple[str, str]]) -> list[list[str]]:
    return [[escaped(name), escaped(words)] for name, words in pairs]
