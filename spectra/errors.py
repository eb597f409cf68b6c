"""The errors that spectra raises. Each is also a builtin, so callers may catch either. Nothing of ours is imported.

A message names what was wrong, where, and what to do, in one line: the command line prints it as it stands.
"""

from __future__ import annotations

import re

# Control characters of ASCII and C1, separators of lines, marks of the direction of text, characters without a width,
# and halves of surrogate pairs.
_UNSHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")


class SpectraError(Exception):
    """The base of every error that spectra raises on purpose."""

    #: The user's model, loss or data raised it: a fault, not a reason why a number does not exist.
    of_called_code = False


class ArgumentError(SpectraError, ValueError):
    """An argument outside its range: the message has its name, its value, the bound and the remedy."""


class TaskError(SpectraError, ValueError):
    """The task does not define one loss: unknown averaging, no second derivative, no dependence on the parameters."""


class DataError(SpectraError, ValueError):
    """The data cannot be used: empty, labels out of range, or not the same on every pass."""


class CheckpointError(SpectraError, ValueError):
    """A checkpoint that is missing, truncated, unsafe to load, or does not fit the model."""


class NumericsError(SpectraError, ArithmeticError):
    """NaN or infinity where a number was needed."""


class OutOfMemory(SpectraError, MemoryError):
    """What was asked needs more memory than there is: the message says how much, and what would fit."""


class StorageError(SpectraError, OSError):
    """A results file that cannot be read, written or continued."""


class RanksError(SpectraError, ConnectionError):
    """A process with which this one shares an analysis has ended or cannot be reached: the run cannot go on."""


class MissingDependency(SpectraError, ImportError):
    """An optional package is needed for this: the message has the command that installs it."""


def in_one_line(error: BaseException) -> str:
    """What an error says, on one line; of one that is not ours, its kind too.

    Example:
        >>> in_one_line(ValueError("two\\nlines")), in_one_line(TaskError("no batch"))
        ('ValueError: two lines', 'no batch')
    """
    words = " ".join(str(error).split())
    return words if isinstance(error, SpectraError) else f"{type(error).__name__}: {words}".removesuffix(": ")


def escaped(text: str) -> str:
    """The text on one line, with characters that would act on a terminal written out.

    Example:
        >>> print(escaped("a\\x1b[2Kb\\nc"))
        a\\x1b[2Kb\\nc
    """
    return _UNSHOWN.sub(lambda found: found.group().encode("unicode_escape").decode(), text)
