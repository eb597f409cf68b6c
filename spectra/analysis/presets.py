"""Presets: the protocols of papers, and common purposes, as options of an analysis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spectra.errors import ArgumentError
from spectra.spectrum.probe_planning import MOST

#: Preset -> the options of its analysis, under the names of `analysis.Settings`.
PRESETS: dict[str, dict[str, Any]] = {
    # D. Granziol, Flatness is a False Friend, arXiv:2006.09091 (2020), section 3.2 and appendix D: Hessian and GGN,
    # one random vector, 100 steps; batch norm with statistics that are estimated anew over the data, and in train mode:
    # the paper shows both. The one Ritz value closest to 0 of the GGN and the two of the Hessian are estimates of every
    # record.
    "granziol": {
        "operators": ("hessian", "ggn"),
        "bn_modes": ("recalibrated", "train"),
        "lanczos_steps": 100,
        "num_probes": 1,
    },
    # The largest eigenvalue alone, for many checkpoints of a run: one probe, as many steps as its interval needs.
    "sharpness": {
        "num_probes": 1,
        "rtol": {"lambda_max": 1e-3},
        "check": False,
        "metrics": "none",
    },
}


def filled(preset: str | None = None, **given: Any) -> dict[str, Any]:
    """The given options, completed by those of a preset; an explicit option wins.

    With ``rtol`` the number of probes is an upper limit, of ``probe_planning.MOST`` where it is not given.

    Returns:
        The options, with ``preset`` in the words that a record keeps: its name, and the options that differ from it.

    Raises:
        ArgumentError: no such preset.

    Example:
        >>> filled("granziol", num_probes=4)["preset"]
        'granziol, but num_probes=4 in place of 1'
        >>> filled(num_probes=4)
        {'num_probes': 4}
    """
    if given.get("rtol"):
        given = {"num_probes": MOST} | given
    if preset is None:
        return given
    if preset not in PRESETS:
        raise ArgumentError(f"preset={preset!r}: one of {', '.join(map(repr, PRESETS))} is needed")
    wanted = PRESETS[preset]
    # Each record has its operator and BN mode, and a file may be continued with others.
    other = departures(preset, {k: v for k, v in given.items() if k not in ("operators", "bn_modes")})
    words = f"{preset}, but {', '.join(other)}" if other else preset
    return wanted | given | {"preset": words}


def departures(preset: str, given: dict[str, Any]) -> list[str]:
    """The options that contradict a preset, in a few words each."""
    return [
        f"{name}={_words(given[name])} in place of {_words(value)}"
        for name, value in PRESETS[preset].items()
        if name in given and _words(given[name]) != _words(value)
    ]


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        value = tuple(value.items())
    if isinstance(value, (list, tuple)):
        return "+".join(item if isinstance(item, str) else "=".join(map(str, item)) for item in value)
    return str(value)
