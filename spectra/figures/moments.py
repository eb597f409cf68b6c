"""Moment: one checkpoint of a run as figures need it, with the records of its batch-norm modes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import nan
from pathlib import Path

import numpy as np

from spectra.errors import ArgumentError
from spectra.results.headline import is_exact
from spectra.results.record import Record
from spectra.results.values import Values, values_of
from spectra.spectrum.estimates import Estimate


@dataclass(frozen=True)
class Moment:
    """One checkpoint under one operator: a record per batch-norm mode; some may have failed or be missing."""

    operator: str
    modes: tuple[str, ...]  # all modes of the run, at this or another checkpoint
    index: int  # among the checkpoints of the run
    epoch: float | None
    step: int | None
    checkpoint: str | None
    records: dict[str, Record] = field(default_factory=dict)  # by batch-norm mode

    @property
    def complete(self) -> Mapping[str, Record]:
        """The records that have a spectrum, eval mode first."""
        return {
            mode: self.records[mode]
            for mode in self.modes
            if mode in self.records and self.records[mode].spectrum is not None
        }

    @property
    def label(self) -> str:
        """The time of the checkpoint in words: epoch, step or name."""
        if self.epoch is not None:
            return f"epoch {self.epoch:g}"
        if self.step is not None:
            return f"step {self.step}"
        return Path(self.checkpoint).name if self.checkpoint else f"checkpoint {self.index + 1}"

    @property
    def slug(self) -> str:
        """The time of the checkpoint as part of a file name."""
        return re.sub(r"[^A-Za-z0-9.]+", "", self.label.replace(" ", "")).strip(".") or f"checkpoint{self.index + 1}"

    @property
    def gaps(self) -> list[str]:
        """The missing records with their reasons, a few words each."""
        sentences = []
        for mode in self.modes:
            if mode not in self.records:
                sentences.append(f"no record of {mode} mode at {self.label}")
            elif self.records[mode].spectrum is None:
                sentences.append(f"{mode} mode at {self.label} failed: {self.records[mode].reason}")
        return sentences


def moments_of(records: Iterable[Record], operator: str) -> list[Moment]:
    """The checkpoints that have records of an operator, in the order of the records."""
    own = [record for record in records if record.operator == operator]
    found_modes = dict.fromkeys(record.bn_mode for record in own)
    modes = tuple(sorted(found_modes, key=lambda mode: (mode != "eval", list(found_modes).index(mode))))
    moments: list[Moment] = []
    at_time: dict[tuple[float | None, int | None], list[Moment]] = {}
    for record in own:
        there = at_time.setdefault((record.epoch, record.step), [])
        moment = next((moment for moment in reversed(there) if _is_of(record, moment)), None)
        if moment is None:
            moment = Moment(operator, modes, len(moments), record.epoch, record.step, record.checkpoint)
            moments.append(moment)
            there.append(moment)
        previous = moment.records.get(record.bn_mode)
        if previous is None or previous.spectrum is None or record.spectrum is not None:  # the last complete one
            moment.records[record.bn_mode] = record
    return moments


def _is_of(record: Record, moment: Moment) -> bool:
    """Whether a record of the same time belongs to this checkpoint, by the hash of the file, else by its name."""
    hashes = {other.checkpoint_sha256 for other in moment.records.values()} - {None}
    if hashes and record.checkpoint_sha256:
        return record.checkpoint_sha256 in hashes
    return record.checkpoint == moment.checkpoint


def check_epochs(moments: Sequence[Moment], epochs: Iterable[float]) -> None:
    """Check that every given epoch has a complete record.

    Raises:
        ArgumentError: an epoch does not exist, or none of its records is complete.
    """
    for epoch in epochs:
        at_epoch = [moment for moment in moments if moment.epoch == epoch]
        if not at_epoch:
            known = sorted({moment.epoch for moment in moments if moment.epoch is not None})
            raise ArgumentError(
                f"epoch={epoch:g}: no record has it; there are {', '.join(f'{e:g}' for e in known) or 'none'}"
            )
        if not any(moment.complete for moment in at_epoch):
            raise ArgumentError(f"epoch={epoch:g}: nothing to draw: {at_epoch[0].gaps[0]}")


def chosen_moments(moments: Sequence[Moment], epochs: Sequence[float] = ()) -> list[Moment]:
    """The complete checkpoints of these epochs; by default the first, the middle and the last."""
    drawable = [moment for moment in moments if moment.complete]
    if epochs:
        return [moment for moment in drawable if moment.epoch in epochs]
    picked = sorted({0, len(drawable) // 2, len(drawable) - 1}) if drawable else []
    return [drawable[index] for index in picked]


def axis_of(moments: Sequence[Moment]) -> tuple[np.ndarray, str]:
    """The positions of the checkpoints on an axis of training time, (T,), NaN if unknown; and the label of the axis.

    Epochs if every complete checkpoint has a distinct epoch; else steps, by the same rule; else the order.
    """
    for name in ("epoch", "step"):
        times = [getattr(moment, name) for moment in moments]
        known_times = [time for time, moment in zip(times, moments) if moment.complete]
        if None not in known_times and len(set(known_times)) == len(known_times):
            return np.array([nan if time is None else float(time) for time in times]), name
    return np.arange(len(moments), dtype=np.float64) + 1, "checkpoint, in the order of training"


def values_over(moments: Sequence[Moment], bn_mode: str, name: str) -> Values:
    """A headline number, or a fact such as the loss, at every checkpoint; NaN if it is missing or failed.

    A trace is the exact one if that is known; its interval then has length 0. See `Record.headline`.
    """
    return values_of([_number(moment.complete.get(bn_mode), name) for moment in moments])


def has_exact(moments: Sequence[Moment], name: str = "trace") -> bool:
    """Whether the number of this name is exact in some record."""
    return any(is_exact(record.headlines.get(name)) for moment in moments for record in moment.complete.values())


def _number(record: Record | None, name: str) -> Estimate | float | None:
    if record is None:
        return None
    if name in record.headlines:
        return record.headlines[name]
    fact = record.facts.get(name)
    return None if fact is None else float(fact)
