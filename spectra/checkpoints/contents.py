"""Reads the values stored with the weights as plain Python values of bounded depth, number and size."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from spectra.checkpoints.numpy_values import PickledArray
from spectra.checkpoints.rebuilding import Unusable
from spectra.errors import CheckpointError, escaped

MAX_DEPTH = 100
MAX_VALUES = 2_000_000
_MAX_ARRAY = 1000
_LARGEST = 2**53  # whole numbers up to it are exact in double precision, and in every results file


class Plain:
    """Converts the objects stored with the weights of one file to plain Python types; other objects are left out."""

    def __init__(self) -> None:
        self._left = MAX_VALUES

    def __call__(self, value: Any, depth: int = 0) -> tuple[bool, Any]:
        """Whether a value is plain, and the value.

        Raises:
            CheckpointError: nested too deeply (for example, a container that contains itself), or too many values.
        """
        self._left -= 1
        if depth > MAX_DEPTH:
            raise CheckpointError(f"containers in it are nested more than {MAX_DEPTH} deep, or one contains itself")
        if self._left < 0:
            raise CheckpointError(f"more than {MAX_VALUES} values in addition to the weights, or one list many times")
        if isinstance(value, str):
            return True, value.encode("utf-8", "backslashreplace").decode()  # half of a surrogate pair is no text
        if value is None or isinstance(value, (bool, int, float)):
            return True, value
        if isinstance(value, np.generic):
            return self(value.item(), depth)
        if isinstance(value, PickledArray):
            value = value.value
        if isinstance(value, (torch.Tensor, np.ndarray)):
            return _of_array(value)
        if isinstance(value, argparse.Namespace):
            value = vars(value)
        if isinstance(value, Mapping):
            names = {key: self(key)[1] for key in value if isinstance(key, (str, int, float))}
            pairs = [(name, *self(value[key], depth + 1)) for key, name in names.items()]
            return True, {name: plain for name, is_plain, plain in pairs if is_plain}
        if isinstance(value, (list, tuple)):
            items = [self(item, depth + 1) for item in value]
            return True, [plain for is_plain, plain in items if is_plain]
        return (True, value) if isinstance(value, complex) else (False, None)


def _of_array(value: torch.Tensor | np.ndarray) -> tuple[bool, Any]:
    size = value.numel() if isinstance(value, torch.Tensor) else value.size
    if size > (1 if isinstance(value, torch.Tensor) else _MAX_ARRAY):
        return False, None
    if isinstance(value, torch.Tensor) and (why_unusable(value) or not size):
        return False, None
    return True, value.item() if size == 1 else value.tolist()


def number_of(value: Any, name: str) -> float | None:
    """A finite number (whole ones as int), also from a text; None otherwise.

    Raises:
        CheckpointError: larger than any epoch or step.
    """
    if isinstance(value, str) and re.fullmatch(r"[0-9]+(\.[0-9]+)?", value):
        digits = value.partition(".")[0].lstrip("0")
        value = 2 * _LARGEST if len(digits) > len(str(_LARGEST)) else float(value) if "." in value else int(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if abs(value) > _LARGEST:
        raise CheckpointError(f"its {name} is larger than 2**53, which no {name} is")
    return int(value) if value == int(value) else value


def check_weights(tensors: Mapping[str, Any]) -> None:
    """Check that every weight has a valid name and is a dense tensor.

    Raises:
        CheckpointError: it does not; the message has the first such name.
    """
    for name, tensor in tensors.items():
        try:
            name.encode()
        except UnicodeEncodeError:
            raise CheckpointError(f"the name of a weight, {escaped(name)[:80]!r}, is not valid Unicode") from None
        if why := why_unusable(tensor):
            raise CheckpointError(f"the weight {escaped(name)[:80]!r} is {why}: a dense tensor is needed")


def why_unusable(tensor: Any) -> str:
    """Why a tensor is not a dense tensor with numbers, in words; empty if it is one."""
    if isinstance(tensor, Unusable):
        return tensor.kind
    if not isinstance(tensor, torch.Tensor):
        return ""
    if tensor.is_meta:
        return "a meta tensor, which has no numbers"
    if tensor.is_nested:
        return "a nested tensor"
    return "" if tensor.layout == torch.strided else "a sparse tensor"
