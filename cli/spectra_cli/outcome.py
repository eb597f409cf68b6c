"""The result of a run on the terminal: its table, and the errors that end it."""

from __future__ import annotations

import json
import shlex
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from spectra.analysis.run import Outcome
from spectra.errors import CheckpointError, NumericsError
from spectra.results.record import Record
from spectra.results.storage.partial import PartialFile
from spectra.results.storage.runfile import load_trajectory
from spectra.results.trajectory import Trajectory
from spectra_cli.layout import make_console
from spectra_cli.tables import print_trajectory
from spectra_cli.terminal import say


def report(outcome: Outcome, *, as_json: bool, quiet: bool, everything: bool = False) -> None:
    """Print the records of a run: a single one as a summary, or in full where everything is asked for.

    Raises:
        CheckpointError: some failed, or are unverified.
        NumericsError: a cross-check failed.
    """
    out, stored = outcome.out, load_trajectory(outcome.out)
    shown = _shown(outcome, stored)
    if as_json:
        click.echo(json.dumps([record.to_json() for record in shown], indent=2, allow_nan=False))
    else:
        only = shown[0] if len(shown) == 1 < len(stored) else None
        title, more = f"{out}: {_count(outcome)}", command_of_all(str(out), only)
        print_trajectory(shown, make_console(), title=title, more=more, everything=everything)
        if not quiet:
            say(f"spectra: saved in {out}; next: spectra show {out}, spectra plot {out}")
    failed, unverified = (sum(record.status == status for record in shown) for status in ("failed", "unverified"))
    if failed:
        also = f", {unverified} unverified" * bool(unverified)
        raise CheckpointError(f"{failed} of {len(shown)} records failed{also}; the reasons are in {out}")
    if unverified:
        again = "the same command computes them again"
        raise CheckpointError(f"{unverified} of {len(shown)} records unverified; the reasons are in {out}; {again}")
    wrong = [check for record in shown for check in record.checks if check.failed]
    if wrong:
        raise NumericsError(f"{len(wrong)} cross-checks failed, the first: {wrong[0]}; please report this with {out}")


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM, with which schedulers end a job, counts as Ctrl-C: the file is put in order before the end."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def interrupted(out: Path) -> None:
    """Print which records or probes of an interrupted run are stored."""
    if out.exists():
        say(f"spectra: the records finished so far are in {out}; the same command goes on from there")
    elif PartialFile(out).path.exists():
        say(f"spectra: finished probes are in {PartialFile(out).shown}; the same command goes on")


def command_of_all(file: str, only: Record | None = None) -> str:
    """The command that prints all of a file, or all of one of its records."""
    choice = [] if only is None else ["--operator", only.operator, "--bn", only.bn_mode]
    if only is not None and only.epoch is not None:
        choice += ["--epoch", f"{only.epoch:g}"]
    return shlex.join(["spectra", "show", file, *choice, "--all"])


def _shown(outcome: Outcome, stored: Trajectory) -> Trajectory:
    """The stored records of this call; all records of the file if this call added none."""
    if not outcome.new:
        return stored
    return Trajectory(
        [record for record in stored if record.identity in outcome.new],
        settings=stored.settings,
        notes=stored.notes,
        path=stored.path,
    )


def _count(outcome: Outcome) -> str:
    new = len(outcome.new)
    words = f"{new} record{'' if new == 1 else 's'}"
    return words + (f" added, {outcome.kept} kept as they were" if outcome.kept else "")
