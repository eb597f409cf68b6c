"""`spectra report`: one HTML page of results files, with interactive figures. Neither torch nor a network is needed."""

from __future__ import annotations

from pathlib import Path

import click

from spectra.report.page import write_report
from spectra.report.runs import Run
from spectra.results.storage.runfile import load_trajectory
from spectra_cli.show import select
from spectra_cli.terminal import say


@click.command("report")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path())
@click.option(
    "--out",
    metavar="PAGE",
    type=click.Path(path_type=Path),
    default=Path("report.html"),
    show_default=True,
    help="The page, which is replaced if it exists; its name ends in .html.",
)
@click.option("--operator", "operators", multiple=True, metavar="NAME", help="Only this operator; repeatable.")
@click.option("--bn", "bn_modes", multiple=True, metavar="MODE", help="Only this batch-norm mode; repeatable.")
def command(files: tuple[str, ...], out: Path, operators: tuple[str, ...], bn_modes: tuple[str, ...]) -> None:
    """Write one HTML page of results files, and print its path.

    The page has the verdicts of the checks, every number with its error and error budget, the spectral density over
    training, the numbers over training, the rank degeneracy, the traces of the tensors, the sharpness measures and the
    provenance. It is a single file that opens from disk and loads nothing; its numbers can be saved as CSV and JSON.
    """
    runs = []
    for file in files:
        trajectory = load_trajectory(file)
        for note in trajectory.notes:
            say(f"spectra: {note}")
        runs.append(Run(file, select(trajectory, operators, bn_modes)))
    say(str(write_report(runs, out)), err=False)
