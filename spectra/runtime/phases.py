"""Progress reports: code anywhere reports its phase, and one listener receives the reports.

A phase has a name and, if known, the share that is done. Long work reports its steps; the listener estimates the time.
No result depends on these reports.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

#: Called with the phase, the amount done, the total amount (0 if unknown), and a description of the current work or "".
Listen = Callable[[str, float, float, str], None]

_listening: ContextVar[Listen | None] = ContextVar("spectra_phases", default=None)


@contextmanager
def reported(to: Listen | None) -> Iterator[None]:
    """Make :func:`phase` call this listener within the block.

    Example:
        >>> with reported(print):
        ...     phase("probes", 3, 8)
        probes 3 8
    """
    token = _listening.set(to)
    try:
        yield
    finally:
        _listening.reset(token)


def phase(name: str, done: float = 0, of: float = 0, what: str = "") -> None:
    """Report the current phase, the amount done and the total amount."""
    listen = _listening.get()
    if listen is not None:
        listen(name, done, of, what)


@contextmanager
def part(name: str, index: float, of: float, what: str = "") -> Iterator[None]:
    """Within the block every phase counts as progress between ``index`` and ``index + 1`` of ``of``.

    The number of phases is unknown, so each phase gets half of the remaining interval.

    Example:
        >>> with reported(print), part("measures", 2, 5, "fisher_rao"):
        ...     phase("certificate", 3, 4)
        ...     phase("exact diagonal", 3, 4)
        measures 2 5 fisher_rao
        measures 2.375 5 fisher_rao: certificate
        measures 2.6875 5 fisher_rao: exact diagonal
    """
    outer = _listening.get()
    if outer is None:
        yield
        return
    last, begun = "", 0.0

    def inner(name_within: str, done: float, of_within: float, _: str) -> None:
        nonlocal last, begun
        if last and name_within != last:
            begun = (1 + begun) / 2
        last = name_within
        share = done / of_within if of_within else 0.0
        outer(name, index + begun + share * (1 - begun) / 2, of, f"{what}: {name_within}" if what else name_within)

    outer(name, index, of, what)
    token = _listening.set(inner)
    try:
        yield
    finally:
        _listening.reset(token)
