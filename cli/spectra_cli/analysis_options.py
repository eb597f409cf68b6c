"""The options that `analyze` and `watch` share, and the settings made from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

import click
from click.core import ParameterSource
from torch import nn

from spectra.analysis.preconditioning import CHOICES
from spectra.analysis.presets import PRESETS, departures, filled
from spectra.analysis.settings import OPERATORS, DataChoice, RunSettings, Settings
from spectra.checkpoints.checkpoint import Checkpoint
from spectra.errors import ArgumentError
from spectra.logs.destinations import FORMS
from spectra.operators.differences import HESSIANS
from spectra.spectrum.probe_planning import MOST, NAMES, Aims, checked_aims
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

#: The classes of settings whose fields the options set. The parameter of such an option has the name of the field.
SETTINGS: tuple[type[Settings | DataChoice | RunSettings], ...] = (Settings, DataChoice, RunSettings)
_DEFAULTS = {one.name: one.default for settings in SETTINGS for one in fields(settings)}
_TYPES = {name: kind for settings in SETTINGS for name, kind in get_type_hints(settings).items()}
_OF_TYPE: dict[Any, dict[str, Any]] = {
    bool: {"is_flag": True},
    int: {"type": int},
    float: {"type": float},
    Path: {"type": click.Path(path_type=Path)},
}

_Option = tuple[tuple[str, ...], dict[str, Any]]


def _option(*names: str, **options: Any) -> _Option:
    """An option that is not a setting of the analysis."""
    return names, options


def _setting(name: str, *names: str, **options: Any) -> _Option:
    """The option that sets a field of the settings, with the type and the default of that field.

    Args:
        name: of the field.
        names: of the option.
        options: of `click.option`; they take the place of type and default of the field.
    """
    kinds = [kind for kind in get_args(_TYPES[name]) or [_TYPES[name]] if kind is not NoneType]
    of_type = _OF_TYPE.get(kinds[0], {}) if len(kinds) == 1 and "type" not in options else {}
    return (*names, name), {"default": _DEFAULTS[name]} | of_type | options


def _modes(context: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    return BN_CHOICES[value]


def _patterns(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> list[str] | None:
    return list(value) or None


def _aims(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> Aims:
    """``("trace=0.05",)`` as ``(("trace", 0.05),)``."""
    aims: dict[str, float] = {}
    for text in value:
        name, _, number = text.partition("=")
        if name in aims:
            raise ArgumentError(f"--rtol {text}: {name} is given twice")
        try:
            aims[name] = float(number)
        except ValueError:
            raise ArgumentError(f"--rtol {text}: NAME=VALUE is needed, such as trace=0.05") from None
    return checked_aims(aims)


#: Also an option of `inspect`.
MAX_SIZE: _Option = _setting(
    "max_size",
    "--max-size",
    metavar="SIZE",
    help="How much memory a checkpoint may take, such as 8G. Default: 20 times its own size, and at least 256 MiB.",
)

_GROUPS: dict[str, tuple[_Option, ...]] = {
    "The task and its weights": (
        _option(
            "--task",
            "task_option",
            metavar="WHAT",
            help="Built-in name, package.module:function or file.py:function; for other packages' checkpoints "
            "hf:causal-lm, hf:sequence-classification, hf:image-classification, lightning:module:Class, timm:NAME.",
        ),
        _option("--task-arg", "task_args", multiple=True, metavar="KEY=VALUE", help="For the task; repeatable."),
        _setting(
            "weights", "--weights", metavar="KEY", help="Which weights of a checkpoint that holds several, such as ema."
        ),
        _setting(
            "partial",
            "--partial",
            help="Checkpoints may lack keys: the task's model keeps what it has for them, and it is said how many. "
            "Without it only frozen parameters may be missing, as they are in an adapter's file.",
        ),
        _setting("unsafe", "--unsafe-load", help="Load a checkpoint that holds code, and run that code."),
        MAX_SIZE,
        _setting(
            "memory",
            "--memory",
            metavar="SIZE",
            help="How much memory the process may use, such as 4G: as much is kept between products as fits in it. "
            "It changes the time, and no number. Default: what is free.",
        ),
        _setting("device", "--device", help="cpu, cuda or cuda:1. Default: where the task puts its model."),
    ),
    "What is computed": (
        _setting(
            "preset",
            "--preset",
            type=click.Choice(list(PRESETS)),
            help="A whole protocol, for options that are not given. granziol: Hessian and GGN, batch norm recalibrated "
            "and in train mode, 1 probe, 100 steps, as in Flatness is a False Friend (2020). sharpness: lambda_max "
            "alone, to 0.1 %, by 1 probe of about 20 steps, without checks and measures.",
        ),
        _setting(
            "operators",
            "--operator",
            multiple=True,
            type=click.Choice(list(OPERATORS)),
            show_default=True,
            help="Which curvature; repeatable. residual: Hessian less its Gauss-Newton matrix.",
        ),
        _setting(
            "bn_modes",
            "--bn",
            type=click.Choice(list(BN_CHOICES)),
            default=next(name for name, modes in BN_CHOICES.items() if modes == _DEFAULTS["bn_modes"]),
            callback=_modes,
            show_default=True,
            help="Batch norm by its running statistics (eval), by such estimated anew over the data (recalibrated), by "
            "those of each batch (train), or a record of eval and one of train (both).",
        ),
        _setting(
            "product",
            "--product",
            type=click.Choice(list(HESSIANS)),
            show_default=True,
            help="Hessian products by autograd, or by differences of the gradient, for custom autograd functions "
            "without a second derivative; with a larger error, which is measured, at four gradients each.",
        ),
        _setting("lanczos_steps", "--lanczos-steps", "-m", show_default=True, help="m: resolution and cost."),
        _setting("num_probes", "--probes", "-k", show_default=True, help="k: errors shrink like 1/sqrt(k)."),
        _setting(
            "rtol",
            "--rtol",
            multiple=True,
            callback=_aims,
            metavar="NAME=VALUE",
            help="Choose steps and probes so that the interval of an estimate is at most VALUE times its size on each "
            f"side, such as trace=0.05; repeatable. -m and -k are then the most there may be (-k: {MOST} if not "
            f"given). NAME: {', '.join(NAMES)}.",
        ),
        _setting("seed", "--seed", show_default=True, help="Seed of the probes, and for the task function."),
        _setting(
            "params",
            "--params",
            multiple=True,
            default=(),
            callback=_patterns,
            metavar="GLOB|REGEX",
            help="Only parameters of such names; repeatable.",
        ),
        _setting(
            "blocks",
            "--blocks",
            metavar="layer|module|REGEX",
            help="Also the spectrum of each diagonal block, and how much these differ. layer: a block per module that "
            "owns parameters. module: per child of the model, or element of a list of modules. REGEX: the match in a "
            "parameter's name, or its first group, names the block.",
        ),
        _setting(
            "precondition",
            "--precondition",
            type=click.Choice(CHOICES),
            help="Of P^-1/2 H P^-1/2 in place of H, with the denominators P of Adam or AdamW from the state of the "
            "optimizer in the checkpoint.",
        ),
        _setting(
            "dtype", "--dtype", type=click.Choice(["float32", "float64"]), help="Default: that of the parameters."
        ),
        _setting(
            "eigenpairs",
            "--eigenpairs",
            metavar="K",
            help="Compute the K eigenpairs of largest magnitude first, and deflate trace and Frobenius norm by them, "
            "which reduces their variance.",
        ),
        _setting(
            "warm_start",
            "--warm-start",
            help="Start the search for eigenpairs from the vectors of the previous checkpoint: fewer products, but "
            "the last digits may differ after a restart.",
        ),
        _setting(
            "class_structure",
            "--class-structure",
            help="The parts of the Gauss-Newton matrix that class means and cross-class means of gradients explain, at "
            "C^2 backward passes over the data for C classes; for --operator ggn.",
        ),
        _setting("save_eigenvectors", "--save-eigenvectors", help="Store the eigenvectors: 4 n K bytes per record."),
    ),
    "Checks and sharpness measures": (
        _setting(
            "check",
            "--check/--no-check",
            help="Compare the traces with exact ones, if these exist. Default: if it costs no more than the spectrum.",
        ),
        _setting(
            "exact_spectrum",
            "--exact-spectrum",
            metavar="N",
            help="All eigenvalues of the Gauss-Newton matrix on at most N samples, exactly, and a Lanczos run on the "
            "same samples checked against them; for --operator ggn.",
        ),
        _setting(
            "metrics",
            "--metrics",
            show_default=True,
            metavar="all|none|cheap|NAME,...",
            help="Sharpness measures; `spectra metrics` lists them. cheap: measures that would cost more than the "
            "spectrum are drawn or left out. Named measures, and all, are computed at any cost.",
        ),
        _setting(
            "bounds",
            "--bounds",
            help="Also the PAC-Bayes bounds of normalized sharpness, as diagnostics, and on the 0-1 error under noise; "
            "they may be vacuous.",
        ),
    ),
    "The data and the loss": (
        _setting("samples", "--samples", metavar="N", help="Use a fixed random subset of N rows of the data."),
        _setting("batch_size", "--batch-size", help="Rows per batch; with --bn train the results depend on it."),
        _setting(
            "snapshot",
            "--snapshot-data",
            help="Freeze one pass of data that augment or shuffle, and use it throughout.",
        ),
        _setting("data_seed", "--data-seed", show_default=True, help="Seed of the subset and of the frozen pass."),
        _setting("test_data", "--test-data", help="Compute the same numbers on the task's held-out data too."),
        _setting("l2", "--l2", help="Coefficient of (l2/2)|theta|^2, added analytically."),
        _setting(
            "reduction",
            "--reduction",
            type=click.Choice(["mean", "sum"]),
            help="Reduction over the data. Default: that of the criterion.",
        ),
    ),
    "Results file and display": (
        _setting(
            "out",
            "--out",
            show_default=True,
            help="The results file; an existing file of the same run is continued.",
        ),
        _setting(
            "force",
            "--force",
            help="Replace records of other settings, or whose checkpoint file has changed.",
        ),
        _setting(
            "log",
            "--log",
            multiple=True,
            metavar=FORMS.replace(" or ", "|"),
            help="Log each new record there as well, its numbers with their intervals and the density; repeatable. "
            "`spectra log` logs the records of a file.",
        ),
        _setting("strict", "--strict", help="Stop at the first checkpoint that fails or is unverified."),
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


def some_options(*parameters: str) -> Callable[[_Command], _Command]:
    """Those of the options of :func:`analysis_options` that have these parameters."""

    def decorated(command: _Command) -> _Command:
        for group, members in reversed(_GROUPS.items()):
            for names, options in reversed(members):
                if names[-1].lstrip("-").replace("-", "_") in parameters:
                    command = grouped_option(group, *names, **options)(command)
        return command

    return decorated


def settings_in(options: dict[str, Any]) -> RunSettings:
    """The settings from the options of the present command. An option that is not given has the default of its field.

    Raises:
        ArgumentError: a value out of its range.
    """
    analysis, data, run = (
        {one.name: options[one.name] for one in fields(kind) if _was_given(one.name)} for kind in SETTINGS
    )
    preset = analysis.pop("preset", None)
    if preset is not None and (other := departures(preset, analysis)) and not options["quiet"]:
        say(f"spectra: --preset {preset}, but as given: {', '.join(other)}")
    return RunSettings(Settings(**filled(preset, **analysis)), DataChoice(**data), **run)


def _was_given(parameter: str) -> bool:
    return click.get_current_context().get_parameter_source(parameter) not in (None, ParameterSource.DEFAULT)


class TaskMaker:
    """Makes the task of a checkpoint: found and printed once per run; made per checkpoint if the function asks."""

    def __init__(self, option: str | None, args: tuple[str, ...], seed: int, display: RunDisplay) -> None:
        self.option, self.args, self.seed, self.display = option, args, seed, display
        self.source: TaskSource | None = None

    @property
    def per_checkpoint(self) -> bool:
        """Whether the function has a parameter `checkpoint`, and so may make another network for each checkpoint."""
        return self.source is not None and self.source.per_checkpoint

    def __call__(self, checkpoint: Checkpoint) -> Task:
        if self.source is None:
            self.source = resolve(self.option, self.args, checkpoint, announce=self.display.chosen_code)
            self.display.say(f"spectra: {self.source.words}")
        return self.source.task(checkpoint, self.seed)

    def renamed(self, checkpoint: Checkpoint, model: nn.Module) -> Checkpoint:
        """The checkpoint with its tensors under the names of the task's model, where a package writes other ones."""
        return checkpoint if self.source is None else self.source.renamed(checkpoint, model)
