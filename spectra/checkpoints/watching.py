"""Checkpoints as training writes them: each is given out once it is whole."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from spectra.checkpoints.discovery import find_checkpoints, order_checkpoints
from spectra.errors import ArgumentError, CheckpointError

Mark = tuple[int, int, int]  # changes whenever a file is written to or replaced


@dataclass
class _Seen:
    """A file as it was at the last look, and since when it has been so."""

    mark: Mark
    since: float
    given: bool = False


def arriving(
    places: Sequence[str | Path],
    *,
    settle: float = 2.0,
    patience: float = 60.0,
    idle: float | None = None,
    interval: float = 1.0,
    note: Callable[[str], None] = lambda words: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Path]:
    """The checkpoints in folders, or of patterns, now and from now on; those of one look in training order.

    A file is taken for whole when nothing has written to it for `settle` seconds and its format ends as it should. One
    that does not is given out all the same after `patience` seconds without a change: loading it says what is wrong.
    A file that changes after it was given out is not given out again, which `note` is told.

    Args:
        places: folders, patterns or files, as :func:`find_checkpoints` takes them; what is not there yet may come.
        settle: seconds.
        patience: seconds.
        idle: stop when nothing new has come for this many seconds; None: go on until an interrupt while waiting, which
            ends the iteration.
        interval: seconds between two looks.
        note: is told in a line what is passed over.
        clock: seconds that pass.
        sleep: waits.

    Raises:
        ArgumentError: a time that is negative.
    """
    for name, value in (("settle", settle), ("patience", patience), ("idle", idle), ("interval", interval)):
        if value is not None and value < 0:
            raise ArgumentError(f"{name}={value:g}: seconds, at least 0")
    seen: dict[Path, _Seen] = {}
    latest = clock()
    while True:
        ready = []
        for path in _there(places):
            mark = _mark(path)
            if mark is None:  # gone between two steps
                continue
            before = seen.get(path)
            if before is None or before.mark != mark:
                if before is not None and before.given:
                    note(f"{path} has changed since it was taken up: passed over; a name for each epoch avoids this")
                seen[path] = before = _Seen(mark, clock(), given=before is not None and before.given)
            waited = clock() - before.since
            if not before.given and waited >= settle and (waited >= patience or ends_well(path)):
                before.given = True
                ready.append(path)
        if ready:
            yield from order_checkpoints(ready)
            latest = clock()
            continue
        if idle is not None and clock() - latest >= idle and all(one.given for one in seen.values()):
            return
        try:
            sleep(interval)
        except KeyboardInterrupt:
            return


def ends_well(path: Path) -> bool:
    """Whether a file ends as its format says: the directory of a zip archive, the last tensor of safetensors.

    Other formats do not say where they end: True.
    """
    try:
        with path.open("rb") as file:
            start = file.read(8)
            size = path.stat().st_size
        if not start:
            return False
        if path.suffix == ".safetensors":
            return _safetensors_ends(path, size)
        return zipfile.is_zipfile(path) if start.startswith(b"PK") else True
    except OSError:
        return False


def _safetensors_ends(path: Path, size: int) -> bool:
    import json

    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8:
            return False
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            return False
    return size == 8 + length + max(ends, default=0)


def _there(places: Sequence[str | Path]) -> list[Path]:
    found: dict[Path, None] = {}
    for place in places:
        try:
            found.update(dict.fromkeys(find_checkpoints([place])))
        except CheckpointError:  # not yet
            continue
    return list(found)


def _mark(path: Path) -> Mark | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
