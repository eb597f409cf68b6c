"""Separates refusals (reasons why a number does not exist) from unexpected errors, and collects the latter.

The spectrum is hours of products: an error in a check or a measure must not lose it. It must not pass for a result
either. So the record is kept, is called unverified, has the traceback, and is computed again by the same command.
"""

from __future__ import annotations

import contextlib
import logging
import re
import traceback
from collections.abc import Iterator

from spectra.errors import SpectraError, in_one_line

logger = logging.getLogger(__name__)

#: Characters of a traceback that a record keeps: the end, where the error is.
_LONGEST = 8000


# What torch says of a model that cannot do what a check or a measure needs: another precision than its own, second
# derivatives, batches of one row in train mode, a copy.
_LIMITS = re.compile(
    "dtype|scalar type|derivative|differentiat|not implemented for|more than 1 value per channel|deepcopy protocol"
)


def is_limit(error: BaseException | None) -> bool:
    """Whether an error of torch says what a model cannot do, however often it is tried.

    Example:
        >>> is_limit(RuntimeError("expected m1 and m2 to have the same dtype")), is_limit(RuntimeError("CUDA error"))
        (True, False)
    """
    if isinstance(error, NotImplementedError):
        return True
    return isinstance(error, (RuntimeError, TypeError, ValueError)) and _LIMITS.search(str(error)) is not None


def is_refusal(error: BaseException) -> bool:
    """Whether an error is a reason that spectra gives for a number that does not exist, and not a fault.

    What the user's model, loss or data raise is a fault, unless it is a limit of the model.

    Example:
        >>> from spectra.errors import TaskError
        >>> is_refusal(TaskError("no second derivative")), is_refusal(RuntimeError("device-side assert"))
        (True, False)
    """
    return isinstance(error, SpectraError) and (not error.of_called_code or is_limit(error.__cause__))


def refusal_in(error: Exception) -> str:
    """What a refusal says.

    Raises:
        Exception: the error itself, if it is a fault.
    """
    if not is_refusal(error):
        raise error
    return str(error)


class Faults:
    """What went wrong in parts of one record, without being foreseen.

    Args:
        label: which record, for messages.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self.reasons: list[str] = []
        self.tracebacks: list[str] = []
        self.first: Exception | None = None

    @contextlib.contextmanager
    def kept(self, part: str) -> Iterator[None]:
        """Around a part of the record: an error in it is logged and kept, and the record goes on without the part."""
        try:
            yield
        except Exception as error:
            self.add(part, error)

    def add(self, part: str, error: Exception) -> None:
        """Keep an error and log it.

        Args:
            part: what was computed, such as ``the check of the traces``.
            error: what was raised.
        """
        self.first = self.first or error
        self.reasons.append(f"{part}: {in_one_line(error)}")
        self.tracebacks.append("".join(traceback.format_exception(error))[-_LONGEST:])
        logger.error("%s: unexpected error in %s", self.label, self.reasons[-1])

    @property
    def notes(self) -> list[str]:
        """A line to print beside the numbers, if there is anything to say."""
        if not self.reasons:
            return []
        where = "the traceback is in the record's provenance, as spectra show --json prints it"
        return [f"UNVERIFIED: {self.label}: unexpected error in {self.reason}; {where}; run the same command again"]

    def as_provenance(self) -> dict[str, list[str]]:
        """The tracebacks, for the provenance of the record."""
        return {"tracebacks": self.tracebacks} if self.tracebacks else {}

    @property
    def reason(self) -> str | None:
        """All of them in one line; None: there are none."""
        return "; ".join(self.reasons) or None
