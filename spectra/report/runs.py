"""The runs of a page: series and checkpoints of each file, the table of each series, and the summary of all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectra.errors import escaped
from spectra.figures.moments import axis_of, moments_of
from spectra.report.packing import curve
from spectra.report.view import numbers_of
from spectra.results.headline_budgets import SHORT, budgets_of
from spectra.results.note_text import notes_of
from spectra.results.number_text import plain
from spectra.results.record import Record
from spectra.results.record_text import header
from spectra.results.trace_checks import INCONCLUSIVE, VERDICTS, why_inconclusive
from spectra.results.trajectory import Trajectory
from spectra.spectrum.error_budget import ADVICE
from spectra.spectrum.estimators import BY_NAME, Unit

#: The columns of the table of checkpoints: a fact, or an estimate.
FACT_COLUMNS = {
    "loss": "loss",
    "accuracy": "accuracy",
    "test_loss": "test loss",
    "test_accuracy": "test accuracy",
}
ESTIMATE_COLUMNS = {
    "trace": "trace",
    "frobenius_norm": "Frobenius norm",
    "lambda_max": "λ max",
    "lambda_min": "λ min",
    "rank_degeneracy": "rank degeneracy",
    "negative_mass": "negative mass",
    "stable_rank": "stable rank",
}
#: The unit of an estimate, for an axis.
UNITS = {
    Unit.EIGENVALUE: "loss / parameter²",
    Unit.SQUARE: "(loss / parameter²)²",
    Unit.FRACTION: "fraction of n",
    Unit.COUNT: "eigenvalues",
}


@dataclass(frozen=True)
class Run:
    """The records of one file."""

    name: str  # of the file, as it was given
    records: Trajectory


def files_of(runs: Sequence[Run]) -> tuple[list[dict[str, Any]], list[Record]]:
    """The files with their series, and all records in the order in which the page numbers them."""
    files: list[dict[str, Any]] = []
    records: list[Record] = []
    for run in runs:
        operators = []
        first = len(records)
        numbers = {id(record): first + index for index, record in enumerate(run.records)}
        for operator in run.records.operators:
            moments = moments_of(run.records, operator)
            position, time = axis_of(moments)
            modes = {
                mode: [numbers[id(m.records[mode])] if mode in m.records else None for m in moments]
                for mode in moments[0].modes
            }
            labels = [escaped(moment.label) for moment in moments]
            at = curve(position, 9)
            operators.append({"name": operator, "labels": labels, "at": at, "time": time, "modes": modes})
        records += list(run.records)
        files.append(
            {
                "name": escaped(run.name),
                "header": [[name, escaped(words)] for name, words in header(run.records)],
                "notes": [escaped(note) for note in run.records.notes],
                "operators": operators,
            }
        )
    return files, records


def table_of(records: Sequence[Record | None], labels: Sequence[str]) -> dict[str, Any]:
    """The table of one series: columns, and a row per checkpoint with the words of each number.

    Args:
        records: of the series; None where a checkpoint has none.
        labels: of the checkpoints.
    """
    there = [record for record in records if record is not None]
    facts = [name for name in FACT_COLUMNS if any(record.facts.get(name) is not None for record in there)]
    found = {name for record in there for name in record.estimates}
    names = [name for name in ESTIMATE_COLUMNS if name in found]
    columns = [(name, FACT_COLUMNS[name], "") for name in facts]
    columns += [(name, ESTIMATE_COLUMNS[name], UNITS[BY_NAME[name].unit]) for name in names]
    rows: list[dict[str, Any]] = []
    for record, label in zip(records, labels, strict=True):
        if record is None or record.status == "failed":
            why = "no record" if record is None else f"failed: {escaped(record.reason or '')}"
            rows.append({"label": label, "status": "failed", "cells": [], "gap": why})
            continue
        words = numbers_of(record)
        cells = [(name, plain(record.facts.get(name)), "") for name in facts]
        for name in names:
            entry = words.get(name, {"short": "-", "exact": False})
            kind = "exact" if entry["exact"] else "open" if "not resolved" in entry["short"] else ""
            cells.append((name, entry["short"].replace("+-", "±"), kind))
        rows.append({"label": label, "status": record.status, "cells": cells, "gap": ""})
    return {"columns": columns, "rows": rows}


def summary_of(runs: Sequence[Run]) -> dict[str, Any]:
    """The verdicts of all records: checks, status, warnings, and what limits each number."""
    records = [record for run in runs for record in run.records]
    verdicts = Counter(check.verdict for record in records for check in record.checks)
    limits: dict[str, Counter[str]] = {part: Counter() for part in SHORT}
    for record in records:
        for name, budget in budgets_of(record).items():
            if budget.largest is not None:
                limits[budget.largest][name] += 1
    vague = max(records, key=lambda record: sum(check.verdict == INCONCLUSIVE for check in record.checks))
    wrong = [f"{escaped(r.label)}: {r.status}: {escaped(r.reason or '')}" for r in records if r.status != "complete"]
    return {
        "checks": {verdict: verdicts[verdict] for verdict in VERDICTS},
        "why_inconclusive": why_inconclusive(vague.checks) or "",
        "status": Counter(record.status for record in records),
        "records": len(records),
        "warnings": [escaped(note) for run in runs for note in (*run.records.notes, *notes_of(run.records))],
        "wrong": wrong,
        "limits": [
            {"part": SHORT[part], "names": [name for name, _ in names.most_common()], "advice": ADVICE[part]}
            for part, names in limits.items()
            if names
        ],
        "modes": list(dict.fromkeys(escaped(record.bn_mode) for record in records)),
        "operators": list(dict.fromkeys(escaped(record.operator) for record in records)),
        "hashes": [
            (escaped(Path(name).name or name), sha)
            for name, sha in dict.fromkeys(
                (str(record.checkpoint or record.where), record.checkpoint_sha256) for record in records
            )
            if sha
        ],
        "data": list(
            dict.fromkeys(escaped(str(record.settings["data"])) for record in records if record.settings.get("data"))
        ),
    }
