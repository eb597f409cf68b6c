"""A task for a network of timm: ``timm:NAME`` with the weights of a checkpoint, the mean cross-entropy and images."""

from __future__ import annotations

from typing import Any

from torch import nn

from spectra.errors import DataError, MissingDependency, TaskError
from spectra.frameworks.data import as_pixels, class_labels, existing, normalised, pairs, read_images, whole_number
from spectra.task.task import Task
from spectra.task.user_errors import words_of


def timm_task(
    name: str, data: str, classes: int = 1000, channels: int = 3, batch_size: int = 32, test_data: str | None = None
) -> Task:
    """A classifier of images with the mean cross-entropy.

    Args:
        name: of the network, as ``timm.create_model`` knows it; nothing is fetched.
        data: an ``.npz`` file with ``images`` and ``labels``. Bytes are divided by 255 and normalised by the network's
            own mean and standard deviation; images of floating-point numbers are taken as they are.
        classes: outputs of the network.
        channels: of the images.
        batch_size: images per batch.
        test_data: as ``data``.

    Raises:
        MissingDependency: timm is not installed.
        TaskError: timm cannot make the network.
    """
    try:
        import timm  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise MissingDependency(
            f"timm:{name} needs timm, which cannot be imported ({error}): pip install timm"
        ) from error
    if ":" in name or "/" in name:
        raise TaskError(f"timm:{name}: the name of a network is needed, and nothing is fetched")
    size = whole_number("batch_size", batch_size, 1)
    shape = {"num_classes": whole_number("classes", classes, 1), "in_chans": whole_number("channels", channels, 1)}
    try:
        model: Any = timm.create_model(name, pretrained=False, **shape)
    except Exception as error:
        raise TaskError(f"timm:{name}: the network cannot be made: {words_of(error)}") from error

    def batches(file: str) -> list[Any]:
        path = existing(file)
        images, labels = read_images(path)
        pixels = as_pixels(images, channels, path)
        if not pixels.is_floating_point():
            says = getattr(model, "pretrained_cfg", None) or {}
            if not says.get("mean") or not says.get("std"):
                raise DataError(f"{path}: images of whole numbers, and timm has no mean and std for {name}")
            pixels = normalised(pixels, 1 / 255, says["mean"], says["std"])
        return pairs(pixels.float(), class_labels(labels, classes, path), size)

    test = None if test_data is None else batches(test_data)
    return Task(model, nn.CrossEntropyLoss(), batches(data), test_data=test)
