"""Text for the terminal: control characters from files are escaped, so that they cannot act on the terminal.

Names of tensors, tasks and files, notes and reasons may come from a file that anyone has written. Control characters,
marks of the direction of text and newlines in them are shown as ``\\\\x1b``, ``\\\\u202e`` and ``\\\\n``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from spectra.errors import escaped


def say(words: str, *, err: bool = True) -> None:
    """Print one line, on standard error unless it is a result."""
    click.echo(escaped(words), err=err)


def escaped_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """The cells of a row of a CSV file."""
    return {name: escaped(cell) if isinstance(cell, str) else cell for name, cell in row.items()}
