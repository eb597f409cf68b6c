"""Reports errors raised by the user's own code (model, loss, data): kind, message and place in one line.

The place is the innermost frame of the traceback that belongs neither to spectra nor to an installed package, so an
error deep within torch is reported at the line of the user's file that led to it.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from spectra.errors import DataError, SpectraError, TaskError, in_one_line

_LONGEST = 400  # characters of a message: some errors list every key of a model
_PACKAGE = Path(__file__).resolve().parents[1]
_OWN = (_PACKAGE, _PACKAGE.parent / "spectra_cli", _PACKAGE.parent / "cli" / "spectra_cli")
_INSTALLED = re.compile(r"[\\/](site|dist)-packages[\\/]")
_STANDARD = sysconfig.get_path("stdlib")
# A worker of a DataLoader sends its traceback as text, which becomes the message of the error.
_FRAME = re.compile(r'^\s*File "(?P<file>.+)", line (?P<line>\d+), in (?P<name>.+)$', re.MULTILINE)
_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")


def place_of(error: BaseException) -> str:
    """The place in the user's code that raised an error, as ``Net.forward in net.py line 12``; empty if there is none.

    If all frames belong to installed packages, the innermost one outside torch is named.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name} line {error.lineno}"
    frames = [(f.f_code.co_filename, line, f.f_code.co_qualname) for f, line in traceback.walk_tb(error.__traceback__)]
    frames += [(frame["file"], int(frame["line"]), frame["name"]) for frame in _FRAME.finditer(_text_of_worker(error))]
    by_origin = {_origin(file): (file, line, name) for file, line, name in frames}  # the innermost of each
    frame = by_origin.get("user") or by_origin.get("installed")
    if frame is None:
        return ""
    file, line, name = frame
    where = f"{Path(file).name} line {line}"
    return where if name == "<module>" else f"{name.replace('<locals>.', '')} in {where}"


def words_of(error: BaseException) -> str:
    """The type of an error and its message on one line, shortened if it is long.

    Example:
        >>> words_of(ValueError("two\\nlines"))
        'ValueError: two lines'
    """
    sent = _text_of_worker(error).strip().splitlines()
    words = " ".join(sent[-1].split()) if sent else in_one_line(error)
    return words if len(words) <= _LONGEST else f"{words[:_LONGEST]}..."


def unexpected(error: BaseException) -> bool:
    """Whether an error indicates a defect: it is no error of spectra and not out of memory."""
    return not isinstance(error, SpectraError) and not out_of_memory(error)


def reason_of(error: BaseException) -> str:
    """The reason of a failure in one line; for errors from outside spectra with type and place.

    Example:
        >>> reason_of(MemoryError()), reason_of(DataError("no batch"))
        ('out of memory (MemoryError): smaller batches, fewer samples or fewer Lanczos steps need less', 'no batch')
    """
    if isinstance(error, SpectraError):
        return in_one_line(error)
    if out_of_memory(error):
        return f"out of memory ({words_of(error)}): smaller batches, fewer samples or fewer Lanczos steps need less"
    place = place_of(error)
    return f"{words_of(error)}{', raised by ' if place else ''}{place}"


@contextlib.contextmanager
def calling(what: str, kind: type[SpectraError] = TaskError) -> Iterator[None]:
    """Context for a call of the user's code: its errors become errors of type ``kind`` that name their place.

    Errors of spectra and out-of-memory errors pass unchanged.

    Args:
        what: the part of the task that is called, the subject of the message.
        kind: the error to raise, with the original one as its cause.
    """
    try:
        yield
    except SpectraError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        place = place_of(error)
        failure = kind(f"{what} fails{' at ' if place else ''}{place}: {words_of(error)}")
        failure.of_called_code = True
        raise failure from error


def batches_of(data: Iterable[Any], what: str = "reading the data") -> Iterator[Any]:
    """The batches of a user's data; an error while reading them names its place.

    Raises:
        DataError: reading the data fails.
    """
    with calling(what, DataError):
        batches = iter(data)
    end = object()
    while True:
        with calling(what, DataError):
            batch = next(batches, end)
        if batch is end:
            return
        yield batch


def _text_of_worker(error: BaseException) -> str:
    """The traceback that a worker process of a loader sent as the message of its error; else empty."""
    text = str(error)
    return text if text.startswith("Caught ") and "Original Traceback" in text else ""


def _origin(file: str) -> str:
    """Whose code a file is: ``"own"``, ``"torch"``, ``"installed"``, ``"standard"`` or ``"user"``."""
    torch = getattr(sys.modules.get("torch"), "__file__", None)
    if file.startswith(tuple(str(folder) + os.sep for folder in _OWN)):
        return "own"
    if torch is not None and file.startswith(os.path.dirname(torch) + os.sep):
        return "torch"
    if _INSTALLED.search(file):
        return "installed"
    return "standard" if file.startswith(("<frozen", _STANDARD + os.sep)) else "user"


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the device or the host; torch has several errors for it."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _MEMORY)
