"""Tracker: analyses a model from inside its training loop, without checkpoint files and without effect on training."""

from __future__ import annotations

import contextlib
import logging
import os
import time
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from spectra.analysis.analysis_run import AnalysisRun
from spectra.analysis.presets import filled
from spectra.analysis.resume import weights_sha256
from spectra.analysis.run import analyze_into, record_failure
from spectra.analysis.settings import DataChoice, RunSettings, Settings
from spectra.analysis.store import Listener
from spectra.analysis.threads import SameThreads
from spectra.analysis.training_state import training_kept
from spectra.checkpoints.checkpoint import check_finite
from spectra.errors import ArgumentError, NumericsError, StorageError
from spectra.results.identity import Place
from spectra.results.record import Record
from spectra.results.storage.runfile import load_trajectory
from spectra.results.trajectory import Trajectory
from spectra.task.task import Task
from spectra.task.user_errors import reason_of, unexpected

logger = logging.getLogger(__name__)


class Tracker:
    """Adds a record of the present model to a results file at each call.

    After a call the following are restored, also after an error: weights, buffers, gradients, modes of the layers,
    counters and activations that modules store, and the states of all random generators (those of Python, NumPy and
    torch, and those of the task's data). So training continues bit for bit as without the tracker. Two effects cannot
    be undone: those of your forward hooks outside of the network, and, on a GPU with
    ``torch.backends.cudnn.benchmark``, the choice of algorithms by cuDNN.

    This process alone can write the file until :meth:`close`; it may be read at any time. With several processes, call
    the tracker in one of them.

    Args:
        task: with the model that is trained, and the data of the analysis. Data that shuffle or augment are refused,
            unless frozen by ``snapshot=True``.
        out: the results file; an existing one is continued if it is of the same run.
        every: analyse where the epoch is a multiple of it; without epochs the step, without both each K-th call.
        strict: raise every error. By default errors are raised until a first call has succeeded, so that mistakes in
            the set-up are seen. After that no error ends the training, whether it is from data, model, criterion or
            spectra: the record is stored as failed with the reason. An error that is neither from spectra nor memory
            that ran out is logged with its traceback. Where the record cannot be written (a full disk), a warning is
            logged, and the next call tries again with its own record. ``KeyboardInterrupt`` and ``SystemExit`` are
            always raised.
        force: records of other settings, or of other weights at the same epoch, are replaced.
        log: where each record is logged as well: ``"tensorboard:DIR"``, ``"wandb:PROJECT"``, or a list of these. An
            error there is a warning.
        options: those of :func:`spectra.analyze` (``operators``, ``bn_modes``, ``lanczos_steps``, ``num_probes``,
            ``seed``, ``metrics``, ``eigenpairs``, ``test_data``, ...), and which data: ``samples``, ``batch_size``,
            ``snapshot``, ``data_seed``, ``l2``, ``reduction``.

    Raises:
        ArgumentError: an option out of its range.
        MissingDependency: a package that a log needs is not installed.
        StorageError: the file cannot be written or is being written by another process.

    Example:
        >>> import tempfile, torch
        >>> x, y = torch.randn(20, 3), torch.randint(2, (20,))
        >>> task = Task(torch.nn.Linear(3, 2), torch.nn.CrossEntropyLoss(), [(x, y)])
        >>> sgd = torch.optim.SGD(task.model.parameters(), lr=0.1)
        >>> with Tracker(task, out=tempfile.mkdtemp() + "/run.h5", lanczos_steps=4, num_probes=2) as tracker:
        ...     for epoch in range(3):
        ...         _ = tracker(epoch=epoch)
        ...         sgd.zero_grad()
        ...         task.loss_of((x, y)).backward()
        ...         sgd.step()
        >>> tracker.trajectory["hessian", "eval"].epochs
        array([0., 1., 2.])
    """

    def __init__(
        self,
        task: Task,
        *,
        out: str | Path = "run.h5",
        every: int = 1,
        strict: bool = False,
        force: bool = False,
        log: str | Sequence[str] = (),
        **options: Any,
    ) -> None:
        if every < 1:
            raise ArgumentError(f"every={every}: at least 1 is needed; 1 is each time")
        self.task, self.out, self.every, self.strict = task, Path(out), every, strict
        data = {name: options.pop(name) for name in list(options) if name in DataChoice.__dataclass_fields__}
        _check_known(options)
        self.settings = Settings(**filled(**options))
        self.seconds = 0.0  #: that the analyses have taken in all
        self._calls = 0
        self._begun = False
        self._weights: str | None = None  # of the call before
        self._listener = _LogListener(self.out)
        # `strict` of a run also ends it at an unverified record, which here is a warning.
        asked = RunSettings(self.settings, DataChoice(**data), self.out, force=force, log=log)
        with contextlib.ExitStack() as stack:
            self._run = AnalysisRun.open(asked, self._listener, stack)
            stack.enter_context(self._run.store)
            # Also at the end of the process, for loops that never close it.
            self._release = weakref.finalize(self, _let_go, stack.pop_all(), os.getpid(), self._listener)

    def __call__(self, *, epoch: float | None = None, step: int | None = None, now: bool = False) -> bool:
        """Analyse the present model, if epoch or step is a multiple of `every`.

        Args:
            epoch: the number of completed epochs; 0 before the first.
            step: the number of completed steps of the optimizer.
            now: analyse regardless of `every`, such as at the end of training.

        Returns:
            Whether the model was due for analysis. An existing record of the same epoch and weights is kept.

        Raises:
            ArgumentError: the tracker is closed, or a time is not a number from 0 on.
            Exception: at the first call, or with ``strict``: an error of spectra where the task or its data cannot be
                used, the numbers would not be right, or the file cannot be written or continued; and any other error,
                as it was raised. Model and file are intact after every error.
        """
        if not self._release.alive:
            raise ArgumentError("the tracker is closed: make another one; the same file is continued")
        for name, value in (("epoch", epoch), ("step", step)):
            if value is not None and not 0 <= value < float("inf"):
                raise ArgumentError(f"{name}={value}: a number from 0 on is needed")
        at = epoch if epoch is not None else step if step is not None else self._calls
        self._calls += 1
        if self.every > 1 and at % self.every != 0 and not now:
            return False
        start = time.perf_counter()
        place = Place(epoch=float(at) if epoch is not None or step is None else None, step=step)
        try:
            place = replace(place, sha256=self._hashed())
            self._analyze(place)
        except Exception as error:
            if self.strict or not self._begun:
                if isinstance(error, NumericsError):
                    self._run.store.unfinished.fail()
                raise
            self._fail(place, error)
        finally:
            self.seconds += time.perf_counter() - start
        self._begun = True
        return True

    @property
    def failed(self) -> int:
        """The number of records of this tracker that have failed."""
        return self._listener.failed

    def _hashed(self) -> str:
        weights = weights_sha256(self.task.model)
        if weights == self._weights:
            logger.warning(
                "%s: the weights are those of the call before: the task must hold the network that is trained, not a "
                "copy of it",
                self.out,
            )
        self._weights = weights
        return weights

    def _analyze(self, place: Place) -> None:
        data = [self.task.data, self.task.test_data]
        with (
            training_kept([self.task.model, self.task.criterion], data, self._run.asked.data.data_seed),
            SameThreads(self._run.store.threads(), self._listener.note),
        ):
            task = self._run.data.task(self.task)
            check_finite(task.model.state_dict())
            analyze_into(self._run, task, place)

    def _fail(self, place: Place, error: Exception) -> None:
        """Store a failed record. If that cannot be written, log a warning."""
        try:
            if isinstance(error, StorageError):
                raise error
            if unexpected(error):
                words = "%s: %s: unexpected %s; it is recorded as failed, and training goes on"
                logger.warning(words, self.out, place.words, reason_of(error), exc_info=error)
            record_failure(self._run, place, error)
        except Exception as other:
            self._listener.unwritten += 1
            logger.warning("%s: %s: %s", self.out, place.words, reason_of(other))

    def close(self) -> None:
        """Close the file, and log how many records failed, if any did. A second call does nothing."""
        try:
            if self._release.alive:
                self._run.store.eigenspaces.close()
        except StorageError as error:
            if self.strict:
                raise
            logger.warning("%s: %s", self.out, error)
        finally:
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def trajectory(self) -> Trajectory:
        """The present records of the file.

        Raises:
            StorageError: there is no record yet.
        """
        return load_trajectory(self.out)


def _let_go(held: contextlib.ExitStack, owner: int, listener: _LogListener) -> None:
    """Close the file and give up the lock, in the process that holds it: the workers of a loader are copies of it."""
    if os.getpid() == owner:
        try:
            held.close()
        except StorageError as error:  # its records are in it all the same, and training has ended
            logger.warning("%s", error)
        listener.summary()


class _LogListener(Listener):
    """Sends the events of a run to the log."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.records = self.failed = 0
        self.unwritten = 0  # moments whose record could not be written

    def record(self, record: Record) -> None:
        self.records += 1
        if record.status == "failed":
            self.failed += 1
        if record.status != "complete":
            logger.warning("%s: %s: %s: %s", self.out, record.label, record.status, record.reason)

    def summary(self) -> None:
        """Log a warning about failed and unwritten records."""
        if self.failed:
            words = "%s: %d of %d records failed; the file has the reasons (spectra show)"
            logger.warning(words, self.out, self.failed, self.records)
        if self.unwritten:
            words = "%s: %d moment%s could not be recorded"
            logger.warning(words, self.out, self.unwritten, "" if self.unwritten == 1 else "s")

    def note(self, words: str) -> None:
        logger.info("%s", words)

    def warning(self, words: str) -> None:
        logger.warning("%s: %s", self.out, words)


def _check_known(options: dict[str, Any]) -> None:
    known = [*Settings.__dataclass_fields__, *DataChoice.__dataclass_fields__]
    for name in options:
        if name not in known:
            raise ArgumentError(f"{name}=: there is no such option; there are {', '.join(known)}")
