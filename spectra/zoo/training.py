"""A small training recipe for the built-in tasks: SGD with momentum, one checkpoint per epoch.

The first checkpoint is the untrained network. The same seed, machine and number of threads give the same checkpoints.
The recipe provides checkpoints for examples; a user's own training script only needs ``spectra.save_checkpoint``.

References:
    Granziol, "Flatness is a false friend", 2020 (the linear schedule, equation 12).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spectra.checkpoints.checkpoint import save_checkpoint
from spectra.errors import ArgumentError, NumericsError
from spectra.runtime.rng_state import random_state_kept
from spectra.zoo.data import ImageSet
from spectra.zoo.tasks import build_parts, task_options

SCHEDULES = ("constant", "linear")
FINAL_FRACTION = 0.01  # of the learning rate, what the linear schedule ends at


@dataclass(frozen=True)
class Epoch:
    """A saved checkpoint: the mean training loss and accuracy over its epoch (None for the untrained network)."""

    path: Path
    epoch: int
    step: int
    loss: float | None
    accuracy: float | None


def train(
    task: str,
    out: str | Path,
    *,
    epochs: int = 6,
    learning_rate: float = 0.05,
    schedule: str = "constant",
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    batch_size: int = 64,
    seed: int = 0,
    on_epoch: Callable[[Epoch], None] | None = None,
    **options: Any,
) -> list[Path]:
    """Train a built-in task, and save ``epoch_000.pt``, ``epoch_001.pt``, ... as it goes.

    Each checkpoint holds the name and the options of its task, so that it can be analysed without naming one.

    Args:
        task: a name of ``list_tasks()``.
        out: the folder of the checkpoints; created if absent, its parent is not.
        epochs: passes over the training images.
        learning_rate: at the start.
        schedule: "constant", or "linear": constant over the first half, then down to a hundredth, then constant again;
            see ``scheduled_rate``.
        momentum: of SGD.
        weight_decay: of SGD: the loss then has ``(weight_decay / 2) |theta|^2``; analyse it with ``l2=weight_decay``.
        batch_size: of the training steps.
        seed: of the initial weights, of the order of the images and of dropout.
        on_epoch: called after each checkpoint is saved.
        options: of the task (``data``, ``width``, ...), as ``build_task`` takes them.

    Returns:
        The paths of the checkpoints, the untrained network first.

    Raises:
        ArgumentError: an argument outside its range.
        NumericsError: the loss became NaN or infinite.
    """
    _check(epochs, learning_rate, schedule, momentum, weight_decay, batch_size)
    if "data" in options:  # absolute, so that the checkpoints can be analysed from any folder
        options["data"] = os.path.abspath(os.path.expanduser(str(options["data"])))
    options = task_options(task, **{**options, "seed": seed})
    model, data = build_parts(task, **options)
    folder = Path(out)
    folder.mkdir(exist_ok=True)

    paths: list[Path] = []
    per_epoch = len(list(_split(len(data.images), batch_size)))

    def save(epoch: int, loss: float | None, accuracy: float | None) -> None:
        path = folder / f"epoch_{epoch:03d}.pt"
        step = epoch * per_epoch
        save_checkpoint(path, model, task, options, epoch, step, loss=loss, accuracy=accuracy, recipe=recipe)
        paths.append(path)
        if on_epoch is not None:
            on_epoch(Epoch(path, epoch, step, loss, accuracy))

    recipe = {
        "optimizer": "SGD",
        "learning_rate": learning_rate,
        "schedule": schedule,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "batch_size": batch_size,
    }
    save(0, None, None)
    optimizer = torch.optim.SGD(model.parameters(), learning_rate, momentum=momentum, weight_decay=weight_decay)
    order = torch.Generator().manual_seed(seed)
    with random_state_kept():
        torch.default_generator.manual_seed(seed)  # what dropout draws from
        for epoch in range(1, epochs + 1):
            for group in optimizer.param_groups:
                group["lr"] = scheduled_rate(learning_rate, epoch - 1, epochs, schedule)
            loss, accuracy = _train_epoch(model, data.images, optimizer, order, batch_size)
            if not math.isfinite(loss):
                raise NumericsError(f"the loss became {loss} in epoch {epoch}: lower learning_rate={learning_rate:g}")
            save(epoch, loss, accuracy)
    return paths


def scheduled_rate(learning_rate: float, done: int, epochs: int, schedule: str = "linear") -> float:
    """The learning rate of the epoch that follows the first ``done`` of ``epochs``.

    With ``x = done / epochs``, ``a`` the learning rate and ``r = 0.01``, the linear schedule is ``a`` for x <= 0.5,
    ``a (1 - (1 - r) (x - 0.5) / 0.4)`` for 0.5 < x <= 0.9, and ``a r`` after that.

    References:
        Granziol, "Flatness is a false friend", 2020, equation 12.

    Example:
        >>> [round(scheduled_rate(0.1, done, 300), 6) for done in (0, 150, 210, 270, 299)]
        [0.1, 0.1, 0.0505, 0.001, 0.001]
    """
    if schedule == "constant" or 2 * done <= epochs:
        return learning_rate
    if 10 * done > 9 * epochs:
        return learning_rate * FINAL_FRACTION
    return learning_rate * (1 - (1 - FINAL_FRACTION) * (done / epochs - 0.5) / 0.4)


def _train_epoch(
    model: nn.Module, images: ImageSet, optimizer: torch.optim.Optimizer, order: torch.Generator, batch_size: int
) -> tuple[float, float]:
    """One pass over the images in a random order; the mean loss and accuracy on the way."""
    model.train()
    total, correct = 0.0, 0
    rows = torch.randperm(len(images), generator=order)
    for part in _split(len(images), batch_size):
        x, y = images.batch(rows[part])
        optimizer.zero_grad()
        output = model(x)
        loss = nn.functional.cross_entropy(output, y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += float(loss.detach()) * len(y)
        correct += int((output.argmax(1) == y).sum())
    return total / len(images), correct / len(images)


def _split(rows: int, batch_size: int) -> Iterator[slice]:
    """Slices of ``batch_size`` rows; a last one of a single row joins the one before it, for batch norm's sake."""
    start = 0
    while start < rows:
        stop = start + batch_size
        if stop + 1 >= rows:
            stop = rows
        yield slice(start, stop)
        start = stop


def _check(
    epochs: int, learning_rate: float, schedule: str, momentum: float, weight_decay: float, batch_size: int
) -> None:
    if epochs < 0:
        raise ArgumentError(f"epochs={epochs}: at least 0 is needed")
    if batch_size < 1:
        raise ArgumentError(f"batch_size={batch_size}: at least 1 is needed")
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise ArgumentError(f"learning_rate={learning_rate}: a positive number is needed")
    if schedule not in SCHEDULES:
        raise ArgumentError(f"schedule={schedule!r}: one of {', '.join(SCHEDULES)} is needed")
    if not 0 <= momentum < 1:
        raise ArgumentError(f"momentum={momentum}: at least 0 and below 1 is needed")
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise ArgumentError(f"weight_decay={weight_decay}: at least 0 is needed")
