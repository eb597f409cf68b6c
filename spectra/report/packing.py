"""JSON for a page: packed, so that keys and texts that many records share are written once, and safe in a script."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

#: How a packed list and a packed text begin; a packed mapping begins with the number of its shape.
LIST, TEXT = -1, -2
# Texts up to this length are shorter as they are.
_SHORT = 8


def packed(value: Any) -> dict[str, Any]:
    """A JSON value with its keys and texts in tables.

    Args:
        value: of JSON's own types (see `spectra.jsonable.to_jsonable`).

    Returns:
        ``shapes``, the lists of keys; ``texts``; and ``data``, in which a mapping is ``[shape, *values]``, a list
        ``[-1, *entries]`` and a longer text ``[-2, index]``.

    Example:
        >>> packed([{"a": 1}, {"a": "a longer text"}])
        {'shapes': [['a']], 'texts': ['a longer text'], 'data': [-1, [0, 1], [0, [-2, 0]]]}
    """
    shapes: dict[tuple[str, ...], int] = {}
    texts: dict[str, int] = {}

    def pack(part: Any) -> Any:
        if isinstance(part, dict):
            return [shapes.setdefault(tuple(part), len(shapes)), *map(pack, part.values())]
        if isinstance(part, list | tuple):
            return [LIST, *map(pack, part)]
        if isinstance(part, str) and len(part) > _SHORT:
            return [TEXT, texts.setdefault(part, len(texts))]
        return part

    data = pack(value)
    return {"shapes": [list(keys) for keys in shapes], "texts": list(texts), "data": data}


def script_json(value: Any) -> str:
    """JSON in ASCII that is safe within a ``<script>`` element: no text can end the element or begin another one.

    Example:
        >>> print(script_json("</script>&"))
        "\\u003c/script\\u003e\\u0026"
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def curve(numbers: np.ndarray | list[float], digits: int = 5) -> list[float | int | None]:
    """The numbers of a curve to so many significant digits; one that is not finite is None.

    Example:
        >>> curve([0.123456789, 2.0, float("nan")])
        [0.12346, 2, None]
    """
    found: list[float | int | None] = []
    for number in np.asarray(numbers, dtype=np.float64).tolist():
        short = float(f"{number:.{digits}g}") if np.isfinite(number) else None
        found.append(int(short) if short is not None and short.is_integer() and abs(short) < 1e6 else short)
    return found
