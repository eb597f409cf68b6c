"""SameThreads: the number of threads of the existing records, so that the last digits are the same."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from spectra.runtime.exclusive import one_at_a_time

Say = Callable[[str], None]


class SameThreads:
    """Compute with the number of threads of the existing probes or records, and restore the number at the end.

    Sums are split over threads, so another number of threads changes the last digits.

    Args:
        threads: of the existing probes or records; None: there are none of this machine.
        say: called with a line if the number is changed, or cannot be.
    """

    def __init__(self, threads: int | None, say: Say) -> None:
        with one_at_a_time:  # while no other thread has changed it
            self.before = torch.get_num_threads()
        self.threads = self.before if threads is None else threads
        self.say = say

    def __enter__(self) -> None:
        if self.threads == self.before:
            return
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if self.threads > max(cores, self.before):
            self.say(f"the records in the file were computed with {self.threads} threads; here are {cores} cores")
            self.threads = self.before
            return
        self.say(f"computing with {self.threads} threads, like the records in the file")
        one_at_a_time.acquire()  # the number is that of the whole process
        torch.set_num_threads(self.threads)

    def __exit__(self, *error: object) -> None:
        if self.threads != self.before:
            torch.set_num_threads(self.before)
            one_at_a_time.release()
