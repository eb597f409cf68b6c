"""Logs: the destinations to which the records of a run are logged, ``tensorboard:DIR`` and ``wandb:PROJECT``.

The results file is what counts: an error while a record is logged is a warning, and the run continues.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from spectra.errors import ArgumentError, MissingDependency, in_one_line
from spectra.logs.entries import Entry, entry_of
from spectra.results.record import Record


class Destination(Protocol):
    """Where records are logged. Nothing is created before the first record."""

    def write(self, entry: Entry, x: int) -> None:
        """Log one record at a position of the horizontal axis."""

    def close(self) -> None:
        """Write what is left."""


class TensorBoard:
    """Event files in a folder. Numbers are stored in float32, as everything in TensorBoard."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._make = imported("torch.utils.tensorboard", "tensorboard").SummaryWriter
        self._writer: Any = None

    def write(self, entry: Entry, x: int) -> None:
        if self._writer is None:
            self._writer = self._make(self.folder)
        for tag, number in entry.numbers.items():
            self._writer.add_scalar(tag, number, x)
        for tag, words in entry.words.items():
            self._writer.add_text(tag, words, x)
        for tag, one in entry.histograms.items():
            self._writer.add_histogram_raw(
                tag,
                min=one.edges[0],
                max=one.edges[-1],
                num=one.total,
                sum=one.first_moment,
                sum_squares=one.second_moment,
                bucket_limits=one.edges[1:],
                bucket_counts=one.counts,
                global_step=x,
            )
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class Wandb:
    """The run of Weights & Biases that is active, or a new one of a project, which ends with the log.

    Values have an axis of their own, ``spectra/x``: the steps of wandb only grow, and may be those of the training.
    """

    def __init__(self, project: str) -> None:
        self.project = project
        self._wandb = imported("wandb", "wandb")
        self._run: Any = None
        self._own = False

    def write(self, entry: Entry, x: int) -> None:
        if self._run is None:
            self._own = self._wandb.run is None
            self._run = self._wandb.init(project=self.project) if self._own else self._wandb.run
            self._run.define_metric("spectra/*", step_metric="spectra/x")
        histograms = {
            tag: self._wandb.Histogram(np_histogram=(one.counts, one.edges)) for tag, one in entry.histograms.items()
        }
        self._run.log({"spectra/x": x, **entry.numbers, **entry.words, **histograms})

    def close(self) -> None:
        if self._own:
            self._run.finish()


DESTINATIONS: dict[str, tuple[str, Callable[[str], Destination]]] = {
    "tensorboard": ("DIR", TensorBoard),
    "wandb": ("PROJECT", Wandb),
}
#: In words, for help texts and errors.
FORMS = " or ".join(f"{kind}:{of}" for kind, (of, _) in DESTINATIONS.items())


def checked_log(log: str | Sequence[str]) -> tuple[str, ...]:
    """The destinations as a tuple, each once.

    Raises:
        ArgumentError: one is of another form.
    """
    destinations = (log,) if isinstance(log, str) else tuple(dict.fromkeys(log))
    for one in destinations:
        kind, _, of = one.partition(":")
        if kind not in DESTINATIONS or not of.strip():
            raise ArgumentError(f"log={one!r}: {FORMS} is needed")
    return destinations


class Logs:
    """Logs records at all destinations of a run.

    Args:
        log: the destinations; none by default.
        warn: receives a line about each destination that fails.

    Raises:
        ArgumentError: a destination of another form.
        MissingDependency: the package of a destination is not installed.
    """

    def __init__(self, log: str | Sequence[str] = (), warn: Callable[[str], None] = print) -> None:
        self._open = {one: DESTINATIONS[one.partition(":")[0]][1](one.partition(":")[2]) for one in checked_log(log)}
        self._warn = warn
        self.failed = False  # whether a destination had an error
        self._counts: Counter[tuple[str, str]] = Counter()  # records per operator and batch-norm mode

    def add(self, record: Record) -> bool:
        """Log one record. Its horizontal axis is the step of training, else the epoch, else the number of the record.

        Returns:
            Whether all records so far are at all destinations.
        """
        pair = record.operator, record.bn_mode
        if not self._open:
            return not self.failed
        entry = entry_of(record)
        x = self._counts[pair] if entry.x is None else entry.x
        self._counts[pair] += 1
        for where, one in list(self._open.items()):
            self._tried(where, partial(one.write, entry, x))
        return not self.failed

    def close(self) -> None:
        """Close all destinations."""
        for where, one in list(self._open.items()):
            self._tried(where, one.close)
        self._open = {}

    def _tried(self, where: str, act: Callable[[], None]) -> None:
        """Call a method of a destination. After an error the destination is not used any more."""
        try:
            act()
        except Exception as error:
            self.failed = True
            del self._open[where]
            self._warn(
                f"log {where}: {in_one_line(error)}; nothing more is logged there, and the results file has all records"
            )


def imported(name: str, extra: str) -> Any:
    """The package of a destination.

    Raises:
        MissingDependency: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingDependency(
            f"--log {extra} needs {extra}, which cannot be imported ({error}): pip install 'hessian-spectra[{extra}]'"
        ) from error
