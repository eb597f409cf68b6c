"""Selects checkpoints of a run: every K-th, those of given epochs, the last one, or the share of one job."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from spectra.checkpoints.discovery import Found
from spectra.errors import ArgumentError, CheckpointError

_NUMBER = r"\d{1,15}(?:\.\d{1,15})?"
_RANGE = re.compile(rf"({_NUMBER})?:({_NUMBER})?(?::({_NUMBER}))?")
_CLOSE = 1e-9  # epochs may be fractions


@dataclass(frozen=True)
class Epochs:
    """Single epochs and ranges, as in `0,5,10:100:10`; the ends are included, and a range starts at 0 by default."""

    text: str
    single: tuple[float, ...]
    ranges: tuple[tuple[float, float | None, float | None], ...]  # first, last, step

    @classmethod
    def parse(cls, text: str) -> Epochs:
        """Parse a list of epochs and ranges such as ``0,5,10:100:10``.

        Raises:
            ArgumentError: not a list of epochs and ranges.

        Example:
            >>> [epoch for epoch in range(40) if Epochs.parse("3,10:30:10").wants(epoch)]
            [3, 10, 20, 30]
        """
        single, ranges = [], []
        for piece in text.split(","):
            if re.fullmatch(_NUMBER, piece.strip()):
                single.append(float(piece))
            elif (match := _RANGE.fullmatch(piece.strip())) and match.group(3) not in ("0", "0.0"):
                first, last, step = (None if part is None else float(part) for part in match.groups())
                ranges.append((first or 0.0, last, step))
            else:
                raise ArgumentError(
                    f"epochs {text!r}: epochs and ranges FIRST:LAST:STEP are needed, as in 0,5,10:100:10"
                )
        return cls(text, tuple(single), tuple(ranges))

    def wants(self, epoch: float) -> bool:
        return any(abs(epoch - one) < _CLOSE for one in self.single) or any(
            epoch >= first - _CLOSE and (last is None or epoch <= last + _CLOSE) and _is_multiple(epoch - first, step)
            for first, last, step in self.ranges
        )


def select(
    checkpoints: Sequence[Found], *, every: int | None = None, epochs: str | None = None, last: bool = False
) -> list[Found]:
    """Some of the checkpoints of a run.

    Args:
        checkpoints: all checkpoints, in training order.
        every: select the first checkpoint and each K-th after it.
        epochs: select these epochs: single ones and ranges, ``0,5,10:100:10``, ends included. With `every`, each K-th
            of them.
        last: also select the last one; without other options, only the last one.

    Raises:
        ArgumentError: an argument outside its range.
        CheckpointError: no checkpoint of a requested epoch exists.
    """
    if every is not None and every < 1:
        raise ArgumentError(f"every={every}: at least 1 is needed; 1 is all")
    chosen = list(checkpoints)
    if epochs is not None:
        chosen = _of_epochs(chosen, Epochs.parse(epochs))
    if every is not None:
        chosen = chosen[::every]
    if last and every is None and epochs is None:
        chosen = []
    if last and checkpoints and checkpoints[-1] not in chosen:
        chosen.append(checkpoints[-1])
    return chosen


def _of_epochs(found: Sequence[Found], wanted: Epochs) -> list[Found]:
    known = sorted({c.epoch for c in found if c.epoch is not None})
    if not known:
        raise CheckpointError(f"epochs {wanted.text}: none of the {len(found)} checkpoints says of which epoch it is")
    missing = [f"{epoch:g}" for epoch in wanted.single if not any(abs(epoch - c) < _CLOSE for c in known)]
    chosen = [c for c in found if c.epoch is not None and wanted.wants(c.epoch)]
    if missing or not chosen:
        raise CheckpointError(
            f"epochs {wanted.text}: no checkpoint of epoch {', '.join(missing) or wanted.text}; there are "
            f"{_in_short(known)}"
        )
    return chosen


def shard(found: Sequence[Found], text: str) -> tuple[list[Found], int, int]:
    """The checkpoints of job I of N: each N-th, so that every job has early and late ones.

    Args:
        found: those of all jobs, in training order; the same for each.
        text: ``I/N``, I from 1 to N.

    Returns:
        The checkpoints, I and N.

    Raises:
        ArgumentError: not of this form, or the job has no checkpoints.
    """
    parsed = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip())
    number, shards = (int(part) for part in parsed.groups()) if parsed else (0, 0)
    if not 1 <= number <= shards:
        raise ArgumentError(f"shard {text!r}: I/N is needed, I from 1 to N, as in 2/8")
    share = list(found[number - 1 :: shards])
    if not share:
        raise ArgumentError(f"shard {text}: there are {len(found)} checkpoints, so at most {len(found)} shards")
    return share, number, shards


def _is_multiple(distance: float, step: float | None) -> bool:
    return step is None or abs(distance / step - round(distance / step)) < _CLOSE


def _in_short(epochs: Sequence[float]) -> str:
    shown = [f"{epoch:g}" for epoch in epochs]
    return ", ".join(shown) if len(shown) <= 8 else f"{', '.join(shown[:3])}, ..., {', '.join(shown[-2:])}"
