"""Where the weights of a record come from, and when two records are the same record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spectra.jsonable import dumps


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the weights of a record come from: a checkpoint file, or a moment of training."""

    checkpoint: str | None = None  # path as it was given; None: the weights were in memory
    sha256: str | None = None  # of the file; without a file, of the weights and buffers
    weights: str | None = None  # SHA-256 of the weights and buffers as they were loaded from the file
    own_tensors: int | None = None  # number of tensors of the task, which the checkpoint lacks; None: it has all
    epoch: float | None = None
    step: int | None = None
    notes: tuple[str, ...] = field(default=(), compare=False, repr=False)  # warnings of the reader of the checkpoint

    @property
    def words(self) -> str:
        """The file, else epoch and step."""
        return self.checkpoint or _time(self.epoch, self.step)

    @property
    def short(self) -> str:
        """The name of the file without its folder, and the epoch or step; empty where nothing is known."""
        name = Path(self.checkpoint).name if self.checkpoint else ""
        if self.epoch is not None:
            return f"{name} epoch {self.epoch:g}".strip()
        return name if self.step is None else f"{name} step {self.step}".strip()


@dataclass(frozen=True)
class Identity:
    """What makes two records the same record: which weights, which matrix, which probes, which data.

    The weights are known by the SHA-256 of their file; where there is none, by the file's name; where there is no
    file, by epoch and step, and the SHA-256 of the weights if that is known. Where the file holds only a part of the
    weights, the SHA-256 of all of them counts too. Two identities are equal when all but the name of a hashed file is
    equal.
    """

    subject: str  # the file's SHA-256 (and that of the weights), else its path, else (the latter and) epoch and step
    operator: str
    bn_mode: str
    params: str | None = None  # the pattern that selects parameters; None: all
    l2: float = 0.0
    seed: int | None = None  # of the probes
    data_seed: int | None = None  # of the subset of the data
    checkpoint: str | None = field(default=None, compare=False)  # the path, else epoch and step of hashed weights
    weights: str | None = field(default=None, compare=False)  # the SHA-256 of those that came from a file, if known
    time: tuple[float | None, int | None] = field(default=(None, None), compare=False)  # epoch and step

    @classmethod
    def of(cls, place: Place, *, operator: str, bn_mode: str, settings: Mapping[str, Any]) -> Identity:
        """The identity of the record that these would lead to; `settings` are those of the record."""
        time = _time(place.epoch, place.step)
        if place.checkpoint is None:
            checkpoint = None if place.sha256 is None else time
            subject = time if place.sha256 is None else f"{place.sha256} {time}"
        else:
            checkpoint, subject = place.checkpoint, place.sha256 or place.checkpoint
            if place.own_tensors:
                subject = f"{subject} {place.weights}"
        params = settings.get("params")
        return cls(
            subject=subject,
            operator=operator,
            bn_mode=bn_mode,
            params=params if params is None or isinstance(params, str) else dumps(params),
            l2=float(settings.get("l2") or 0.0),
            seed=settings.get("seed"),
            data_seed=settings.get("data_seed"),
            checkpoint=checkpoint,
            weights=place.weights,
            time=(place.epoch, place.step),
        )

    def is_of_file(self, other: Identity) -> bool:
        """Whether this is of a part of the weights, from the file of the other, whose weights are not known."""
        same = other.weights is None and self.subject == f"{other.subject} {self.weights}"
        return same and self.question == other.question

    def twin_of(self, other: Identity) -> bool:
        """Whether both are of the same weights from two files, at no two moments of training, and the same question."""
        same = self.weights is not None and self.weights == other.weights
        return same and not apart(self.time, other.time) and self.question == other.question

    @property
    def question(self) -> tuple[object, ...]:
        """The parts of the identity other than the weights: operator, mode, parameters, l2, seeds."""
        return self.operator, self.bn_mode, self.params, self.l2, self.seed, self.data_seed

    def same_place(self, other: Identity) -> bool:
        """Whether both are of the same file by name, or the same epoch, whatever the weights, and the same question."""
        return self.checkpoint is not None and self.checkpoint == other.checkpoint and self.question == other.question


def apart(one: tuple[float | None, int | None], other: tuple[float | None, int | None]) -> bool:
    """Whether two moments, as epoch and step, are known to be different ones."""
    return any(a is not None and b is not None and a != b for a, b in zip(one, other))


def _time(epoch: float | None, step: int | None) -> str:
    """Epoch and step in words: the same for 3 and 3.0, which are one epoch."""
    whole = epoch is not None and float(epoch).is_integer()
    words = [] if epoch is None else [f"epoch {int(epoch) if whole else epoch!r}"]
    return " ".join([*words, *([] if step is None else [f"step {step}"])]) or "epoch unknown"
