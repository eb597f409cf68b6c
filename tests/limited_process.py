"""Calls a function in a process of its own with limits of time and memory: HDF5 can crash, or wait forever."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable

from spectra.errors import SpectraError


def said_in_a_process(call: Callable[[], str | None]) -> str:
    """What the call returns, or the message of its ``SpectraError``; another error or a crash fails the test."""
    receive, send = os.pipe()
    number = os.fork()
    if number == 0:
        words = ""
        try:
            signal.alarm(60)
            resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30))
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            words = call() or ""
        except SpectraError as error:
            words = str(error)
        except BaseException as error:
            words = f"not ours: {error!r}"
        finally:
            os.write(send, words.encode()[:4000])
            os._exit(0)
    os.close(send)
    with open(receive, "rb") as pipe:
        words = pipe.read().decode()
    _, status = os.waitpid(number, 0)
    assert not os.WIFSIGNALED(status), f"ended by signal {os.WTERMSIG(status)}"
    assert not words.startswith("not ours"), words
    return words
