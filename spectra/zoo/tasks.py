"""The built-in tasks, by name: a network, its data and the cross-entropy, with a few typed options.

A checkpoint may name only these tasks: it can select one of them, and never name code to run.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from spectra.errors import ArgumentError, TaskError
from spectra.task.task import Task
from spectra.zoo.data import (
    ImageBatches,
    ImageSet,
    load_cifar10,
    load_cifar100,
    load_digits,
    load_fashion_mnist,
    load_mnist,
)
from spectra.zoo.networks.building import seeded
from spectra.zoo.networks.residual import preresnet, wide_resnet
from spectra.zoo.networks.small import convnet, lenet, logistic_regression, mlp
from spectra.zoo.networks.vgg import vgg

_COMMON: dict[str, Any] = {"split": "train", "batch_size": 256, "seed": 0}


@dataclass(frozen=True)
class DataSet:
    """A data set: its reader, the shape of its images, and what the option ``data`` must name ("": nothing)."""

    title: str
    load: Callable[..., ImageSet]
    channels: int
    side: int
    classes: int
    files: str

    @property
    def shape(self) -> dict[str, Any]:
        """The shape as keyword arguments of networks that take images."""
        return {"channels": self.channels, "side": self.side, "classes": self.classes}

    @property
    def colours(self) -> dict[str, Any]:
        """The same without the side length, for networks that accept any, or only one."""
        return {"channels": self.channels, "classes": self.classes}

    @property
    def flat(self) -> dict[str, Any]:
        """The shape as keyword arguments of networks that take vectors."""
        return {"inputs": self.channels * self.side**2, "classes": self.classes}


_IDX = "the folder of {}'s IDX files (train-images-idx3-ubyte.gz, ...) or an .npz file"
DATA_SETS: dict[str, DataSet] = {
    "digits": DataSet("8 x 8 digits", load_digits, 1, 8, 10, ""),
    "mnist": DataSet("MNIST", load_mnist, 1, 28, 10, _IDX.format("MNIST")),
    "fashion": DataSet("Fashion-MNIST", load_fashion_mnist, 1, 28, 10, _IDX.format("Fashion-MNIST")),
    "cifar10": DataSet(
        "CIFAR-10",
        load_cifar10,
        *(3, 32, 10),
        "the folder of CIFAR-10's binary batches (data_batch_1.bin, ...) or an .npz file",
    ),
    "cifar100": DataSet(
        "CIFAR-100",
        load_cifar100,
        *(3, 32, 100),
        "the folder of CIFAR-100's binary version (train.bin, test.bin) or an .npz file",
    ),
}


@dataclass(frozen=True)
class BuiltIn:
    """A built-in task: what it is, its network, and the options of that network with their defaults."""

    summary: str
    data: str  # a key of DATA_SETS
    network: Callable[..., nn.Module]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def defaults(self) -> dict[str, Any]:
        """Every option with its default; ``data=None`` must be given."""
        return {**({"data": None} if DATA_SETS[self.data].files else {}), **_COMMON, **self.options}


_Network = tuple[str, Callable[..., nn.Module], dict[str, Any]]  # words, what builds it, its options


def _tasks_on(data: str) -> dict[str, BuiltIn]:
    """The tasks on a data set: the small networks on the small images, the papers' large ones on CIFAR."""
    on = DATA_SETS[data]
    flat, image, colours = on.flat, on.shape, on.colours
    logistic: _Network = ("logistic regression", partial(logistic_regression, **flat), {})
    lenets: dict[str, _Network] = {
        "lenet": ("LeNet", partial(lenet, **image), {}),
        "lenet-bn": ("LeNet with batch norm", partial(lenet, **image, batch_norm=True), {}),
    }
    networks: dict[str, _Network]
    if data == "digits":
        networks = {
            "convnet": ("convolutions with batch norm", partial(convnet, **image), {"width": 16}),
            "mlp": ("one hidden layer", partial(mlp, **flat), {"hidden": 32}),
            "logistic": logistic,
        }
    elif on.channels == 1:
        networks = {**lenets, "mlp": ("one hidden layer", partial(mlp, **flat), {"hidden": 100}), "logistic": logistic}
    else:
        wide = {"width": 64}
        networks = {
            **lenets,
            "vgg11-bn": ("VGG-11 with batch norm", partial(vgg, 11, batch_norm=True, **colours), wide),
            "vgg16": ("VGG-16", partial(vgg, 16, **colours), wide),
            "vgg16-bn": ("VGG-16 with batch norm", partial(vgg, 16, batch_norm=True, **colours), wide),
            "preresnet": (
                "PreResNet",
                partial(preresnet, **colours),
                {"depth": 164, "block": "bottleneck", "width": 16},
            ),
            "wrn": ("Wide ResNet", partial(wide_resnet, **colours), {"depth": 28, "width": 10}),
        }
    return {
        f"{data}-{name}": BuiltIn(f"{words} on {on.title}", data, build, options)
        for name, (words, build, options) in networks.items()
    }


BUILT_IN: dict[str, BuiltIn] = {name: task for data in DATA_SETS for name, task in _tasks_on(data).items()}


def list_tasks() -> dict[str, str]:
    """The names of the built-in tasks, each with one line that says what it is, data set by data set."""
    return {name: task.summary for name, task in BUILT_IN.items()}


def tasks_by_data() -> dict[str, list[str]]:
    """The names of the built-in tasks on each data set."""
    return {data: [name for name, task in BUILT_IN.items() if task.data == data] for data in DATA_SETS}


def all_names() -> str:
    """The names of the built-in tasks in one line for error messages, grouped by data set.

    Example:
        >>> all_names().split("; ")[0]
        'digits-convnet, -mlp, -logistic'
    """
    return "; ".join(
        ", ".join([names[0], *(name.removeprefix(data) for name in names[1:])])
        for data, names in tasks_by_data().items()
    )


def task_options(name: str, /, **given: Any) -> dict[str, Any]:
    """Every option of a built-in task, checked, with the defaults of those that are not given.

    Raises:
        TaskError: no such task, or no such option.
        ArgumentError: an option of the wrong type, or missing.
    """
    if name not in BUILT_IN:
        close = difflib.get_close_matches(name, BUILT_IN, 1)
        suggestion = f"did you mean {close[0]}? " if close else ""
        raise TaskError(f"no built-in task is called {name!r}: {suggestion}there are {all_names()}")
    defaults = BUILT_IN[name].defaults
    if unknown := [option for option in given if option not in defaults]:
        raise TaskError(f"{name} has no option {unknown[0]!r}: it takes {', '.join(defaults)}")
    options = {**defaults, **given}
    for option, value in options.items():
        kind = str if option == "data" else type(defaults[option])
        if option == "data" and value is None:
            raise ArgumentError(f"{name} needs data=PATH: {DATA_SETS[BUILT_IN[name].data].files}")
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ArgumentError(f"{option}={value!r}: {name} needs {'a text' if kind is str else 'an integer'} here")
    if not 0 <= options["seed"] < 2**64:
        raise ArgumentError(f"seed={options['seed']}: 0 to 2**64 - 1 is needed")
    return options


def build_parts(name: str, /, **given: Any) -> tuple[nn.Module, ImageBatches]:
    """The network, initialised from its seed, and the data of a built-in task."""
    options = task_options(name, **given)
    built_in = BUILT_IN[name]
    network = partial(built_in.network, **{option: options[option] for option in built_in.options})
    return seeded(network, options["seed"]), _batches(name, options)


def _batches(name: str, options: Mapping[str, Any]) -> ImageBatches:
    where = [options["data"]] if "data" in options else []
    return ImageBatches(DATA_SETS[BUILT_IN[name].data].load(*where, options["split"]), options["batch_size"])


class HeldOutBatches:
    """The batches of a built-in task's test split, read from its files when they are first asked for."""

    def __init__(self, name: str, given: Mapping[str, Any]) -> None:
        self.name, self.options = name, task_options(name, **{**given, "split": "test"})
        self._batches: ImageBatches | None = None

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        if self._batches is None:
            self._batches = _batches(self.name, self.options)
        return iter(self._batches)


def build_task(name: str, /, **given: Any) -> Task:
    """A built-in task: its network, initialised from ``seed``, its data, and the mean cross-entropy.

    With ``split="train"`` its test data are the test split, read only when they are asked for.

    Args:
        name: one of ``list_tasks()``.
        given: options: ``data`` (a path; not for digits), ``split`` ("train" or "test"), ``batch_size``, ``seed``,
            and those of the network (``width``, ``hidden``, ``depth``, ``block``).

    Raises:
        TaskError: no such task or option.
        ArgumentError: an option of the wrong type or outside its range.
        DataError: the files are not where ``data`` says, or not what they should be.

    Example:
        >>> task = build_task("digits-logistic", split="test")
        >>> sum(len(y) for _, y in task.data)
        359
    """
    model, data = build_parts(name, **given)
    test = HeldOutBatches(name, given) if task_options(name, **given)["split"] == "train" else None
    return Task(model, nn.CrossEntropyLoss(), data, name=name, test_data=test)
