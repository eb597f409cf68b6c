"""Ranks: the processes of torch.distributed that share one analysis, and what they must agree on.

Each process runs the same program. Within :func:`across_ranks`, sums over the data are shared: a process computes its
batches, and all get the sum. What must be the same everywhere, such as a choice that depends on free memory or on a
file, is computed by the first process and sent to the others. Without :func:`across_ranks` nothing here communicates.
"""

from __future__ import annotations

import datetime
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from spectra.errors import ArgumentError, RanksError, in_one_line

_T = TypeVar("_T")


@dataclass(frozen=True)
class Ranks:
    """The processes that share the analysis, seen from one of them."""

    rank: int  # of this process
    size: int  # the number of processes
    backend: str  # that adds up tensors: "gloo" or "nccl"
    objects: Any  # the group that sends objects of Python, always of gloo

    @property
    def first(self) -> bool:
        """Whether this is the process that reads and writes the results file, and prints."""
        return self.rank == 0


_sharing: ContextVar[Ranks | None] = ContextVar("spectra_ranks", default=None)


@contextmanager
def across_ranks() -> Iterator[Ranks | None]:
    """Within the block, the processes of torch.distributed's default group share every analysis.

    All of them must enter the block, with the same task, data and settings, and make the same calls in it. With one
    process there is nothing to share, and the block has no effect.

    Raises:
        ArgumentError: torch.distributed is not set up: ``torch.distributed.init_process_group`` does that.
        RanksError: another process cannot be reached.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise ArgumentError("torch.distributed is not set up: call torch.distributed.init_process_group first")
    size = dist.get_world_size()
    if size == 1 or _sharing.get() is not None:
        yield _sharing.get()
        return
    backend = str(dist.get_backend())
    with _reached():
        # A process may wait for as long as the first one computes alone.
        objects = dist.new_group(backend="gloo", timeout=datetime.timedelta(days=7))
    token = _sharing.set(Ranks(dist.get_rank(), size, backend, objects))
    try:
        yield _sharing.get()
    finally:
        _sharing.reset(token)


def ranks() -> Ranks | None:
    """The processes that share the present computation; None: this process computes alone."""
    return _sharing.get()


def is_first() -> bool:
    """Whether this process writes and prints: it computes alone, or is the first of those that share."""
    found = _sharing.get()
    return found is None or found.first


def shared_by() -> dict[str, Any]:
    """The processes that share the computation, for the provenance of a record; empty for one process."""
    found = _sharing.get()
    if found is None:
        return {}
    split = f"batch i of the data by process i modulo {found.size}"
    return {"ranks": {"world_size": found.size, "backend": found.backend, "split": split}}


def processes_here() -> int:
    """How many of the processes that share the computation are on this machine, with one memory."""
    found = _sharing.get()
    return 1 if found is None else int(os.environ.get("LOCAL_WORLD_SIZE", found.size))


def agreed(value: _T) -> _T:
    """The value that the first process has."""
    found = _sharing.get()
    return value if found is None else _broadcast(found, value)


def first_alone(compute: Callable[[], _T]) -> _T:
    """The result of the first process, which computes it alone while the others wait; its error is raised by all."""
    found = _sharing.get()
    if found is None:
        return compute()
    outcome: tuple[_T | None, Exception | None] = (None, None)
    if found.first:
        with alone():
            outcome = _outcome(compute)
    value, error = _broadcast(found, outcome)
    if error is not None:
        raise error
    return value  # type: ignore[return-value]


@contextmanager
def alone() -> Iterator[None]:
    """Within the block, this process shares nothing with others."""
    token = _sharing.set(None)
    try:
        yield
    finally:
        _sharing.reset(token)


def everywhere(compute: Callable[[], _T]) -> list[_T]:
    """The results of all processes, in their order; the first error of any is raised by all.

    Args:
        compute: without communication.
    """
    found = _sharing.get()
    return [compute()] if found is None else _values(_gather(found, _outcome(compute)))


def jointly(compute: Callable[[], _T]) -> _T:
    """The result of this process; the first error of any process is raised by all.

    Args:
        compute: without communication.
    """
    found = _sharing.get()
    if found is None:
        return compute()
    value, error = _outcome(compute)
    _values(_gather(found, (None, error)))
    return value  # type: ignore[return-value]


@contextmanager
def adding_up(totals: Sequence[torch.Tensor]) -> Iterator[None]:
    """At the end of the block, tensors that this process has added its share to are the sums over all processes.

    An error in the block of any process is raised by all of them.
    """
    found = _sharing.get()
    if found is None:
        yield
        return
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        error = _sendable(caught)
    flag = torch.zeros(1, dtype=torch.float64, device=totals[0].device if totals else None)
    flag[0] = error is not None
    with _reached():
        for tensor in (flag, *totals):
            dist.all_reduce(tensor)
    if float(flag):
        _values(_gather(found, (None, error)))


def gathered(value: _T) -> list[_T]:
    """The values of all processes, in their order."""
    found = _sharing.get()
    return [value] if found is None else _gather(found, value)


def joined(slice_of: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """The slices of all processes as one vector, given the sizes of the slices."""
    found = _sharing.get()
    if found is None:
        raise RanksError("a vector that several processes store cannot be joined by one of them")
    longest = max(sizes)
    padded = torch.zeros(longest, dtype=slice_of.dtype, device=slice_of.device)
    padded[: len(slice_of)] = slice_of
    pieces = [torch.empty_like(padded) for _ in sizes]
    with _reached():
        dist.all_gather(pieces, padded)
    return torch.cat([piece[:size] for piece, size in zip(pieces, sizes)])


def same_everywhere(what: str, value: object) -> None:
    """Check that all processes have the same value.

    Raises:
        ArgumentError: they differ.
    """
    if len(set(map(repr, gathered(value)))) > 1:
        raise ArgumentError(
            f"the processes of this run have different {what}: each needs the same task, data, checkpoint and settings "
            "(a task must not take its share of the data by itself)"
        )


def _outcome(compute: Callable[[], _T]) -> tuple[_T | None, Exception | None]:
    try:
        return compute(), None
    except Exception as error:
        return None, _sendable(error)


def _sendable(error: Exception) -> Exception:
    """The error, or one of a builtin type with its message, where it cannot be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(in_one_line(error))
    return error


def _values(outcomes: Sequence[tuple[Any, Exception | None]]) -> list[Any]:
    """The values; the error of the first process that has one is raised, with the number of that process."""
    for rank, (_, error) in enumerate(outcomes):
        if error is not None:
            error.add_note(f"in process {rank} of {len(outcomes)}")
            raise error
    return [value for value, _ in outcomes]


def _broadcast(found: Ranks, value: _T) -> _T:
    box = [value if found.first else None]
    with _reached():
        dist.broadcast_object_list(box, src=0, group=found.objects)
    return box[0]  # type: ignore[return-value]


def _gather(found: Ranks, value: _T) -> list[_T]:
    box: list[Any] = [None] * found.size
    with _reached():
        dist.all_gather_object(box, value, group=found.objects)
    return box


@contextmanager
def _reached() -> Iterator[None]:
    """Turn errors of the communication into one line."""
    try:
        yield
    except RuntimeError as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise RanksError(f"another process of this run has ended or cannot be reached: {first}") from error
