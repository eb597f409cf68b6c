"""The errors that spectra raises. Each is also a builtin, so callers may catch either. This file imports nothing.

A message names what was wrong, where, and what to do, in one line: the command line prints it as it stands.
"""

from __future__ import annotations


class SpectraError(Exception):
    """The base of every error that spectra raises on purpose."""


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
