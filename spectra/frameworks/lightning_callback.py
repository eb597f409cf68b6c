"""LightningCallback: a Tracker within the Trainer of PyTorch Lightning (``lightning`` or ``pytorch_lightning``)."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from spectra.frameworks.followed_training import FollowedTraining, imported, refuse_sharded, with_bases
from spectra.task.task import Task

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")
#: Strategies that distribute the weights.
_SHARDED = {"FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy"}


class LightningCallback:
    """Analyses the network during ``Trainer.fit`` of Lightning, into a results file: a :class:`Tracker` as a callback.

    The untrained network is analysed first, then the network at the end of every K-th epoch, and once more where the
    training ends. A record has the number of completed epochs, which is one more than Lightning's index of the last
    epoch, and the number of completed steps. Training continues bit for bit as without the callback.

    With several processes, the first one computes and the others wait: the timeout of their communication must be
    longer than an analysis. Strategies that distribute the weights (FSDP, DeepSpeed) are refused.

    Args:
        task: a :class:`Task` of the module that is trained or of a network in it; or a function of the module that
            returns one.
        data: batches ``(x, y)`` that do not shuffle, with ``criterion`` in place of a task: the task of the module
            itself, whose ``forward`` is called.
        criterion: ``criterion(output, target)``.
        every: the distance between two analyses, in epochs or steps.
        by: what ``every`` counts: ``"epoch"``, or ``"step"`` of the optimizer.
        out: the results file; an existing one is continued if it is of the same run.
        options: those of :class:`Tracker`, such as ``samples``, ``operators``, ``lanczos_steps``, ``strict``.

    Raises:
        ArgumentError: neither a task nor data and criterion, or a value outside its range.
        MissingDependency: Lightning is not installed.

    Example::

        callback = spectra.LightningCallback(data=batches, criterion=nn.CrossEntropyLoss(), every=5, out="run.h5")
        Trainer(max_epochs=100, callbacks=[callback]).fit(module, loader)
    """

    def __new__(cls, *_: Any, **__: Any) -> LightningCallback:
        """An instance that is also a ``Callback`` of the Lightning packages in use."""
        return object.__new__(with_bases(cls, *_bases()))

    def __init__(
        self,
        task: Task | Callable[[Any], Task] | None = None,
        *,
        data: Iterable[Any] | None = None,
        criterion: Callable[[Any, Any], Any] | None = None,
        every: int = 1,
        by: str = "epoch",
        out: str | Path = "run.h5",
        **options: Any,
    ) -> None:
        options["out"] = out
        self.followed = FollowedTraining(task, data=data, criterion=criterion, every=every, by=by, options=options)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Analyse the network before the first step; weights are on their device, and restored where fit resumes."""
        if _SHARDED & {kind.__name__ for kind in type(trainer.strategy).__mro__}:
            refuse_sharded(type(trainer.strategy).__name__)
        if trainer.is_global_zero:
            self.followed.begin(pl_module, float(trainer.current_epoch), trainer.global_step)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Analyse the network after a step of the optimizer, where steps are counted."""
        self.followed.reached(_epochs(trainer, batch_idx + 1), trainer.global_step, "step")

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Analyse the network after an epoch, where epochs are counted."""
        done = _epochs(trainer, trainer.fit_loop.batch_idx + 1)
        self.followed.reached(trainer.current_epoch + 1.0 if done is None else done, trainer.global_step, "epoch")

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Analyse the last state of the network, and close the file."""
        self.followed.end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Close the file: the training has ended with an error or an interrupt."""
        self.followed.close()


def _epochs(trainer: Any, batches: int) -> float | None:
    """The number of completed epochs, with the fraction of the present one; None: its length is not known."""
    of = float(trainer.num_training_batches)
    return trainer.current_epoch + batches / of if math.isfinite(of) and of > 0 else None


def _bases() -> list[type]:
    """The classes ``Callback`` of the Lightning packages that are imported; of the installed one if none is."""
    there = [name for name in _PACKAGES if name in sys.modules]
    if not there:
        there = ["lightning.pytorch" if importlib.util.find_spec("lightning") else "pytorch_lightning"]
    return [imported(name, "LightningCallback").Callback for name in there]
