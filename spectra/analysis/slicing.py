"""slice_checkpoint: the loss of a checkpoint along directions, those to other checkpoints included."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from spectra.analysis.analysis_run import ChosenData, device_of
from spectra.analysis.analyze import place_of
from spectra.analysis.run import TaskMaker, under_names_of
from spectra.analysis.settings import RunSettings
from spectra.checkpoints.bounds import parse_size
from spectra.checkpoints.checkpoint import Checkpoint, load_checkpoint
from spectra.checkpoints.loading import Recipient
from spectra.errors import ArgumentError
from spectra.landscape.directions import NAMED, OtherWeights
from spectra.landscape.slices import SliceSettings, loss_slices
from spectra.results.slices import Slices
from spectra.runtime.memory import memory_limited
from spectra.runtime.phases import phase
from spectra.version import __version__


def slice_checkpoint(
    path: Path,
    make_task: TaskMaker,
    asked: RunSettings,
    along: Sequence[str],
    *,
    radius: float | None = None,
    points: int = 41,
) -> Slices:
    """The slices of a checkpoint, in each batch-norm mode of the settings.

    Args:
        path: the checkpoint.
        make_task: the task of a checkpoint; its model receives the weights.
        asked: the settings. Those of spectra (probes, steps, measures) have no effect.
        along: names of directions, or paths of other checkpoints.
        radius: the largest ``|t|``; None: chosen by the curvature.
        points: from -radius to radius.

    Raises:
        SpectraError: a direction is neither known nor a checkpoint, a checkpoint does not fit, or the loss at the
            parameters has no second derivative or is not finite.
    """
    settings = asked.analysis
    common = SliceSettings(
        radius,
        points,
        dtype=settings.dtype or "float64",
        params=settings.params,
        seed=settings.seed,
        product=settings.product,
        test_data=settings.test_data,
    )
    for name in along:
        if name not in NAMED and not Path(name).exists():
            raise ArgumentError(f"along={name!r}: {', '.join(NAMED)} or the path of a checkpoint is needed")
    with memory_limited(parse_size(settings.memory, "memory")):
        phase("reading")
        checkpoint = _read(path, asked)
        task = ChosenData(asked.data, with_test=settings.test_data).task(make_task(checkpoint))
        found = Recipient(asked.partial).load(under_names_of(make_task, checkpoint, task.model), task.model)
        targets = [name if name in NAMED else _other(Path(name), make_task, asked, task.model) for name in along]
        device = device_of(asked.device)
        if device is not None:
            task.model.to(device)
        slices = [
            each
            for mode in settings.bn_modes
            for each in loss_slices(task, targets, **asdict(common) | {"bn_mode": mode})
        ]
        survey, place = task.survey(), place_of(checkpoint)
    header = {
        "spectra": __version__,
        "checkpoint": str(path),
        "sha256": place.sha256,
        "epoch": place.epoch,
        "step": place.step,
        "task": task.name,
        "loss_words": task.describe(),
        "l2": task.l2,
        "n_samples": survey.num_samples,
        "data": survey.fingerprint,
        "dtype": common.dtype,
        "product": common.product,
        "params": common.params,
        "seed": common.seed,
    }
    return Slices(header, tuple(slices), (*place.notes, *found.notes))


def _read(path: Path, asked: RunSettings) -> Checkpoint:
    return load_checkpoint(path, unsafe=asked.unsafe, weights=asked.weights, max_size=parse_size(asked.max_size))


def _other(path: Path, make_task: TaskMaker, asked: RunSettings, model: nn.Module) -> OtherWeights:
    """The parameters of another checkpoint, read into a copy of the model."""
    checkpoint, other = _read(path, asked), copy.deepcopy(model)
    Recipient(asked.partial).load(under_names_of(make_task, checkpoint, other), other)
    note, buffers = "", dict(other.named_buffers())
    differ = [name for name, mine in model.named_buffers() if not torch.equal(mine.cpu(), buffers[name].cpu())]
    if differ:
        note = (
            f"buffers do not move: {len(differ)} of them ({differ[0]}, ...) differ at {path}, so the loss at t = 1 is "
            "not that of this checkpoint in eval mode"
        )
    return OtherWeights(str(path), dict(other.named_parameters()), note)
