"""The training recipes: each built-in task with plain SGD, and the settings of papers.

References:
    FF: Granziol, "Flatness is a false friend", 2020. MS: Ibayashi, Hamaguchi and Imaizumi, "Minimum sharpness", 2021.
    NA: Tsuzuku, Sato and Sugiyama, "Normalized flat minima", 2019 and 2020. BN: Yi et al., "BN-invariant sharpness
    regularizes the training model to better generalization", IJCAI 2019.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from spectra.errors import TaskError
from spectra.zoo.options import ALL_NAMES, available, training_options
from spectra.zoo.tasks import BUILT_IN, all_names, task_options

_SHARED = ("seed",)  # of the network's weights and of training


@dataclass(frozen=True)
class Recipe:
    """A built-in task with options of the network and of training that differ from the defaults."""

    task: str
    words: str
    options: Mapping[str, Any] = field(default_factory=dict)


_LINEAR = {"schedule": "linear", "epochs": 300, "batch_size": 128, "augment": True}
_FF_SGD = {**_LINEAR, "learning_rate": 0.1, "weight_decay": 5e-4}
_FF_GADAM = {**_LINEAR, "optimizer": "gadam", "learning_rate": 5e-4, "weight_decay": 0.25}
_MS = {"batch_size": 1024, "weight_decay": 1e-5}
_NA = {"optimizer": "adam", "batch_size": 128}
_STEPS = {"schedule": "step", "milestones": "60-120-160", "epochs": 200, "weight_decay": 5e-4}
_BN_LENET = {**_STEPS, "linear_norm": True, "batch_size": 10000}
_BN_VGG = {**_STEPS, "batch_size": 128}


def _bn(name: str, task: str, common: Mapping[str, Any], delta: float) -> dict[str, Recipe]:
    """The table of the paper of BN-sharpness: SGD, SGDS with K1 = 0, and Entropy-SGD."""
    return {
        f"{name}-sgd": Recipe(task, "BN: SGD", {**common, "learning_rate": 0.1}),
        f"{name}-sgds": Recipe(
            task,
            "BN: SGDS, BN-sharpness as a regulariser (ascent_steps=5 for K1 = 5)",
            {**common, "optimizer": "sgds", "learning_rate": 0.2, "delta": delta},
        ),
        f"{name}-entropy-sgd": Recipe(
            task,
            "BN: Entropy-SGD; its own settings are those of Chaudhari et al.",
            {**common, "optimizer": "entropy-sgd"},
        ),
    }


PAPERS: dict[str, Recipe] = {
    "ff-mnist-logistic": Recipe(
        "mnist-logistic",
        "FF: logistic regression; weight_decay 0, 1e-4 or 5e-4 (section 4; its appendix has 50 epochs)",
        {"learning_rate": 0.03, "epochs": 1000, "batch_size": 128, "schedule": "linear"},
    ),
    "ff-cifar100-allcnn-sgd": Recipe("cifar100-allcnn", "FF: the 9-layer CNN with SGD", _FF_SGD),
    "ff-cifar100-allcnn-gadam": Recipe("cifar100-allcnn", "FF: the 9-layer CNN with Gadam", _FF_GADAM),
    "ff-cifar100-vgg16-sgd": Recipe("cifar100-vgg16", "FF: VGG-16 with SGD", {**_FF_SGD, "weight_decay": 3e-4}),
    "ff-cifar100-vgg16-gadam": Recipe("cifar100-vgg16", "FF: VGG-16 with Gadam", {**_FF_GADAM, "weight_decay": 0.35}),
    "ff-cifar100-vgg16-bn-sgd": Recipe("cifar100-vgg16-bn", "FF: VGG-16 with batch norm, SGD", _FF_SGD),
    "ff-cifar100-vgg16-bn-gadam": Recipe("cifar100-vgg16-bn", "FF: VGG-16 with batch norm, Gadam", _FF_GADAM),
    "ff-cifar100-preresnet-sgd": Recipe("cifar100-preresnet", "FF: PreResNet-164 (depth=110 too)", _FF_SGD),
    "ff-cifar100-wrn-sgd": Recipe("cifar100-wrn", "FF: WRN-28-10 with biases", {**_FF_SGD, "bias": True}),
    "ms-mnist-mlp": Recipe(
        "mnist-mlp",
        "MS: 784-512-128-512-10; label_noise 0 to 1, shuffled",
        {**_MS, "widths": "512-128-512", "learning_rate": 0.1, "epochs": 3000},
    ),
    "ms-mnist-lenet": Recipe(
        "mnist-lenet",
        "MS: LeNet; label_noise 0 to 1, shuffled",
        {**_MS, "third_convolution": True, "learning_rate": 0.01, "epochs": 1000},
    ),
    "na-mnist-mlp": Recipe(
        "mnist-mlp",
        "NA: three hidden layers with Adam; label_noise 0 to 1",
        {**_NA, "depth": 3, "epochs": 50, "label_noise_kind": "random"},
    ),
    "na-mnist-lenet": Recipe(
        "mnist-lenet", "NA: LeNet with Adam; label_noise 0 to 1", {**_NA, "epochs": 50, "label_noise_kind": "random"}
    ),
    "na-cifar10-lenet": Recipe(
        "cifar10-lenet", "NA: LeNet with Adam; label_noise 0 to 1", {**_NA, "epochs": 100, "label_noise_kind": "random"}
    ),
    "na-cifar10-wrn": Recipe(
        "cifar10-wrn",
        "NA: WRN-16-4 with Adam; label_noise 0 to 1",
        {**_NA, "depth": 16, "width": 4, "epochs": 200, "label_noise_kind": "random"},
    ),
    **_bn("bn-cifar10-lenet", "cifar10-lenet-bn", _BN_LENET, 1e-3),
    **_bn("bn-cifar10-vgg11", "cifar10-vgg11-bn", _BN_VGG, 5e-4),
    **_bn("bn-cifar100-vgg11", "cifar100-vgg11-bn", _BN_VGG, 1e-3),
}


def find_recipe(name: str) -> Recipe:
    """A recipe of a paper, or a built-in task with SGD.

    Raises:
        TaskError: there is none of this name.
    """
    if name in PAPERS:
        return PAPERS[name]
    if name in BUILT_IN:
        return Recipe(name, BUILT_IN[name].summary)
    close = difflib.get_close_matches(name, [*BUILT_IN, *PAPERS], 1)
    suggestion = f"did you mean {close[0]}? " if close else ""
    raise TaskError(f"no recipe is called {name!r}: {suggestion}there are {all_names()}; {', '.join(PAPERS)}")


def completed(name: str, given: Mapping[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The task of a recipe, the options of the task and those of training, completed and checked.

    A given option takes precedence over the recipe's. Settings of the recipe that do not exist for the given
    optimizer, schedule or average are left out.

    Raises:
        TaskError: no such recipe or option.
        ArgumentError: an option of the wrong type, outside its range, or missing.

    Example:
        >>> task, network, training = completed("digits-mlp", {"hidden": 8, "optimizer": "adam", "epochs": 2})
        >>> task, network["hidden"], training["optimizer"], training["learning_rate"]
        ('digits-mlp', 8, 'adam', 0.001)
    """
    recipe = find_recipe(name)
    of_task = {key for key in BUILT_IN[recipe.task].all_options if key not in ("split", "batch_size")}
    network = {key: value for key, value in {**recipe.options, **given}.items() if key in of_task}
    asked = {key: value for key, value in given.items() if key not in of_task}
    chosen = {**recipe.options, **asked}
    known = available(chosen)
    own = {key: value for key, value in recipe.options.items() if key not in of_task and key in known}
    if unknown := [key for key in asked if key not in known and key not in ALL_NAMES]:
        names = [key for key in (*BUILT_IN[recipe.task].all_options, *known) if key not in (*_SHARED, "split")]
        raise TaskError(f"{name} has no option {unknown[0]!r}: it takes {', '.join(dict.fromkeys(names))}")
    return recipe.task, task_options(recipe.task, **network), training_options({**own, **asked})
