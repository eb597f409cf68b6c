"""KeptPairs: the eigenpairs of an unfinished record, in a file of their own: a restart need not search again."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from spectra.errors import ArgumentError, NumericsError, StorageError
from spectra.results.storage.partial import Arrays, Partial, PartialFile
from spectra.runtime.memory import in_words
from spectra.spectrum.eigenpairs import Eigenpairs

#: The largest size of the vectors in bytes; they also take at most half of the free disk space.
LARGEST = 4 * 2**30


class KeptPairs:
    """The eigenpairs that were found for the record being computed, for each of its data sets.

    The pairs are stored with everything that they depend on, and are used only where all of it is the same.

    Args:
        out: the results file; the file is in the same folder.
        say: called with a line about pairs that cannot be used or stored.
    """

    def __init__(self, out: Path, say: Callable[[str], None]) -> None:
        self.say = say
        self.file = PartialFile(out, "pairs")
        self._left: Partial | None = None  # by an earlier process, or by this one
        try:
            self._left = self.file.read()
        except StorageError as error:
            say(f"{error}; it is not used")

    def of(self, key: Mapping[str, Any], part: int, n: int) -> tuple[Eigenpairs, float] | None:
        """The pairs of a part of the record, and the seconds that the record had taken when they were found.

        None where there are none of this record, with vectors of `n` numbers.
        """
        left = self._left
        if left is None or left.differs(key) or part >= len(left.parts) or not left.parts[part]:
            return None
        try:
            facts = left.how["pairs"][part]
            fields_of: dict[str, Any] = {**facts["plain"], **left.parts[part][0]}
            pairs = Eigenpairs(**fields_of)
            if pairs.vectors is None or len(pairs.vectors) != n or not np.isfinite(pairs.vectors).all():
                raise ValueError(f"vectors of {n} finite numbers are needed")
            return pairs, float(facts["seconds"])
        except (ArgumentError, NumericsError, KeyError, TypeError, ValueError) as error:
            self.say(f"{self.file.shown}: is damaged: {' '.join(str(error).split())}; it is not used")
            return None

    def keep(self, key: Mapping[str, Any], part: int, pairs: Eigenpairs, seconds: float) -> None:
        """Store the pairs of a part of the record, together with those of the parts before it.

        Raises:
            StorageError: they cannot be written.
        """
        arrays, plain = _split(pairs)
        room = min(LARGEST, shutil.disk_usage(self.file.path.parent).free // 2)
        if (size := sum(array.nbytes for array in arrays.values())) > room:
            self.say(f"{self.file.shown}: eigenpairs of {in_words(size)} are not kept: a restart searches them again")
            return
        left = self._left
        before, how = ([], []) if left is None or left.differs(key) else (left.parts[:part], left.how["pairs"][:part])
        if len(before) < part:  # those of an earlier part were not kept
            return
        self._left = Partial(key, {"pairs": [*how, {"plain": plain, "seconds": seconds}]}, [*before, [arrays]])
        self.file.write(self._left)

    def end(self) -> None:
        """Remove the file, once the record is stored.

        Raises:
            StorageError: it cannot be removed.
        """
        if self._left is not None:
            self._left = None
            self.file.remove()


def _split(pairs: Eigenpairs) -> tuple[Arrays, dict[str, Any]]:
    """The arrays of the pairs, and their other fields, which are JSON-able."""
    values = {one.name: getattr(pairs, one.name) for one in fields(pairs)}
    arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
    arrays["converged"] = arrays["converged"].astype(np.uint8)  # a file has no booleans
    return arrays, {name: value for name, value in values.items() if name not in arrays}
