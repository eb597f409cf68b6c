"""`spectra compare`: the differences of two or more runs, with their errors. No torch is needed."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import click

from spectra.errors import ArgumentError
from spectra.results.comparison import Arm, Comparison
from spectra.results.record import Record
from spectra.results.run_comparison import compare
from spectra.results.series import Series
from spectra.results.storage.atomic_write import replace_file
from spectra.results.storage.runfile import load_trajectory
from spectra.results.trajectory import Trajectory
from spectra_cli.comparison_table import print_comparison
from spectra_cli.layout import make_console
from spectra_cli.terminal import escaped_row, say

COLUMNS = ("quantity", "arm", "against", "value", "stderr", "lower", "upper", "spread", "runs", "p_value", "basis")


@click.command("compare")
@click.argument("files", nargs=-1, metavar="FILE...", type=click.Path())
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="NAME=FILE,FILE",
    help="The runs of one arm, such as several seeds of one optimizer; repeatable. A file alone is an arm of its own.",
)
@click.option("--epoch", type=float, metavar="E", help="Compare at this epoch.")
@click.option("--last", is_flag=True, help="Compare the last complete checkpoint of each run; the default.")
@click.option("--operator", metavar="NAME", help="Of this operator. [the first that all files have]")
@click.option(
    "--bn",
    "bn_modes",
    multiple=True,
    metavar="MODE",
    help="Batch-norm mode; repeatable: each mode is an arm then. [the first that all files have]",
)
@click.option("--json", "form", flag_value="json", help="Print all of it as JSON.")
@click.option("--csv", "form", flag_value="csv", help=f"Print a row per number: {', '.join(COLUMNS)}.")
@click.option("--plot", metavar="FILE", type=click.Path(path_type=Path), help="Draw it too, as .png, .pdf or .svg.")
def command(
    files: tuple[str, ...],
    labels: tuple[str, ...],
    epoch: float | None,
    last: bool,
    operator: str | None,
    bn_modes: tuple[str, ...],
    form: str | None,
    plot: Path | None,
) -> None:
    """Compare two or more runs: optimizers, weight decay, batch-norm modes.

    Each quantity with its error, its difference from the first run, and whether the probes alone would explain it.
    A claim about two optimizers needs several runs of each: give them to one --label, and their spread is what a
    difference is measured by.
    """
    if last and epoch is not None:
        raise click.UsageError("--last and --epoch exclude each other")
    if plot is not None and plot.suffix not in (".png", ".pdf", ".svg"):
        raise click.UsageError(f"--plot {plot}: a name that ends in .png, .pdf or .svg is needed")
    grouped = group(files, labels)
    runs = {file: _loaded(file) for files in grouped.values() for file in files}
    operator, modes = _choice(runs, operator, bn_modes)
    arms, series = [], {}
    for label, own in grouped.items():
        for mode in modes:
            name = label if len(modes) == 1 else mode if len(grouped) == 1 else f"{label}, {mode}"
            series[name] = [runs[file][operator, mode] for file in own]
            records = tuple(_moment(one, epoch, file) for file, one in zip(own, series[name]))
            arms.append(Arm(name, records, tuple(own)))
    found = compare(arms)
    for words in found.warnings:
        say(f"spectra: warning: {words}")
    if form == "json":
        click.echo(json.dumps(found.to_json(), indent=2, ensure_ascii=True, allow_nan=False))
    elif form == "csv":
        write_csv(found)
    else:
        print_comparison(found, make_console())
    if plot is not None:
        _draw(arms, series, plot)


def group(files: Sequence[str], labels: Sequence[str]) -> dict[str, list[str]]:
    """Arm -> its files: the arms of the labels, then an arm for each other file, under its name.

    Raises:
        ArgumentError: a label without files, a file that is given twice, or no file at all.

    Example:
        >>> group(["c.h5"], ["sgd=a.h5,b.h5"])
        {'sgd': ['a.h5', 'b.h5'], 'c': ['c.h5']}
    """
    grouped: dict[str, list[str]] = {}
    for given in labels:
        name, sign, rest = given.partition("=")
        own = [file for file in rest.split(",") if file]
        if not (name and sign and own):
            raise ArgumentError(f"--label {given!r}: NAME=FILE,FILE is needed")
        grouped.setdefault(name, []).extend(own)
    labelled = [file for own in grouped.values() for file in own]
    repeated = [file for file in labelled if labelled.count(file) > 1]
    alone = [file for file in files if file not in labelled]  # a file that is also in a label counts once
    repeated += [file for file in alone if alone.count(file) > 1]
    if repeated:
        raise ArgumentError(f"{repeated[0]}: is given twice; a run counts once")
    for file in alone:
        stem = Path(file).stem
        unique = sum(Path(other).stem == stem for other in alone) == 1 and stem not in grouped
        grouped[stem if unique else file] = [file]
    if not grouped:
        raise ArgumentError("no file to compare: name two results files, or one with --bn eval --bn train")
    return grouped


def _loaded(file: str) -> Trajectory:
    trajectory = load_trajectory(file)
    for note in trajectory.notes:
        say(f"spectra: {note}")
    return trajectory


def _choice(runs: dict[str, Trajectory], operator: str | None, bn_modes: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """The operator and the batch-norm modes to compare; every run has them."""
    shared = [key for key in next(iter(runs.values())).keys() if all(key in run for run in runs.values())]  # noqa: SIM118
    operators = [operator] if operator else list(dict.fromkeys(name for name, _ in shared))
    for name in operators:
        there = [mode for kind, mode in shared if kind == name]
        modes = tuple(dict.fromkeys(bn_modes)) or tuple(there[:1])
        if modes and all(mode in there for mode in modes):
            return name, modes
    wanted = ", ".join(filter(None, [operator, *bn_modes])) or "an operator and batch-norm mode"
    has = "; ".join(f"{file} has {', '.join(' '.join(key) for key in run.keys())}" for file, run in runs.items())  # noqa: SIM118
    raise ArgumentError(f"{wanted}: not in every file: {has}")


def _moment(series: Series, epoch: float | None, file: str) -> Record:
    if epoch is not None:
        try:
            return series.at(epoch)
        except ArgumentError as error:
            raise ArgumentError(f"{file}: {error}") from None
    complete = [record for record in series if record.spectrum is not None]
    if not complete:
        raise ArgumentError(f"{file}: no complete record of {series.operator} {series.bn_mode}")
    return complete[-1]


def write_csv(found: Comparison) -> None:
    """Write a row per quantity and arm, then a row per difference, then the distances, with all digits."""
    writer = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
    writer.writeheader()
    entries = found.to_json()
    for cell in entries["quantities"]:
        row = {name: cell[name] for name in ("quantity", "arm", "value", "spread")} | {"runs": len(cell["runs"])}
        if len(cell["runs"]) == 1:
            row |= {name: cell["runs"][0][name] for name in ("stderr", "lower", "upper")}
        writer.writerow(escaped_row(row))
    for contrast in entries["differences"]:
        writer.writerow(escaped_row({name: contrast[name] for name in COLUMNS if name in contrast}))
    for gap in entries["distances"]:
        row = {"quantity": "wasserstein", "arm": gap["arm"], "against": gap["against"], "value": gap["value"]}
        writer.writerow(escaped_row(row | {"upper": None, "spread": gap["within"], "basis": "probes"}))
        row = {"quantity": "wasserstein_floor", "arm": gap["arm"], "against": gap["against"], "value": gap["floor"]}
        writer.writerow(escaped_row(row))


def _draw(arms: Iterable[Arm], series: dict[str, list[Series]], path: Path) -> None:
    from spectra.figures.compared import comparison_figure
    from spectra.figures.figures import rendered
    from spectra.figures.style import style

    with style():
        replace_file(path, rendered(comparison_figure(list(arms), series), path.suffix[1:]))
    say(str(path))
