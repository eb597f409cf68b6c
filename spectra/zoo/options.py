"""The options of training: which exist for which optimizer, their defaults, their ranges and what they mean.

References:
    Granziol, Wan and Roberts, "Iterate averaging helps", 2020 (Gadam). Granziol, "Flatness is a false friend", 2020
    (schedule, decay). Chaudhari et al., "Entropy-SGD", ICLR 2017. Yi et al., "BN-invariant sharpness regularizes the
    training model to better generalization", IJCAI 2019 (SGDS).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from spectra.errors import ArgumentError, TaskError
from spectra.sharpness.interval import FORMS
from spectra.zoo.schedules import SCHEDULES
from spectra.zoo.tasks import typed


class Option(NamedTuple):
    """An option of training: its default, what it means, and the values that are allowed."""

    default: Any
    words: str
    low: float = 0.0
    high: float = math.inf
    choices: tuple[str, ...] = ()
    open_low: bool = False  # the lower bound itself is not allowed


_POSITIVE: dict[str, Any] = {"open_low": True}
_DECAY = Option(0.0, "L2: adds weight_decay * w to the gradient; analyse with --l2 of the same value")
_SGD = {
    "learning_rate": Option(0.05, "at the start", **_POSITIVE),
    "momentum": Option(0.9, "of SGD", high=1 - 1e-12),
    "nesterov": Option(False, "Nesterov's momentum"),
    "weight_decay": _DECAY,
}
_ADAM = {
    "learning_rate": Option(0.001, "at the start", **_POSITIVE),
    "beta1": Option(0.9, "decay of the mean of the gradient", high=1 - 1e-12),
    "beta2": Option(0.999, "decay of the mean of its square", high=1 - 1e-12),
    "eps": Option(1e-8, "added to the root of the mean square", **_POSITIVE),
    "weight_decay": _DECAY,
}
_DECOUPLED = {**_ADAM, "weight_decay": Option(0.0, "decoupled decay: w -= learning_rate * weight_decay * w")}
OPTIMIZERS: dict[str, dict[str, Option]] = {
    "sgd": _SGD,
    "adam": _ADAM,
    "adamw": _DECOUPLED,
    "gadam": {**_DECOUPLED, "learning_rate": Option(0.0005, "at the start", **_POSITIVE)},
    "sgds": {
        **_SGD,
        "strength": Option(1e-4, "lambda of the BN-sharpness in epoch 0"),
        "growth": Option(1.02, "of lambda per epoch", **_POSITIVE),
        "delta": Option(1e-3, "half the length of the interval of the BN-sharpness", **_POSITIVE),
        "ascent_steps": Option(0, "K1: steps that improve its direction"),
        "max_norm": Option(0.1, "to which the gradient of the BN-sharpness is clipped"),
        "form": Option("corrected", "of its gradient; printed: the paper's equation 15 as it stands", choices=FORMS),
    },
    "entropy-sgd": {
        "learning_rate": Option(1.0, "of the outer step", **_POSITIVE),
        "momentum": Option(0.9, "Nesterov's, of the Langevin steps", high=1 - 1e-12),
        "weight_decay": _DECAY,
        "langevin_steps": Option(20, "L: batches of an outer step", low=1),
        "langevin_rate": Option(0.1, "step size of the Langevin steps", **_POSITIVE),
        "langevin_noise": Option(1e-4, "their thermal noise"),
        "gamma": Option(1e-4, "scope: how strongly they are held near the weights"),
        "gamma_growth": Option(1e-3, "of gamma per outer step"),
        "alpha": Option(0.75, "weight of the newest Langevin step in the average", high=1.0),
        "times_gamma": Option(False, "multiply the outer step by gamma, as printed in the paper"),
    },
}
GENERAL = {
    "optimizer": Option("sgd", "of the weights", choices=tuple(OPTIMIZERS)),
    "epochs": Option(6, "passes over the training images"),
    "batch_size": Option(64, "images of a step", low=1),
    "schedule": Option("constant", "of the learning rate", choices=SCHEDULES),
    "augment": Option(False, "random crops with 4 pixels of padding, and flips from left to right"),
    "average": Option("none", "average of the weights, once per epoch or per step", choices=("none", "epoch", "step")),
}
OF_SCHEDULES: dict[str, dict[str, Option]] = {
    "constant": {},
    "linear": {"final_fraction": Option(0.01, "of the learning rate, at the end (0.5 with an average)", high=1.0)},
    "step": {
        "milestones": Option("60-120-160", "epochs after which the learning rate is multiplied by factor"),
        "factor": Option(0.1, "of the learning rate at each milestone", **_POSITIVE),
    },
}
OF_AVERAGES = {"average_from": Option(0, "first epoch of the average; 0: after two thirds of the epochs")}
_TABLES = {"optimizer": OPTIMIZERS, "schedule": OF_SCHEDULES, "average": {"epoch or step": OF_AVERAGES}}
ALL_NAMES = {*GENERAL, *(name for table in _TABLES.values() for options in table.values() for name in options)}


def available(chosen: Mapping[str, Any]) -> dict[str, Option]:
    """The options that exist for the chosen ``optimizer``, ``schedule`` and ``average``, with their defaults.

    Raises:
        ArgumentError: another optimizer, schedule or average.

    Example:
        >>> list(available({"schedule": "step"}))[-2:]
        ['milestones', 'factor']
    """
    general = dict(GENERAL)
    if chosen.get("optimizer") == "gadam":
        general["average"] = general["average"]._replace(default="epoch")
    kinds = {name: _allowed(name, chosen.get(name, general[name].default), general[name]) for name in GENERAL}
    found = {**general, **OPTIMIZERS[kinds["optimizer"]], **OF_SCHEDULES[kinds["schedule"]]}
    if kinds["average"] == "none":
        return found
    if "final_fraction" in found:
        found["final_fraction"] = found["final_fraction"]._replace(default=0.5)
    return {**found, **OF_AVERAGES}


def training_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The given options, checked and completed with the defaults; ``milestones`` is a list.

    Raises:
        TaskError: an option that does not exist for this optimizer, schedule or average.
        ArgumentError: a value of the wrong type or outside its range.

    Example:
        >>> training_options({"optimizer": "sgd", "schedule": "step"})["milestones"]
        [60, 120, 160]
    """
    known = available(given)
    for name in given:
        if name not in known:
            raise TaskError(f"{name}={given[name]!r}: {_belongs_to(name)}; here there are {', '.join(known)}")
    options = {name: _allowed(name, given.get(name, option.default), option) for name, option in known.items()}
    if options.get("nesterov") and not options["momentum"]:
        raise ArgumentError("nesterov=True: a momentum above 0 is needed")
    if "milestones" in options:
        options["milestones"] = _milestones(options["milestones"])
    if "average_from" in options:
        first, epochs = options["average_from"], options["epochs"]
        if first > epochs:
            raise ArgumentError(f"average_from={first}: at most {epochs} is possible, the number of epochs")
        options["average_from"] = first or max(1, round(2 * epochs / 3))
    return options


def depends_on_epochs(options: Mapping[str, Any]) -> bool:
    """Whether the steps of an epoch depend on how many follow it."""
    return bool(options["schedule"] == "linear" or options["average"] != "none")


def _belongs_to(name: str) -> str:
    owners = [f"{kind}={choice}" for kind, table in _TABLES.items() for choice, own in table.items() if name in own]
    return f"an option of {', '.join(owners)}" if owners else "there is no such option"


def _allowed(name: str, value: Any, option: Option) -> Any:
    value = typed(name, value, option.default, "training")
    if option.choices and value not in option.choices:
        raise ArgumentError(f"{name}={value!r}: one of {', '.join(option.choices)} is needed")
    if type(value) not in (int, float):
        return value
    if value < option.low or value > option.high or (option.open_low and value == option.low):
        at_most = "" if option.high == math.inf else f" and {'below 1' if option.high < 1 else 'at most 1'}"
        low = "a positive number" if option.open_low else f"at least {option.low:g}"
        raise ArgumentError(f"{name}={value}: {low}{at_most} is needed")
    return value


def _milestones(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split("-")]
    except ValueError:
        found = []
    if not found or found != sorted(set(found)) or found[0] < 1:
        raise ArgumentError(f"milestones={text!r}: rising epochs are needed, such as 60-120-160")
    return found
