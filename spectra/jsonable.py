"""Values in the form that JSON has words for: no NaN, no infinity, no NumPy scalars, text that is valid UTF-8."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def to_jsonable(value: Any) -> Any:
    """The value with JSON's own types: a number that is not finite becomes None, a tuple a list, a path its name.

    Example:
        >>> to_jsonable({"a": float("nan"), "b": (1, 2)})
        {'a': None, 'b': [1, 2]}
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, np.ndarray | np.generic):
        return to_jsonable(value.tolist())
    if isinstance(value, Mapping):
        return {printable(str(key)): to_jsonable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [to_jsonable(entry) for entry in value]
    if isinstance(value, set | frozenset):
        return sorted((to_jsonable(entry) for entry in value), key=repr)
    return printable(str(value))


def printable(text: str) -> str:
    """The text without what neither UTF-8 nor HDF5 can hold: lone surrogates (odd file names) and NUL."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\x00")


def dumps(value: Any) -> str:
    """One line of JSON, the same for equal values: the keys are sorted."""
    return json.dumps(to_jsonable(value), ensure_ascii=False, sort_keys=True, allow_nan=False)
