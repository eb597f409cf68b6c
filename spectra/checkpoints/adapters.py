"""Adapters saved by peft: restores the adapter's name, which peft leaves out of the keys of the file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TypeVar

from spectra.errors import CheckpointError

Value = TypeVar("Value")
#: Names of peft in the keys of a model; the name of the adapter follows them.
_BEFORE_NAME = re.compile(r"lora_\w+|ia3_\w+|vera_\w+|modules_to_save")


def with_adapter_name(
    weights: Mapping[str, Value], wanted: set[str], *, any_key: bool
) -> tuple[dict[str, Value], str | None]:
    """The weights of an adapter under the keys of a model.

    ``base_model.model.fc.lora_A.weight`` in the file is ``base_model.model.fc.lora_A.default.weight`` in the model.

    Args:
        weights: by the keys of the file.
        wanted: the keys of the model.
        any_key: the file is known to be from peft. Otherwise the name is inserted only for parameters of an adapter.

    Returns:
        The weights, and the adapter's name in the model; None if no key of the file lacks a name. If several adapters
        fit equally well, ``default`` is used.

    Raises:
        CheckpointError: several adapters fit equally well, and none is called ``default``.

    Example:
        >>> with_adapter_name({"fc.lora_A.weight": 1}, {"fc.lora_A.default.weight", "fc.bias"}, any_key=False)
        ({'fc.lora_A.default.weight': 1}, 'default')
    """
    renamed_keys: dict[str, dict[str, str]] = {}  # name of an adapter -> key of the file -> key of the model
    for key in sorted(wanted):
        for name, short in _shortened(key, any_key):
            if short in weights and short not in wanted:
                renamed_keys.setdefault(name, {})[short] = key
    if not renamed_keys:
        return dict(weights), None
    most = max(map(len, renamed_keys.values()))
    names = [name for name, keys in renamed_keys.items() if len(keys) == most]
    if len(names) > 1 and "default" not in names:
        raise CheckpointError(f"the model has several adapters that it fits ({', '.join(names)}): leave one of them")
    name = "default" if "default" in names else names[0]
    return {renamed_keys[name].get(key, key): value for key, value in weights.items()}, name


def _shortened(key: str, any_key: bool) -> Iterator[tuple[str, str]]:
    """Possible adapter names in a key of the model, each with the corresponding key of a file."""
    parts = key.split(".")
    for place in range(1, len(parts)):
        before, name, after = parts[:place], parts[place], parts[place + 1 :]
        if not (any_key or _BEFORE_NAME.fullmatch(before[-1])):
            continue
        yield name, ".".join(before + after)
        if before[-1] == "modules_to_save":  # a copy of a module, which is trained whole
            yield name, ".".join(before[:-1] + after)
        if before[-1] == "lora_magnitude_vector":  # of DoRA: a module in the model, a parameter in the file
            yield name, ".".join(before)
        if before == ["prompt_encoder"] and after == ["embedding", "weight"]:
            yield name, "prompt_embeddings"
