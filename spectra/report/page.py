"""write_report: one HTML file with the numbers of runs, their errors and interactive figures; it needs no network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from spectra.errors import ArgumentError, escaped
from spectra.figures.style import ARMS, LOOKS, OTHER
from spectra.report.packing import packed, script_json
from spectra.report.runs import ESTIMATE_COLUMNS, FACT_COLUMNS, UNITS, Run, files_of, summary_of, table_of
from spectra.report.view import record_json, view_of
from spectra.results.record_text import COLUMNS
from spectra.results.storage.atomic_write import check_writable, replace_file
from spectra.spectrum.estimators import BY_NAME, ENDS
from spectra.version import __version__

SUFFIXES = (".html", ".htm")
UPLOT_VERSION = "1.6.32"

_SCRIPTS = ("data.js", "charts.js", "figures.js", "training.js", "tables.js", "page.js")


def check_report_path(path: str | Path) -> Path:
    """The path of a page that can be written there; nothing else than a page is replaced.

    Raises:
        ArgumentError: the name does not end in .html or .htm.
        StorageError: the folder does not exist, or nothing can be written there.
    """
    target = Path(path)
    if target.suffix.lower() not in SUFFIXES:
        raise ArgumentError(f"{escaped(str(path))}: a report is a page; choose a name that ends in .html")
    check_writable(target, shown=str(path))
    return target


def write_report(runs: Sequence[Run], path: str | Path) -> Path:
    """Write the page of runs, atomically.

    Raises:
        ArgumentError: the name does not end in .html, or there is no record.
        StorageError: the file cannot be written.
    """
    target = check_report_path(path)
    replace_file(target, page_of(runs).encode(), shown=str(path))
    return target


def page_of(runs: Sequence[Run]) -> str:
    """The page as text.

    Raises:
        ArgumentError: there is no record.
    """
    if not any(len(run.records) for run in runs):
        raise ArgumentError("there is no record to report: analyze a checkpoint first")
    files, records = files_of(runs)
    names = [file for run in runs for file in [run.name] * len(run.records)]
    data = {
        "files": files,
        "records": [record_json(record, name) for record, name in zip(records, names, strict=True)],
        "views": [view_of(record) for record in records],
        "palette": _palette(),
        "titles": FACT_COLUMNS | ESTIMATE_COLUMNS,
        "units": {name: UNITS[estimator.unit] for name, estimator in BY_NAME.items()},
        "ends": list(ENDS),
        "csv": list(COLUMNS),
    }
    tables = [
        {"key": [f, o, m], "caption": _caption(file, operator, mode), **table_of(found, operator["labels"])}
        for f, file in enumerate(files)
        for o, operator in enumerate(file["operators"])
        for m, (mode, indices) in enumerate(operator["modes"].items())
        for found in [[None if index is None else records[index] for index in indices]]
    ]
    return _render(
        title=", ".join(Path(run.name).name for run in runs),
        files=files,
        tables=tables,
        summary=summary_of(runs),
        version=__version__,
        uplot_version=UPLOT_VERSION,
        licence=_static("uPlot.LICENSE"),
        data=Markup(script_json(packed(data))),
    )


def _caption(file: dict[str, Any], operator: dict[str, Any], mode: str) -> str:
    return f"{file['name']}: {operator['name']}, batch norm in {mode} mode"


def _palette() -> dict[str, Any]:
    looks = {mode: {"colour": look.colour, "dash": look.line} for mode, look in LOOKS.items()}
    return {
        "modes": looks,
        "other": {"colour": OTHER.colour, "dash": OTHER.line},
        "pins": [look.colour for look in ARMS[2:] if look.colour != "#000000"],
    }


def _render(**values: Any) -> str:
    folder = resources.files("spectra.report")
    styles = [_static("uPlot.min.css"), _static("page.css")]
    scripts = [_static("uPlot.iife.min.js"), "".join(map(_static, _SCRIPTS))]
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string((folder / "templates" / "page.html").read_text(encoding="utf-8"))
    policy = {
        "default-src": "'none'",
        "script-src": " ".join(map(_hash, scripts)),
        "style-src": " ".join(map(_hash, styles)),
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return template.render(
        policy="; ".join(f"{name} {sources}" for name, sources in policy.items()),
        styles=[Markup(style) for style in styles],
        scripts=[Markup(script) for script in scripts],
        **values,
    )


def _static(name: str) -> str:
    return (resources.files("spectra.report") / "static" / name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    """The source of a Content-Security-Policy that allows this text of an element and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
