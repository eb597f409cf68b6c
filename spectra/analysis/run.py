"""The analysis of many checkpoints into one results file: each is loaded, analysed and stored before the next.

If one of several checkpoints fails, it is recorded with its reason and the run continues. If a single checkpoint fails,
its error is raised and no file is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from spectra.analysis.analysis_run import AnalysisRun, check_output
from spectra.analysis.analyze import failed_record, place_of, records_of
from spectra.analysis.on_first import items_of_first
from spectra.analysis.preconditioning import preconditioner_for
from spectra.analysis.resume import weights_sha256
from spectra.analysis.settings import DataChoice, RunSettings, Settings, run_settings
from spectra.analysis.store import Listener, Outcome
from spectra.analysis.threads import SameThreads
from spectra.checkpoints.bounds import parse_size
from spectra.checkpoints.checkpoint import Checkpoint, load_checkpoint
from spectra.checkpoints.fitting import Fit
from spectra.checkpoints.loading import Recipient
from spectra.errors import CheckpointError, NumericsError, OutOfMemory, SpectraError
from spectra.results.identity import Place, apart
from spectra.runtime.exclusive import one_at_a_time
from spectra.runtime.memory import memory_limited
from spectra.runtime.phases import phase, reported
from spectra.runtime.ranks import agreed, first_alone, jointly, ranks, same_everywhere
from spectra.task.task import Task
from spectra.task.user_errors import reason_of

__all__ = ["DataChoice", "Listener", "Outcome", "TaskMaker", "analyze_checkpoints", "analyze_run", "check_output"]

TaskMaker = Callable[[Checkpoint], Task]


def analyze_run(
    paths: Iterable[Path],
    make_task: TaskMaker,
    settings: Settings,
    *,
    listener: Listener | None = None,
    **options: Any,
) -> Outcome:
    """Analyse checkpoints one after the other into one file: :func:`analyze_checkpoints` with its settings one by one.

    Args:
        paths: the checkpoints.
        make_task: the task of a checkpoint.
        settings: of the analysis.
        listener: receives the events of the run.
        options: the other fields of :class:`RunSettings`: ``out``, ``data``, ``device``, ``strict``, ...
    """
    return analyze_checkpoints(paths, make_task, RunSettings(settings, **options), listener or Listener())


def analyze_checkpoints(paths: Iterable[Path], make_task: TaskMaker, asked: RunSettings, listener: Listener) -> Outcome:
    """Analyse checkpoints one after the other into one file, which is continued if it is of the same run.

    Args:
        paths: the checkpoints, in order of training; an iterator may wait for those that are still to come.
        make_task: the task of a checkpoint; its model receives the weights.
        asked: the settings, the file, and how checkpoints are read.
        listener: receives the events of the run.

    Raises:
        SpectraError: a single checkpoint fails, the task cannot be made, or the file cannot be written or continued.
            After any error the file has all finished records, and the finished probes of the next record are in a file
            in the same folder.
    """
    total = first_alone(lambda: len(paths) if isinstance(paths, Sequence) else None)
    if total == 0:
        raise CheckpointError("no checkpoint to analyse")
    with ExitStack() as stack:
        run = AnalysisRun.open(asked, listener, stack)
        stack.enter_context(memory_limited(parse_size(run.settings.memory, "memory")))  # also for a snapshot
        with run.store, SameThreads(run.store.threads(), listener.note), reported(listener.phase):
            _analyze_all(run, paths, total, make_task)
        return run.store.close()


def _analyze_all(run: AnalysisRun, paths: Iterable[Path], total: int | None, make_task: TaskMaker) -> None:
    asked, store, listener, pairs = run.asked, run.store, run.listener, run.settings.pairs()
    read = partial(
        load_checkpoint,
        unsafe=asked.unsafe,
        weights=asked.weights,
        max_size=parse_size(asked.max_size),
        optimizer_state=run.settings.precondition is not None,
    )
    seen = Seen()
    recipient = Recipient(asked.partial)
    shares: str | None = None  # the last note about tensors that the checkpoint lacks
    for index, path in enumerate(items_of_first(paths)):
        listener.checkpoint(index, total, path)
        place = Place(checkpoint=str(path))
        one_at_a_time.acquire()  # another thread may load into the same model
        try:
            phase("reading")
            with _of_checkpoint(path):
                checkpoint = jointly(partial(read, path))
            place = place_of(checkpoint)
            if (first := seen.content(place)) is not None:
                listener.duplicate(path, Path(first.words), len(pairs))
                store.keep_all(pairs, first)
                continue
            try:
                made = jointly(partial(make_task, checkpoint))
            except SpectraError as error:
                raise _NoTask(error) from error
            task = jointly(partial(run.data.task, made))
            store.twins = not (run.data.varies or getattr(make_task, "per_checkpoint", False))
            with _of_checkpoint(path):
                found = jointly(partial(_load, recipient, make_task, checkpoint, task.model))
            if found.own and found.shares != shares:
                shares = found.shares
                listener.note(f"{path}: {shares}")
            place = replace(place, weights=weights_sha256(task.model), own_tensors=len(found.own) or None)
            if (first := seen.weights(place, task.model, one_task=store.twins)) is not None:
                listener.same_weights(path, Path(first.words), len(pairs))
                store.keep_all(pairs, first)
                continue
            if run.device is not None:
                task.model.to(run.device)
            phase("checking")
            preconditioner = preconditioner_for(run.settings.precondition, checkpoint, task.model)
            analyze_into(run, task, place, notes=found.notes, preconditioner=preconditioner)
        except _NoTask as failure:
            raise failure.reason from failure.reason.__cause__
        except (CheckpointError, NumericsError) as error:
            if total == 1 or asked.strict:
                store.unfinished.fail()
                raise
            record_failure(run, place, error)
        finally:
            one_at_a_time.release()


def _load(recipient: Recipient, make_task: TaskMaker, checkpoint: Checkpoint, model: torch.nn.Module) -> Fit:
    return recipient.load(under_names_of(make_task, checkpoint, model), model)


def under_names_of(make_task: TaskMaker, checkpoint: Checkpoint, model: torch.nn.Module) -> Checkpoint:
    """The checkpoint with its tensors under the names of the model, if the maker of the task has a method for it."""
    rename = getattr(make_task, "renamed", None)
    return checkpoint if rename is None else rename(checkpoint, model)


@contextmanager
def _of_checkpoint(path: Path) -> Iterator[None]:
    """Turn any error while a checkpoint is read into an error of that checkpoint, also where memory runs out."""
    try:
        yield
    except SpectraError as error:
        if not isinstance(error, OutOfMemory):
            raise
        raise CheckpointError(str(error)) from error
    except Exception as error:
        raise CheckpointError(f"{path}: cannot be loaded: {reason_of(error)}") from error


class Seen:
    """The checkpoints of a run by their content, and by the weights that came from them."""

    def __init__(self) -> None:
        self._places: dict[str, Place] = {}
        self._by_weights: dict[tuple[str | None, int], list[Place]] = {}

    def content(self, place: Place) -> Place | None:
        """The earlier checkpoint that is the same file under another name; None: this is the first."""
        first = self._places.setdefault(str(place.sha256), place)
        return None if first.checkpoint == place.checkpoint else first

    def weights(self, place: Place, model: torch.nn.Module, *, one_task: bool) -> Place | None:
        """The earlier checkpoint with the same weights for the same network, unless its training time is another one.

        Where the task is made for each checkpoint, both must have the same epoch and step.
        """
        earlier = self._by_weights.setdefault((place.weights, hash(repr(model))), [])
        now = place.epoch, place.step

        def same(one: Place) -> bool:
            then = one.epoch, one.step
            return not apart(then, now) if one_task else then == now != (None, None)

        first = next(filter(same, earlier), None)
        earlier.append(place)
        self._places[str(place.sha256)] = first or place
        return first


def analyze_into(
    run: AnalysisRun,
    task: Task,
    place: Place,
    *,
    notes: Sequence[str] = (),
    preconditioner: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Compute and store the records of a task that the file of the run does not have.

    Args:
        run: the run; its file is opened at the first task.
        task: on the chosen data.
        place: the origin of the parameters.
        notes: to add to the notes of the records.
        preconditioner: of the optimizer, where it is asked for.

    Raises:
        SpectraError: numbers that would not be right, a file that cannot be written or continued, or, in a strict run,
            an unverified record, which is stored before.
    """
    settings = jointly(lambda: run_settings(task, run.settings))
    if ranks() is not None:
        same_everywhere("weights", [float(p.detach().double().sum()) for p in task.model.parameters()])
        _share_buffers(task.model)
    same_everywhere("settings or data", settings)
    run.store.open(settings)
    done = run.store.keep_all(run.settings.pairs(), place)
    for pair in done:
        run.listener.kept(place, *pair)
    for record in records_of(run, task, place, skip=done, notes=notes, preconditioner=preconditioner):
        run.add(record)
        if run.asked.strict and record.status == "unverified":
            raise NumericsError(f"{record.label}: unverified: {record.reason}; its numbers are in {run.asked.out}")


def _share_buffers(model: torch.nn.Module) -> None:
    """Take the buffers of the first process, as DistributedDataParallel does at each step: statistics may differ."""
    with torch.no_grad():
        for buffer, value in zip(model.buffers(), agreed([buffer.cpu() for buffer in model.buffers()])):
            buffer.copy_(value)


def record_failure(run: AnalysisRun, place: Place, error: Exception) -> None:
    """Store a failed record, with the reason, for each missing record of a checkpoint."""
    run.store.unfinished.fail()
    missing = [pair for pair in run.settings.pairs() if not run.store.knows(pair, place)]
    if not missing:
        run.listener.note(f"{reason_of(error)}; its records in the file are kept")
    for pair in missing:
        record = failed_record(*pair, reason_of(error), run.store.settings, place)
        run.add(record)


class _NoTask(Exception):
    """The task could not be made: an error of the whole run, not of one checkpoint."""

    def __init__(self, reason: SpectraError) -> None:
        super().__init__(str(reason))
        self.reason = reason
