"""Reads the JSON files that trainers write next to the weights; they are untrusted, so sizes and types are checked."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spectra.checkpoints.dialects import position_in_folder
from spectra.errors import CheckpointError

TRAINER_STATE = "trainer_state.json"  # of the trainer in transformers
ADAPTER_CONFIG = "adapter_config.json"  # of peft
MAX_BYTES = 32 * 2**20
#: Required types of the values, if present, that are compared between an adapter and the model.
_ADAPTER_TYPES: dict[str, tuple[type, ...]] = {
    "peft_type": (str,),
    "r": (int,),
    "lora_alpha": (int, float),
    "use_rslora": (bool,),
    "use_dora": (bool,),
    "rank_pattern": (dict,),
    "alpha_pattern": (dict,),
}

Position = tuple[float | None, int | None]


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        CheckpointError: no regular file, too large, not JSON, or not an object.
    """
    try:
        if not path.is_file():
            raise CheckpointError(f"{path}: not a regular file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    if len(content) > MAX_BYTES:
        raise CheckpointError(f"{path}: larger than {MAX_BYTES // 2**20} MiB, which no such file needs")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        words = " ".join(str(error).split()) if isinstance(error, ValueError) else "nested too deeply"
        raise CheckpointError(f"{path}: not JSON: {words[:200]}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a {type(value).__name__}, not a JSON object")
    return value


def trainer_position(folder: Path) -> tuple[Position | None, str]:
    """Epoch and step in the `trainer_state.json` of a folder.

    Returns:
        The position, None if the file does not give one; and a note on why it is not used, or an empty text.
    """
    path = folder / TRAINER_STATE
    if not path.is_file():
        return None, ""
    try:
        state = read_json(path)
    except CheckpointError as error:
        return None, f"{error}; it is not used"
    numbers: dict[str, float | int | None] = {}
    for name in ("epoch", "global_step"):
        value = state.get(name)
        if value is None:
            continue
        if type(value) not in (int, float) or not 0 <= value < math.inf:
            return None, f"{path}: {name} is not a number from 0 on; it is not used"
        numbers[name] = int(value) if value == int(value) else value
    epoch, step = numbers.get("epoch"), numbers.get("global_step")
    if isinstance(step, float):
        return None, f"{path}: global_step is not a whole number; it is not used"
    if isinstance(state.get("best_model_checkpoint"), str) and not says_its_moment(folder):
        # At the end of training the trainer saves the last or the best model there, without stating which.
        return (
            None,
            f"{path}: names a best checkpoint, so these weights are not known to be of its step; it is not used",
        )
    return (None if epoch is None and step is None else (epoch, step)), ""


def says_its_moment(folder: Path) -> bool:
    """Whether the name of a folder states an epoch or step."""
    return position_in_folder(folder.name or folder.resolve().name) != (None, None)


def adapter_config(folder: Path) -> dict[str, Any] | None:
    """What `adapter_config.json` in a folder holds; None without one.

    Raises:
        CheckpointError: it cannot be read, or one of its values is of the wrong type.
    """
    path = folder / ADAPTER_CONFIG
    if not path.exists():
        return None
    config = read_json(path)
    for name, types in _ADAPTER_TYPES.items():
        value = config.get(name)
        wrong = value is not None and (not isinstance(value, types) or (isinstance(value, bool) and bool not in types))
        if wrong:
            wanted = " or ".join(kind.__name__ for kind in types)
            raise CheckpointError(f"{path}: {name} is a {type(value).__name__}: {wanted} is needed")
    return config


def compare_adapter(config: Mapping[str, Any], modules: Any, name: str | None) -> str:
    """The difference between the configuration of an adapter's file and that of the model's adapter; empty if none.

    The configuration scales the adapter's weights, so another configuration gives another network.

    Args:
        config: of the file.
        modules: of the model; those of peft have a dictionary `peft_config`.
        name: of the adapter in the model.
    """
    for module in modules:
        configs = getattr(module, "peft_config", None)
        if not isinstance(configs, Mapping) or name not in configs:
            continue
        theirs = configs[name]
        for key in _ADAPTER_TYPES:
            in_file, in_model = config.get(key), getattr(theirs, key, None)
            in_model = getattr(in_model, "value", in_model)  # of an enumeration
            if in_file is not None and in_model is not None and in_file != in_model:
                return f"{ADAPTER_CONFIG} has {key}={in_file!r:.60}, the adapter of the task's model {in_model!r:.60}"
        return ""
    return ""
