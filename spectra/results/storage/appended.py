r"""Records behind the HDF5 data of a results file: added there one by one, until a new file has them in its HDF5 data.

So a record costs what it is long, however many there are. The seal is followed by frames, each with one record::

    \nspectra-record SHA256 LENGTH NAMES\n     then LENGTH bytes: an HDF5 file with the group /records/NAME

NAMES are names of groups, with commas between them: that of the record, then others that it takes the place of. SHA256
is that of the 64 digits before it (of the seal, or of the frame before), of "LENGTH NAMES" and of the bytes.

A frame that is not whole at the end of the file is what a killed process was writing: it is left out, and the next
writer removes it. The root attribute `growing` says that frames may follow the data.
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

#: The attribute of the root of HDF5 data that may be followed by frames.
GROWING = "growing"
MARK = b"\nspectra-record "
_NAME = r"[0-9]{6,18}"
_HEAD = re.compile(rf"\nspectra-record ([0-9a-f]{{64}}) (([0-9]{{1,18}}) ({_NAME}(?:,{_NAME})*))\n".encode())


@dataclass(frozen=True)
class Frame:
    """One record."""

    names: Sequence[str]  # of its group, and of others that it takes the place of
    image: bytes  # an HDF5 file with the group
    sha256: str = ""  # where it was read from a file

    @property
    def has_our_names(self) -> bool:
        """Whether all names are of the kind that a frame can have; another tool may have made others."""
        return all(re.fullmatch(_NAME, name) for name in self.names)

    def written(self, before: str) -> tuple[bytes, str]:
        """The bytes of the frame, and its SHA-256, behind what has the SHA-256 `before`."""
        words = f"{len(self.image)} {','.join(self.names)}".encode()
        own = _digest(before, words, self.image)
        return MARK + own.encode() + b" " + words + b"\n" + self.image, own


def frames_in(behind: bytes, before: str, shown: str) -> tuple[list[Frame], list[str]]:
    """The whole frames behind a seal, and what is to be said of the rest.

    Args:
        behind: what stands there.
        before: the SHA-256 in the seal.
        shown: the name of the file, for messages.

    Raises:
        StorageError: one that is not the last is damaged.
    """
    found: list[Frame] = []
    at = 0
    while at < len(behind):
        head = _HEAD.match(behind, at)
        end = head.end() + int(head[3]) if head else at
        image = behind[head.end() : end] if head else b""
        if head is None or end > len(behind) or _digest(before, head[2], image) != head[1].decode():
            if behind.find(MARK, at + 1) >= 0:
                raise StorageError(f"{shown}: is damaged: record {len(found) + 1} behind its HDF5 data is not whole")
            return found, [f"{shown}: the record that was added last is not whole, and is left out"]
        found.append(Frame(head[4].decode().split(","), image, head[1].decode()))
        at, before = end, found[-1].sha256
    return found, []


def put(file: h5py.File, frames: Sequence[Frame], *, ours: bool = False) -> None:
    """Copy the records of frames into a file, in place of those that they replace.

    Args:
        file: open for writing; its group `records` is no link.
        frames: in their order.
        ours: this process has made them, so what is in them need not be looked at.

    Raises:
        ValueError: something that spectra does not write is in one of them.
    """
    for frame in frames:
        name = frame.names[0]
        with h5py.File(io.BytesIO(frame.image), "r") as source:
            if not ours:  # a copy descends as deep as there are groups
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
