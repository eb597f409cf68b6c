"""take_survey: counts and weights of a task's data, and whether a second pass yields the same data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from spectra.errors import DataError, SpectraError
from spectra.runtime.rng_state import random_state_kept
from spectra.task.averaging import ignored_class
from spectra.task.batches import batch_digest, rows_digest, rows_of


class Surveyed(Protocol):
    """The members of a :class:`spectra.Task` that a survey uses."""

    @property
    def criterion(self) -> Any: ...

    def batches(self) -> Iterable[Any]: ...

    def weight_of(self, batch: Any) -> float: ...

    def target_of(self, batch: Any) -> Any: ...


@dataclass(frozen=True)
class Survey:
    """Counts, weights and fingerprint of a task's data.

    ``order`` is ``"fixed"`` if two passes, under different states of the random generators, gave the same batches, and
    ``"shuffled"`` if they gave the same rows in another order.
    """

    rows: tuple[int | None, ...]  # per batch
    weights: tuple[float, ...]  # per batch: its weight in the mean over the data
    total_weight: float
    fingerprint: str  # SHA-256 of the content of the batches, in order
    order: str
    labels: tuple[int, int] | None  # the least and the greatest class label, for a criterion of classes

    @property
    def num_batches(self) -> int:
        return len(self.rows)

    @property
    def num_samples(self) -> int | None:
        """The number of rows; None if a batch has no rows."""
        known = [rows for rows in self.rows if rows is not None]
        return sum(known) if len(known) == len(self.rows) else None


def take_survey(task: Surveyed) -> Survey:
    """Read the data of a task twice and compare the passes. The global random states are restored.

    Raises:
        DataError: no batches, no weight at all, or a second pass that holds other data.
    """
    with random_state_kept():
        torch.manual_seed(0x5EC7)
        rows, weights, ordered, unordered, labels = _pass(task)
    with random_state_kept():
        torch.manual_seed(0x5EC8)  # another seed, so that shuffling or augmentation becomes visible
        again_rows, _, again_ordered, again_unordered, _ = _pass(task)
    if ordered == again_ordered:
        order = "fixed"
    elif unordered == again_unordered:
        order = "shuffled"
    else:
        known = [(a, b) for a, b in ((rows, again_rows),) if None not in a and None not in b]
        counts = f" ({sum(known[0][0])} rows, then {sum(known[0][1])})" if known else ""  # type: ignore[arg-type]
        raise DataError(
            f"the data are not the same on a second pass{counts}: freeze one pass with --snapshot-data "
            "(task.snapshot() in Python), or turn off random augmentation, and shuffle=True with drop_last=True or "
            "padding per batch"
        )
    total = sum(weights)
    if not total > 0:
        raise DataError("the data have no weight: every target is ignored, or every weight is 0")
    return Survey(tuple(rows), tuple(weights), total, ordered, order, labels)


def _pass(task: Surveyed) -> tuple[list[int | None], list[float], str, int, tuple[int, int] | None]:
    rows: list[int | None] = []
    weights: list[float] = []
    digest, unordered = hashlib.sha256(), 0
    ignored = ignored_class(task.criterion)
    lows, highs = [], []
    for index, batch in enumerate(task.batches()):
        try:
            weights.append(task.weight_of(batch))
        except SpectraError as error:
            error.args = (f"{error} (batch {index})",)
            raise
        rows.append(rows_of(batch))
        digest.update(batch_digest(batch))
        unordered = (unordered + rows_digest(batch)) % 2**64
        target = task.target_of(batch) if ignored is not None else None
        if isinstance(target, torch.Tensor) and not target.is_floating_point():
            counted = target[target != ignored]
            if counted.numel():
                lows.append(int(counted.min()))
                highs.append(int(counted.max()))
    if not rows:
        raise DataError("the data are empty: no batch")
    return rows, weights, digest.hexdigest(), unordered, (min(lows), max(highs)) if lows else None
