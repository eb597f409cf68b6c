"""A global lock: one thread at a time changes state that threads share.

Modes are attributes of the user's modules, parameters are swapped in them for the length of a call, and torch's random
states and switches are process-wide. So one lock is held while any of these is changed. All models share it, because
models may share modules. The lock is re-entrant. It is held for a pass over the data or for one measure, and never
while a generator or a context of the user waits.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class _Exclusive:
    """A re-entrant lock that is released in a process forked while another thread held it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._last: int | None = None  # the thread that took it last, and holds it if any does
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def acquire(self) -> None:
        """Wait until no other thread holds the lock, and acquire it."""
        self._lock.acquire()
        self._last = threading.get_ident()

    def release(self) -> None:
        """Release the lock; call it once per acquisition."""
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()

    def _renew(self) -> None:
        if self._last != threading.get_ident():  # its holder is not there any more
            self._lock = threading.RLock()


#: Within ``with one_at_a_time:`` no other thread changes modes, parameters, random states or switches.
one_at_a_time = _Exclusive()


def exclusively(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorator: run a function within ``one_at_a_time``; for functions that read parameters or modules of a model."""

    @wraps(function)
    def alone(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with one_at_a_time:
            return function(*args, **kwargs)

    return alone
