"""``spectra analyze``: checkpoints in, a results file and a table out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from spectra.analysis.apart import analyze_apart
from spectra.analysis.run import analyze_checkpoints, check_output
from spectra.results.storage.merge import part_path
from spectra.results.storage.runfile import load_trajectory
from spectra.runtime.ranks import first_alone
from spectra_cli.analysis_options import TaskMaker, analysis_options, settings_in
from spectra_cli.checkpoint_choice import Choice, checkpoint_choice
from spectra_cli.grouped_help import GroupedCommand, grouped_option
from spectra_cli.launcher import is_first_process, shared_by_processes
from spectra_cli.outcome import interrupted, report, terminated_as_interrupted
from spectra_cli.progress import display_of
from spectra_cli.terminal import say


@click.command(cls=GroupedCommand)
@checkpoint_choice
@analysis_options
@grouped_option(
    "Results file and display",
    "--json",
    "as_json",
    is_flag=True,
    help="Print the records as JSON in place of the table.",
)
@grouped_option(
    "Results file and display",
    "--report",
    "page",
    metavar="PAGE",
    type=click.Path(path_type=Path),
    help="Write the page of `spectra report` too, at the end of the run; its name ends in .html.",
)
@grouped_option(
    "Several processes",
    "--parallel",
    type=click.Choice(["products", "checkpoints"]),
    default="products",
    show_default=True,
    help="What the processes of torchrun share: every product, or the checkpoints, of which each computes its own.",
)
def command(as_json: bool, parallel: str, page: Path | None, **options: Any) -> None:
    """Compute the Hessian spectrum of checkpoints, every number with its error, and save it.

    The task says which model, loss and data: --task, else what the checkpoint says of itself (built-in tasks only),
    else spectra.toml in the working directory or above it in the repository, if it is your own. SPECTRA_TOML=off in
    the environment turns that off, SPECTRA_TOML=PATH names the file.

    CKPT is a file; a folder with checkpoints, as files or as folders like checkpoint-500/; such a folder itself; or a
    pattern. A checkpoint with the weights of an earlier one, in another file, is skipped.

    A run that was stopped, killed or has grown goes on with the same command: what is in --out is kept, also the
    finished probes of a record that was under way.

    \b
    Examples:
      spectra analyze ckpt.pt --task task.py:task
      spectra analyze ckpt.pt --task digits-convnet --operator hessian --operator ggn --bn both
      spectra analyze run/ckpt_*.pt --task mnist-lenet-bn --task-arg data=MNIST/raw --samples 2000
      spectra analyze run/ --task task.py:task --epochs 0:100:10 --last
      spectra analyze run/ --task task.py:task --shard 2/8
      torchrun --nproc-per-node 4 -m spectra_cli analyze ckpt.pt --task task.py:task
      spectra analyze out/ --task task.py:task
      spectra analyze adapter/ --task task.py:with_adapter
    """
    choice = Choice.taken_from(options)
    asked = settings_in(options)
    out = asked.out
    first = is_first_process()
    if first and page is not None:
        from spectra.report.page import check_report_path  # with matplotlib, which no other option needs

        check_report_path(page)
    if first and choice.shard_text is None:
        check_output(out)  # before the checkpoints are read
    words: list[str] = []
    shown = options["progress"] if first else "none"
    try:
        with (
            terminated_as_interrupted(),
            shared_by_processes(options["device"]),
            display_of(shown, None, quiet=options["quiet"] or not first) as display,
        ):
            display.phase("reading", 0, 0, "which checkpoints there are")
            paths, part = first_alone(lambda: choice.paths(asked.max_size, words.append))
            if part is not None:
                out = part_path(out, *part)
                first_alone(lambda: check_output(out))
            display.expect(len(paths) * len(asked.analysis.pairs()))
            for one in words:
                display.note(one)
            make_task = TaskMaker(options["task_option"], options["task_args"], asked.analysis.seed, display)
            run = analyze_checkpoints if parallel == "products" else analyze_apart
            outcome = run(paths, make_task, replace(asked, out=out), display)
    except KeyboardInterrupt:
        if first:
            interrupted(out)
        raise
    if not first:
        return
    if page is not None:
        from spectra.report.page import write_report
        from spectra.report.runs import Run

        write_report([Run(str(out), load_trajectory(out))], page)
        if not options["quiet"]:
            say(f"spectra: page in {page}; open it in a browser")
    report(outcome, as_json=as_json, quiet=options["quiet"], everything=options["everything"])
