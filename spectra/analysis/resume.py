"""Resuming in the middle of a record: finished probes are stored, and every half minute the state of the others.

An interrupted run gives the same numbers as one that was not interrupted, bit for bit on the same machine. A probe
depends only on its number, and the run continues with the probes per pass and the threads of the stored part. The clock
decides only when the state is stored.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spectra.analysis.kept_pairs import LARGEST, KeptPairs
from spectra.analysis.threads import Say
from spectra.errors import StorageError
from spectra.krylov.lanczos import Halfway, Recurrence
from spectra.operators.base import BatchForms
from spectra.results.storage.partial import Arrays, Partial, PartialFile, UnderWay
from spectra.results.storage.vectors import VectorFile
from spectra.runtime.exclusive import exclusively
from spectra.runtime.memory import in_words
from spectra.spectrum.eigenpairs import Eigenpairs
from spectra.spectrum.tridiagonal import Tridiagonal
from spectra.version import __version__

#: The seconds between two times at which the state of unfinished probes is stored.
INTERVAL = 30.0


class Unfinished:
    """The finished probes of the record that is being computed, and the state of the others, in files of their own.

    Args:
        out: the results file; the files are in the same folder.
        say: called with a line about the stored probes that are used, or why they are not.
    """

    def __init__(self, out: Path, say: Say) -> None:
        self.say = say
        self.file = PartialFile(out)
        self.vectors = VectorFile(out)
        self.pairs = KeptPairs(out, say)
        self.left: Partial | None = None  # by an earlier process, until a record begins
        try:
            self.left = self.file.read()
        except StorageError as error:
            say(f"{error}; it is not used")
        self._key: Mapping[str, Any] = {}
        self._how: dict[str, Any] = {}
        self._parts: list[list[Arrays]] = []
        self._under_way: UnderWay | None = None  # of an earlier process, until it is taken up
        self._rows: list[int] = []  # vectors of each recurrence of this group that are in the file of vectors
        self._kept = time.perf_counter()  # when something was kept last
        self._room: int | None = None  # bytes that the vectors of this group may take; None: not determined yet
        self.seconds = 0.0  # that an earlier process spent on the probes that are taken up
        self._begun = time.perf_counter()
        self._written = False  # replaced what an earlier process left
        self._passed_over = False  # what an earlier process left was not of the first record here

    @property
    def threads(self) -> int | None:
        """The number of threads of the probes of an earlier process on this machine; None: there are none."""
        if self.left is None or self.left.key.get("platform") != _machine():
            return None
        return self.left.how.get("threads")

    def begin(self, key: Mapping[str, Any], probes_per_pass: int, *, fixed: bool) -> int:
        """Begin a record, with the stored probes of an earlier process.

        Args:
            key: identifies everything that the numbers depend on; see :func:`key_of`.
            probes_per_pass: the number of probes that share each pass over the data.
            fixed: whether the user requested this number.

        Returns:
            The probes per pass to continue with: those of the earlier process, unless the user requested another number
            or they do not fit in memory.
        """
        key = {**key, "threads": torch.get_num_threads()}
        self._parts, self.seconds, self._begun = [], 0.0, time.perf_counter()
        self._kept, self._under_way, self._rows, self._room = self._begun, None, [], None
        left = self.left
        if left is not None:
            differs = left.differs(key)
            if differs:  # it may be of a record that comes later: one before it failed, and is tried again
                if not self._passed_over:
                    self.say(f"{self.file.shown}: is not of the next record ({', '.join(differs)}): not used for it")
                self._passed_over = True
            else:
                self.left = None
                self._parts, self._under_way = [list(part) for part in left.parts], left.under_way
                # Twice as many probes fit, since their number is chosen to fill half of the free memory.
                self.seconds = float(left.how.get("seconds", 0.0))
                recorded = int(left.how["width"])
                if not fixed and recorded <= 2 * probes_per_pass:
                    probes_per_pass = recorded
                finished = sum(map(len, self._parts))
                begun = "" if left.under_way is None else f", and {len(left.under_way.recurrences)} in their midst"
                self.say(f"{self.file.shown}: {finished} probes of an unfinished record are there already{begun}")
        self._key, self._how = key, {"width": probes_per_pass, "threads": torch.get_num_threads()}
        return probes_per_pass

    def kept_pairs(self, part: int, n: int) -> Eigenpairs | None:
        """The eigenpairs of a part of the record from an earlier process; None where there are none.

        Args:
            part: of the record.
            n: the length of an eigenvector.
        """
        found = self.pairs.of(self._key, part, n)
        if found is None:
            return None
        pairs, seconds = found
        self.seconds = max(self.seconds, seconds)
        self.say(f"{self.pairs.file.shown}: {pairs.count} eigenpairs of an unfinished record are there already")
        return pairs

    def keep_pairs(self, part: int, pairs: Eigenpairs) -> None:
        """Store the eigenpairs of a part of the record.

        Raises:
            StorageError: they cannot be written.
        """
        self.pairs.keep(self._key, part, pairs, self._spent())

    def done(self, part: int) -> list[Recurrence]:
        """The finished probes of a part of the record, in order."""
        return [_recurrence(arrays) for arrays in self._parts[part]] if part < len(self._parts) else []

    def under_way(self, part: int, device: torch.device) -> list[Halfway]:
        """The state of the unfinished probes of a part. Call it once, before anything else of the part is stored."""
        found = self._under_way
        if found is None or found.part != part:
            return []
        self._under_way = None
        try:
            rows = self.vectors.read(found.written, len(found.recurrences))
        except StorageError as error:
            self.say(f"{error}; it is not used")
            return []
        self._rows = [len(vectors) for vectors in rows]
        return [_halfway(arrays, vectors, device) for arrays, vectors in zip(found.recurrences, rows)]

    def step(self, part: int, how_far: Callable[[], Sequence[Halfway]]) -> None:
        """Store the state of a group of probes, if `INTERVAL` seconds have passed since the last time.

        Raises:
            StorageError: it cannot be written.
        """
        if time.perf_counter() - self._kept < INTERVAL:
            return
        halfway = how_far()
        if len(self._rows) != len(halfway):  # the first time in this group
            self._rows = [0] * len(halfway)
            self.vectors.begin()
            if self.left is not None:  # its vectors are overwritten
                self.left = replace(self.left, under_way=None)
        rows = [h.vectors[begin:].cpu().numpy() for h, begin in zip(halfway, self._rows)]
        if self._room is None:
            self._room = min(LARGEST, self.vectors.size + shutil.disk_usage(self.file.path.parent).free // 2)
        if self.vectors.size + sum(part.nbytes for part in rows) > self._room:
            if self._room:
                self.say(
                    f"{self.vectors.shown}: would take more than {in_words(self._room)}: probes are kept when they are "
                    "finished"
                )
            self._room = 0
            return
        written = self.vectors.extend(rows)
        self._rows = [len(h.vectors) for h in halfway]
        self._write(UnderWay(part, [_arrays_of(h) for h in halfway], written))

    def keep(self, part: int, finished: Sequence[Recurrence]) -> None:
        """Write the finished probes of a part, in place of fewer of the same part.

        Raises:
            StorageError: they cannot be written.
        """
        self._parts[part:] = [[_arrays(recurrence) for recurrence in finished]]
        self._write(None)
        if self._rows:
            self.vectors.remove()
        self._rows, self._room = [], None

    def _write(self, under_way: UnderWay | None) -> None:
        how = {**self._how, "seconds": self._spent()}
        self.file.write(Partial(self._key, how, self._parts, under_way))
        self._written = True
        self._kept = time.perf_counter()

    def _spent(self) -> float:
        return self.seconds + time.perf_counter() - self._begun

    def end(self) -> None:
        """Remove the files, once the record is stored. Probes of an earlier process belong to a stored record too."""
        self._parts, self.left = [], None
        self.file.remove()
        self.vectors.remove()
        self.pairs.end()

    def fail(self) -> None:
        """Remove the probes of a failed record, and write back those of a later record from an earlier process."""
        self._parts, self._rows = [], []
        if self.left is None or self.left.under_way is None:
            self.vectors.remove()
        if self.left is None:
            self.file.remove()
        elif self._written:
            self.file.write(self.left)
        self._written = False


def key_of(model: torch.nn.Module, device: torch.device, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the numbers of probes depend on: weights and buffers, settings, and the machine's arithmetic.

    Args:
        model: the model, with its weights.
        device: of the computation.
        asked: the settings; JSON-able.

    Example:
        >>> sorted(key_of(torch.nn.Linear(2, 1), torch.device("cpu"), {"seed": 0}))
        ['device', 'numpy', 'platform', 'seed', 'spectra', 'torch', 'weights']
    """
    return {
        **asked,
        "weights": weights_sha256(model),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "platform": _machine(),
        "spectra": __version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }


@exclusively
def weights_sha256(model: torch.nn.Module) -> str:
    """The SHA-256 of the names, types, shapes and bytes of the weights and buffers."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, torch.Tensor):  # a module may have extra state of any kind
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _machine() -> str:
    return f"{platform.node()} {platform.platform()}"


def _arrays(recurrence: Recurrence) -> Arrays:
    tridiagonal = recurrence.tridiagonal
    return {
        "alphas": tridiagonal.alphas,
        "betas": tridiagonal.betas,
        "exhausted": np.array(tridiagonal.exhausted, dtype=np.uint8),
        "orthogonality": np.array(tridiagonal.orthogonality),
        "forms": recurrence.forms,
        **_by_batch(recurrence.batch_forms),
        **({} if recurrence.start_overlaps is None else {"start_overlaps": recurrence.start_overlaps}),
    }


def _recurrence(arrays: Arrays) -> Recurrence:
    return Recurrence(
        Tridiagonal(
            arrays["alphas"], arrays["betas"], bool(arrays["exhausted"]), orthogonality=float(arrays["orthogonality"])
        ),
        arrays["forms"],
        _parts_in(arrays),
        arrays.get("start_overlaps"),
    )


def _arrays_of(halfway: Halfway) -> Arrays:
    return {
        "alphas": halfway.alphas,
        "betas": halfway.betas,
        "exhausted": np.array(halfway.exhausted, dtype=np.uint8),
        "orthogonality": np.array(halfway.orthogonality),
        "forms": halfway.forms,
        **_by_batch(halfway.batch_forms),
    }


def _halfway(arrays: Arrays, vectors: np.ndarray, device: torch.device) -> Halfway:
    return Halfway(
        arrays["alphas"],
        arrays["betas"],
        bool(arrays["exhausted"]),
        arrays["forms"],
        _parts_in(arrays),
        float(arrays.get("orthogonality", np.nan)),  # not in states stored before it was measured step by step
        torch.from_numpy(vectors).to(device),
    )


def _by_batch(parts: BatchForms | None) -> Arrays:
    return {} if parts is None else {"batch_forms": parts.forms, "batch_weights": parts.weights}


def _parts_in(arrays: Arrays) -> BatchForms | None:
    return BatchForms(arrays["batch_forms"], arrays["batch_weights"]) if "batch_forms" in arrays else None
