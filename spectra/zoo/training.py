"""Training of the built-in tasks by a recipe, with a checkpoint per epoch from which it continues.

The first checkpoint is the untrained network. The same seed, machine and number of threads give the same checkpoints,
also where the training was killed and continued. A user's own training script only needs ``spectra.save_checkpoint``.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spectra.checkpoints.checkpoint import save_checkpoint
from spectra.errors import ArgumentError, CheckpointError, NumericsError
from spectra.runtime.rng_state import random_state_kept
from spectra.zoo.data import ImageSet
from spectra.zoo.data_sets import read_images
from spectra.zoo.options import depends_on_epochs
from spectra.zoo.recipes import completed
from spectra.zoo.run_folder import RunFolder
from spectra.zoo.tasks import BUILT_IN, build_parts
from spectra.zoo.training_state import TrainingState, evaluated, split


@dataclass(frozen=True)
class Epoch:
    """An epoch of training; the untrained network is epoch 0, without ``loss`` and ``accuracy``."""

    path: Path | None  # of the checkpoint; None where none was written
    epoch: int
    step: int  # batches so far
    loss: float | None  # mean over the epoch's batches, each before its step
    accuracy: float | None
    learning_rate: float
    test_loss: float | None = None  # of the weights in the checkpoint, in eval mode
    test_accuracy: float | None = None


class TrainingListener:
    """Is told how far a training is. The methods do nothing; a display overrides those that it needs."""

    def begins(self, step: int, steps: int, path: Path | None) -> None:
        """Training begins at a step of so many, from the checkpoint that it continues, if it continues one."""

    def stepped(self, step: int) -> None:
        """So many batches are done."""

    def epoch(self, epoch: Epoch) -> None:
        """An epoch is done, and its checkpoint is written."""


@dataclass(frozen=True)
class _Images:
    """The images that a checkpoint's numbers are of."""

    train: ImageSet
    test: ImageSet
    validation: ImageSet | None

    def numbers(self, model: torch.nn.Module, device: torch.device) -> dict[str, float]:
        """``train_loss``, ``train_accuracy``, ``test_loss``, ... in eval mode."""
        found = {}
        for name, images in (("train", self.train), ("validation", self.validation), ("test", self.test)):
            if images is not None:
                found[f"{name}_loss"], found[f"{name}_accuracy"] = evaluated(model, images, device)
        return found


def train(
    recipe: str,
    out: str | Path,
    *,
    every: int = 1,
    device: str = "cpu",
    restart: bool = False,
    listener: TrainingListener | None = None,
    **options: Any,
) -> list[Path]:
    """Train by a recipe, and save ``epoch_000.pt``, ``epoch_001.pt``, ... as it goes.

    Each checkpoint holds the name and the options of its task, so that it can be analysed without naming one; epoch and
    step; loss and accuracy on the training, test and validation images; the state of the optimizer; and what else is
    needed to continue. A folder with checkpoints of the same recipe is continued.

    Args:
        recipe: a name of ``PAPERS`` or ``list_tasks()``.
        out: the folder of the checkpoints; created if absent, its parent is not.
        every: epochs from one checkpoint to the next; the last epoch always has one.
        device: "cpu", or "cuda", "cuda:1", ...
        restart: train anew; the checkpoints in the folder are removed.
        listener: is told how far the training is.
        options: of training (``epochs``, ``optimizer``, ``learning_rate``, ...; see ``training_options``) and of the
            task (``seed``, ``data``, ``width``, ``label_noise``, ...; see ``build_task``). ``seed`` is that of the
            initial weights, of the order of the images, of dropout and of augmentation.

    Returns:
        The paths of the checkpoints up to the last epoch, the untrained network first.

    Raises:
        TaskError: no such recipe or option.
        ArgumentError: an option of the wrong type or outside its range.
        DataError: the files are not where ``data`` says, or not what they should be.
        CheckpointError: the folder has checkpoints of another training, or cannot be written.
        NumericsError: the loss became NaN or infinite.
    """
    if every < 1:
        raise ArgumentError(f"every={every}: at least 1 is needed")
    if "data" in options:  # absolute, so that the checkpoints can be analysed from any folder
        options["data"] = os.path.abspath(os.path.expanduser(str(options["data"])))
    task, args, settings = completed(recipe, options)
    where = _device(device)
    model, batches = build_parts(task, **args)
    data = BUILT_IN[task].data
    images = _Images(
        batches.images,
        read_images(data, {**args, "split": "test"}),
        read_images(data, {**args, "split": "validation"}) if "validation" in args else None,
    )
    state = TrainingState(model, images.train, settings, args["seed"], where)
    return _Training(RunFolder(out), task, args, state, images).run(every, restart, listener or TrainingListener())


@dataclass(frozen=True)
class _Training:
    """A training and the folder of its checkpoints."""

    folder: RunFolder
    task: str
    args: dict[str, Any]
    state: TrainingState
    images: _Images

    @property
    def recipe(self) -> dict[str, Any]:
        """The options that the weights of an epoch depend on."""
        options = self.state.options
        return {k: v for k, v in options.items() if k != "epochs" or depends_on_epochs(options)}

    def run(self, every: int, restart: bool, listener: TrainingListener) -> list[Path]:
        state, epochs = self.state, self.state.options["epochs"]
        if restart:
            self.folder.clear()
        with random_state_kept():
            state.seed_generators()
            self._begin(listener, epochs)
            while state.done < epochs:
                loss, accuracy = state.train_epoch(listener.stepped)
                if not math.isfinite(loss):
                    rate = state.options["learning_rate"]
                    raise NumericsError(f"the loss became {loss} in epoch {state.done}: lower learning_rate={rate:g}")
                saved = state.done % every == 0 or state.done == epochs
                listener.epoch(self._save(loss, accuracy) if saved else self._epoch(None, loss, accuracy, {}))
        return [path for epoch, path in self.folder.found().items() if epoch <= epochs]

    def _begin(self, listener: TrainingListener, epochs: int) -> None:
        """Continue from the last checkpoint, or save the untrained network."""
        state = self.state
        steps = epochs * len(list(split(len(self.images.train), state.options["batch_size"])))
        content = self.folder.last(self.task, self.args, self.recipe)
        if content is None:
            listener.begins(0, steps, None)
            listener.epoch(self._save(None, None))
            return
        path = self.folder.path(int(content["epoch"]))
        try:
            state.restore(content)
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise CheckpointError(f"{path}: cannot be continued: {str(error).splitlines()[0]}") from error
        listener.begins(state.step, steps, path)

    def _save(self, loss: float | None, accuracy: float | None) -> Epoch:
        state, path = self.state, self.folder.path(self.state.done)
        model = state.final_model()
        numbers = self.images.numbers(model, state.device)
        save_checkpoint(
            path,
            model,
            self.task,
            self.args,
            state.done,
            state.step,
            loss=loss,
            accuracy=accuracy,
            learning_rate=state.learning_rate,
            recipe=self.recipe,
            **numbers,
            **state.content(),
        )
        return self._epoch(path, loss, accuracy, numbers)

    def _epoch(self, path: Path | None, loss: float | None, accuracy: float | None, numbers: dict[str, float]) -> Epoch:
        state, test = self.state, (numbers.get("test_loss"), numbers.get("test_accuracy"))
        return Epoch(path, state.done, state.step, loss, accuracy, state.learning_rate, *test)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ArgumentError(f"device={name!r}: cpu, cuda or cuda:1 is needed")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ArgumentError(f"device={name!r}: there is no such GPU here ({torch.cuda.device_count()} are available)")
    return device
