"""What is asked of an analysis on the command line: the options that `analyze` and `watch` share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from spectra.analysis.presets import PRESETS, departures, filled
from spectra.analysis.run import DataChoice
from spectra.analysis.settings import OPERATORS, Settings
from spectra.checkpoints.checkpoint import Checkpoint
from spectra.task.task import Task
from spectra_cli.grouped_help import grouped_option
from spectra_cli.progress import DISPLAYS, RunDisplay
from spectra_cli.task_source import TaskSource, resolve
from spectra_cli.terminal import say

BN_CHOICES = {
    "eval": ("eval",),
    "recalibrated": ("recalibrated",),
    "train": ("train",),
    "both": ("eval", "train"),
}

_Option = tuple[tuple[str, ...], dict[str, Any]]


def _option(*names: str, **options: Any) -> _Option:
    return names, options


#: Also an option of `inspect`.
MAX_SIZE: _Option = _option(
    "--max-size",
    metavar="SIZE",
    help="How much memory a checkpoint may take, such as 8G. Default: 20 times its own size, and at least 256 MiB.",
)

_GROUPS: dict[str, tuple[_Option, ...]] = {
    "The task and its weights": (
        _option(
            "--task", "task_option", metavar="WHAT", help="Built-in name, package.module:function or file.py:function."
        ),
        _option(
            "--task-arg", "task_args", multiple=True, metavar="KEY=VALUE", help="For the task function; repeatable."
        ),
        _option("--weights", metavar="KEY", help="Which weights of a checkpoint that holds several, such as ema."),
        _option(
            "--partial",
            is_flag=True,
            help="Checkpoints may lack keys: the task's model keeps what it has for them, and it is said how many. "
            "Without it only frozen parameters may be missing, as they are in an adapter's file.",
        ),
        _option("--unsafe-load", is_flag=True, help="Load a checkpoint that holds code, and run that code."),
        MAX_SIZE,
        _option("--device", help="cpu, cuda or cuda:1. Default: where the task puts its model."),
    ),
    "What is computed": (
        _option(
            "--preset",
            type=click.Choice(list(PRESETS)),
            help="A paper's whole protocol, for options that are not given. granziol: Hessian and GGN, recalibrated "
            "batch norm, 1 probe, 100 steps, as in Flatness is a False Friend (2020).",
        ),
        _option(
            "--operator",
            "operators",
            multiple=True,
            type=click.Choice(list(OPERATORS)),
            default=("hessian",),
            show_default=True,
            help="Which curvature; repeatable.",
        ),
        _option(
            "--bn",
            type=click.Choice(list(BN_CHOICES)),
            default="eval",
            show_default=True,
            help="Batch norm by its running statistics (eval), by such estimated anew over the data (recalibrated), by "
            "those of each batch (train), or a record of eval and one of train (both).",
        ),
        _option("--lanczos-steps", "-m", type=int, default=100, show_default=True, help="m: resolution and cost."),
        _option("--probes", "-k", type=int, default=8, show_default=True, help="k: errors shrink like 1/sqrt(k)."),
        _option("--seed", type=int, default=0, show_default=True, help="Of the probes, and for the task function."),
        _option("--params", multiple=True, metavar="GLOB|REGEX", help="Only parameters of such names; repeatable."),
        _option("--dtype", type=click.Choice(["float32", "float64"]), help="Default: that of the parameters."),
        _option(
            "--eigenpairs",
            type=int,
            default=0,
            metavar="K",
            help="Find the K eigenvalues of the largest magnitude first, and take them out of the variance of trace "
            "and Frobenius norm.",
        ),
        _option(
            "--warm-start",
            is_flag=True,
            help="Begin the search for eigenpairs with the vectors of the checkpoint before: fewer products, and "
            "other last digits after a restart.",
        ),
        _option("--save-eigenvectors", is_flag=True, help="Keep their vectors too: 4 n K bytes per record."),
    ),
    "What it is checked against, and measured beside it": (
        _option(
            "--check/--no-check",
            default=None,
            help="Compare the traces with exact ones, where there are such. Default: as far as that costs no more than "
            "the spectrum.",
        ),
        _option(
            "--exact-spectrum",
            type=int,
            default=0,
            metavar="N",
            help="All eigenvalues of the Gauss-Newton matrix on at most N samples, exactly, and a Lanczos run on the "
            "same samples checked against them; for --operator ggn.",
        ),
        _option(
            "--metrics",
            default="cheap",
            show_default=True,
            metavar="all|none|cheap|NAME,...",
            help="Sharpness measures; `spectra metrics` lists them. Those of cheap are drawn or left out where they "
            "would cost more than the spectrum; those that are named, and all, are computed whatever they cost.",
        ),
        _option(
            "--bounds",
            is_flag=True,
            help="The PAC-Bayes bounds behind normalized sharpness too, as diagnostics, or vacuous.",
        ),
    ),
    "The data and the loss": (
        _option("--samples", type=int, metavar="N", help="Use a fixed random subset of N rows of the data."),
        _option("--batch-size", type=int, help="Rows per batch; with --bn train part of what is analysed."),
        _option(
            "--snapshot-data",
            is_flag=True,
            help="Freeze one pass of data that augment or shuffle, and use it throughout.",
        ),
        _option("--data-seed", type=int, default=0, show_default=True, help="Of that subset, and of that pass."),
        _option("--test-data", is_flag=True, help="The same numbers on the task's held-out data, beside the others."),
        _option("--l2", type=float, help="Coefficient of (l2/2)|theta|^2, added analytically."),
        _option(
            "--reduction", type=click.Choice(["mean", "sum"]), help="Over the data. Default: what the criterion does."
        ),
    ),
    "The file, and what is shown": (
        _option(
            "--out",
            type=click.Path(path_type=Path),
            default=Path("run.h5"),
            show_default=True,
            help="The results file; one that is there is continued if it is of the same run.",
        ),
        _option(
            "--force",
            is_flag=True,
            help="Replace what the file has of other settings, or of a checkpoint that was another.",
        ),
        _option("--strict", is_flag=True, help="Stop at the first checkpoint that fails or is unverified."),
        _option(
            "--progress",
            type=click.Choice(DISPLAYS),
            default="auto",
            show_default=True,
            help="On standard error: a bar, a line per record and for what takes long, or a JSON object per line. "
            "auto: a bar on a terminal, else lines.",
        ),
        _option("--quiet", is_flag=True, help="No progress, no notes."),
        _option("--all", "everything", is_flag=True, help="Print a single record in full, and every note."),
    ),
}

_Command = TypeVar("_Command", bound=Callable[..., Any])


def analysis_options(command: _Command) -> _Command:
    """The options of every command that analyses checkpoints."""
    for group, members in reversed(_GROUPS.items()):
        for names, options in reversed(members):
            command = grouped_option(group, *names, **options)(command)
    return command


@dataclass(frozen=True)
class Request:
    """What the options say."""

    settings: Settings
    data: DataChoice
    options: dict[str, Any]

    @classmethod
    def of(cls, options: dict[str, Any]) -> Request:
        """From the values of the options of the command that runs.

        Raises:
            ArgumentError: a value out of its range.
        """
        protocol = {
            "operators": options["operators"],
            "bn_modes": BN_CHOICES[options["bn"]],
            "lanczos_steps": options["lanczos_steps"],
            "num_probes": options["probes"],
        }
        preset = options["preset"]
        if preset is not None:  # what is a mere default gives way to it
            sources = {"operators": "operators", "bn_modes": "bn", "lanczos_steps": "lanczos_steps"}
            sources["num_probes"] = "probes"
            protocol = {name: value for name, value in protocol.items() if _was_given(sources[name])}
            if (other := departures(preset, protocol)) and not options["quiet"]:
                say(f"spectra: --preset {preset}, but as given: {', '.join(other)}")
        same = (
            "seed",
            "dtype",
            "metrics",
            "bounds",
            "exact_spectrum",
            "check",
            "eigenpairs",
            "warm_start",
            "save_eigenvectors",
            "test_data",
        )
        settings = Settings(
            **filled(preset, **protocol),
            params=list(options["params"]) or None,
            **{name: options[name] for name in same},
        )
        data = DataChoice(
            samples=options["samples"],
            data_seed=options["data_seed"],
            batch_size=options["batch_size"],
            l2=options["l2"],
            reduction=options["reduction"],
            snapshot=options["snapshot_data"],
        )
        return cls(settings, data, options)

    @property
    def out(self) -> Path:
        path: Path = self.options["out"]
        return path

    @property
    def quiet(self) -> bool:
        return bool(self.options["quiet"])

    def for_run(self, display: RunDisplay) -> dict[str, Any]:
        """Arguments of `analyze_run` beside the checkpoints and the file, which are the command's."""
        options = self.options
        return {
            "make_task": TaskMaker(options["task_option"], options["task_args"], options["seed"], display),
            "listener": display,
            "settings": self.settings,
            "data": self.data,
            "device": options["device"],
            "unsafe": options["unsafe_load"],
            "weights": options["weights"],
            "partial": options["partial"],
            "strict": options["strict"],
            "force": options["force"],
            "max_size": options["max_size"],
        }


def _was_given(parameter: str) -> bool:
    return click.get_current_context().get_parameter_source(parameter) is not ParameterSource.DEFAULT


class TaskMaker:
    """The task of a checkpoint, found once per run and printed; made anew only where the function asks for it."""

    def __init__(self, option: str | None, args: tuple[str, ...], seed: int, display: RunDisplay) -> None:
        self.option, self.args, self.seed, self.display = option, args, seed, display
        self.source: TaskSource | None = None

    @property
    def per_checkpoint(self) -> bool:
        """Whether the function asks for the checkpoint, and so may make another network of the same weights."""
        return self.source is not None and self.source.per_checkpoint

    def __call__(self, checkpoint: Checkpoint) -> Task:
        if self.source is None:
            self.source = resolve(self.option, self.args, checkpoint, announce=self.display.chosen_code)
            self.display.say(f"spectra: {self.source.words}")
        return self.source.task(checkpoint, self.seed)
