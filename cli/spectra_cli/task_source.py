"""The choice of the task: by ``--task``, else by the entry of the checkpoint, else by ``spectra.toml``.

1. ``--task``: a built-in name, ``package.module:function`` or ``path/to/file.py:function``; or for checkpoints of other
   packages ``hf:causal-lm`` and the like, ``lightning:package.module:Class`` or ``timm:NAME``.
2. The checkpoint's own entry, written by ``spectra.save_checkpoint``. Only built-in names are honoured: a file that
   someone sends must not be able to name code to run.
3. ``spectra.toml`` in the working directory, or above it up to the root of its repository (the folder with ``.git``).
   The folder of the checkpoint is not searched, and a file of another user is refused. ``SPECTRA_TOML=off`` in the
   environment turns this off; ``SPECTRA_TOML=PATH`` names the file, whoever owns it.
"""

from __future__ import annotations

import os
import random
import textwrap
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from spectra.errors import SpectraError, TaskError, escaped
from spectra.zoo.tasks import BUILT_IN, all_names, build_task, list_tasks, task_options, tasks_by_data
from spectra_cli.framework_tasks import FRAMEWORK_NAMES, framework_of, framework_task
from spectra_cli.ownership import check_ownership
from spectra_cli.user_code import Typed, bind, call, import_file, import_module, settle

if TYPE_CHECKING:
    from spectra.checkpoints.checkpoint import Checkpoint
    from spectra.task.task import Task

VARIABLE = "SPECTRA_TOML"  # of the environment
#: Called with the path of ``spectra.toml``, the file or module that it names (None: none) and the function or task.
Announce = Callable[[str, str | None, str], None]

EXAMPLE = """\
# task.py
import spectra, torch
from my_training import MyModel, test_loader

def task():
    return spectra.Task(MyModel(), torch.nn.CrossEntropyLoss(), test_loader)"""


@dataclass(frozen=True)
class TaskSource:
    """The function that makes the chosen task, and how it was chosen."""

    name: str  # for records: a built-in name, or file.py:function
    words: str  # what is used and why, to print
    args: dict[str, Any]
    _make: Callable[[Checkpoint | None], Task] = field(repr=False)
    #: Of a checkpoint: checkpoints of equal keys share one task. None: all do.
    _key: Callable[[Checkpoint | None], Any] | None = field(default=None, repr=False)
    #: A checkpoint with its tensors under the names of the model.
    renamed: Callable[[Checkpoint, torch.nn.Module], Checkpoint] = field(default=lambda read, _: read, repr=False)
    _made: list[tuple[Any, Task]] = field(default_factory=list, repr=False)

    @property
    def per_checkpoint(self) -> bool:
        """Whether another checkpoint may have another task."""
        return self._key is not None

    def task(self, checkpoint: Checkpoint | None = None, seed: int = 0) -> Task:
        """The task, made once per process, or for each checkpoint if it depends on the checkpoint.

        The generators of Python, NumPy and torch are seeded first. The weights of the checkpoint are not loaded.

        Args:
            checkpoint: its metadata, a dictionary of plain values, is what a parameter ``checkpoint`` of a task
                function receives.
            seed: for the generators.

        Raises:
            TaskError: the function raises, or does not return a Task.
        """
        key = None if self._key is None else self._key(checkpoint)
        if self._made and self._made[0][0] == key:
            return self._made[0][1]
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 (the generator that the user's code may draw from)
        torch.manual_seed(seed)
        made = self._make(checkpoint)
        # Records name the task as it was asked for, so that a run is not continued with other arguments.
        named = replace(made, name=_with_args(made.name or self.name, self.args))
        self._made[:] = [(key, named)]
        return named


def resolve(
    task_option: str | None,
    task_args: Sequence[str] | Mapping[str, Any] = (),
    checkpoint: Checkpoint | None = None,
    cwd: str | Path | None = None,
    *,
    announce: Announce | None = None,
) -> TaskSource:
    """Find the task to analyse.

    Args:
        task_option: the value of ``--task``, if given.
        task_args: the values of ``--task-arg``: ``key=value`` texts, or a mapping. They take precedence over options
            from the checkpoint or ``spectra.toml``.
        checkpoint: whose entry may name a built-in task.
        cwd: where relative paths start and ``spectra.toml`` is looked for; the working directory by default.
        announce: called with the choice of ``spectra.toml``, before any of its code is run.

    Raises:
        TaskError: no task, or none that can be used; the message says why.
    """
    folder = Path(cwd) if cwd is not None else Path.cwd()
    given = dict(task_args) if isinstance(task_args, Mapping) else parse_task_args(task_args)
    if task_option is not None:
        return _named(task_option, given, folder, "by --task")
    refused = ""
    if checkpoint is not None and checkpoint.task is not None:
        if checkpoint.task in list_tasks():
            args = {**checkpoint.task_args, **given}
            try:
                return _named(checkpoint.task, args, folder, f"as {checkpoint.path} says of itself")
            except SpectraError as error:
                error.add_note(f"the options are those in {checkpoint.path}, and --task-arg goes before them")
                raise
        refused = (
            f"{checkpoint.path} names the task {checkpoint.task!r}, which is not built in and so is not used: "
            "a checkpoint cannot choose code to run"
        )
    if (toml := find_toml(folder)) is not None:
        spec, options = _read_toml(toml)
        if announce is not None:
            announce(str(toml), *_code(spec, toml.parent))
        return _named(spec, {**options, **given}, toml.parent, f"from {toml}" + (f"; {refused}" if refused else ""))
    raise NoTask(_no_task(escaped(refused)))


def parse_task_args(texts: Sequence[str]) -> dict[str, Typed]:
    """``key=value`` texts, as a dictionary; the values are converted later, when the parameter is known.

    Example:
        >>> parse_task_args(["width=8", "data=a=b"])
        {'width': Typed('8'), 'data': Typed('a=b')}
    """
    found: dict[str, Typed] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key.isidentifier():
            raise TaskError(f"--task-arg {text!r}: key=value is needed")
        if key in found:
            raise TaskError(f"--task-arg {key} is given twice")
        found[key] = Typed(value)
    return found


def find_toml(cwd: Path) -> Path | None:
    """``spectra.toml`` in a folder, or above it up to the root of its repository; outside of one only in the folder.

    Raises:
        TaskError: it is another user's, everybody may write it, or ``SPECTRA_TOML`` names no file.
    """
    if asked := os.environ.get(VARIABLE):
        if asked == "off":
            return None
        named = cwd.resolve() / Path(asked).expanduser()
        if not named.is_file():
            raise TaskError(f"{VARIABLE}={asked!r}: there is no such file; 'off', or the path of a file, is allowed")
        return Path(os.path.normpath(named))
    folders = [cwd.resolve(), *cwd.resolve().parents]
    root = next((index for index, folder in enumerate(folders) if (folder / ".git").exists()), 0)
    names = (folder / "spectra.toml" for folder in folders[: root + 1])
    found = next((name for name in names if name.is_file()), None)
    if found is not None:
        check_ownership(found)
    return found


def _read_toml(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise TaskError(f"{path}: cannot be read: {error}") from error
    if unknown := [key for key in content if key not in ("task", "task-args")]:
        raise TaskError(f'{path}: unknown key {unknown[0]!r}: it holds task = "file.py:function" and [task-args]')
    spec, options = content.get("task"), content.get("task-args", {})
    if not isinstance(spec, str):
        raise TaskError(f'{path}: task = "file.py:function" is needed')
    if not isinstance(options, dict):
        raise TaskError(f"{path}: [task-args] must be a table")
    return spec, options


def _code(spec: str, folder: Path) -> tuple[str | None, str]:
    """The file or module of a task, and its function; without a file or module it is a built-in task."""
    framework = framework_of(spec)
    if framework in ("hf", "timm"):
        return None, spec
    where, _, name = spec.removeprefix(f"{framework}:").rpartition(":")
    if where.endswith(".py"):
        return str((folder / Path(where).expanduser()).resolve()), name
    return where or None, name


def _named(spec: str, args: dict[str, Any], folder: Path, why: str) -> TaskSource:
    """The task that a name or ``where:function`` stands for; relative files start at ``folder``."""
    if (maker := framework_task(spec, args, folder)) is not None:
        words = f"task {_with_args(spec, maker.args)}, {why}"
        return TaskSource(spec, words, maker.args, maker.make, maker.key, maker.renamed)
    where, colon, function_name = spec.rpartition(":")
    if not colon:
        if spec not in list_tasks():
            if spec.endswith(".py"):
                raise TaskError(f"task {spec!r}: which function? write {spec}:FUNCTION")
            raise TaskError(
                f"no built-in task is called {spec!r}: there are {all_names()}; "
                "or name a function, as file.py:function or package.module:function; or, for checkpoints of other "
                f"packages, {FRAMEWORK_NAMES}"
            )
        texts = {key for key, default in BUILT_IN[spec].all_options.items() if not isinstance(default, int | float)}
        options = task_options(spec, **{key: settle(value, as_text=key in texts) for key, value in args.items()})
        words = f"task {_with_args(spec, options)}, {why}"
        return TaskSource(spec, words, options, lambda _: build_task(spec, **options))
    if not where or not function_name:
        raise TaskError(f"task {spec!r}: file.py:function, package.module:function or a built-in name is needed")
    if where.endswith(".py"):
        file = folder / Path(where).expanduser()
        function, home = import_file(file, function_name, spec), file.resolve().parent
    else:
        function, home = import_module(where, function_name, spec, folder), folder.resolve()
    args, per_checkpoint = bind(function, args, spec)

    def make(checkpoint: Checkpoint | None) -> Task:
        plain = {"checkpoint": dict(checkpoint.metadata) if checkpoint is not None else {}} if per_checkpoint else {}
        return call(function, {**args, **plain}, spec, home)

    new_each_time = (lambda _: object()) if per_checkpoint else None
    return TaskSource(spec, f"task {_with_args(spec, args)}, {why}", args, make, new_each_time)


def _with_args(name: str, args: Mapping[str, Any]) -> str:
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in args.items())})" if args else name


class NoTask(TaskError):
    """No task is given: the message shows the ways to give one, in several lines."""

    in_several_lines = True


def _no_task(refused: str) -> str:
    example = "\n".join(f"    {line}" for line in EXAMPLE.splitlines())
    built_in = "\n".join(
        textwrap.fill(", ".join(names), 120, initial_indent=" " * 7, subsequent_indent=" " * 9, break_on_hyphens=False)
        for names in tasks_by_data().values()
    )
    off = f"{VARIABLE}=off, so that no spectra.toml is looked for" if os.environ.get(VARIABLE) == "off" else ""
    why = "; ".join(words for words in (refused, off) if words) or "nothing says which model, loss and data"
    lead = f"no task to analyse: {why}."
    return f"""{lead} There are three ways:
  1. --task NAME, with NAME built in:
{built_in}
     or --task task.py:task, or --task package.module:function, where the function returns a spectra.Task:
{example}
     or {FRAMEWORK_NAMES}
  2. save the checkpoint of a built-in task with spectra.save_checkpoint(path, model, task=NAME)
  3. spectra.toml in the working directory or above it in the repository, with the line: task = "task.py:task\""""
