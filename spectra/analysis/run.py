"""A run of checkpoints into one file: each is loaded, analysed and stored before the next, and what is stored is kept.

A checkpoint that fails among several is recorded with its reason and the rest goes on. A single one that fails raises,
and leaves no file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial as partial_of
from pathlib import Path

import torch

from spectra.analysis.analyze import failed_record, iter_analyze, place_of
from spectra.analysis.resume import SameThreads, Unfinished, weights_sha256
from spectra.analysis.settings import Settings, run_settings, sampled
from spectra.analysis.store import DataChoice, Listener, Outcome, Store
from spectra.checkpoints.bounds import parse_size
from spectra.checkpoints.checkpoint import Checkpoint, load_checkpoint
from spectra.checkpoints.loading import Recipient
from spectra.errors import ArgumentError, CheckpointError, NumericsError, OutOfMemory, SpectraError
from spectra.results.identity import Place, apart
from spectra.results.storage.atomic_write import check_writable
from spectra.results.storage.lock import only_writer
from spectra.results.storage.runfile import load_trajectory
from spectra.results.storage.safe_open import resolved
from spectra.runtime.exclusive import one_at_a_time
from spectra.runtime.phases import phase, reported
from spectra.task.task import Task
from spectra.task.user_errors import reason_of

__all__ = ["DataChoice", "Listener", "Outcome", "TaskMaker", "analyze_run", "check_output"]

TaskMaker = Callable[[Checkpoint], Task]


def analyze_run(
    paths: Iterable[Path],
    make_task: TaskMaker,
    settings: Settings,
    *,
    out: Path,
    data: DataChoice | None = None,
    device: str | None = None,
    unsafe: bool = False,
    weights: str | None = None,
    partial: bool = False,
    listener: Listener | None = None,
    strict: bool = False,
    force: bool = False,
    max_size: int | str | None = None,
) -> Outcome:
    """Analyse checkpoints one after the other into one file, which is continued if it is of the same run.

    Args:
        paths: the checkpoints, in order of training; an iterator may wait for those that are still to come.
        make_task: the task of a checkpoint; its model receives the weights.
        settings: what is asked.
        out: the file; its folder must exist.
        data: a subset, a batch size, an l2 or a reduction in place of the task's.
        device: where to compute; by default where the task's model is.
        unsafe: load checkpoints that hold code, and run it.
        weights: which weights of a checkpoint that has several.
        partial: checkpoints may lack keys, for which the task's model keeps what it has.
        listener: is told what happens.
        strict: a checkpoint that fails stops the run, rather than being recorded as failed; a record that is unverified
            is stored and stops it too.
        force: what the file has of other settings, or of checkpoints whose content was another, is replaced rather
            than refused.
        max_size: bytes that a checkpoint may take in memory, as of :func:`load_checkpoint`.

    Raises:
        SpectraError: a single checkpoint fails, the task cannot be made, or the file cannot be written or continued.
            Whatever is raised, the file keeps the records that were finished, and the probes of the next one that
            were finished are kept beside it.
    """
    total = len(paths) if isinstance(paths, Sequence) else None
    read = partial_of(load_checkpoint, unsafe=unsafe, weights=weights, max_size=parse_size(max_size))
    if total == 0:
        raise CheckpointError("no checkpoint to analyse")
    check_output(out)
    tell = listener or Listener()
    where = _device(device)
    with only_writer(out):
        unfinished = Unfinished(out, tell.note)
        store = Store(out, data or DataChoice(), unfinished, force, tell)
        with store, SameThreads(unfinished.threads or store.threads(), tell.note), reported(tell.phase):
            _analyze_all(paths, total, make_task, settings, store, where, read, partial, tell, strict)
        unfinished.end()
        store.eigenspaces.close()
        return store.close()


def _analyze_all(
    paths: Iterable[Path],
    total: int | None,
    make_task: TaskMaker,
    settings: Settings,
    store: Store,
    where: torch.device | None,
    read: Callable[[Path], Checkpoint],
    partial: bool,
    tell: Listener,
    strict: bool,
) -> None:
    seen = Seen()
    recipient = Recipient(partial)
    shares: str | None = None  # how many tensors are the task's own, as it was said last
    chosen = Chosen(store.choice, with_test=settings.test_data)
    for index, path in enumerate(paths):
        tell.checkpoint(index, total, path)
        place = Place(checkpoint=str(path))
        one_at_a_time.acquire()  # another thread may load into the same model
        try:
            phase("reading")
            with _of_checkpoint(path):
                checkpoint = read(path)
            place = place_of(checkpoint)
            if (first := seen.content(place)) is not None:
                tell.duplicate(path, Path(first.words), len(settings.pairs()))
                store.count(settings.pairs(), first)
                continue
            try:
                made = make_task(checkpoint)
            except SpectraError as error:
                raise _NoTask(error) from error
            task = chosen.task(made)
            store.twins = not (chosen.varies or getattr(make_task, "per_checkpoint", False))
            with _of_checkpoint(path):
                found = recipient.load(checkpoint, task.model)
            if found.own and found.shares != shares:
                shares = found.shares
                tell.note(f"{path}: {shares}")
            place = replace(place, weights=weights_sha256(task.model), own_tensors=len(found.own) or None)
            if (first := seen.weights(place, task.model, one_task=store.twins)) is not None:
                tell.twin(path, Path(first.words), len(settings.pairs()))
                store.count(settings.pairs(), first)
                continue
            if where is not None:
                task.model.to(where)
            phase("checking")
            analyze_into(store, task, place, settings, tell, notes=found.notes, strict=strict)
        except _NoTask as failure:
            raise failure.reason from failure.reason.__cause__
        except (CheckpointError, NumericsError) as error:
            if total == 1 or strict:
                store.unfinished.fail()
                raise
            record_failure(store, place, settings, tell, error)
        finally:
            one_at_a_time.release()


@contextmanager
def _of_checkpoint(path: Path) -> Iterator[None]:
    """What ends the reading of a checkpoint is an error of that checkpoint, also where memory runs out."""
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
        """The earlier checkpoint that gave the same network these weights, at no other moment of training.

        Where the task is made for each checkpoint, both must say that they are of the same moment.
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
    store: Store,
    task: Task,
    place: Place,
    settings: Settings,
    tell: Listener,
    *,
    notes: Sequence[str] = (),
    strict: bool = False,
) -> None:
    """Add what the file does not have of a task at its parameters.

    Args:
        store: the file, which is opened if this is the first of the run.
        task: on the chosen data.
        place: where the parameters are from.
        settings: what is asked.
        tell: is told what happens.
        notes: for the records.
        strict: an unverified record, once it is stored, ends the run.

    Raises:
        SpectraError: numbers that would not be right, or a file that cannot be written or continued.
    """
    store.open(run_settings(task, settings))
    done = [pair for pair in settings.pairs() if store.has(pair, place)]
    for pair in done:
        tell.kept(place, *pair)
    for record in iter_analyze(
        task,
        checkpoint=place,
        settings=settings,
        progress=tell.progress,
        skip=done,
        extra=store.choice.as_settings(),
        notes=notes,
        unfinished=store.unfinished,
        eigenspaces=store.eigenspaces,
    ):
        store.add(record)
        tell.record(record)
        if strict and record.status == "unverified":
            raise NumericsError(f"{record.label}: unverified: {record.reason}; its numbers are in {store.out}")


def record_failure(store: Store, place: Place, settings: Settings, tell: Listener, error: Exception) -> None:
    """Record what is missing of a checkpoint as failed, with the reason."""
    store.unfinished.fail()
    missing = [pair for pair in settings.pairs() if not store.knows(pair, place)]
    if not missing:
        tell.note(f"{reason_of(error)}; what the file has of it already is kept")
    for pair in missing:
        record = failed_record(*pair, reason_of(error), store.settings, place)
        store.add(record)
        tell.record(record)


def check_output(out: Path) -> None:
    """See that a results file can be written, and that what is there already is one, before anything else is done.

    Raises:
        StorageError: it cannot, or it is not.
    """
    target = resolved(out)  # a link stays a link: what it points to is replaced
    check_writable(target, shown=str(out))
    if target.exists():
        load_trajectory(out)


class _NoTask(Exception):
    """The task could not be made: an error of the whole run, not of one checkpoint."""

    def __init__(self, reason: SpectraError) -> None:
        super().__init__(str(reason))
        self.reason = reason


class Chosen:
    """The task on the chosen data; the choice is made once for a task, or for data, that serve every checkpoint."""

    def __init__(self, choice: DataChoice, *, with_test: bool) -> None:
        self.choice = choice
        self.with_test = with_test
        self.varies = False  # the task has not been the same object for every checkpoint
        self._last: tuple[Task, Task] | None = None  # as it was made, and on the chosen data
        self._frozen: tuple[Task, Task] | None = None  # the task of the last snapshot, and the same with it

    def task(self, made: Task) -> Task:
        if self._last is None or self._last[0] is not made:
            self.varies = self._last is not None
            self._last = None  # its data are not kept beside the new ones
            choice = self.choice
            chosen = sampled(
                self._snapshot(made) if choice.snapshot else made,
                samples=choice.samples,
                data_seed=choice.data_seed,
                batch_size=choice.batch_size,
                l2=choice.l2,
                reduction=choice.reduction,
            )
            self._last = made, chosen
        return self._last[1]

    def _snapshot(self, made: Task) -> Task:
        """A snapshot of the task's data: that of the checkpoint before, where the data are the same object."""
        if self._frozen is not None:
            before, frozen = self._frozen
            if made.data is before.data and made.test_data is before.test_data:
                return replace(made, data=frozen.data, test_data=frozen.test_data)
        self._frozen = None
        self._frozen = made, made.snapshot(self.choice.data_seed, test=self.with_test)
        return self._frozen[1]


def _device(name: str | None) -> torch.device | None:
    """The device of that name, if it is there.

    Raises:
        ArgumentError: no such device, or none of its kind here.
    """
    if name is None:
        return None
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ArgumentError(f"device={name!r}: 'cpu', 'cuda' or 'cuda:INDEX' is needed") from error
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        raise ArgumentError(f"device={name!r}: {found} CUDA devices are available here; --device cpu works everywhere")
    if device.type not in ("cpu", "cuda"):
        raise ArgumentError(f"device={name!r}: 'cpu' or 'cuda' is needed")
    return device
