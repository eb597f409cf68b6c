"""``--task hf:...``, ``lightning:module:Class`` and ``timm:NAME``: tasks made from what lies beside the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from spectra.errors import TaskError
from spectra.frameworks import huggingface, lightning
from spectra.frameworks.pretrained import renamed
from spectra.frameworks.timm import timm_task
from spectra_cli.user_code import bind, call, import_file, import_module, settle

if TYPE_CHECKING:
    from spectra.checkpoints.checkpoint import Checkpoint
    from spectra.task.task import Task

FRAMEWORK_NAMES = ", ".join([*huggingface.TASKS, "lightning:module:Class", "timm:NAME"])


@dataclass(frozen=True)
class FrameworkTask:
    """How the task of a checkpoint is made."""

    args: dict[str, Any]
    make: Callable[[Checkpoint | None], Task]
    key: Callable[[Checkpoint | None], Any] | None = None  # checkpoints of equal keys share one task; None: all do
    renamed: Callable[[Checkpoint, nn.Module], Checkpoint] = lambda read, _: read


def framework_of(spec: str) -> str | None:
    """``"hf"``, ``"lightning"`` or ``"timm"``; None for the name of a function or a built-in task.

    A function in a module of the user's that is called ``hf`` or ``lightning`` is one of the latter.

    >>> [framework_of(spec) for spec in ("hf:causal-lm", "hf:task", "lightning:net:Net", "lightning:task")]
    ['hf', None, 'lightning', None]
    """
    name, _, rest = spec.partition(":")
    if (name == "hf" and not rest.isidentifier()) or name == "timm" or (name == "lightning" and ":" in rest):
        return name
    return None


def framework_task(spec: str, args: Mapping[str, Any], folder: Path) -> FrameworkTask | None:
    """The task that ``--task`` names, or None if it is not one of a framework's.

    Args:
        spec: the value of ``--task``.
        args: of ``--task-arg``.
        folder: where relative files of the user's code start.

    Raises:
        TaskError: no such task, an argument that it does not take, or no such class.
    """
    framework = framework_of(spec)
    if framework == "hf":
        if spec not in huggingface.TASKS:
            raise TaskError(f"no task is called {spec!r}: there are {', '.join(huggingface.TASKS)}")
        function = huggingface.TASKS[spec]
        bound, _ = bind(function, args, spec)

        def make(checkpoint: Checkpoint | None) -> Task:
            return function(_given(checkpoint, spec), **bound)

        return FrameworkTask(bound, make, lambda c: huggingface.identity_of(_given(c, spec)), renamed)
    if framework == "timm":
        name = spec.partition(":")[2]
        build = partial(timm_task, name)
        bound, _ = bind(build, args, spec)
        return FrameworkTask(bound, lambda _: build(**bound))
    return _lightning(spec, args, folder) if framework == "lightning" else None


def _lightning(spec: str, args: Mapping[str, Any], folder: Path) -> FrameworkTask:
    module, home = _imported(spec.partition(":")[2], spec, folder)
    given = {name: settle(value, as_text=name in ("datamodule", "weight")) for name, value in args.items()}
    rest = dict(given)
    roles = [role for role in ("datamodule", "weight") if role in given]
    named: dict[str, Any] = {role: _imported(str(rest.pop(role)), spec, folder)[0] for role in roles}

    def make(checkpoint: Checkpoint | None) -> Task:
        whole: dict[str, Any] = {"module": module, "checkpoint": _given(checkpoint, spec), "given": rest, **named}
        return call(lightning.lightning_task, whole, spec, home)

    return FrameworkTask(given, make, lambda checkpoint: lightning.identity_of(_given(checkpoint, spec)))


def _imported(where: str, spec: str, folder: Path) -> tuple[Callable[..., Any], Path]:
    """A class or function of the user's, as ``module:name`` or ``file.py:name``, and the folder of its code."""
    place, _, name = where.rpartition(":")
    if not place or not name:
        raise TaskError(f"task {spec}: {where!r}: file.py:name or package.module:name is needed")
    if place.endswith(".py"):
        file = folder / Path(place).expanduser()
        return import_file(file, name, spec), file.resolve().parent
    return import_module(place, name, spec, folder), folder.resolve()


def _given(checkpoint: Checkpoint | None, spec: str) -> Checkpoint:
    if checkpoint is None:
        raise TaskError(f"task {spec}: it is made from a checkpoint, and there is none")
    return checkpoint
