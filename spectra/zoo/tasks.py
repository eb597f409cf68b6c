"""The built-in tasks, by name: a network, its data and the cross-entropy, with a few typed options.

A checkpoint may name only these tasks: it can select one of them, and never name code to run.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from spectra.errors import ArgumentError, TaskError
from spectra.task.task import Task
from spectra.zoo.data import ImageBatches
from spectra.zoo.data_sets import DATA_OPTIONS, DATA_SETS, read_images
from spectra.zoo.networks.allcnn import all_cnn
from spectra.zoo.networks.building import seeded
from spectra.zoo.networks.residual import preresnet, wide_resnet
from spectra.zoo.networks.small import convnet, lenet, logistic_regression, mlp
from spectra.zoo.networks.vgg import vgg

_COMMON: dict[str, Any] = {"split": "train", "batch_size": 256, "seed": 0}


@dataclass(frozen=True)
class BuiltIn:
    """A built-in task: what it is, its network, and the options of that network with their defaults.

    A task's entry in a checkpoint, and its name in results, have ``extras`` only where they differ from the defaults.
    """

    summary: str
    data: str  # a key of DATA_SETS
    network: Callable[..., nn.Module]
    options: Mapping[str, Any] = field(default_factory=dict)
    extras: Mapping[str, Any] = field(default_factory=dict)  # further options of the network

    @property
    def defaults(self) -> dict[str, Any]:
        """The options that are always written, with their defaults; ``data=None`` must be given."""
        return {**({"data": None} if DATA_SETS[self.data].files else {}), **_COMMON, **self.options}

    @property
    def all_options(self) -> dict[str, Any]:
        """Every option with its default."""
        return {**self.defaults, **self.extras, **DATA_OPTIONS}


# Words, what builds it, its options, and its extras.
_Network = tuple[str, Callable[..., nn.Module], dict[str, Any], dict[str, Any]]
_DROPOUT = {"dropout": 0.0}
_LENET = {"third_convolution": False, **_DROPOUT}


def _tasks_on(data: str) -> dict[str, BuiltIn]:
    """The tasks on a data set: the small networks on the small images, the papers' large ones on CIFAR."""
    on = DATA_SETS[data]
    flat, image, colours = on.flat, on.shape, on.colours
    logistic: _Network = ("logistic regression", partial(logistic_regression, **flat), {}, {})
    perceptron: _Network = (
        "one hidden layer, or several",
        partial(mlp, **flat),
        {"hidden": 32 if data == "digits" else 100},
        {"depth": 1, "widths": "", "activation": "relu", **_DROPOUT},
    )
    wrn: _Network = (
        "Wide ResNet",
        partial(wide_resnet, **colours),
        {"depth": 28, "width": 10},
        {"bias": False, **_DROPOUT},
    )
    lenets: dict[str, _Network] = {
        "lenet": ("LeNet", partial(lenet, **image), {}, _LENET),
        "lenet-bn": (
            "LeNet with batch norm",
            partial(lenet, **image, batch_norm=True),
            {},
            {"linear_norm": False, **_LENET},
        ),
    }
    if data == "digits":
        networks: dict[str, _Network] = {
            "convnet": ("convolutions with batch norm", partial(convnet, **image), {"width": 16}, {}),
            "mlp": perceptron,
            "logistic": logistic,
        }
    elif on.channels == 1:
        networks = {**lenets, "mlp": perceptron, "logistic": logistic, "wrn": wrn}
    else:
        networks = {**lenets, **_large(colours), "wrn": wrn, "mlp": perceptron}
    return {
        f"{data}-{name}": BuiltIn(f"{words} on {on.title}", data, build, options, extras)
        for name, (words, build, options, extras) in networks.items()
    }


def _large(colours: Mapping[str, Any]) -> dict[str, _Network]:
    """The papers' networks for images of 32 x 32."""
    wide, dropout = {"width": 64}, {"dropout": 0.5}
    return {
        "vgg11-bn": ("VGG-11 with batch norm", partial(vgg, 11, batch_norm=True, **colours), wide, dropout),
        "vgg16": ("VGG-16", partial(vgg, 16, **colours), wide, dropout),
        "vgg16-bn": ("VGG-16 with batch norm", partial(vgg, 16, batch_norm=True, **colours), wide, dropout),
        "allcnn": ("All-CNN-C", partial(all_cnn, **colours), {"width": 96}, {"dropout": True}),
        "preresnet": (
            "PreResNet",
            partial(preresnet, **colours),
            {"depth": 164, "block": "bottleneck", "width": 16},
            {},
        ),
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
    """The options of a built-in task, checked, with the defaults of those that are not given.

    Extras (``BuiltIn.extras``, ``DATA_OPTIONS``) are left out where they are equal to the default.

    Raises:
        TaskError: no such task, or no such option.
        ArgumentError: an option of the wrong type, or missing.
    """
    if name not in BUILT_IN:
        close = difflib.get_close_matches(name, BUILT_IN, 1)
        suggestion = f"did you mean {close[0]}? " if close else ""
        raise TaskError(f"no built-in task is called {name!r}: {suggestion}there are {all_names()}")
    defaults, known = BUILT_IN[name].defaults, BUILT_IN[name].all_options
    if unknown := [option for option in given if option not in known]:
        raise TaskError(f"{name} has no option {unknown[0]!r}: it takes {', '.join(known)}")
    options = {**defaults, **given}
    if options.get("data", "") is None:
        raise ArgumentError(f"{name} needs data=PATH: {DATA_SETS[BUILT_IN[name].data].files}")
    for option, value in options.items():
        options[option] = typed(option, value, known[option], name)
    if not 0 <= options["seed"] < 2**64:
        raise ArgumentError(f"seed={options['seed']}: 0 to 2**64 - 1 is needed")
    return {option: value for option, value in options.items() if option in defaults or value != known[option]}


def typed(option: str, value: Any, default: Any, whose: str) -> Any:
    """A value of the type of an option's default (None: a text); integers are numbers too.

    Raises:
        ArgumentError: a value of another type, or a number that is not finite.

    Example:
        >>> typed("dropout", 0, 0.0, "digits-mlp")
        0.0
    """
    kind = str if default is None else type(default)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):
        words = {str: "a text", int: "an integer", float: "a number", bool: "true or false"}[kind]
        raise ArgumentError(f"{option}={value!r}: {whose} needs {words} here")
    return value


def build_parts(name: str, /, **given: Any) -> tuple[nn.Module, ImageBatches]:
    """The network, initialised from its seed, and the data of a built-in task."""
    options = task_options(name, **given)
    built_in = BUILT_IN[name]
    of_network = {option: options[option] for option in (*built_in.options, *built_in.extras) if option in options}
    return seeded(partial(built_in.network, **of_network), options["seed"]), _batches(name, options)


def _batches(name: str, options: Mapping[str, Any]) -> ImageBatches:
    return ImageBatches(read_images(BUILT_IN[name].data, options), options["batch_size"])


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
    """A built-in task: its network, initialised from ``seed``, its data, and the mean of its ``loss``.

    With ``split="train"`` its test data are the test split, read only when they are asked for.

    Args:
        name: one of ``list_tasks()``.
        given: options: ``data`` (a path; not for digits), ``split`` ("train", "validation" or "test"), ``batch_size``,
            ``seed``, those of the network (``width``, ``hidden``, ``depth``, ``block``, ``dropout``, ...), and those of
            the training images: ``validation``, ``label_noise``, ``label_noise_kind``, ``label_noise_seed``; and
            ``loss``: "cross-entropy", or "mse" (squared error to one-hot vectors, mean over images and classes).

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
    criterion = nn.MSELoss() if given.get("loss") == "mse" else nn.CrossEntropyLoss()
    return Task(model, criterion, data, name=name, test_data=test)
