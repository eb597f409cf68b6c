"""PhaseClock: the present phase of a run, its elapsed time and its remaining time, for displays."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

#: A phase is shown when it has lasted so long, and then again at this interval, in seconds.
FIRST, AGAIN = 1.0, 10.0
TICK = 0.2  #: how often it is looked at, in seconds
_COUNTED = ("probes", "eigenpairs")  # in products, where the others are parts of a whole


@dataclass(frozen=True)
class Phase:
    """A phase of a run: its name, and how much of it is done."""

    name: str
    done: float
    of: float  # 0: not known
    what: str  # in it
    begun: float  # by the clock
    before: float  # done already when it began, by an earlier process

    def seconds_left(self, now: float) -> float | None:
        """Seconds that remain at the pace so far; None where that is not known."""
        gained = self.done - self.before
        return None if not self.of or gained <= 0 else (now - self.begun) * (self.of - self.done) / gained

    def words(self, now: float) -> str:
        """The phase in a line.

        Example:
            >>> Phase("probes", 20, 80, "", begun=0.0, before=0).words(now=30.0)
            'probes, product 20 of 80, 90 s left'
        """
        found = [f"{self.name} ({self.what})" if self.what else self.name]
        if self.of and self.name in _COUNTED:
            found.append(f"product {self.done:.0f} of {self.of:.0f}")
        elif self.of:
            found.append(f"{self.done / self.of:.0%}")
        left = self.seconds_left(now)
        if left is not None:
            found.append(f"{duration(left)} left")
        return ", ".join(found)


class PhaseClock:
    """Keeps the present phase, and shows it from a separate thread, so that a long step has output too.

    Args:
        show: called with the phase, from that thread: when it has lasted a second, and every ten seconds after that.
            None: nothing is shown, and there is no thread.
    """

    def __init__(self, show: Callable[[Phase], None] | None = None) -> None:
        self.show = show
        self.phase: Phase | None = None
        self._shown = 0.0  # when the phase was, by the clock; 0: not yet
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        if self.show is not None:
            self._thread = threading.Thread(target=self._run, name="spectra progress", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def set(self, name: str, done: float, of: float, what: str) -> bool:
        """Set the phase; returns whether it differs from the one before."""
        with self._lock:
            new = self.phase is None or self.phase.name != name
            begun, before = (
                (time.perf_counter(), done) if new or self.phase is None else (self.phase.begun, self.phase.before)
            )
            self.phase = Phase(name, done, of, what, begun, before)
            self._shown = 0.0 if new else self._shown
        return new

    def clear(self) -> None:
        """End the phase."""
        with self._lock:
            self.phase = None

    def _run(self) -> None:
        while not self._stop.wait(TICK):
            with self._lock:
                phase, now = self.phase, time.perf_counter()
                due = phase is not None and (now - self._shown >= AGAIN if self._shown else now - phase.begun >= FIRST)
                if due:
                    self._shown = now
            if due and phase is not None and self.show is not None:
                self.show(phase)


def duration(seconds: float) -> str:
    """A time as a person says it.

    >>> duration(41.3), duration(400), duration(9000)
    ('41 s', '7 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
