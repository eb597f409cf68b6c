"""``spectra log``: the records of a results file, logged in TensorBoard or Weights & Biases."""

from __future__ import annotations

import click

from spectra.errors import StorageError
from spectra.logs.destinations import FORMS, Logs
from spectra.results.storage.runfile import load_trajectory
from spectra_cli.terminal import say


@click.command("log")
@click.argument("file", type=click.Path())
@click.argument("destinations", nargs=-1, required=True, metavar=f"{FORMS.replace(' or ', '|')}...")
def command(file: str, destinations: tuple[str, ...]) -> None:
    """Log the records of a results file where the training is watched, as `spectra analyze --log` does.

    The horizontal axis is the step of training where it is known, else the epoch. Logging a file twice in one folder
    draws every point twice.

    \b
    Examples:
      spectra log run.h5 tensorboard:runs/spectra
      spectra log run.h5 wandb:my-project
    """
    trajectory = load_trajectory(file)
    for note in trajectory.notes:
        say(f"spectra: {note}")
    logs = Logs(destinations, lambda words: say(f"spectra: warning: {words}"))
    try:
        for record in trajectory:
            logs.add(record)
    finally:
        logs.close()
    if logs.failed:
        raise StorageError(f"{file}: not all records are logged")
    count = f"{len(trajectory)} record{'' if len(trajectory) == 1 else 's'}"
    say(f"spectra: {count} of {file} logged: {', '.join(destinations)}")
