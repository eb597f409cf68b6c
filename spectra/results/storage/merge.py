"""Parts of one run, written by several jobs, joined into one file."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py

from spectra.errors import ArgumentError, StorageError
from spectra.natural_order import natural_key
from spectra.results.record import STATUSES, Record
from spectra.results.storage.atomic_write import check_writable, fingerprint, replace_file
from spectra.results.storage.checksum import read_bytes, sealed
from spectra.results.storage.contents import Contents
from spectra.results.storage.index import Index, Known
from spectra.results.storage.lock import only_writer, refuse_if_written
from spectra.results.storage.reader import differences, load, reading, whole
from spectra.results.storage.runfile import LIBRARY, write_root
from spectra.results.storage.safe_open import resolved


def part_path(out: Path, shard: int, shards: int) -> Path:
    """The file of one part of a run.

    Raises:
        ArgumentError: there is no such part.

    Example:
        >>> part_path(Path("run.h5"), 1, 4).name
        'run.shard-1-of-4.h5'
    """
    if not 1 <= shard <= shards:
        raise ArgumentError(f"shard {shard}/{shards}: the first number is from 1 to the second")
    return out.with_name(f"{out.stem}.shard-{shard}-of-{shards}{out.suffix}")


@dataclass(frozen=True)
class Merged:
    """The result of a merge, in numbers of records."""

    records: int  # in the file
    equal: int  # in several parts with equal results, and kept once
    failed: int  # of the records
    unverified: int


@dataclass(frozen=True)
class _Found:
    """A record, and the group of an open file that holds it."""

    part: str
    record: Record
    group: h5py.Group

    def results(self) -> dict[str, str]:
        """The checksums of the results, which do not cover where and when they were computed."""
        return {
            name: child.attrs["checksum"]
            for name, child in self.group.items()
            if name != "estimates" and isinstance(child, h5py.Group)
        }


def merge(parts: Sequence[str | Path], out: str | Path) -> Merged:
    """Join files of the same settings into one, in one step, its records in the order of training.

    A record that several parts have with equal results is kept once, and a complete one in place of one that failed
    or is unverified.

    Args:
        parts: results files, each whole.
        out: the file to write. One that exists is not overwritten unless it is among the parts.

    Raises:
        StorageError: a part cannot be read, is of other settings (the message lists them), is being written, or has
            other results for the same record; `out` exists and is no part, or cannot be written.
    """
    paths = list(dict.fromkeys(Path(part) for part in parts))
    if not paths:
        raise ArgumentError("no parts: name the files to join")
    target = resolved(out)
    if target.exists() and target not in {resolved(path) for path in paths}:
        raise StorageError(f"{out}: is there already; name it among the parts as well to add to it, or another --out")
    for path in paths:
        if not path.exists():
            raise StorageError(f"{path}: no such file")
        refuse_if_written(path)  # a part would be joined without records that are still to come
    check_writable(target, shown=str(out))
    with contextlib.ExitStack() as stack:
        stack.enter_context(only_writer(out))
        seen = fingerprint(target)
        found, settings, equal = _collect(paths, stack)
        buffer = io.BytesIO()
        with h5py.File(buffer, "w", libver=LIBRARY) as file:
            write_root(file, settings)
            for number, one in enumerate(_ordered(found)):
                one.group.file.copy(one.group, file["records"], name=f"{number:06d}")
        if fingerprint(target) != seen:
            raise StorageError(f"{out}: was changed by another process while it was merged")
        replace_file(target, sealed(buffer.getvalue()), shown=str(out))
    failed, unverified = (sum(one.record.status == status for one in found) for status in ("failed", "unverified"))
    return Merged(len(found), equal, failed, unverified)


def _collect(paths: Sequence[Path], stack: contextlib.ExitStack) -> tuple[list[_Found], dict[str, object], int]:
    """The records of all parts, each once; the settings; and how many were found again, equal."""
    kept: list[_Found] = []
    index: Index[int] = Index()
    equal = 0
    settings: dict[str, object] = {}
    for path in paths:
        trajectory, records, _ = load(path)  # compares the checksums
        if path == paths[0]:
            settings = dict(trajectory.settings)
        elif differing := differences(settings, trajectory.settings, names=(str(paths[0]), str(path))):
            raise StorageError(f"{path}: is of a run with other settings: {'; '.join(differing)}")
        for one in _groups(path, records, stack):
            known = Known.of(one.record)
            like = {*index.same(known.identity), *index.at_place(known.identity), *index.twins(known.identity)}
            which, again = _same([(at, kept[at]) for at in sorted(like)], one)
            equal += again
            if which is None:
                which = len(kept)
                kept.append(one)
            elif STATUSES.index(kept[which].record.status) >= STATUSES.index(one.record.status):
                continue
            kept[which] = one
            index.add(which, known)
    return kept, settings, equal


def _groups(path: Path, records: Mapping[str, Record], stack: contextlib.ExitStack) -> Iterator[_Found]:
    """The complete records of a part, with their groups."""
    image = whole(read_bytes(path, str(path)), str(path)).image
    file = stack.enter_context(h5py.File(io.BytesIO(image), "r"))
    contents = Contents(file, image)
    for name, record in records.items():
        with reading(str(path), f"record {name} is damaged"):
            group = contents.group(contents.group(file, "records"), name)
            contents.check(group)
        yield _Found(str(path), record, group)


def _same(like: Sequence[tuple[int, _Found]], one: _Found) -> tuple[int | None, bool]:
    """The place of the same record among similar ones, or None; and whether both are complete with equal results.

    Raises:
        StorageError: the results differ, or the two checkpoint files of one name do.
    """
    for place, other in like:
        a, b = other.record.identity, one.record.identity
        whole = other.record.status == one.record.status == "complete"
        if a == b and whole:
            mine, theirs = other.results(), one.results()
            unlike = sorted(name for name in {*mine, *theirs} if mine.get(name) != theirs.get(name))
            if unlike:
                raise StorageError(
                    f"{one.part}: {one.record.label} has other results than in {other.part}: {', '.join(unlike)}; "
                    "decide which is right, and leave the other part out"
                )
            return place, True
        if whole and a.twin_of(b) and other.results() == one.results():
            return place, True
        if whole and a.same_place(b):
            raise StorageError(
                f"{one.part}: {one.record.checkpoint} is not the same file as in {other.part}: its SHA-256 was "
                f"{b.subject[:12]}... in place of {a.subject[:12]}..."
            )
        if not whole and (a == b or a.same_place(b)):
            return place, False
    return None, False


def _ordered(found: Sequence[_Found]) -> list[_Found]:
    """Sorted by epoch, by step, or by the names of the checkpoints: the first of these that all of them have."""
    records = [one.record for one in found]
    if all(record.epoch is not None for record in records):
        return sorted(found, key=lambda one: (one.record.epoch or 0.0, one.record.step or 0))
    if all(record.step is not None for record in records):
        return sorted(found, key=lambda one: one.record.step or 0)
    return sorted(found, key=lambda one: natural_key(one.record.checkpoint or ""))
