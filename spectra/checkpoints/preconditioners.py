"""The preconditioner of Adam, from the state of the optimizer in a checkpoint, by the names of a model's parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from spectra.checkpoints.contents import why_unusable
from spectra.checkpoints.dialects import strip_wrappers
from spectra.checkpoints.optimizers import count_of, settings_of
from spectra.errors import CheckpointError

_MOST_ORDERS = 20_000  # positions in the groups that are followed


def preconditioner_of(state: Mapping[str, Any] | None, model: nn.Module) -> dict[str, torch.Tensor]:
    """``P = sqrt(v / (1 - beta2^t)) + eps`` of Adam or AdamW by parameter, float64 on the CPU.

    ``v`` is the second moment after ``t`` steps, with amsgrad its maximum over the steps: the denominators of the last
    step, as torch computes them.

    Args:
        state: the state dict of the optimizer; None: the checkpoint has none.
        model: whose parameters the optimizer has, all or the trainable ones.

    Returns:
        Name of a parameter -> ``P``; parameters without a state, such as frozen ones, are left out.

    Raises:
        CheckpointError: another optimizer, a state that does not fit the parameters, or fits in several ways.
    """
    if state is None:
        raise CheckpointError("no state of one optimizer in it: --precondition optimizer needs that of Adam or AdamW")
    settings = settings_of(state)
    if settings is None or not settings.adaptive:
        kind = "this optimizer" if settings is None or settings.kind == "unknown" else f"the optimizer {settings.kind}"
        raise CheckpointError(f"{kind} has no preconditioner that is known here: that of Adam or AdamW is needed")
    found: dict[str, torch.Tensor] = {}
    names = parameter_names(state, model)
    for group in state["param_groups"]:
        for index in group["params"]:
            if index in state["state"]:
                found[names[index]] = _denominators(state["state"][index], group, names[index])
    return found


def _denominators(of: Any, group: Mapping[str, Any], name: str) -> torch.Tensor:
    if not isinstance(of, Mapping):
        raise CheckpointError(f"the state of the optimizer for {name} is a {type(of).__name__}")
    steps = count_of(of.get("step"))
    if not steps:
        raise CheckpointError(f"the state of the optimizer for {name} has taken no step")
    key = "max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"
    moment = of.get(key)
    if not isinstance(moment, torch.Tensor) or why_unusable(moment) or not moment.is_floating_point():
        raise CheckpointError(f"the state of the optimizer for {name} has no {key}")
    correction = 1 - float(group["betas"][1]) ** steps
    result = (moment.detach().to(torch.float64) / correction).sqrt() + float(group["eps"])
    if not bool(torch.isfinite(result).all()) or not bool((result > 0).all()):
        raise CheckpointError(f"the preconditioner of {name} has entries that are 0, NaN or infinite")
    return result


def parameter_names(state: Mapping[str, Any], model: nn.Module) -> dict[int, str]:
    """Number of a parameter in an optimizer's state -> its name in the model.

    The names in the state decide, where it has any. Otherwise the parameters of each group are taken to be in the order
    of the model, and all groups together to be its parameters, or its trainable ones: the shapes must then leave one
    way to distribute them.

    Raises:
        CheckpointError: no way, or several.
    """
    groups = [list(group["params"]) for group in state["param_groups"] if isinstance(group.get("params"), list)]
    indices = [index for group in groups for index in group]
    whole = len(groups) == len(state["param_groups"]) and all(type(index) is int for index in indices)
    if not whole or len(set(indices)) < len(indices):
        raise CheckpointError("the groups of the optimizer do not number its parameters")
    shapes = {index: _shape(state["state"].get(index)) for index in indices}
    every = dict(model.named_parameters())
    given = [name for group in state["param_groups"] for name in group.get("param_names") or ()]
    if len(given) == len(indices) and all(isinstance(name, str) for name in given):
        short = [name.removeprefix(strip_wrappers(given)) for name in given]
        if set(short) <= every.keys() and len(set(short)) == len(short):
            found = dict(zip(indices, short))
            for index, name in found.items():
                if shapes[index] not in (None, tuple(every[name].shape)):
                    raise CheckpointError(f"the state of the optimizer for {name} has another shape than the parameter")
            return found
    trainable = [name for name, parameter in every.items() if parameter.requires_grad]
    candidates = [list(every)] if len(trainable) == len(every) else [list(every), trainable]
    fitting = [names for names in candidates if len(names) == len(indices)]
    if not fitting:
        sizes = " or ".join(str(len(names)) for names in candidates)
        raise CheckpointError(f"the optimizer has {len(indices)} parameters and the model {sizes}: they do not fit")
    ways = _ways([[shapes[index] for index in group] for group in groups], [tuple(every[n].shape) for n in fitting[0]])
    if len(ways) != 1:
        why = "do not fit those of the model" if not ways else "fit those of the model in several ways"
        raise CheckpointError(f"the parameters of the optimizer, in {len(groups)} groups by shape and order, {why}")
    places = [0] * len(groups)
    names: dict[int, str] = {}
    for name, group in zip(fitting[0], ways[0]):
        names[groups[group][places[group]]] = name
        places[group] += 1
    return {index: names[index] for index in indices}


def _ways(groups: Sequence[Sequence[Any]], shapes: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The ways to choose a group for each shape in turn, so that each group is used up in its order; at most two.

    Raises:
        CheckpointError: too many possibilities to follow.
    """
    reached: dict[tuple[int, ...], list[tuple[int, ...]]] = {(0,) * len(groups): [()]}
    for shape in shapes:
        ahead: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
        for at, ways in reached.items():
            for number, group in enumerate(groups):
                if at[number] < len(group) and group[at[number]] in (None, shape):
                    there = (*at[:number], at[number] + 1, *at[number + 1 :])
                    kept = ahead.setdefault(there, [])
                    kept += [(*way, number) for way in ways][: 2 - len(kept)]
        reached = ahead
        if len(reached) > _MOST_ORDERS:
            raise CheckpointError(f"the {len(groups)} groups of the optimizer fit the model in too many ways")
    return reached.get(tuple(map(len, groups)), [])


def _shape(of: Any) -> tuple[int, ...] | None:
    """The shape of the parameter that a state belongs to; None: it has no state."""
    moment = of.get("exp_avg_sq") if isinstance(of, Mapping) else None
    return tuple(moment.shape) if isinstance(moment, torch.Tensor) else None
