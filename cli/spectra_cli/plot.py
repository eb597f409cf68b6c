"""`spectra plot`: the figures of a results file. Neither torch nor the checkpoints are needed."""

from __future__ import annotations

from pathlib import Path

import click

from spectra.figures.figures import FORMATS, KINDS, save_figures
from spectra.results.storage.runfile import load_trajectory
from spectra_cli.edge_table import edge_options, with_optimizer
from spectra_cli.show import select
from spectra_cli.terminal import say


@click.command("plot")
@click.argument("file", metavar="FILE", type=click.Path())
@click.option(
    "--out", metavar="DIR", type=click.Path(path_type=Path), help="Folder for the figures; FILE-figures here."
)
@click.option(
    "--what",
    multiple=True,
    default=("all",),
    show_default=True,
    type=click.Choice((*KINDS, "all")),
    help="Which figures; repeatable. modes: batch norm in eval against train mode.",
)
@click.option(
    "--epoch",
    "epochs",
    multiple=True,
    type=float,
    metavar="E",
    help="Spectra of this epoch; repeatable. [first, middle, last]",
)
@click.option("--operator", "operators", multiple=True, metavar="NAME", help="Only this operator; repeatable.")
@click.option("--bn", "bn_modes", multiple=True, metavar="MODE", help="Only this batch-norm mode; repeatable.")
@click.option(
    "--format",
    "formats",
    multiple=True,
    default=("png",),
    show_default=True,
    type=click.Choice(FORMATS),
    help="Kind of file; repeatable.",
)
@edge_options
def command(
    file: str,
    out: Path | None,
    what: tuple[str, ...],
    epochs: tuple[float, ...],
    operators: tuple[str, ...],
    bn_modes: tuple[str, ...],
    formats: tuple[str, ...],
    learning_rate: float | None,
    momentum: float | None,
) -> None:
    """Draw the figures of a results file, and print the paths that were written.

    Densities on a linear and a logarithmic axis, Ritz values against their weights (stems), the cumulative
    distribution in its bounds, the degeneracy and the negative mass over tolerances, the effective dimension of
    semidefinite matrices, the traces of the tensors, batch norm in eval against train mode, and the estimates over
    training: all that the records allow, each with its errors.
    """
    trajectory = load_trajectory(file)
    for note in trajectory.notes:
        say(f"spectra: {note}")
    chosen = with_optimizer(select(trajectory, operators, bn_modes), learning_rate, momentum)
    folder = Path(f"{Path(file).stem}-figures") if out is None else out
    for path in save_figures(chosen, folder, formats, what=what, epochs=epochs):
        say(str(path), err=False)
