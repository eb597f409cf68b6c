"""What a run shows while it goes on: a bar on a terminal, one line per record elsewhere. Always on standard error."""

from __future__ import annotations

import math
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from spectra.records import Record
from spectra.run import Listener


class RunDisplay(Listener):
    """A bar over all records of a run, with the products per second; a plain line per record where none can be drawn.

    Args:
        records: how many records are asked for in all.
        quiet: show nothing.
    """

    def __init__(self, records: int, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, soft_wrap=True, highlight=False)
        self.drawn = self.console.is_terminal and not quiet
        self.quiet = quiet
        self.records = records
        self.finished = 0
        self.path = ""
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
        self.row = self.bar.add_task("reading", total=float(records), rate="")

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def say(self, words: str) -> None:
        """A line above the bar."""
        if not self.quiet:
            self.console.print(words, markup=False)

    def checkpoint(self, index: int, total: int, path: Path) -> None:
        self.path = path.name if total == 1 else f"{path.name} ({index + 1}/{total})"
        self.bar.update(self.row, description=f"{self.path}: reading and checking")
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
        self._advance()
        if not self.drawn and not self.quiet:
            self.console.print(f"[{self.finished}/{self.records}] {self.path}: {_in_short(record)}", markup=False)

    def kept(self, path: Path, operator: str, bn_mode: str) -> None:
        self._advance()
        if not self.drawn and not self.quiet:
            self.console.print(
                f"[{self.finished}/{self.records}] {self.path}: {operator}, BN {bn_mode}: in the file already",
                markup=False,
            )

    def _advance(self) -> None:
        self.finished += 1
        self.started = time.perf_counter()
        self.bar.update(self.row, completed=float(self.finished))


def _in_short(record: Record) -> str:
    what = f"{record.operator}, BN {record.bn_mode}"
    if record.status == "failed":
        return f"{what}: failed: {record.reason}"
    trace, top = record.estimates["trace"], record.estimates["lambda_max"]
    seconds = float(record.provenance.get("seconds") or math.nan)
    return f"{what}: trace {trace}, lambda_max {top.value:.4g} ({seconds:.1f} s)"
