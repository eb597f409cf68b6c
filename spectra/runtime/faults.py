"""Separates refusals (reasons why a number does not exist) from unexpected errors, and collects the latter.

A spectrum can take hours, so an error in a check or a measure must not lose it. The error must not look like a result
either. So the record is kept, marked as unverified, stores the traceback, and is computed again by the same command.
"""

from __future__ import annotations

import contextlib
import logging
import re
import traceback
from collections.abc import Iterator

from spectra.errors import RanksError, SpectraError, in_one_line

logger = logging.getLogger(__name__)

#: Characters of a traceback that a record keeps: the end, where the error is.
_LONGEST = 8000

# Patterns of torch errors that state a limit of the model: another precision, second derivatives, batches of one row in
# train mode, a copy.
_LIMITS = re.compile(
    "dtype|scalar type|derivative|differentiat|not implemented for|more than 1 value per channel|deepcopy protocol"
)


def is_limit(error: BaseException | None) -> bool:
    """Whether an error of torch states a permanent limit of the model.

    Example:
        >>> is_limit(RuntimeError("expected m1 and m2 to have the same dtype")), is_limit(RuntimeError("CUDA error"))
        (True, False)
    """
    if isinstance(error, NotImplementedError):
        return True
    return isinstance(error, (RuntimeError, TypeError, ValueError)) and _LIMITS.search(str(error)) is not None


def is_refusal(error: BaseException) -> bool:
    """Whether an error is spectra's reason why a number does not exist, and not a fault.

    An error raised by the user's model, loss or data is a fault, unless it states a limit of the model.

    Example:
        >>> from spectra.errors import TaskError
        >>> is_refusal(TaskError("no second derivative")), is_refusal(RuntimeError("device-side assert"))
        (True, False)
    """
    if isinstance(error, RanksError):
        return False
    return isinstance(error, SpectraError) and (not error.of_called_code or is_limit(error.__cause__))


def refusal_in(error: Exception) -> str:
    """The message of a refusal.

    Raises:
        Exception: the error itself, if it is a fault.
    """
    if not is_refusal(error):
        raise error
    return str(error)


class Faults:
    """The unexpected errors in parts of one record.

    Args:
        label: which record, for messages.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self.reasons: list[str] = []
        self.tracebacks: list[str] = []

    @contextlib.contextmanager
    def kept(self, part: str) -> Iterator[None]:
        """Context for one part of the record: an error is logged and stored, and the record continues without it."""
        try:
            yield
        except RanksError:  # nothing more can be computed
            raise
        except Exception as error:
            self.add(part, error)

    def add(self, part: str, error: Exception) -> None:
        """Keep an error and log it.

        Args:
            part: what was computed, such as ``the check of the traces``.
            error: what was raised.
        """
        self.reasons.append(f"{part}: {in_one_line(error)}")
        self.tracebacks.append("".join(traceback.format_exception(error))[-_LONGEST:])
        logger.error("%s: unexpected error in %s", self.label, self.reasons[-1])

    @property
    def notes(self) -> list[str]:
        """One line to print with the numbers; empty without faults."""
        if not self.reasons:
            return []
        where = "the traceback is in the record's provenance, as spectra show --json prints it"
        return [f"UNVERIFIED: {self.label}: unexpected error in {self.reason}; {where}; run the same command again"]

    def as_provenance(self) -> dict[str, list[str]]:
        """The tracebacks, for the provenance of the record."""
        return {"tracebacks": self.tracebacks} if self.tracebacks else {}

    @property
    def reason(self) -> str | None:
        """All faults in one line; None if there are none."""
        return "; ".join(self.reasons) or None
