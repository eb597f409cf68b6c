"""Available memory of a device, within a limit where one is set, and byte counts in words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import psutil
import torch

from spectra.runtime.ranks import processes_here

_limit: ContextVar[int | None] = ContextVar("spectra_memory_limit", default=None)


@contextmanager
def memory_limited(limit: int | None) -> Iterator[None]:
    """Within the block, :func:`available_bytes` returns at most what this limit leaves.

    Args:
        limit: of the memory that this process uses on a device, in bytes: resident memory for the CPU, memory
            allocated by torch for a GPU. None: the limit of the surrounding block, if there is one.
    """
    token = _limit.set(_limit.get() if limit is None else limit)
    try:
        yield
    finally:
        _limit.reset(token)


def available_bytes(device: torch.device) -> int:
    """The memory of a device that a computation may still take, in bytes.

    It is the smaller of the free memory (for the CPU within the limit of the container, if there is one) and of what
    :func:`memory_limited` leaves.
    """
    free, limit = _free_bytes(device), _limit.get()
    return free if limit is None else min(free, max(0, limit - used_bytes(device)))


def used_bytes(device: torch.device) -> int:
    """The memory of a device that this process uses: resident for the CPU, allocated by torch for a GPU."""
    return int(torch.cuda.memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss)


def larger_limit(device: torch.device, needed: float) -> str:
    """Advice for an error message where a limit, and not the machine, leaves fewer bytes than are needed; else ""."""
    limit, used = _limit.get(), used_bytes(device)
    if limit is None or limit - used >= needed or _free_bytes(device) < needed:
        return ""
    megabytes = int(-(-(used + needed) // 2**20))
    return f"; the limit is memory={in_words(limit)}, of which {in_words(used)} are in use: {megabytes}M would fit"


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + cached)
    free = int(psutil.virtual_memory().available)
    limit = _number_in("/sys/fs/cgroup/memory.max")
    used = _number_in("/sys/fs/cgroup/memory.current")
    if limit is not None and used is not None:
        free = min(free, max(0, limit - used))
    return free // processes_here()


def _number_in(path: str) -> int | None:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):  # no such limit here, or the word "max"
        return None


def in_words(count: float) -> str:
    """A number of bytes in words.

    >>> in_words(3 * 2**30)
    '3.0 GiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
