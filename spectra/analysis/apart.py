"""Several processes analyse different checkpoints, each into a file of its own; the first joins the files."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from spectra.analysis.run import Listener, Outcome, TaskMaker, analyze_checkpoints
from spectra.analysis.settings import RunSettings
from spectra.errors import ArgumentError, SpectraError
from spectra.results.storage.merge import merge
from spectra.runtime.ranks import alone, first_alone, gathered, ranks


def analyze_apart(paths: Sequence[Path], make_task: TaskMaker, asked: RunSettings, listener: Listener) -> Outcome:
    """As :func:`~spectra.analysis.run.analyze_checkpoints`, by all processes of ``across_ranks``, which call it.

    Process ``i`` of ``N`` takes every ``N``-th checkpoint from the ``i``-th on, and writes ``run.process-i-of-N.h5``
    next to ``run.h5``. The first joins these files at the end, and at the beginning those that an interrupted run has
    left, whatever its number of processes.

    Args:
        paths: the checkpoints, in order of training.
        make_task: the task of a checkpoint.
        asked: the settings, with the file of the whole run.
        listener: receives the events of this process.

    Raises:
        ArgumentError: there is one process only.
        SpectraError: as of ``analyze_checkpoints``, in any process. The finished records of all are in the file.
    """
    found, out = ranks(), asked.out
    if found is None:
        raise ArgumentError("there is one process: torchrun starts several, each for its own checkpoints")
    first_alone(lambda: _join(out))
    own = out.with_name(f"{out.stem}.process-{found.rank + 1}-of-{found.size}{out.suffix}")
    share = paths[found.rank :: found.size]
    outcome: Outcome | None = None
    error: SpectraError | None = None
    try:
        with alone() if share else nullcontext():
            if share and out.exists():  # its records are not computed again
                shutil.copyfile(out, own)
            # An iterator: a checkpoint that fails is recorded, also where it is the only one of this process.
            outcome = analyze_checkpoints(iter(share), make_task, replace(asked, out=own), listener) if share else None
    except SpectraError as caught:
        error = caught
    results = gathered((outcome, error))
    first_alone(lambda: _join(out))
    for number, (_, failure) in enumerate(results):
        if failure is not None:
            failure.add_note(f"in process {number} of {found.size}; the records of the others are in {out}")
            raise failure
    of_all = [one for one, _ in results if one is not None]
    return Outcome(out, frozenset().union(*(one.new for one in of_all)), max(one.kept for one in of_all))


def _join(out: Path) -> None:
    """Join the files of single processes with that of the whole run, and remove them."""
    parts = sorted(out.parent.glob(f"{_literal(out.stem)}.process-*-of-*{_literal(out.suffix)}"))
    if parts:
        merge([*([out] if out.exists() else []), *parts], out)
    for part in parts:
        part.unlink()


def _literal(text: str) -> str:
    """The text as a pattern that matches itself alone."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in text)
