"""Shares results between the quantities of one record: within a block, each is computed once.

Nothing is stored outside such a block, because a network that is trained further would get outdated results.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

Result = TypeVar("Result")

_held: ContextVar[dict[Any, tuple[Any, Any]] | None] = ContextVar("spectra_shared_results", default=None)


@contextmanager
def shared_results() -> Iterator[None]:
    """Within the block, :func:`remembered` computes nothing twice. Networks and data must not change in the block."""
    token = _held.set({})
    try:
        yield
    finally:
        _held.reset(token)


def remembered(
    kind: str, objects: Sequence[Any], settings: Sequence[Hashable], compute: Callable[[], Result]
) -> Result:
    """The result of ``compute``, or the stored result for the same kind, objects and settings.

    Args:
        kind: name of the quantity.
        objects: the networks, data and functions that it depends on, compared by identity.
        settings: everything else that it depends on.
        compute: called at most once within a block, and on every call outside a block.

    Example:
        >>> with shared_results():
        ...     [remembered("number", [int], (1,), lambda: n) for n in (5, 6)]
        [5, 5]
        >>> [remembered("number", [int], (1,), lambda: n) for n in (5, 6)]
        [5, 6]
    """
    held = _held.get()
    if held is None:
        return compute()
    key = (kind, tuple(map(id, objects)), tuple(settings))
    if key not in held:
        held[key] = (tuple(objects), compute())  # the objects are stored too, so that their ids stay unique
    result: Result = held[key][1]
    return result
