"""The built-in tasks, by name: a network, its data and the cross-entropy, from a few typed options.

Only these names are honoured in a checkpoint: they can choose among what is here, and never name code to run.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from spectra.errors import ArgumentError, TaskError
from spectra.task import Task
from spectra.zoo.data import ImageBatches, ImageSet, load_cifar10, load_digits, load_mnist
from spectra.zoo.networks import convnet, lenet, logistic_regression, mlp, seeded

_COMMON: dict[str, Any] = {"split": "train", "batch_size": 256, "seed": 0}
_NEEDS_DATA = {
    "mnist": "the folder of MNIST's IDX files (train-images-idx3-ubyte.gz, ...) or an .npz file",
    "cifar10": "the folder of CIFAR-10's binary batches (data_batch_1.bin, ...) or an .npz file",
}


@dataclass(frozen=True)
class BuiltIn:
    """A built-in task: what it is, its network, and the options of that network with their defaults."""

    summary: str
    data: str  # digits, mnist or cifar10
    network: Callable[..., nn.Module]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def defaults(self) -> dict[str, Any]:
        """Every option with its default; ``data=None`` must be given."""
        return {**({} if self.data == "digits" else {"data": None}), **_COMMON, **self.options}


BUILT_IN: dict[str, BuiltIn] = {
    "digits-convnet": BuiltIn("convolutions with batch norm on 8 x 8 digits", "digits", convnet, {"width": 16}),
    "digits-mlp": BuiltIn("one hidden layer on 8 x 8 digits", "digits", partial(mlp, 64), {"hidden": 32}),
    "digits-logistic": BuiltIn("logistic regression on 8 x 8 digits", "digits", partial(logistic_regression, 64)),
    "mnist-lenet": BuiltIn("LeNet on MNIST", "mnist", lenet),
    "mnist-lenet-bn": BuiltIn("LeNet with batch norm on MNIST", "mnist", partial(lenet, batch_norm=True)),
    "mnist-mlp": BuiltIn("one hidden layer on MNIST", "mnist", partial(mlp, 784), {"hidden": 100}),
    "mnist-logistic": BuiltIn("logistic regression on MNIST", "mnist", partial(logistic_regression, 784)),
    "cifar10-lenet": BuiltIn("LeNet on CIFAR-10", "cifar10", partial(lenet, 3, 32)),
    "cifar10-lenet-bn": BuiltIn("LeNet with batch norm on CIFAR-10", "cifar10", partial(lenet, 3, 32, batch_norm=True)),
}


def list_tasks() -> dict[str, str]:
    """The names of the built-in tasks, each with one line that says what it is."""
    return {name: task.summary for name, task in BUILT_IN.items()}


def task_options(name: str, /, **given: Any) -> dict[str, Any]:
    """Every option of a built-in task, checked, with the defaults of those that are not given.

    Raises:
        TaskError: no such task, or no such option.
        ArgumentError: an option of the wrong type, or missing.
    """
    if name not in BUILT_IN:
        close = difflib.get_close_matches(name, BUILT_IN, 1)
        meant = f"did you mean {close[0]}? " if close else ""
        raise TaskError(f"no built-in task is called {name!r}: {meant}there are {', '.join(BUILT_IN)}")
    defaults = BUILT_IN[name].defaults
    if unknown := [option for option in given if option not in defaults]:
        raise TaskError(f"{name} has no option {unknown[0]!r}: it takes {', '.join(defaults)}")
    options = {**defaults, **given}
    for option, value in options.items():
        wanted = str if option == "data" else type(defaults[option])
        if option == "data" and value is None:
            raise ArgumentError(f"{name} needs data=PATH: {_NEEDS_DATA[BUILT_IN[name].data]}")
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise ArgumentError(f"{option}={value!r}: {name} needs {'a text' if wanted is str else 'an integer'} here")
    if not 0 <= options["seed"] < 2**64:
        raise ArgumentError(f"seed={options['seed']}: 0 to 2**64 - 1 is needed")
    return options


def build_parts(name: str, /, **given: Any) -> tuple[nn.Module, ImageBatches]:
    """The network, initialised from its seed, and the data of a built-in task."""
    options = task_options(name, **given)
    built_in = BUILT_IN[name]
    network = partial(built_in.network, **{option: options[option] for option in built_in.options})
    data = ImageBatches(_images(built_in.data, options), options["batch_size"])
    return seeded(network, options["seed"]), data


def build_task(name: str, /, **given: Any) -> Task:
    """A built-in task: its network, initialised from ``seed``, its data, and the mean cross-entropy.

    Args:
        name: one of ``list_tasks()``.
        given: options: ``data`` (a path; not for digits), ``split`` ("train" or "test"), ``batch_size``, ``seed``,
            and those of the network (``width``, ``hidden``).

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
    return Task(model, nn.CrossEntropyLoss(), data, name=name)


def _images(data: str, options: Mapping[str, Any]) -> ImageSet:
    if data == "digits":
        return load_digits(options["split"])
    return (load_mnist if data == "mnist" else load_cifar10)(options["data"], options["split"])
