"""The vectors of unfinished recurrences, in a file in the folder of the results file; new vectors are appended.

`run.h5.basis` has the rows in their memory layout, one after the other. `run.h5.partial` describes them: their number,
their recurrences and their SHA-256. The vectors are written first, so at every instant the description is correct.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spectra.errors import StorageError
from spectra.results.storage.atomic_write import extend_file
from spectra.results.storage.safe_open import open_regular


@dataclass(frozen=True)
class Written:
    """The valid part of the file."""

    size: int  # bytes
    sha256: str  # of these bytes
    dtype: str  # of the entries
    n: int  # entries of a vector
    chunks: tuple[tuple[int, int], ...]  # (recurrence, number of its vectors), in order

    def counts(self, recurrences: int) -> list[int]:
        """The number of vectors of each recurrence."""
        return [sum(count for which, count in self.chunks if which == index) for index in range(recurrences)]


class VectorFile:
    """The file `run.h5.basis` of a results file `run.h5`."""

    def __init__(self, out: str | Path) -> None:
        target = Path(out).resolve()
        self.path = target.with_name(f"{target.name}.basis")
        self.shown = f"{out}.basis"
        self.begin()

    def begin(self) -> None:
        """Discard the contents: the next vectors are written at the start of the file."""
        self._digest = hashlib.sha256()
        self._size = 0
        self._chunks: list[tuple[int, int]] = []

    @property
    def size(self) -> int:
        """The number of valid bytes."""
        return self._size

    def extend(self, rows: Sequence[np.ndarray]) -> Written:
        """Append rows ``(any number, n)`` of each recurrence, in the order of the recurrences.

        Raises:
            StorageError: they cannot be written; the previous vectors stay valid.
        """
        pieces = [np.ascontiguousarray(part).data.cast("B") for part in rows if part.size]
        extend_file(self.path, self._size, pieces, shown=self.shown)
        for piece in pieces:
            self._digest.update(piece)
            self._size += len(piece)
        self._chunks += [(index, len(part)) for index, part in enumerate(rows) if len(part)]
        return Written(self._size, self._digest.hexdigest(), str(rows[0].dtype), rows[0].shape[1], tuple(self._chunks))

    def read(self, written: Written, recurrences: int) -> list[np.ndarray]:
        """The rows of each recurrence; later vectors are appended after them.

        Raises:
            StorageError: the file is missing, or does not match its description.
        """
        self.begin()
        counts = written.counts(recurrences)
        rows = [np.empty((count, written.n), dtype=written.dtype) for count in counts]
        filled = [0] * recurrences
        try:
            with open(open_regular(self.path, os.O_RDONLY, follow=False), "rb") as file:
                for index, count in written.chunks:
                    piece = rows[index][filled[index] : filled[index] + count].data.cast("B")
                    if file.readinto(piece) != len(piece):
                        raise StorageError(f"{self.shown}: is damaged: it is too short")
                    self._digest.update(piece)
                    self._size += len(piece)
                    filled[index] += count
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise StorageError(f"{self.shown}: cannot be read: {(error.strerror or str(error)).lower()}") from error
        if (self._size, self._digest.hexdigest()) != (written.size, written.sha256):
            raise StorageError(f"{self.shown}: is damaged: its content does not match its SHA-256")
        self._chunks = list(written.chunks)
        return rows

    def remove(self) -> None:
        """Remove the file.

        Raises:
            StorageError: it cannot be removed.
        """
        self.begin()
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"{self.shown}: cannot be removed: {error.strerror}; remove it by hand") from error
