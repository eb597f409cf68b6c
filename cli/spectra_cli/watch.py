"""``spectra watch``: checkpoints are analysed as training writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from spectra.analysis.run import analyze_checkpoints, check_output
from spectra.checkpoints.watching import arriving
from spectra_cli.analysis_options import TaskMaker, analysis_options, settings_in
from spectra_cli.grouped_help import GroupedCommand, grouped_option
from spectra_cli.outcome import interrupted, report, terminated_as_interrupted
from spectra_cli.progress import display_of


@click.command(cls=GroupedCommand)
@click.argument("places", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="DIR...")
@grouped_option(
    "When",
    "--idle",
    type=float,
    metavar="SECONDS",
    help="Stop after this time without a new checkpoint. Default: continue until stopped.",
)
@grouped_option(
    "When",
    "--settle",
    type=float,
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="A checkpoint counts as complete when it has not changed for this time, and ends as its format requires.",
)
@analysis_options
def command(places: tuple[Path, ...], idle: float | None, settle: float, **options: Any) -> None:
    """Analyse the checkpoints in a folder, and new ones as training writes them, until stopped.

    Checkpoints are files, or folders like checkpoint-500/. A folder is waited for until all that is in it has settled
    and no shard is missing.

    Ctrl-C (or SIGTERM) while it waits ends it, and prints the table. One that comes in the middle of a record keeps
    the finished probes; the same command goes on from there. A checkpoint that fails is recorded with its reason.

    \b
    Examples:
      spectra watch run/ --task task.py:task --out run.h5
      spectra watch "run/epoch_*.pt" --task task.py:task --idle 3600
    """
    asked = settings_in(options)
    check_output(asked.out)
    try:
        with terminated_as_interrupted(), display_of(options["progress"], None, quiet=options["quiet"]) as display:
            named = " ".join(map(str, places))
            display.say(f"spectra: watching {named}; Ctrl-C stops")
            coming = arriving(places, settle=settle, idle=idle, note=display.note)
            make_task = TaskMaker(options["task_option"], options["task_args"], asked.analysis.seed, display)
            outcome = analyze_checkpoints(coming, make_task, asked, display)
    except KeyboardInterrupt:
        interrupted(asked.out)
        raise
    report(outcome, as_json=False, quiet=options["quiet"], everything=options["everything"])
