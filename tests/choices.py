"""Parameters for tests: pairs of which the first row and column run every day, and all of them with -m slow."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def crossed(first: Iterable[Any], second: Iterable[Any], name: Callable[[Any], str] = str) -> list[Any]:
    """Every pair; those of neither the first entry of the one nor of the other are slow.

    What each entry does is seen in the pairs of the first row and column; the rest asks whether two of them matter
    together.
    """
    rows, columns = list(first), list(second)
    return [
        pytest.param(a, b, id=f"{name(a)}-{name(b)}", marks=[pytest.mark.slow] if i and j else [])
        for i, a in enumerate(rows)
        for j, b in enumerate(columns)
    ]
