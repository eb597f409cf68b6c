"""What the columns of a table are: long name, unit, formula and kind of error, as attributes of an xarray.Dataset.

``long_name``, ``units`` and ``ancillary_variables`` are those of the CF conventions; the unit ``"1"`` is dimensionless.
"""

from __future__ import annotations

from collections.abc import Collection

from spectra.spectrum.estimates import CONFIDENCE
from spectra.spectrum.estimators import BY_NAME, Estimator, Interval, Unit

_UNITS = {
    Unit.EIGENVALUE: "loss / parameter^2",
    Unit.SQUARE: "loss^2 / parameter^4",
    Unit.FRACTION: "1",
    Unit.COUNT: "1",
}
_INTERVALS = {
    Interval.SAMPLES: "Student's t over the probes",
    Interval.ENDS: "from the outermost Ritz value to a bound beyond it",
    Interval.BRACKET: "bracket from Gauss-Radau rules, widened by the error of the probes",
    Interval.RULES: "Student's t over the probes, widened by the error of the quadrature",
}
_KEYS = {
    "epoch": ("epoch of training", "epoch"),
    "step": ("step of the optimizer", "1"),
    "operator": ("curvature matrix", ""),
    "bn_mode": ("mode of batch norm", ""),
    "checkpoint": ("checkpoint file", ""),
    "status": ("status of the record", ""),
}
#: Units of the facts that have one; the others are numbers or fractions.
_FACT_UNITS = {
    "loss": "loss",
    "objective": "loss",
    "test_loss": "loss",
    "generalization_gap": "loss",
    "gradient_norm": "loss / parameter",
    "weight_norm": "parameter",
}


def attributes_of(column: str, columns: Collection[str] = ()) -> dict[str, str]:
    """The attributes of a column of ``columns_of``; empty for a column that is not known.

    Args:
        column: its name.
        columns: the names of all columns, for the references from a number to its error.
    """
    if column in _KEYS:
        long_name, unit = _KEYS[column]
        return {"long_name": long_name} | ({"units": unit} if unit else {})
    if column.startswith("fact_"):
        name = column.removeprefix("fact_")
        return {"long_name": name.replace("_", " "), "units": _FACT_UNITS.get(name, "1")}
    if column.startswith("sharpness_"):
        return _measure(column.removeprefix("sharpness_"))
    if column in BY_NAME:
        errors = [f"{column}_{part}" for part in ("stderr", "lower", "upper", "tau", "resolved")]
        named = " ".join(name for name in errors if name in columns)
        return _number(BY_NAME[column]) | ({"ancillary_variables": named} if named else {})
    name, _, part = column.rpartition("_")
    return _part(BY_NAME[name], part) if name in BY_NAME else {}


def _number(estimator: Estimator) -> dict[str, str]:
    return {
        "long_name": estimator.name.replace("_", " "),
        "units": _UNITS[estimator.unit],
        "formula": estimator.formula.replace("`", ""),
        "interval": _INTERVALS[estimator.interval],
    }


def _part(estimator: Estimator, part: str) -> dict[str, str]:
    """The attributes of a part of an estimate: of its error, or of a count its tolerance."""
    words, unit = estimator.name.replace("_", " "), _UNITS[estimator.unit]
    interval = {"interval": _INTERVALS[estimator.interval], "confidence": f"{CONFIDENCE:g}"}
    parts: dict[str, dict[str, str]] = {
        "stderr": {"long_name": f"standard error of {words} over the probes", "units": unit},
        "lower": {"long_name": f"lower end of the interval of {words}", "units": unit, **interval},
        "upper": {"long_name": f"upper end of the interval of {words}", "units": unit, **interval},
        "tau": {"long_name": f"tolerance of {words}", "units": _UNITS[Unit.EIGENVALUE]},
        "resolved": {"long_name": f"whether the Lanczos steps resolve {words}"},
    }
    return parts.get(part, {})


def _measure(name: str) -> dict[str, str]:
    measure = name.removesuffix("_stderr").replace("_", " ")
    if name.endswith("_stderr"):
        return {"long_name": f"standard error of {measure} over its draws"}
    return {"long_name": f"sharpness measure: {measure}"}
