"""FollowedTraining: when the callback of a trainer analyses the network. Both callbacks delegate to it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import Any

from torch import distributed, nn

from spectra.analysis.tracker import Tracker
from spectra.errors import ArgumentError, MissingDependency, TaskError
from spectra.task.task import Task

UNITS = ("epoch", "step")


class FollowedTraining:
    """Makes a :class:`Tracker` where a training begins, calls it where an analysis is due, and closes it at the end.

    Args:
        task: a task of the network that is trained, or a function of that network that returns one; or None with
            ``data`` and ``criterion``, which are a task together with the network.
        data: batches ``(x, y)``, as of :class:`Task`.
        criterion: as of :class:`Task`.
        every: the distance between two analyses, in epochs or steps.
        by: ``"epoch"`` or ``"step"``, of the optimizer: what ``every`` counts.
        options: those of :class:`Tracker`.
    """

    def __init__(
        self,
        task: Task | Callable[[Any], Task] | None,
        *,
        data: Iterable[Any] | None,
        criterion: Callable[[Any, Any], Any] | None,
        every: int,
        by: str,
        options: dict[str, Any],
    ) -> None:
        if (task is None) != (data is not None and criterion is not None) or (task is not None and data is not None):
            raise ArgumentError("give a task, or data= and criterion= in its place")
        if by not in UNITS:
            raise ArgumentError(f"by={by!r}: 'epoch' or 'step' is needed")
        if every < 1:
            raise ArgumentError(f"every={every}: at least 1 is needed; 1 is each {by}")
        self.task, self.data, self.criterion = task, data, criterion
        self.every, self.by, self.options = every, by, options
        self.tracker: Tracker | None = None
        self._now: tuple[float | None, int] = (None, 0)  # epochs and steps that are completed
        self._analysed: int | None = None  # the step of the last analysis

    def begin(self, model: nn.Module, epoch: float | None, step: int) -> None:
        """Open the results file, and analyse the network as it is before the first step.

        Args:
            model: the network that is trained.
            epoch: the number of completed epochs; None: not known.
            step: the number of completed steps of the optimizer.

        Raises:
            ArgumentError: the task is not one of the network that is trained.
            TaskError: batch norm would wait for other processes.
            Exception: an error of the first analysis, as :class:`Tracker` raises it.
        """
        self.close()
        self._analysed = None
        self.tracker = Tracker(self._task_of(model), **self.options)
        try:
            if self.tracker.settings.bn_modes != ("eval",) and _waits_for_others(self.tracker.task.model):
                raise TaskError(
                    "synchronised batch norm in train mode waits for the other processes, which do not take part in an "
                    "analysis: use bn_modes='eval', or save checkpoints and analyse them with spectra watch"
                )
            self.reached(epoch, step, self.by)
        except BaseException:
            self.close()
            raise

    def reached(self, epoch: float | None, step: int, unit: str) -> None:
        """Training has completed an epoch or a step: analyse the network if that is due."""
        self._now = epoch, step
        at = step if unit == "step" else epoch
        if unit == self.by and at is not None and at % self.every == 0:
            self._analyze()

    def end(self) -> None:
        """Analyse the network at the end of training, if its last state has not been, and close the file."""
        try:
            self._analyze()
        finally:
            self.close()

    def close(self) -> None:
        """Close the file, if it is open."""
        if self.tracker is not None:
            self.tracker.close()
        self.tracker = None

    def _analyze(self) -> None:
        epoch, step = self._now
        if self.tracker is not None and step != self._analysed:
            self._analysed = step
            self.tracker(epoch=epoch, step=step, now=True)

    def _task_of(self, model: nn.Module) -> Task:
        if isinstance(self.task, Task):
            task = self.task
        elif self.task is not None:
            task = self.task(model)
        else:
            assert self.data is not None
            task = Task(model, self.criterion, self.data)
        if not isinstance(task, Task):
            raise ArgumentError(f"task returns a {type(task).__name__}: a spectra.Task is needed")
        trained = {id(parameter) for parameter in model.parameters()}
        if not any(id(parameter) in trained for parameter in task.model.parameters()):
            raise ArgumentError(
                "the task's model shares no parameter with the network that is trained: make the task of that network, "
                "not of a copy, or give a function of the network that returns the task"
            )
        return task


def _waits_for_others(model: nn.Module) -> bool:
    several = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
    return several and any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())


def refuse_sharded(what: str) -> None:
    """Raise the error for a training whose weights are distributed over processes."""
    raise TaskError(
        f"{what} distributes the weights over processes, and an analysis needs them all in one: save checkpoints and "
        "analyse them with spectra watch"
    )


def with_bases(cls: type, *bases: type) -> type:
    """The class with these classes of a trainer's package as further bases. Instances are pickled as of ``cls``."""
    if issubclass(cls, bases):
        return cls
    own = {"__module__": cls.__module__, "__doc__": cls.__doc__}
    return type(cls.__name__, (cls, *bases), own | {"__reduce__": lambda self: (cls.__new__, (cls,), vars(self))})


def imported(name: str, user: str) -> Any:
    """A trainer's package.

    Raises:
        MissingDependency: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingDependency(
            f"{user} needs {name}, which cannot be imported ({error}): pip install {name.partition('.')[0]}"
        ) from error
