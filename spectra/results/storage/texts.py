"""Checks the types of the attributes of a record: texts, numbers, and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_integer(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool))


def _is_number(value: Any) -> bool:
    return _is_integer(value) or (isinstance(value, float) and math.isfinite(value))


def _is_selection(value: Any) -> bool:
    return _is_text(value) or (isinstance(value, list) and all(isinstance(name, str) for name in value))


def _is_sizes(value: Any) -> bool:
    pairs = isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in value)
    return value is None or (pairs and all(_is_number(number) for pair in value for number in pair))


_TEXT = (_is_text, "a text")
_INTEGER = (_is_integer, "a whole number")
_NUMBER = (_is_number, "a finite number")
_SIZES = (_is_sizes, "a list of pairs of numbers")

#: Attributes of a record, and entries of its settings, that readers use. All others may have any type.
_ATTRIBUTES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("checkpoint", "checkpoint_sha256", "weights_sha256", "reason"), _TEXT),
    **dict.fromkeys(("operator", "bn_mode", "status"), _TEXT),
    **dict.fromkeys(("step", "own_tensors"), _INTEGER),
    "epoch": _NUMBER,
}
_SETTINGS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("task", "loss", "reduction", "dtype", "preset", "distribution"), _TEXT),
    **dict.fromkeys(("lanczos_steps", "num_probes", "seed", "data_seed"), _INTEGER),
    **dict.fromkeys(("batch_sizes", "test_batch_sizes"), _SIZES),
    "l2": _NUMBER,
    "params": (_is_selection, "a text or a list of texts"),
}


def check_attributes(attributes: Mapping[str, Any]) -> None:
    """Check the types of those attributes of a record that are present.

    Raises:
        ValueError: the message has the name, the value and the type.
    """
    _check(attributes, _ATTRIBUTES, "attribute ")


def settings_in(text: Any) -> dict[str, Any]:
    """The settings in an attribute.

    Raises:
        ValueError: it is not a JSON object, or one of its values is of another type.
    """
    settings = object_in(text, "settings")
    _check(settings, _SETTINGS, "settings/")
    return settings


def object_in(text: Any, name: str) -> dict[str, Any]:
    """The JSON object in an attribute.

    Raises:
        ValueError: it is not one.
    """
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError(f"attribute {name} is not a JSON object")
    return found


def texts_in(text: Any, name: str) -> list[str]:
    """The JSON list of texts in an attribute.

    Raises:
        ValueError: it is not one.
    """
    found = json.loads(text)
    if not isinstance(found, list) or not all(isinstance(entry, str) for entry in found):
        raise ValueError(f"attribute {name} is not a list of texts")
    return found


def _check(values: Mapping[str, Any], wanted: Mapping[str, tuple[Callable[[Any], bool], str]], where: str) -> None:
    for name, (fits, words) in wanted.items():
        if not fits(values.get(name)):
            raise ValueError(f"{where}{name} is {str(values[name])[:60]!r}: {words} is needed")
