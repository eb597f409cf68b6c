r"""Records appended after the HDF5 data of a results file, one by one, until a new file has them in its HDF5 data.

So writing a record takes time in proportion to its own size, not to that of the file. Frames follow the seal, each with
one record::

    \nspectra-record SHA256 LENGTH NAMES\n     then LENGTH bytes: an HDF5 file with the group /records/NAME

NAMES are names of groups, separated by commas: that of the record, then those of other records that it replaces. SHA256
covers the previous 64 digits (of the seal, or of the previous frame), "LENGTH NAMES" and the bytes.

An incomplete frame at the end of the file comes from a killed process: it is left out, and the next writer removes it.
The root attribute `growing` says that frames may follow the data.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

import h5py

from spectra.errors import StorageError
from spectra.results.storage.contents import Contents

#: The root attribute of a file in which frames may follow the HDF5 data.
GROWING = "growing"
MARK = b"\nspectra-record "
_NAME = r"[0-9]{6,18}"
_HEAD = re.compile(rf"\nspectra-record ([0-9a-f]{{64}}) (([0-9]{{1,18}}) ({_NAME}(?:,{_NAME})*))\n".encode())


@dataclass(frozen=True)
class Frame:
    """One record."""

    names: Sequence[str]  # of its group, and of the groups that it replaces
    image: bytes  # an HDF5 file with the group
    sha256: str = ""  # empty unless the frame was read from a file

    @property
    def has_our_names(self) -> bool:
        """Whether a frame can have all these names; groups made by another tool may be named differently."""
        return all(re.fullmatch(_NAME, name) for name in self.names)

    def written(self, before: str) -> tuple[bytes, str]:
        """The bytes of the frame, and its SHA-256; `before` is that of the seal or of the previous frame."""
        words = f"{len(self.image)} {','.join(self.names)}".encode()
        own = _digest(before, words, self.image)
        return MARK + own.encode() + b" " + words + b"\n" + self.image, own


def frames_in(appended: bytes, before: str, shown: str) -> tuple[list[Frame], list[str]]:
    """The complete frames after a seal, and a note if the last one is incomplete.

    Args:
        appended: all bytes after the seal.
        before: the SHA-256 in the seal.
        shown: the name of the file, for messages.

    Raises:
        StorageError: a frame other than the last is damaged.
    """
    found: list[Frame] = []
    at = 0
    while at < len(appended):
        head = _HEAD.match(appended, at)
        end = head.end() + int(head[3]) if head else at
        image = appended[head.end() : end] if head else b""
        if head is None or end > len(appended) or _digest(before, head[2], image) != head[1].decode():
            if appended.find(MARK, at + 1) >= 0:
                raise StorageError(f"{shown}: is damaged: record {len(found) + 1} after its HDF5 data is incomplete")
            return found, [f"{shown}: the record that was added last is incomplete, and is left out"]
        found.append(Frame(head[4].decode().split(","), image, head[1].decode()))
        at, before = end, found[-1].sha256
    return found, []


def put(file: h5py.File, frames: Sequence[Frame], *, ours: bool = False) -> None:
    """Copy the records of frames into a file, in place of those that they replace.

    Args:
        file: open for writing; its group `records` is not a link.
        frames: in the order of the file.
        ours: whether this process made them, so that their contents need no check.

    Raises:
        ValueError: a frame contains something that spectra does not write.
    """
    for frame in frames:
        name = frame.names[0]
        with h5py.File(io.BytesIO(frame.image), "r") as source:
            if not ours:  # copying has no limit of depth, the check has
                contents = Contents(source, frame.image)
                contents.check(contents.group(contents.group(source, "records"), name))
            for old in frame.names:
                if old in file["records"]:
                    del file["records"][old]
            source.copy(f"records/{name}", file["records"], name)


def _digest(before: str, words: bytes, image: bytes) -> str:
    digest = hashlib.sha256(before.encode() + words)
    digest.update(image)
    return digest.hexdigest()
