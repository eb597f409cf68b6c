"""Reads the state of the optimizer that a checkpoint holds, or that a trainer left beside the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from spectra.checkpoints.contents import Plain
from spectra.checkpoints.rawfile import read_hashed, read_raw
from spectra.errors import CheckpointError
from spectra.results.optimizer import SETTINGS, OptimizerSettings

#: Keys of a checkpoint for the state of its optimizer.
KEYS = ("optimizer", "optimizer_state_dict", "optim", "optimizer_state", "optim_state_dict", "optim_state", "opt")
_SEVERAL = ("optimizer_states", "optimizers")  # lists, of Lightning for one
#: Files of the trainer in transformers and of accelerate.
FILES = ("optimizer.pt", "optimizer.bin")

_MOST_GROUPS = 1000
_COMMON = {"lr", "weight_decay", "maximize", "foreach", "capturable", "differentiable", "fused"}
#: Kind -> the keys of its groups of parameters that it must have, and those that it may have.
_KINDS: dict[str, tuple[set[str], set[str]]] = {
    "sgd": ({"momentum", "dampening", "nesterov"}, set()),
    "adam": ({"betas", "eps", "amsgrad"}, {"decoupled_weight_decay"}),
    "nadam": ({"betas", "eps", "momentum_decay"}, {"decoupled_weight_decay"}),
    "rmsprop": ({"alpha", "eps", "momentum", "centered"}, set()),
    "adagrad": ({"lr_decay", "eps", "initial_accumulator_value"}, set()),
    "adadelta": ({"rho", "eps"}, set()),
    "radam": ({"betas", "eps", "decoupled_weight_decay"}, set()),
    "adamax": ({"betas", "eps"}, set()),
}
#: What schedulers and training scripts add to the groups without effect on a step.
_ADDED = {"params", "param_names", "name", "group_name", "initial_lr", "max_lr", "min_lr", "swa_lr", "lr_scale"}
_ADDED |= {"base_momentum", "max_momentum"}


def state_of(
    content: Any, folder: Path | None, max_size: int | None, *, checked: bool = False
) -> tuple[Mapping[str, Any] | None, str]:
    """The state dict of the optimizer of a checkpoint, in its file, else in the optimizer's file of its folder.

    With `checked`, the checksums of that other file are compared, which reads all of it.

    Returns:
        The state dict, None if there is none or several; and a note on a file that cannot be read, or an empty text.
    """
    if (state := state_in(content)) is not None or folder is None:
        return state, ""
    path = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if path is None:
        return None, ""
    try:
        beside = read_hashed(path, False, max_size)[0] if checked else read_raw(path, max_size=max_size)
    except CheckpointError as error:
        return None, f"{error}; the optimizer is not known"
    return (beside if is_state(beside) else None), ""


def state_in(content: Any) -> Mapping[str, Any] | None:
    """The state dict of the one optimizer in the content of a checkpoint file; None if there is none, or several."""
    if not isinstance(content, Mapping):
        return None
    found = [content[key] for key in KEYS if key in content]
    for key in _SEVERAL:
        if isinstance(content.get(key), (list, tuple)):
            found += content[key]
    states = [state for state in found if is_state(state)]
    return states[0] if len(states) == 1 else None


def is_state(value: Any) -> bool:
    """Whether a value has the form of an optimizer's state dict."""
    groups = value.get("param_groups") if isinstance(value, Mapping) else None
    return (
        isinstance(groups, (list, tuple))
        and len(groups) > 0
        and all(isinstance(group, Mapping) for group in groups)
        and isinstance(value.get("state"), Mapping)
    )


def settings_of(state: Mapping[str, Any]) -> OptimizerSettings | None:
    """The settings in a state dict; None without a learning rate, or with more different groups than any training has.

    The kind follows from the keys of the groups. A key that no optimizer of torch has makes it ``"unknown"``.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> settings_of(torch.optim.SGD([weight], lr=0.1, momentum=0.9).state_dict()).words
        'SGD, lr 0.1, momentum 0.9'
    """
    plain = Plain()
    groups = []
    for group in state["param_groups"]:
        found = {name: _setting(plain(group[name])[1]) for name in SETTINGS if name in group}
        groups.append({name: value for name, value in found.items() if value is not None})
    if not all(isinstance(group.get("lr"), float) for group in groups):
        return None
    distinct = {repr(group): group for group in groups}
    if len(distinct) > _MOST_GROUPS:
        return None
    return OptimizerSettings(_kind(state["param_groups"], groups), tuple(distinct.values()), _steps(state["state"]))


def _kind(groups: Any, kept: list[dict[str, Any]]) -> str:
    names = {name for group in groups for name in group} - _ADDED
    fits = [
        kind
        for kind, (needed, allowed) in _KINDS.items()
        if needed <= names <= needed | allowed | _COMMON and all(needed <= group.keys() for group in groups)
    ]
    if not fits:
        return "unknown"
    read = _KINDS[fits[0]][0] & set(SETTINGS) | {"weight_decay"} & names
    if any(type(group.get(name)) is not _TYPES.get(name, float) for group in kept for name in read):
        return "unknown"
    if fits[0] != "adam":
        return fits[0]
    decoupled = {group.get("decoupled_weight_decay") for group in kept}
    if decoupled == {None}:  # of an older torch, where the groups of Adam and AdamW have the same keys
        return "adam or adamw" if any(group.get("weight_decay") for group in kept) else "adam"
    return "adamw" if decoupled == {True} else "adam" if decoupled == {False} else "unknown"


#: The types of settings that are not numbers, as they are kept.
_TYPES = {"nesterov": bool, "amsgrad": bool, "decoupled_weight_decay": bool, "betas": list}


def _setting(value: Any) -> Any:
    """A finite number as float, a bool, or a list of two numbers; else None."""
    if isinstance(value, bool):
        return value
    if isinstance(value, (int, float)):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, list) and len(value) == 2:
        pair = [_setting(item) for item in value]
        return pair if all(isinstance(item, float) for item in pair) else None
    return None


def _steps(state: Mapping[Any, Any]) -> int | None:
    """The number of steps that the parameters have taken, where they all have the same."""
    counts = {count_of(of.get("step")) for of in state.values() if isinstance(of, Mapping)}
    return counts.pop() if len(counts) == 1 else None


def count_of(value: Any) -> int | None:
    """A number of steps, plain or as a tensor; None if it is none."""
    if isinstance(value, torch.Tensor):
        value = Plain()(value)[1]
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 2**53
    return int(value) if good and value == int(value) else None
