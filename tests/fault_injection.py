"""A run that is killed, or finds the disk full, at a chosen instant, and then goes on: once per instant, in children.

    python fault_injection.py FOLDER --writer numpy|torch|steps --fault kill|full --at 1,2,3|all|random:200 [--seed S]

The children are forks of one process, so that no time goes into imports. After each fault: the file opens and holds
every record whose writing was reported as done, at most one more, and nothing of a record is in it in part; the run
then goes on without a fault, and its file has, but for dates and durations, the numbers and texts of a run that was
never disturbed. Prints how many instants there were and what was seen; any difference ends it with exit code 1.
"""

from __future__ import annotations

import argparse
import builtins
import contextlib
import errno
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from spectra.errors import StorageError
from spectra.results.storage import atomic_write as replacing
from spectra.results.storage.lock import only_writer
from spectra.results.storage.partial import Partial, PartialFile
from spectra.results.storage.runfile import RunFile, load_trajectory

#: What differs between two runs of the same numbers. The checksums follow from it.
_OF_THE_DAY = {"created", "checksum", "provenance"}
Done = Callable[[], None]  # reports a record as stored


# -- two runs: one of stored spectra without torch, one of a network


def numpy_run(out: Path, done: Done) -> None:
    """What `analyze_run` does with its file, with records that are known beforehand: four probes, three records."""
    from run_files import SETTINGS, make_record

    with only_writer(out):
        file = PartialFile(out)
        left = file.read()
        run = RunFile.open(out, SETTINGS)
        for epoch in range(3):
            record = make_record(epoch)
            if run.has(record.identity):
                continue
            assert record.spectrum is not None
            key = {"epoch": epoch}
            probes = list(left.parts[0]) if left is not None and not left.differs(key) else []
            left = None
            for probe in record.spectrum.tridiagonals[len(probes) :]:
                probes.append({"alphas": probe.alphas, "betas": probe.betas})
                file.write(Partial(key, {"width": 1, "threads": 1}, [probes]))
            for kept, probe in zip(probes, record.spectrum.tridiagonals, strict=True):
                assert (kept["alphas"] == probe.alphas).all(), "another probe was taken up"
            run.append(record)
            done()
            file.remove()
    file.remove()


def torch_run(out: Path, done: Done) -> None:
    """`analyze_run` itself: three checkpoints, two operators, held-out data, eigenpairs, one probe in a group."""
    _analyses(
        out,
        done,
        checkpoints=3,
        operators=("hessian", "ggn"),
        lanczos_steps=6,
        num_probes=4,
        width=1,
        eigenpairs=2,
        test_data=True,
    )


def steps_run(out: Path, done: Done) -> None:
    """The same of one record, with two probes in a group, which are kept after each of their steps."""
    from spectra.analysis import resume as resuming

    resuming.INTERVAL = 0.0
    _analyses(out, done, checkpoints=1, lanczos_steps=4, num_probes=4, width=2)


def _analyses(out: Path, done: Done, *, checkpoints: int, **settings: Any) -> None:
    import torch
    from torch import nn

    from spectra import Task, save_checkpoint
    from spectra.analysis.run import Listener, analyze_run
    from spectra.analysis.settings import Settings

    class Ear(Listener):
        def record(self, record: Any) -> None:
            done()

    torch.set_num_threads(1)
    paths = [out.parent / f"net_{epoch}.pt" for epoch in range(checkpoints)]
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    for epoch, path in enumerate(paths):
        if not path.exists():
            torch.manual_seed(epoch)
            for parameter in model.parameters():
                nn.init.normal_(parameter)
            save_checkpoint(path, model, epoch=epoch)
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 4, generator=draw), torch.randint(3, (12,), generator=draw)
    task = Task(model, nn.CrossEntropyLoss(), [(x[:7], y[:7]), (x[7:], y[7:])], test_data=[(x[3:], y[3:])])
    asked = Settings(**settings, check=False, metrics="squared_norm")
    analyze_run(paths, lambda checkpoint: task, asked, out=out, listener=Ear())


RUNS = {"numpy": numpy_run, "torch": torch_run, "steps": steps_run}


# -- faults


class Faults:
    """Counts what touches the disk; at the chosen count the process dies, or the disk is full from then on."""

    def __init__(self, fault: str, at: int | None) -> None:
        self.fault, self.at = fault, at
        self.count = 0

    def step(self, halfway: Callable[[], Any] | None = None) -> None:
        self.count += 1
        if self.at is None or self.count < self.at:
            return
        if self.fault == "kill" and self.count == self.at:
            if halfway is not None:
                halfway()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "full" and halfway is not None:
            halfway()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @contextlib.contextmanager
    def injected(self) -> Iterator[None]:
        """In the place of what `replacing` calls: before, in the middle of, and after each step."""
        real = replacing.os

        class System:
            def __getattr__(system, name: str) -> Any:  # noqa: N805
                return getattr(real, name)

        def counted(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                self.step()
                found = function(*arguments, **options)
                self.step()
                return found

            return call

        system = System()
        for name in ("open", "replace", "fsync", "fchmod"):
            setattr(system, name, counted(getattr(real, name)))

        def opened(*arguments: Any, **options: Any) -> Any:
            file = builtins.open(*arguments, **options)  # noqa: SIM115 (closed by the writer around it)
            write = file.write
            steps = self

            class Written:
                def __enter__(writer) -> Any:  # noqa: N805
                    return writer

                def __exit__(writer, *error: Any) -> None:  # noqa: N805
                    file.close()

                def fileno(writer) -> int:  # noqa: N805
                    return file.fileno()

                def write(writer, content: Any) -> int:  # noqa: N805
                    steps.step(lambda: write(content[: len(content) // 2]))
                    return write(content)

            return Written()

        replacing.os, replacing.open = system, opened
        try:
            yield
        finally:
            replacing.os = real
            del replacing.open


def child(run: Callable[[Path, Done], None], out: Path, faults: Faults, after: float | None = None) -> tuple[int, int]:
    """Run it in a fork. Returns the exit status (negative: the signal) and the records reported as stored."""
    receive, send = os.pipe()
    number = os.fork()
    if number == 0:
        os.close(receive)
        code = 1
        try:
            with faults.injected():
                run(out, lambda: os.write(send, b"r") and None)
            code = 0
        except StorageError as error:
            os.write(2, b"" if "\n" not in str(error) else b"more than a line\n")
            code = 3
        finally:
            os._exit(code)
    os.close(send)
    if after is not None:
        time.sleep(after)
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    _, status = os.waitpid(number, 0)
    stored = 0
    while piece := os.read(receive, 4096):
        stored += len(piece)
    os.close(receive)
    return os.waitstatus_to_exitcode(status), stored


# -- what must hold


def content(path: Path) -> dict[str, Any]:
    """Every dataset and attribute, by its path, but for those of the day."""
    found: dict[str, Any] = {}

    def take(name: str, thing: Any) -> None:
        for key, value in thing.attrs.items():
            if key not in _OF_THE_DAY:
                found[f"{name}@{key}"] = value
        if isinstance(thing, h5py.Dataset):
            found[name] = thing[()]

    with h5py.File(path) as file:
        take("/", file)
        file.visititems(take)
    return found


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return [
        name
        for name in sorted({*one, *other})
        if name not in one or name not in other or not _same(one[name], other[name])
    ]


def _same(one: Any, other: Any) -> bool:
    a, b = np.asarray(one), np.asarray(other)
    return a.shape == b.shape and a.dtype == b.dtype and bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))


def check(folder: Path, run: Any, whole: dict[str, Any], fault: str, at: int | None, after: float | None) -> str:
    """One instant. Returns what was seen, in a word or two.

    Raises:
        AssertionError: something was lost, left behind, or differs.
    """
    out = folder / "run.h5"
    code, stored = child(run, out, Faults(fault, at), after)
    assert code in (0, -signal.SIGKILL, 3), f"exit code {code}"
    there = len(load_trajectory(out)) if out.exists() else 0
    assert stored <= there <= stored + 1, f"{stored} records were reported as stored, {there} are there"
    if code == 3:
        left = [path.name for path in folder.iterdir() if path.name.endswith((".part", ".lock"))]
        assert not left, f"left behind: {left}"
    kept = PartialFile(out).read()
    probes = 0 if kept is None else sum(map(len, kept.parts)) + (kept.under_way is not None)
    again, _ = child(run, out, Faults(fault, None))
    assert again == 0, f"it could not go on: exit code {again}"
    assert not (unlike := differences(content(out), whole)), f"other numbers: {unlike[:5]}"
    left = [path.name for path in folder.iterdir() if path.suffix not in (".h5", ".pt")]
    assert not left, f"left behind: {left}"
    out.unlink()
    seen = {0: "not met", 3: "refused in a line"}.get(code, "killed")
    return f"{seen}, {there} records{' and some probes' if probes else ''} there"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--writer", choices=list(RUNS), default="numpy")
    parser.add_argument("--fault", choices=["kill", "full"], default="kill")
    parser.add_argument("--at", default="all")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    run, out = RUNS[asked.writer], asked.folder / "run.h5"
    counter = Faults(asked.fault, None)
    with counter.injected():
        run(out, lambda: None)  # here, so that what is imported late is there for every fork
    out.unlink()
    start = time.perf_counter()
    assert child(run, out, Faults(asked.fault, None))[0] == 0
    duration = time.perf_counter() - start
    whole = content(out)
    shutil.move(out, asked.folder / "whole.h5")
    instants: list[tuple[int | None, float | None]]
    if asked.at.startswith("random:"):
        dice = random.Random(asked.seed)
        instants = [(None, dice.uniform(0, duration)) for _ in range(int(asked.at.removeprefix("random:")))]
    elif asked.at.startswith("some:"):
        dice = random.Random(asked.seed)
        some = dice.sample(range(1, counter.count + 1), int(asked.at.removeprefix("some:")))
        instants = [(at, None) for at in some]
    else:
        numbers = range(1, counter.count + 1) if asked.at == "all" else map(int, asked.at.split(","))
        instants = [(at, None) for at in numbers]
    seen: Counter[str] = Counter()
    for at, after in instants:
        try:
            seen[check(asked.folder, run, whole, asked.fault, at, after)] += 1
        except AssertionError as error:
            print(f"step {at}, after {after} s: {error}")
            return 1
    print(json.dumps({"steps": counter.count, "instants": len(instants), "seen": dict(sorted(seen.items()))}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
