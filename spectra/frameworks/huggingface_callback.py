"""HuggingFaceCallback: a Tracker within the Trainer of transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from spectra.frameworks.followed_training import FollowedTraining, imported, refuse_sharded, with_bases
from spectra.task.task import Task

_WHOLE = 1e-6  # a fraction of an epoch this close to a whole number is one, whatever the rounding


class HuggingFaceCallback:
    """Analyses the network during ``Trainer.train`` of transformers, into a results file: a :class:`Tracker`.

    The untrained network is analysed first, then the network at the end of every K-th epoch or step, and once more
    where the training ends. A record has the number of completed epochs and steps. Training continues bit for bit as
    without the callback.

    With several processes, the first one computes and the others wait: the timeout of their communication must be
    longer than an analysis. FSDP and DeepSpeed, which distribute the weights, are refused.

    Args:
        task: a :class:`Task` of the model that is trained; or a function of the model that returns one.
        data: batches ``(x, y)`` that do not shuffle, with ``criterion`` in place of a task; a criterion of ``torch.nn``
            receives the ``logits`` of the model.
        criterion: ``criterion(output, target)``.
        every: the distance between two analyses, in epochs or steps.
        by: what ``every`` counts: ``"epoch"``, or ``"step"`` of the optimizer.
        out: the results file; an existing one is continued if it is of the same run.
        options: those of :class:`Tracker`, such as ``samples``, ``operators``, ``lanczos_steps``, ``strict``.

    Raises:
        ArgumentError: neither a task nor data and criterion, or a value outside its range.
        MissingDependency: transformers is not installed.

    Example::

        callback = spectra.HuggingFaceCallback(task, every=500, by="step", out="run.h5", samples=200)
        Trainer(model, arguments, train_dataset=data, callbacks=[callback]).train()
    """

    def __new__(cls, *_: Any, **__: Any) -> HuggingFaceCallback:
        """An instance that is also a ``TrainerCallback`` of transformers."""
        return object.__new__(with_bases(cls, imported("transformers", "HuggingFaceCallback").TrainerCallback))

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

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Analyse the network before the first step; its weights are restored where the training resumes."""
        for name in ("fsdp", "deepspeed"):
            if getattr(args, name, None):
                refuse_sharded(f"{name} in TrainingArguments")
        if state.is_world_process_zero:
            self.followed.begin(more["model"], _epochs(state), state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Analyse the network after a step of the optimizer, where steps are counted."""
        self.followed.reached(_epochs(state), state.global_step, "step")

    def on_epoch_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Analyse the network after an epoch, where epochs are counted."""
        self.followed.reached(_epochs(state), state.global_step, "epoch")

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Analyse the last state of the network, and close the file."""
        self.followed.end()


def _epochs(state: Any) -> float:
    """The number of completed epochs, with the fraction of the present one."""
    epoch = float(state.epoch or 0.0)
    return float(round(epoch)) if abs(epoch - round(epoch)) < _WHOLE else epoch
