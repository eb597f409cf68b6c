"""A run as a table with a row per record: as a dictionary of arrays, a pandas DataFrame or an xarray Dataset.

``columns_of`` needs neither library. pandas and xarray are optional; only the functions named after them import them.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from spectra.errors import MissingDependency
from spectra.results.column_attributes import attributes_of

if TYPE_CHECKING:
    from spectra.results.record import Record
    from spectra.spectrum.estimates import Estimate

#: The columns by which records are distinguished; the coordinates of a data set.
KEYS = ("epoch", "step", "operator", "bn_mode", "checkpoint", "status")
#: Of every estimate, as ``NAME``, ``NAME_stderr``, ``NAME_lower`` and ``NAME_upper``.
PARTS = ("value", "stderr", "lower", "upper")


def columns_of(records: Sequence[Record]) -> dict[str, np.ndarray]:
    """A column per key, fact and estimate, each with an entry per record.

    Returns:
        ``epoch`` and ``step`` (float64), ``operator``, ``bn_mode``, ``checkpoint`` and ``status`` (text, ``""`` where
        there is none); ``fact_NAME`` of every fact; ``NAME``, ``NAME_stderr``, ``NAME_lower`` and ``NAME_upper`` of
        every estimate, and of a count also ``NAME_tau`` and ``NAME_resolved``; ``sharpness_NAME`` and
        ``sharpness_NAME_stderr`` of every measure. A missing, failed or unbounded number is NaN; a missing count is
        not resolved.
    """
    columns: dict[str, np.ndarray] = {}
    for key in KEYS:
        entries = [getattr(record, key) for record in records]
        columns[key] = (
            _numbers(entries) if key in ("epoch", "step") else np.array([e or "" for e in entries], dtype=str)
        )
    for name in dict.fromkeys(name for record in records for name in record.facts):
        columns[f"fact_{name}"] = _numbers([record.facts.get(name) for record in records])
    for name in dict.fromkeys(name for record in records for name in record.estimates):
        found: list[Estimate | None] = [record.estimates.get(name) for record in records]
        for part in PARTS:
            column = name if part == "value" else f"{name}_{part}"
            columns[column] = _numbers([None if e is None else getattr(e, part) for e in found])
        if any(e is not None and e.resolved is not None for e in found):
            columns[f"{name}_tau"] = _numbers([None if e is None else e.tau for e in found])
            columns[f"{name}_resolved"] = np.array([e is not None and bool(e.resolved) for e in found])
    for name in dict.fromkeys(name for record in records for name in record.sharpness):
        measures = [record.sharpness.get(name) for record in records]
        columns[f"sharpness_{name}"] = _numbers([None if m is None else m.value for m in measures])
        columns[f"sharpness_{name}_stderr"] = _numbers([None if m is None else m.stderr for m in measures])
    return columns


def to_pandas(records: Sequence[Record]) -> Any:
    """The columns as a ``pandas.DataFrame``, a row per record.

    Raises:
        MissingDependency: pandas is not installed.
    """
    return _optional("pandas").DataFrame(columns_of(records))


def to_xarray(records: Sequence[Record]) -> Any:
    """The columns as an ``xarray.Dataset``.

    The dimension is ``epoch`` where all records have different epochs; else it is ``record``, and the epoch is a
    coordinate. Operator, batch-norm mode, step, checkpoint and status are always coordinates. Each variable has its
    long name, its unit, its formula and the kind of its interval as attributes; the data set has the settings of the
    records.

    Raises:
        MissingDependency: xarray is not installed.
    """
    columns = columns_of(records)
    epochs = columns["epoch"]
    indexed = epochs.size > 0 and bool(np.isfinite(epochs).all()) and np.unique(epochs).size == epochs.size
    dimension = "epoch" if indexed else "record"
    described = {name: (dimension, column, attributes_of(name, columns)) for name, column in columns.items()}
    coordinates = {name: described.pop(name) for name in KEYS}
    return _optional("xarray").Dataset(described, coordinates, _shared_settings(records))


def _shared_settings(records: Sequence[Record]) -> dict[str, str | int | float]:
    """The settings that are numbers or texts and the same in all records."""
    first = records[0].settings if records else {}
    return {
        name: value
        for name, value in first.items()
        if isinstance(value, str | int | float) and all(record.settings.get(name) == value for record in records)
    }


def _optional(name: str, load: Callable[[str], Any] = importlib.import_module) -> Any:
    try:
        return load(name)
    except ImportError as error:
        raise MissingDependency(
            f"{name} is not installed: pip install 'hessian-spectra[{name}]', or take to_columns(), which needs nothing"
        ) from error


def _numbers(entries: Sequence[float | int | None]) -> np.ndarray:
    return np.array([math.nan if entry is None else entry for entry in entries], dtype=np.float64)
