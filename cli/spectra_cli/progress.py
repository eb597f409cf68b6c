"""The progress display of a run, on standard error: a bar, a line per record, or a JSON object per line."""

from __future__ import annotations

import math
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from spectra.analysis.run import Listener
from spectra.errors import escaped
from spectra.jsonable import dumps
from spectra.results.identity import Place
from spectra.results.record import Record
from spectra_cli.console import SafeConsole
from spectra_cli.phase_clock import Phase, PhaseClock

DISPLAYS = ("auto", "bar", "lines", "json", "none")


def display_of(kind: str, records: int | None, *, quiet: bool) -> RunDisplay:
    """The display of that name.

    Args:
        kind: one of `DISPLAYS`.
        records: how many records are asked for in all; None: nobody knows.
        quiet: show nothing.
    """
    if kind == "json":
        return JsonDisplay(records, silent=quiet)
    terminal = Console(stderr=True).is_terminal
    return RunDisplay(records, quiet=quiet or kind == "none", drawn=kind == "bar" or (kind == "auto" and terminal))


class RunDisplay(Listener):
    """A bar over all records of a run, with the phase and the products per second; or plain lines.

    Without a bar there is a line per record, and one for every phase that lasts a second, again every ten seconds.

    Args:
        records: how many records are asked for in all; None: nobody knows.
        quiet: show nothing.
        drawn: a bar; by default on a terminal.
    """

    def __init__(self, records: int | None, *, quiet: bool = False, drawn: bool | None = None) -> None:
        self.console = SafeConsole(stderr=True, soft_wrap=True, highlight=False)
        self.drawn = (self.console.is_terminal if drawn is None else drawn) and not quiet
        self.quiet = quiet
        self.records = records
        self.finished = 0
        self.path = ""
        self.clock = PhaseClock(None if self.drawn or quiet else self._show)
        self.started = time.perf_counter()
        self.bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),  # file names are not markup
            BarColumn(bar_width=24),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.drawn,
        )
        self.row = self.bar.add_task("reading", total=None if records is None else float(records), rate="")

    def __enter__(self) -> Self:
        self.bar.start()
        self.clock.start()
        return self

    def expect(self, records: int) -> None:
        """Set how many records are asked for in all."""
        self.records = records
        self.bar.update(self.row, total=float(records))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clock.stop()
        self.bar.stop()

    def phase(self, name: str, done: float, of: float, what: str) -> None:
        self.clock.set(name, done, of, what)
        if self.drawn and self.clock.phase is not None and name != "probes":  # `progress` shows those
            self.bar.update(self.row, description=self._described(self.clock.phase), rate="")

    def _described(self, phase: Phase) -> str:
        words = phase.words(time.perf_counter())
        return f"{self.path}: {words}" if self.path else words

    def _show(self, phase: Phase) -> None:
        self.say(f"spectra: {self._described(phase)}")

    def say(self, words: str) -> None:
        """Print a line above the bar."""
        if not self.quiet:
            self.console.print(words, markup=False)

    def note(self, words: str) -> None:
        self.say(f"spectra: {words}")

    def warning(self, words: str) -> None:
        """Print a warning, also with ``--quiet``."""
        self.console.print(f"spectra: warning: {words}", markup=False)

    def chosen_code(self, toml: str, file: str | None, function: str) -> None:
        """Print what ``spectra.toml`` chooses, before it is run, also with ``--quiet``."""
        what = f"running {function} in {file}" if file else f"the built-in {function}"
        self.console.print(f"spectra: {toml} chooses the task: {what}", markup=False)

    def checkpoint(self, index: int, total: int | None, path: Path) -> None:
        name = escaped(path.name)
        self.path = name if total == 1 else f"{name} ({index + 1}{'' if total is None else f'/{total}'})"
        self.bar.update(self.row, description=f"{self.path}: reading")
        self.started = time.perf_counter()

    def progress(self, operator: str, bn_mode: str, done: int, total: int) -> None:
        rate = done / max(1e-9, time.perf_counter() - self.started)
        self.bar.update(
            self.row,
            description=f"{self.path}: {operator}, BN {bn_mode}, product {done}/{total}",
            completed=self.finished + done / total,
            rate=f"{rate:.3g} products/s",
        )

    def record(self, record: Record) -> None:
        self._line(_in_short(record))

    def kept(self, place: Place, operator: str, bn_mode: str) -> None:
        self._line(f"{operator}, BN {bn_mode}: in the file already")

    def duplicate(self, path: Path, of: Path, records: int) -> None:
        self._passed_over("content", path, of, records)

    def same_weights(self, path: Path, of: Path, records: int) -> None:
        self._passed_over("weights", path, of, records)

    def _passed_over(self, what: str, path: Path, of: Path, records: int) -> None:
        words = f"has the {what} of {of if of.name == path.name else of.name}: skipped"
        self._line(words, records)
        if self.drawn:  # the bar leaves no line, and the table has no row
            self.note(f"{path.name}: {words}")

    def _line(self, words: str, records: int = 1) -> None:
        self.finished += records
        self.clock.clear()
        self.started = time.perf_counter()
        self.bar.update(self.row, completed=float(self.finished))
        if not self.drawn:
            count = f"{self.finished}" if self.records is None else f"{self.finished}/{self.records}"
            self.say(f"[{count}] {self.path}: {words}")


class JsonDisplay(RunDisplay):
    """An event per line, for programs: checkpoint, task, phase, progress, record, kept, duplicate, note.

    A phase has one event when it begins, and others as it goes on: at most one a second, and one every ten seconds
    where a step is long. Progress is that of the probes, in products, at most one event a second.

    Args:
        records: how many records are asked for in all; None: nobody knows.
        silent: the event ``task`` alone, which says what code ``spectra.toml`` chooses.
    """

    def __init__(self, records: int | None, *, silent: bool = False) -> None:
        super().__init__(records, quiet=True)
        self.silent = silent
        self._shown = -math.inf
        self._writing = threading.Lock()
        self.clock = PhaseClock(self._show)

    def _event(self, event: str, **fields: Any) -> None:
        if self.silent and event != "task":
            return
        with self._writing:
            print(dumps({"event": event, **fields}), file=sys.stderr, flush=True)

    def say(self, words: str) -> None:
        self._event("note", words=words.removeprefix("spectra: "))

    def warning(self, words: str) -> None:
        self._event("note", words=words)

    def chosen_code(self, toml: str, file: str | None, function: str) -> None:
        self._event("task", toml=toml, file=file, function=function)

    def checkpoint(self, index: int, total: int | None, path: Path) -> None:
        super().checkpoint(index, total, path)
        self._event("checkpoint", index=index, total=total, path=str(path))

    def phase(self, name: str, done: float, of: float, what: str) -> None:
        new, now = self.clock.set(name, done, of, what), time.perf_counter()
        if new or (name != "probes" and now - self._shown >= 1):
            self._shown = -math.inf if new else now
            if self.clock.phase is not None:
                self._show(self.clock.phase)

    def _show(self, phase: Phase) -> None:
        self._event("phase", **_fields(phase), what=phase.what or None)

    def progress(self, operator: str, bn_mode: str, done: int, total: int) -> None:
        now = time.perf_counter()
        if now - self._shown < 1 and done < total:
            return
        self._shown = now
        spent = max(1e-9, now - self.started)
        self._event(
            "progress",
            operator=operator,
            bn_mode=bn_mode,
            products=done,
            **(_fields(self.clock.phase) | {"done": done, "of": total}),
            products_per_second=done / spent,
            records=self.finished,
            of_records=self.records,
        )

    def record(self, record: Record) -> None:
        super().record(record)
        facts = {"checkpoint": record.checkpoint, "epoch": record.epoch, "step": record.step}
        self._event(
            "record",
            **facts,
            operator=record.operator,
            bn_mode=record.bn_mode,
            status=record.status,
            reason=record.reason,
            seconds=record.provenance.get("seconds"),
        )

    def kept(self, place: Place, operator: str, bn_mode: str) -> None:
        super().kept(place, operator, bn_mode)
        self._event("kept", checkpoint=place.checkpoint, operator=operator, bn_mode=bn_mode)

    def duplicate(self, path: Path, of: Path, records: int) -> None:
        super().duplicate(path, of, records)
        self._event("duplicate", checkpoint=str(path), of=str(of), same="content")

    def same_weights(self, path: Path, of: Path, records: int) -> None:
        super().same_weights(path, of, records)
        self._event("duplicate", checkpoint=str(path), of=str(of), same="weights")

    def _line(self, words: str, records: int = 1) -> None:
        self.finished += records
        self.clock.clear()
        self.started = time.perf_counter()


def _fields(phase: Phase | None) -> dict[str, Any]:
    if phase is None:
        return {"phase": None, "done": None, "of": None, "seconds_left": None}
    left = phase.seconds_left(time.perf_counter())
    return {"phase": phase.name, "done": phase.done, "of": phase.of or None, "seconds_left": left}


def _in_short(record: Record) -> str:
    what = f"{record.operator}, BN {record.bn_mode}"
    if record.status == "failed":
        return f"{what}: failed: {record.reason}"
    trace, top = record.headline("trace"), record.estimates["lambda_max"]
    seconds = float(record.provenance.get("seconds") or math.nan)
    what += " (unverified)" * (record.status == "unverified")
    return f"{what}: trace {trace}, lambda_max {top.value:.4g} ({seconds:.1f} s)"
