"""The origin of the weights of a record (Place), and the rule by which two records are the same (Identity)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spectra.jsonable import dumps
from spectra.results.optimizer import OptimizerSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """The origin of the weights of a record: a checkpoint file, or a snapshot of the model at an epoch or step."""

    checkpoint: str | None = None  # path as it was given; None: the weights were in memory
    sha256: str | None = None  # of the file; without a file, of the weights and buffers
    weights: str | None = None  # SHA-256 of the weights and buffers as they were loaded from the file
    own_tensors: int | None = None  # number of tensors that the checkpoint lacks and the task provides; None: none
    epoch: float | None = None
    step: int | None = None
    notes: tuple[str, ...] = field(default=(), compare=False, repr=False)  # warnings of the reader of the checkpoint
    optimizer: OptimizerSettings | None = field(default=None, compare=False, repr=False)  # until it is in the record

    @property
    def words(self) -> str:
        """The path of the file; without a file, epoch and step."""
        return self.checkpoint or _time(self.epoch, self.step)

    @property
    def short(self) -> str:
        """The name of the file without its folder, and the epoch or step; empty where nothing is known."""
        name = Path(self.checkpoint).name if self.checkpoint else ""
        if self.epoch is not None:
            return f"{name} epoch {self.epoch:g}".strip()
        return name if self.step is None else f"{name} step {self.step}".strip()


@dataclass(frozen=True, slots=True)
class Identity:
    """The key by which two records are the same record: weights, matrix, probes and data.

    The weights are identified by the SHA-256 of their file. Without a hash it is the name of the file. Without a file
    it is epoch and step, with the SHA-256 of the weights if that is known. Where the file holds only a part of the
    weights, the SHA-256 of all of them is a part of the key too. The name of a hashed file does not count.
    """

    subject: str  # the file's SHA-256 (and that of the weights), else its path, else (the latter and) epoch and step
    operator: str
    bn_mode: str
    params: str | None = None  # the pattern that selects parameters; None: all
    l2: float = 0.0
    seed: int | None = None  # of the probes
    data_seed: int | None = None  # of the subset of the data
    checkpoint: str | None = field(default=None, compare=False)  # the path; without a file, epoch and step
    weights: str | None = field(default=None, compare=False)  # the SHA-256 of those that came from a file, if known
    time: tuple[float | None, int | None] = field(default=(None, None), compare=False)  # epoch and step

    @classmethod
    def of(cls, place: Place, *, operator: str, bn_mode: str, settings: Mapping[str, Any]) -> Identity:
        """The identity of a record of this place, operator and BN mode; `settings` are those of the record."""
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
        """Whether this has partial weights from the file of `other`, which has no hash of the weights."""
        same = other.weights is None and self.subject == f"{other.subject} {self.weights}"
        return same and self.question == other.question

    def twin_of(self, other: Identity) -> bool:
        """Whether both have the same weights, from two files, and the same :attr:`question`.

        Two records that are known to be of different epochs or steps do not count.
        """
        same = self.weights is not None and self.weights == other.weights
        return same and not apart(self.time, other.time) and self.question == other.question

    @property
    def question(self) -> tuple[object, ...]:
        """The parts of the identity other than the weights: operator, mode, parameters, l2, seeds."""
        return self.operator, self.bn_mode, self.params, self.l2, self.seed, self.data_seed

    def same_place(self, other: Identity) -> bool:
        """Whether file name (or epoch and step) and :attr:`question` are the same, whatever the weights."""
        return self.checkpoint is not None and self.checkpoint == other.checkpoint and self.question == other.question


def apart(one: tuple[float | None, int | None], other: tuple[float | None, int | None]) -> bool:
    """Whether two training times, each (epoch, step), are known to be different."""
    return any(a is not None and b is not None and a != b for a, b in zip(one, other))


def _time(epoch: float | None, step: int | None) -> str:
    """Epoch and step in words, with the same words for 3 and 3.0."""
    whole = epoch is not None and float(epoch).is_integer()
    words = [] if epoch is None else [f"epoch {int(epoch) if whole else epoch!r}"]
    return " ".join([*words, *([] if step is None else [f"step {step}"])]) or "epoch unknown"
