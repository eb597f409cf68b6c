"""arriving: yields checkpoints while training writes them, each one when it is complete."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from spectra.checkpoints.discovery import find_checkpoints, order_checkpoints
from spectra.checkpoints.distributed import METADATA, is_whole
from spectra.checkpoints.folders import files_of
from spectra.checkpoints.shards import index_of, is_index, shards_of
from spectra.errors import ArgumentError, CheckpointError

Mark = tuple[tuple[str, int, int, int], ...]  # changes whenever a file is written to, replaced, added or removed


@dataclass
class _Seen:
    """The state of a checkpoint at the last poll, and the time since which it is unchanged."""

    mark: Mark
    since: float
    given: Mark | None = None  # of the weights alone, when it was given out


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
    """The present and future checkpoints in folders or of patterns; those of one poll in training order.

    A file is complete if it did not change for `settle` seconds and its format ends correctly. A folder is complete if
    all its files are and all shards exist. An incomplete checkpoint is yielded after `patience` seconds without a
    change; loading it then reports the error. A checkpoint whose weights change after it was yielded is not yielded
    again; `note` receives a line about it.

    Args:
        places: folders, patterns or files, as for :func:`find_checkpoints`; they need not exist yet.
        settle: seconds.
        patience: seconds.
        idle: stop when nothing new has come for this many seconds; None: go on until an interrupt while waiting, which
            ends the iteration.
        interval: seconds between two polls.
        note: called once with a line about each skipped checkpoint.
        clock: seconds that pass.
        sleep: waits.

    Raises:
        ArgumentError: a time that is negative.
    """
    for name, value in (("settle", settle), ("patience", patience), ("idle", idle), ("interval", interval)):
        if value is not None and value < 0:
            raise ArgumentError(f"{name}={value:g}: seconds, at least 0")
    seen: dict[Path, _Seen] = {}
    passed: dict[str, None] = {}
    latest = clock()
    while True:
        ready = []
        present, words = _present(places)
        for line in words.keys() - passed.keys():
            note(line)
        passed |= words
        for path in present:
            mark = _mark(_all_of(path))
            if not mark:  # gone between two steps
                continue
            last_seen = seen.get(path)
            if last_seen is None:
                last_seen = seen[path] = _Seen(mark, clock())
            elif last_seen.mark != mark:
                last_seen.mark, last_seen.since = mark, clock()
                weights = _mark(_weights_of(path))
                if last_seen.given not in (None, weights):
                    last_seen.given = weights
                    note(f"{path} has changed since it was found: skipped; a name for each epoch avoids this")
            waited = clock() - last_seen.since
            if last_seen.given is None and waited >= settle and (waited >= patience or ends_well(path)):
                last_seen.given = _mark(_weights_of(path))
                ready.append(path)
        if ready:
            yield from order_checkpoints(ready)
            latest = clock()
            continue
        if (
            idle is not None
            and clock() - latest >= idle
            and all(seen[path].given is not None for path in present if path in seen)
        ):
            return
        try:
            sleep(interval)
        except KeyboardInterrupt:
            return


def ends_well(path: Path) -> bool:
    """Whether a checkpoint ends as its format requires: the directory of a zip archive, the last tensor of safetensors.

    True for other formats, which do not define their end. For a folder or an index, whether all its shards end well.
    """
    try:
        entry = files_of(path).entry
        if entry.name == METADATA:
            return is_whole(entry)
        if is_index(entry):
            return all(map(_file_ends, shards_of(entry)))
        return index_of(entry) is None and _file_ends(entry)
    except (CheckpointError, OSError):
        return False


def _file_ends(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(8)
        size = path.stat().st_size
    if not start:
        return False
    if path.suffix == ".safetensors":
        return _safetensors_ends(path, size)
    return zipfile.is_zipfile(path) if start.startswith(b"PK") else True


def _safetensors_ends(path: Path, size: int) -> bool:
    import json

    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8:
            return False
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
            return False
    return size == 8 + length + max(ends, default=0)


def _present(places: Sequence[str | Path]) -> tuple[list[Path], dict[str, None]]:
    """The checkpoints that exist now, and lines about skipped ones."""
    checkpoints: dict[Path, None] = {}
    words: dict[str, None] = {}
    for place in places:
        try:
            checkpoints.update(dict.fromkeys(find_checkpoints([place], passed=lambda one: words.update({one: None}))))
        except CheckpointError:  # not yet
            continue
    return list(checkpoints), words


def _all_of(path: Path) -> list[Path]:
    """Every file that must be unchanged: the weights, or all files of a folder (with the trainer's state)."""
    try:
        return sorted(path.iterdir()) if path.is_dir() else _weights_of(path)
    except OSError:
        return []


def _weights_of(path: Path) -> list[Path]:
    try:
        return files_of(path).weights
    except CheckpointError:  # an index that is not whole yet
        return [path]


def _mark(paths: Iterable[Path]) -> Mark:
    """The mark of those files that exist."""
    entries = []
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            continue
        entries.append((path.name, status.st_ino, status.st_mtime_ns, status.st_size))
    return tuple(entries)
