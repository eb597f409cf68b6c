"""Decodes NumPy scalars and arrays in a pickle from fixed descriptions, without NumPy's own pickling code.

``numpy.dtype.__setstate__`` trusts its argument: a crafted state turns the bytes of an array into object pointers. The
classes here accept the same pickled calls instead of NumPy's. They accept booleans, integers, floating and complex
numbers and texts of fixed length, and compare every size with the available bytes.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from spectra.errors import CheckpointError

_NUMBERS = {"b1", *(kind + size for kind in "iu" for size in "1248"), "f2", "f4", "f8", "c8", "c16"}
_TEXTS = re.compile(r"[SU][1-9]\d{0,8}")
_FLAGS = (0,), (0, 8)  # as NumPy writes them: 8 is that new memory is set to zero, for texts
_MAX_DIMENSIONS = 32
_LAST_CODE_POINT = 0x10FFFF


class PickledDtype:
    """Replaces ``numpy.dtype``: called with a type code such as ``f8``, then given the state with the byte order."""

    __slots__ = ("code", "dtype")

    def __init__(self, code: Any, align: Any = False, copy: Any = True) -> None:
        if not isinstance(code, str) or not (code in _NUMBERS or _TEXTS.fullmatch(code)):
            raise CheckpointError(
                f"holds a NumPy value of type {code!r:.40}, neither a number nor a text of fixed length, and cannot be "
                "read without running code; --unsafe-load runs it, if you trust the file"
            )
        self.code = code
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        if type(state) is not tuple or not 8 <= len(state) <= 9:
            raise _damaged("its dtype has no state of a known form")
        version, order, *composite, size, _alignment, flags = state[:8]
        wrong = type(version) is not int or type(order) is not str or order not in "<>|=" or len(order) != 1
        wrong |= (
            any(one is not None for one in (*composite, *state[8:]))
            or type(flags) is not int
            or flags not in _FLAGS[self.dtype.kind == "U"]
        )
        if wrong or type(size) is not int or size not in (-1, self.dtype.itemsize):
            raise _damaged(f"its dtype {self.code} has a state that is not that of a number or text")
        self.dtype = np.dtype(self.code).newbyteorder(order)


class PickledArray:
    """Replaces ``numpy.ndarray``: created empty, then given its shape, dtype, order and bytes."""

    __slots__ = ("value",)
    value: np.ndarray | None

    def __init__(self) -> None:
        self.value = None

    def __setstate__(self, state: Any) -> None:
        if type(state) is not tuple or len(state) != 5:
            raise _damaged("an array has no state of a known form")
        _version, shape, dtype, fortran, data = state
        if type(shape) is not tuple or len(shape) > _MAX_DIMENSIONS or any(type(n) is not int or n < 0 for n in shape):
            raise _damaged("an array has no shape")
        self.value = _decoded(dtype, data, shape, "F" if fortran is True or fortran == 1 else "C")


def reconstruct(kind: Any, shape: Any, code: Any) -> PickledArray:
    """Replaces ``numpy.core.multiarray._reconstruct``."""
    if kind is not PickledArray:
        raise _damaged("an array is of no known class")
    return PickledArray()


def scalar(dtype: Any, data: Any) -> Any:
    """Replaces ``numpy.core.multiarray.scalar``: the number or text as a NumPy scalar."""
    return _decoded(dtype, data, (), "C")[()]


#: Under the names of NumPy 1 and 2, which renamed the module.
STAND_INS: dict[str, Any] = {
    "numpy.dtype": PickledDtype,
    "numpy.ndarray": PickledArray,
    **{f"numpy.{core}.multiarray._reconstruct": reconstruct for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": scalar for core in ("core", "_core")},
}


def _decoded(described: Any, data: Any, shape: tuple[int, ...], order: Any) -> np.ndarray:
    if not isinstance(described, PickledDtype) or type(data) is not bytes:
        raise _damaged("a value has no dtype, or no bytes")
    dtype = described.dtype
    if math.prod(shape) * dtype.itemsize != len(data):
        raise _damaged(f"{len(data)} bytes for shape {shape!r:.60} of {dtype.itemsize} bytes each")
    if dtype.kind == "U":
        points = np.frombuffer(data, np.dtype("u4").newbyteorder(dtype.byteorder))
        if points.size and points.max() > _LAST_CODE_POINT:
            raise _damaged("a text has a character that does not exist")
    array = np.frombuffer(data, np.dtype("u1")) != 0 if dtype.kind == "b" else np.frombuffer(data, dtype)
    try:
        return array.reshape(shape, order=order).copy(order=order)
    except ValueError as error:  # no numbers, and lengths whose product is too large
        raise _damaged(f"shape {shape!r:.60} is impossible") from error


def _damaged(what: str) -> CheckpointError:
    return CheckpointError(f"damaged: a NumPy value in its pickle is not of a form that NumPy writes: {what}")
