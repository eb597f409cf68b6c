"""What the scripts in this folder share: their arguments, reading, saving, and one line for what goes wrong."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

import spectra
from spectra.figures.figures import FORMATS, rendered
from spectra.results.series import Series
from spectra.results.storage.atomic_write import replace_file
from spectra.results.trajectory import Trajectory


def parser_of(text: str | None, *, several: bool = False, matrix: bool = True) -> argparse.ArgumentParser:
    """The arguments of every script: results files, --out, --format, and which matrix."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+" if several else 1, type=Path, metavar="run.h5")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder; created if absent (figures)")
    parser.add_argument("--format", choices=FORMATS, default="png")
    if matrix:
        parser.add_argument("--operator", help="hessian, ggn or empirical_fisher (the first in the file)")
        parser.add_argument("--bn", help="eval, train or recalibrated (the first in the file)")
    return parser


def series_of(trajectory: Trajectory, operator: str | None, bn_mode: str | None) -> Series:
    """The records of one matrix and batch-norm mode.

    Raises:
        SpectraError: there are none.
    """
    pairs = trajectory.keys()
    fitting = [key for key in pairs if operator in (None, key[0]) and bn_mode in (None, key[1])]
    if not fitting:
        known = ", ".join(" ".join(key) for key in pairs)
        wanted = " ".join(filter(None, (operator, bn_mode)))
        raise spectra.SpectraError(f"{trajectory.path}: no records of {wanted}: there are {known or 'none'}")
    return trajectory[fitting[0]]


def epochs_of(text: str | None, series: Series) -> list[float]:
    """The epochs of a list like 0,5,20; by default the first, the middle and the last that are complete.

    Raises:
        SpectraError: not a list of numbers, or nothing is complete.
    """
    if text is not None:
        try:
            return [float(piece) for piece in text.split(",")]
        except ValueError:
            raise spectra.SpectraError(f"--epochs {text!r}: numbers are needed, as in 0,5,20") from None
    complete = [record.epoch for record in series if record.spectrum is not None and record.epoch is not None]
    if not complete:
        raise spectra.SpectraError("no complete record says of which epoch it is: name files of a run")
    return list(dict.fromkeys(complete[index] for index in (0, len(complete) // 2, -1)))


def save(figure: Figure, folder: Path, name: str, form: str) -> Path:
    """The figure as a file in a folder, whole or not at all; its name is printed."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.{form}"
    replace_file(path, rendered(figure, form))
    print(f"written: {path}")
    return path


def run(main: Callable[[Sequence[str] | None], None]) -> None:
    """Run a script: what is wrong with its input becomes one line and exit code 1."""
    try:
        main(None)
    except (spectra.SpectraError, OSError) as error:
        print(f"{Path(sys.argv[0]).name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
