"""``spectra doctor``: what will go wrong in an analysis, before it is run."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import asdict
from typing import Any

import click

from spectra.analysis.diagnoses import OK, PROBLEM, WARNING, Diagnosis, few
from spectra.analysis.doctor import examine_checkpoints
from spectra.runtime.phases import reported
from spectra_cli.analysis_options import TaskMaker, analysis_options, settings_in
from spectra_cli.checkpoint_choice import Choice, checkpoint_choice
from spectra_cli.grouped_help import GroupedCommand, grouped_option
from spectra_cli.layout import make_console, print_line
from spectra_cli.progress import display_of

_MARKS = {OK: "ok", WARNING: "! warning", PROBLEM: "! PROBLEM"}


def _where(one: Diagnosis, total: int) -> str:
    """The checkpoints of a finding, if there are several in all."""
    if total < 2 or not one.checkpoints:
        return ""
    return f" (in {few(one.checkpoints) if len(one.checkpoints) < total else f'all {total} checkpoints'})"


@click.command(cls=GroupedCommand)
@checkpoint_choice
@analysis_options
@grouped_option("Results file and display", "--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def command(as_json: bool, **options: Any) -> None:
    """Find out what would prevent or spoil `spectra analyze` with the same options. Nothing is written.

    The checks of an analysis are made on the first and the last checkpoint, each whether or not another one fails.
    Further checks look for dead parameters and units, statistics of batch norm that are not those of the data, kinks,
    and missing derivatives. All checkpoints are read: they must fit and be finite, and equal weights and the statistics
    of batch norm are checked in each. Every finding has its remedy, and the checkpoints that have it.

    The exit code is 0 if nothing prevents the analysis (there may be warnings), and 1 if something does.

    \b
    Examples:
      spectra doctor ckpt.pt --task task.py:task
      spectra doctor ckpt.pt --task task.py:task --operator ggn --bn both --json
    """
    choice = Choice.taken_from(options)
    asked = settings_in(options)
    with display_of(options["progress"], None, quiet=options["quiet"]) as display, reported(display.phase):
        paths, _ = choice.paths(asked.max_size, display.note)
        make_task = TaskMaker(options["task_option"], options["task_args"], asked.analysis.seed, display)
        found = examine_checkpoints(paths, make_task, asked)
    levels = Counter(one.level for one in found)
    if as_json:
        content = {"passed": not levels[PROBLEM], "findings": [asdict(one) for one in found]}
        click.echo(json.dumps(content, indent=2, allow_nan=False))
    else:
        console = make_console()
        for level in (PROBLEM, WARNING, OK):
            for one in found:
                if one.level == level:
                    remedy = f" -> {one.remedy}" if one.remedy else ""
                    print_line(
                        console, f"{_MARKS[level]:9}  {one.check}: {one.reason}{_where(one, len(paths))}{remedy}"
                    )
        console.print()
        print_line(console, f"problems: {levels[PROBLEM]}, warnings: {levels[WARNING]}, ok: {levels[OK]}")
    sys.exit(1 if levels[PROBLEM] else 0)
