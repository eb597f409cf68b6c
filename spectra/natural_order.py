"""Sorting names with numbers in them as a reader does."""

from __future__ import annotations

import re


def natural_key(text: str) -> list[tuple[int, int | str]]:
    """A sorting key under which ``ckpt10`` comes after ``ckpt9``."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", text) if part]
