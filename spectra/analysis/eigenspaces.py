"""Eigenspaces: keeps the eigenvectors of the previous checkpoint of a run, to compare those of the next one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from spectra.errors import StorageError
from spectra.results.identity import Place
from spectra.results.storage.partial import Partial, PartialFile
from spectra.results.storage.runfile import load_trajectory
from spectra.spectrum.overlap import Overlap, overlap_of

Pair = tuple[str, str]  # operator and batch-norm mode


class Eigenspaces:
    """The last eigenvectors of each operator and BN mode of a run, in a file of their own until the run ends.

    The vectors of a record are written before the record, and those of the previous record are kept until the record is
    stored. So the vectors for the next comparison exist at whatever time the process dies.

    Args:
        out: the results file; the vectors are in a file in the same folder.
        say: called with a line about vectors that cannot be used.
    """

    def __init__(self, out: Path, say: Callable[[str], None]) -> None:
        self.out = out
        self.file = PartialFile(out, "vectors")
        self._vectors: dict[tuple[Pair, str], np.ndarray] = {}  # (n, K) float32, as they would be in a record
        self._last: dict[Pair, Place] = {}  # of the last record that the file has
        try:
            left = self.file.read()
        except StorageError as error:
            say(f"{error}; it is not used")
            left = None
        if left is not None:
            for (operator, mode, key), arrays in zip(left.key["names"], left.parts[0]):
                self._vectors[(operator, mode), key] = arrays["vectors"]

    def before(self, pair: Pair) -> np.ndarray | None:
        """The vectors (n, K) of the previous record; None where there are none."""
        place = self._last.get(pair)
        return None if place is None else self._of(pair, place)

    def compare(self, pair: Pair, place: Place, vectors: np.ndarray) -> Overlap | None:
        """Keep these vectors for the next record, and return the overlap with the previous one; None at the first.

        Raises:
            StorageError: they cannot be written.
        """
        now = vectors.astype(np.float32)
        last = self._last.get(pair)
        found: Overlap | None = None
        if last is not None:
            earlier = self._of(pair, last)
            why = "its vectors were not kept when the run ended; --save-eigenvectors keeps them"
            found = Overlap(last.words, reason=why) if earlier is None else overlap_of(earlier, now, last.words)
        kept = {(pair, _key(place)), *((other, _key(at)) for other, at in self._last.items())}
        self._vectors[pair, _key(place)] = now
        self._vectors = {name: array for name, array in self._vectors.items() if name in kept}
        names = [(*which, key) for which, key in self._vectors]
        parts = [[{"vectors": array} for array in self._vectors.values()]]
        self.file.write(Partial({"names": names}, {}, parts))
        return found

    def passed(self, pair: Pair, place: Place) -> None:
        """Take the stored record of this place as the one with which the next record is compared."""
        self._last[pair] = place

    def close(self) -> None:
        """End the run: remove the file of the vectors.

        Raises:
            StorageError: the file cannot be removed.
        """
        self.file.remove()

    def _of(self, pair: Pair, place: Place) -> np.ndarray | None:
        found = self._vectors.get((pair, _key(place)))
        if found is not None or not self.out.exists():
            return found
        for record in load_trajectory(self.out):  # where they were saved
            same = (record.operator, record.bn_mode) == pair and record.place.words == place.words
            if same and record.spectrum is not None and record.spectrum.eigenpairs is not None:
                return record.spectrum.eigenpairs.vectors
        return None


def _key(place: Place) -> str:
    return f"{place.sha256} {place.words}"
