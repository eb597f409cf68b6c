"""``spectra train``: training of the built-in networks by a recipe."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from spectra.errors import ArgumentError, TaskError
from spectra.zoo.data_sets import DATA_OPTIONS, DATA_SETS
from spectra.zoo.options import GENERAL, OF_AVERAGES, OF_SCHEDULES, OPTIMIZERS, Option, available
from spectra.zoo.recipes import PAPERS, completed, find_recipe
from spectra.zoo.tasks import BUILT_IN
from spectra.zoo.training import Epoch, TrainingListener, train
from spectra_cli.console import SafeConsole
from spectra_cli.layout import make_console, print_heading, print_line, print_pairs
from spectra_cli.outcome import terminated_as_interrupted
from spectra_cli.phase_clock import duration
from spectra_cli.user_code import Typed, settle

_WORDS = {  # of the options of networks and data
    "width": "channels of the first stage; of a Wide ResNet the widening factor",
    "depth": "layers with weights; of an MLP its hidden layers",
    "hidden": "units of each hidden layer",
    "widths": "units of each hidden layer, such as 512-128-512, in place of hidden and depth",
    "block": "of the residual units: bottleneck or basic",
    "bias": "in every convolution",
    "dropout": "probability; of All-CNN-C true or false",
    "third_convolution": "the first linear map is a convolution of 5 x 5",
    "linear_norm": "batch norm also after each hidden linear map",
    "validation": "the last so many training images are held back for validation",
    "label_noise": "fraction of the training labels with noise",
    "label_noise_kind": "shuffled: permuted among themselves; random: drawn uniformly",
    "label_noise_seed": "of the choice and the noise",
    "activation": "relu or tanh",
    "loss": "cross-entropy, or mse: squared error to one-hot vectors, mean over images and classes",
}


@click.command("train")
@click.argument("recipe", required=False)
@click.option(
    "--out", metavar="DIR", type=click.Path(path_type=Path, file_okay=False), help="Folder of the checkpoints."
)
@click.option("--data-dir", metavar="DIR", help="Folder with the files of the data set. Nothing is downloaded.")
@click.option("--epochs", type=int, help="Passes over the training images. Default: that of the recipe.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of weights, order, dropout and augmentation.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:1.")
@click.option("--every", type=int, default=1, show_default=True, help="Epochs from one checkpoint to the next.")
@click.option(
    "--set",
    "settings",
    metavar="KEY=VALUE",
    multiple=True,
    help="An option of the training or of the network, such as optimizer=adam or width=8; repeatable.",
)
@click.option("--force", is_flag=True, help="Train anew: the checkpoints in the folder are removed first.")
@click.option("--list", "listed", is_flag=True, help="Print the recipes, or the options of the given one.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def command(
    recipe: str | None,
    out: Path | None,
    data_dir: str | None,
    settings: Sequence[str],
    listed: bool,
    force: bool,
    quiet: bool,
    **given: Any,
) -> None:
    """Train a built-in network by a recipe, and save a checkpoint per epoch that spectra analyze can read.

    A recipe is a built-in task (digits-convnet, cifar10-wrn, ...), trained by SGD, or the setting of a paper
    (ff-cifar100-vgg16-gadam, ...). Every setting can be changed with --set. The first checkpoint is the untrained
    network.

    The same command continues a training that was interrupted, and ends with the checkpoints of an uninterrupted one,
    bit for bit on the same machine with the same number of threads.

    \b
      spectra train --list
      spectra train digits-convnet --out run
      spectra train mnist-lenet --data-dir MNIST/raw --out run --set label_noise=0.2
    """
    if listed:
        _list_recipes() if recipe is None else _list_options(recipe, settings)
        return
    if recipe is None:
        raise click.UsageError("which recipe? --list prints them", click.get_current_context())
    if out is None:
        raise click.UsageError("--out DIR is needed: the folder of the checkpoints", click.get_current_context())
    options = {**_parsed(recipe, settings), "seed": given.pop("seed")}
    epochs = given.pop("epochs")
    options |= {} if epochs is None else {"epochs": epochs}
    files = DATA_SETS[BUILT_IN[find_recipe(recipe).task].data].files
    if data_dir is not None:
        if not files:
            raise ArgumentError(f"--data-dir {data_dir}: {recipe} has its images from scikit-learn: leave it out")
        options["data"] = data_dir
    elif files:
        raise ArgumentError(f"{recipe} needs --data-dir DIR: {files}")
    with TrainingDisplay(quiet) as display, terminated_as_interrupted():
        try:
            paths = train(recipe, out, restart=force, listener=display, **given, **options)
        except KeyboardInterrupt:
            display.say(f"spectra: the checkpoints so far are in {out}; the same command continues (without --force)")
            raise
        count = f"{len(paths)} checkpoint{'s' * (len(paths) != 1)}"
        display.say(f"spectra: {count} in {out}; next: spectra analyze {out} --test-data")


class TrainingDisplay(TrainingListener):
    """A line per epoch with the time that is left; on a terminal also a bar."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        console = SafeConsole(stderr=True, soft_wrap=True, highlight=False)
        self.console = console
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self.row = self.bar.add_task("training", total=None, left="")
        self.started = time.perf_counter()
        self.first = self.step = self.steps = 0

    def __enter__(self) -> TrainingDisplay:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def say(self, words: str) -> None:
        """Print a line on standard error, above the bar."""
        if not self.quiet:
            self.console.print(words, markup=False)

    def begins(self, step: int, steps: int, path: Path | None) -> None:
        self.started, self.first, self.step, self.steps = time.perf_counter(), step, step, steps
        self.bar.update(self.row, total=float(steps), completed=float(step))
        if path is not None:
            self.say(
                f"spectra: continues from {path}" if step < steps else f"spectra: {path} is the last epoch already"
            )

    def stepped(self, step: int) -> None:
        self.step = step
        self.bar.update(self.row, completed=float(step), left=self._left())

    def epoch(self, epoch: Epoch) -> None:
        parts = [f"epoch {epoch.epoch}, step {epoch.step}: "]
        if epoch.loss is None or epoch.accuracy is None:
            parts.append("untrained")
        else:
            parts.append(f"loss {epoch.loss:.4f}, accuracy {epoch.accuracy:.4f}")
        if epoch.test_accuracy is not None:
            parts.append(f", test accuracy {epoch.test_accuracy:.4f}")
        left = self._left()
        name = "" if epoch.path is None else f"{epoch.path}  "
        self.say(name + "".join(parts) + (f"; {left}" if left else ""))

    def _left(self) -> str:
        done = self.step - self.first
        if done <= 0 or self.step >= self.steps:
            return ""
        return f"{duration((time.perf_counter() - self.started) / done * (self.steps - self.step))} left"


def _parsed(recipe: str, texts: Sequence[str]) -> dict[str, Any]:
    """``key=value`` texts as options; a text stays one where the option is a text."""
    found: dict[str, Any] = {}
    text_options = {name for name, option in _all_options(recipe).items() if isinstance(option.default, str)}
    for text in texts:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not key.isidentifier():
            raise TaskError(f"--set {text!r}: key=value is needed")
        if key in found:
            raise TaskError(f"--set {key} is given twice")
        if key in ("epochs", "seed", "data"):
            raise TaskError(f"--set {key}: use --{'data-dir' if key == 'data' else key}")
        found[key] = settle(Typed(value), as_text=key in text_options)
    return found


def _all_options(recipe: str) -> dict[str, Option]:
    """Every option of a recipe's task, and of training for any choice."""
    task = BUILT_IN[find_recipe(recipe).task]
    found = {name: Option(default, "") for name, default in task.all_options.items()}
    for table in (GENERAL, *OPTIMIZERS.values(), *OF_SCHEDULES.values(), OF_AVERAGES):
        found |= table
    return found


def _list_recipes() -> None:
    console = make_console()
    print_heading(console, "built-in tasks, each with SGD by default")
    print_pairs(
        console, [(name, f"{task.summary}{_shown({**task.options, **task.extras})}") for name, task in BUILT_IN.items()]
    )
    print_heading(console, "settings of papers")
    print_pairs(console, [(name, f"{recipe.words}{_shown(recipe.options)}") for name, recipe in PAPERS.items()])
    print_heading(console, "options of the networks")
    print_pairs(console, [(name, words) for name, words in _WORDS.items() if name not in DATA_OPTIONS])
    print_heading(console, "options of the training images and the loss of every recipe")
    print_pairs(console, [(f"{name}={value}", _WORDS[name]) for name, value in DATA_OPTIONS.items()])
    print_heading(console, "options of every training")
    _print_options(GENERAL)
    for title, table in (
        ("optimizer", OPTIMIZERS),
        ("schedule", OF_SCHEDULES),
        ("average", {"epoch or step": OF_AVERAGES}),
    ):
        for choice, options in table.items():
            if options:
                print_heading(console, f"with {title}={choice}")
                _print_options(options)
    console.print()
    print_line(console, "spectra train RECIPE --list prints the options of one recipe with their values")


def _print_options(options: Mapping[str, Option]) -> None:
    console = make_console()
    rows = []
    for name, option in options.items():
        choices = f": {', '.join(option.choices)}" if option.choices else ""
        rows.append((f"{name}={_word(option.default)}", option.words + choices))
    print_pairs(console, rows)


def _list_options(recipe: str, settings: Sequence[str]) -> None:
    given = _parsed(recipe, settings)
    if "data" in BUILT_IN[find_recipe(recipe).task].all_options:
        given["data"] = "DIR"
    task, _, training = completed(recipe, given)
    own = {**BUILT_IN[task].options, **BUILT_IN[task].extras, **DATA_OPTIONS}
    own |= {key: value for key, value in {**find_recipe(recipe).options, **given}.items() if key in own}
    words = {**_WORDS, **{key: option.words for key, option in available(training).items()}}
    console = make_console()
    print_heading(console, f"{recipe}: {BUILT_IN[task].summary}")
    print_pairs(console, [(f"{key}={_word(value)}", words[key]) for key, value in {**own, **training}.items()])


def _shown(options: Mapping[str, Any]) -> str:
    return f" ({', '.join(f'{key}={_word(value)}' for key, value in options.items())})" if options else ""


def _word(value: Any) -> str:
    """A value as ``--set`` takes it."""
    if isinstance(value, list):
        return "-".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
