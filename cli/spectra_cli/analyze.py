"""``spectra analyze``: checkpoints in, a results file and a table out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import click
from click.core import ParameterSource

from spectra.checkpoints.checkpoint import Checkpoint
from spectra.checkpoints.discovery import find_checkpoints, order_checkpoints
from spectra.errors import CheckpointError, NumericsError
from spectra.presets import PRESETS, departures, filled
from spectra.records import Trajectory
from spectra.run import DataChoice, Outcome, analyze_run, check_output
from spectra.settings import OPERATORS, Settings
from spectra.storage.runfile import load_trajectory
from spectra.task import Task
from spectra_cli.layout import make_console
from spectra_cli.progress import RunDisplay
from spectra_cli.tables import print_trajectory
from spectra_cli.task_source import TaskSource, resolve

BN_CHOICES = {
    "eval": ("eval",),
    "recalibrated": ("recalibrated",),
    "train": ("train",),
    "both": ("eval", "train"),
}


@click.command()
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="CKPT...")
@click.option(
    "--task", "task_option", metavar="WHAT", help="Built-in name, package.module:function or file.py:function."
)
@click.option("--task-arg", "task_args", multiple=True, metavar="KEY=VALUE", help="For the task function; repeatable.")
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    help="A paper's whole protocol, for options that are not given. granziol: Hessian and GGN, recalibrated batch "
    "norm, 1 probe, 100 steps, as in Flatness is a False Friend (2020).",
)
@click.option(
    "--operator",
    "operators",
    multiple=True,
    type=click.Choice(list(OPERATORS)),
    default=("hessian",),
    show_default=True,
    help="Which curvature; repeatable.",
)
@click.option(
    "--bn",
    type=click.Choice(list(BN_CHOICES)),
    default="eval",
    show_default=True,
    help="Batch norm by its running statistics (eval), by such estimated anew over the data (recalibrated), by those "
    "of each batch (train), or a record of eval and one of train (both).",
)
@click.option("--lanczos-steps", "-m", type=int, default=100, show_default=True, help="m: resolution and cost.")
@click.option("--probes", "-k", type=int, default=8, show_default=True, help="k: errors shrink like 1/sqrt(k).")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the probes, and for the task function.")
@click.option("--samples", type=int, metavar="N", help="Use a fixed random subset of N rows of the data.")
@click.option(
    "--snapshot-data", is_flag=True, help="Freeze one pass of data that augment or shuffle, and use it throughout."
)
@click.option("--data-seed", type=int, default=0, show_default=True, help="Of that subset, and of that pass.")
@click.option("--test-data", is_flag=True, help="The same numbers on the task's held-out data, beside the others.")
@click.option("--batch-size", type=int, help="Rows per batch; with --bn train part of what is analysed.")
@click.option("--l2", type=float, help="Coefficient of (l2/2)|theta|^2, added analytically.")
@click.option(
    "--reduction", type=click.Choice(["mean", "sum"]), help="Over the data. Default: what the criterion does."
)
@click.option("--params", multiple=True, metavar="GLOB|REGEX", help="Only parameters of such names; repeatable.")
@click.option(
    "--metrics",
    default="cheap",
    show_default=True,
    metavar="all|none|cheap|NAME,...",
    help="Sharpness measures; `spectra metrics` lists them.",
)
@click.option(
    "--bounds", is_flag=True, help="The PAC-Bayes bounds behind normalized sharpness too, as diagnostics, or vacuous."
)
@click.option(
    "--exact-spectrum",
    type=int,
    default=0,
    metavar="N",
    help="All eigenvalues of the Gauss-Newton matrix on at most N samples, exactly, and a Lanczos run on the same "
    "samples checked against them; for --operator ggn.",
)
@click.option(
    "--check/--no-check",
    default=True,
    show_default=True,
    help="Compare the traces with exact ones, where there are such.",
)
@click.option(
    "--eigenpairs",
    type=int,
    default=0,
    metavar="K",
    help="Find the K eigenvalues of the largest magnitude first, and take them out of the variance of trace and "
    "Frobenius norm.",
)
@click.option("--save-eigenvectors", is_flag=True, help="Keep their vectors too: 4 n K bytes per record.")
@click.option("--device", help="cpu, cuda or cuda:1. Default: where the task puts its model.")
@click.option("--dtype", type=click.Choice(["float32", "float64"]), help="Default: that of the parameters.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("run.h5"), show_default=True)
@click.option("--weights", metavar="KEY", help="Which weights of a checkpoint that holds several, such as ema.")
@click.option("--unsafe-load", is_flag=True, help="Load a checkpoint that holds code, and run that code.")
@click.option("--json", "as_json", is_flag=True, help="Print the records as JSON in place of the table.")
@click.option("--quiet", is_flag=True, help="No progress, no notes.")
@click.pass_context
def command(
    context: click.Context,
    checkpoints: tuple[Path, ...],
    task_option: str | None,
    task_args: tuple[str, ...],
    preset: str | None,
    operators: tuple[str, ...],
    bn: str,
    lanczos_steps: int,
    probes: int,
    seed: int,
    samples: int | None,
    snapshot_data: bool,
    data_seed: int,
    test_data: bool,
    batch_size: int | None,
    l2: float | None,
    reduction: str | None,
    params: tuple[str, ...],
    metrics: str,
    bounds: bool,
    exact_spectrum: int,
    check: bool,
    eigenpairs: int,
    save_eigenvectors: bool,
    device: str | None,
    dtype: str | None,
    out: Path,
    weights: str | None,
    unsafe_load: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Compute the Hessian spectrum of checkpoints, every number with its error, and save it.

    The task says which model, loss and data: --task, else what the checkpoint says of itself (built-in tasks only),
    else spectra.toml in the working directory or above it in the repository.

    \b
    Examples:
      spectra analyze ckpt.pt --task task.py:task
      spectra analyze ckpt.pt --task digits-convnet --operator hessian --operator ggn --bn both
      spectra analyze run/ckpt_*.pt --task mnist-lenet-bn --task-arg data=MNIST/raw --samples 2000
    """
    protocol = {
        "operators": operators,
        "bn_modes": BN_CHOICES[bn],
        "lanczos_steps": lanczos_steps,
        "num_probes": probes,
    }
    if preset is not None:  # what is a mere default gives way to it
        sources = {"operators": "operators", "bn_modes": "bn", "lanczos_steps": "lanczos_steps", "num_probes": "probes"}
        protocol = {name: value for name, value in protocol.items() if _was_given(context, sources[name])}
        if (other := departures(preset, protocol)) and not quiet:
            click.echo(f"spectra: --preset {preset}, but as given: {', '.join(other)}", err=True)
    settings = Settings(
        **filled(preset, **protocol),
        seed=seed,
        params=list(params) or None,
        dtype=dtype,
        metrics=metrics,
        bounds=bounds,
        exact_spectrum=exact_spectrum,
        check=check,
        eigenpairs=eigenpairs,
        save_eigenvectors=save_eigenvectors,
        test_data=test_data,
    )
    check_output(out)  # before the checkpoints are read
    paths = order_checkpoints(find_checkpoints(checkpoints))
    try:
        with RunDisplay(len(paths) * len(settings.pairs()), quiet=quiet) as display:
            outcome = analyze_run(
                paths,
                TaskMaker(task_option, task_args, seed, display.say),
                settings,
                out=out,
                data=DataChoice(samples, data_seed, batch_size, l2, reduction, snapshot_data),
                device=device,
                unsafe=unsafe_load,
                weights=weights,
                listener=display,
            )
    except KeyboardInterrupt:
        if out.exists():
            click.echo(
                f"spectra: the records finished so far are in {out}; the same command goes on from there", err=True
            )
        raise
    shown = _shown(outcome, out)
    if as_json:
        click.echo(json.dumps([record.to_json() for record in shown], indent=2, allow_nan=False))
    else:
        print_trajectory(shown, make_console(), title=f"{out}: {_count(outcome)}")
        if not quiet:
            click.echo(f"spectra: saved in {out}; next: spectra show {out}, spectra plot {out}", err=True)
    if outcome.failed:
        raise CheckpointError(f"{len(outcome.failed)} of {len(shown)} records failed; the reasons are in {out}")
    wrong = [check for record in shown for check in record.checks if check.failed]
    if wrong:
        raise NumericsError(f"{len(wrong)} cross-checks failed, the first: {wrong[0]}; please report this with {out}")


def _was_given(context: click.Context, parameter: str) -> bool:
    return context.get_parameter_source(parameter) is not ParameterSource.DEFAULT


def _shown(outcome: Outcome, out: Path) -> Trajectory:
    """The records of this call as the file holds them; the whole file where all of them were there before."""
    stored = load_trajectory(out)
    if not outcome.records:
        return stored
    wanted = {record.identity for record in outcome.records}
    return Trajectory(
        [record for record in stored if record.identity in wanted],
        settings=stored.settings,
        notes=stored.notes,
        path=stored.path,
    )


def _count(outcome: Outcome) -> str:
    new = len(outcome.records)
    words = f"{new} record{'' if new == 1 else 's'}"
    return words + (f" added, {outcome.kept} kept as they were" if outcome.kept else "")


class TaskMaker:
    """The task of a checkpoint, found once per run and printed; made anew only where the function asks for it."""

    def __init__(self, option: str | None, args: tuple[str, ...], seed: int, say: Callable[[str], None]) -> None:
        self.option, self.args, self.seed, self.say = option, args, seed, say
        self.source: TaskSource | None = None

    def __call__(self, checkpoint: Checkpoint) -> Task:
        if self.source is None:
            self.source = resolve(self.option, self.args, checkpoint)
            self.say(f"spectra: {self.source.words}")
        return self.source.task(checkpoint, self.seed)
