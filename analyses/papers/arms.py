"""What the experiments on papers share: arguments, arms that are trained and analysed, and the table with verdicts.

An arm is one training by `spectra train` and its analysis by `spectra analyze`, read back from the results file.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Callable, Hashable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import astuple, dataclass, fields
from functools import cache
from math import isfinite, nan
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import spectra
from spectra.figures.figures import rendered
from spectra.results.correlation import Association, associate
from spectra.results.record import Record
from spectra.results.storage.atomic_write import replace_file
from spectra.zoo.data import load_mnist
from spectra.zoo.tasks import build_task
from spectra_cli.main import main as command

HOLDS, IN_PART, FAILS, UNTESTED = "holds", "holds in part", "does not hold", "not testable here"
RESAMPLES = 500  # of the bootstrap
VERDICTS = (HOLDS, IN_PART, FAILS, UNTESTED)


@dataclass(frozen=True)
class Claim:
    """A row of the table: what a paper says, what was measured, with its error, and the verdict."""

    claim: str
    paper: str
    ours: str
    error: str
    verdict: str
    remark: str = ""

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict={self.verdict!r}: one of {', '.join(VERDICTS)} is needed")


def arguments_of(text: str | None, arguments: Sequence[str] | None) -> argparse.Namespace:
    """``quick``, ``data`` and ``out`` of a script, whose folder is made."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small form, of minutes on two cores")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="folder with MNIST/raw and cifar10.npz; nothing is downloaded"
    )
    parser.add_argument("--out", type=Path, default=Path("papers"), metavar="DIR", help="folder of the results")
    asked = parser.parse_args(arguments)
    asked.out.mkdir(parents=True, exist_ok=True)
    return asked


def run(main: Callable[[Sequence[str] | None], None]) -> None:
    """Run a script: what is wrong with its input becomes one line and exit code 1."""
    try:
        main(None)
    except (spectra.SpectraError, OSError) as error:
        print(f"{Path(sys.argv[0]).name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)


def data_folder(data: Path | None, name: str) -> Path:
    """Where the files of a data set are below ``--data``.

    Raises:
        SpectraError: no folder is given, or there is nothing of this data set in it.
    """
    if data is None:
        raise spectra.SpectraError("--data DIR is needed: the folder with MNIST/raw and cifar10.npz")
    places = {"mnist": ("mnist.npz", "MNIST/raw"), "cifar10": ("cifar10.npz", "cifar-10-batches-bin")}[name]
    for place in places:
        if (data / place).exists():
            return data / place
    raise spectra.SpectraError(f"{data}: neither {' nor '.join(places)} is in it")


def subset(data: Path | None, name: str, train: int, test: int, out: Path) -> Path:
    """The first images of MNIST or CIFAR-10 as an ``.npz`` file; of MNIST in the order of the files."""
    path = out / f"{name}-{train}-{test}.npz"
    source = data_folder(data, name)
    if path.exists():
        return path
    if source.suffix == ".npz":
        with np.load(source, allow_pickle=False) as found:
            arrays = {key: found[key] for key in ("x_train", "y_train", "x_test", "y_test")}
    elif name == "mnist":
        arrays = {}
        for split in ("train", "test"):
            images = load_mnist(source, split)
            arrays[f"x_{split}"], arrays[f"y_{split}"] = np.asarray(images.pixels), np.asarray(images.labels)
    else:
        raise spectra.SpectraError(f"{source}: a part of {name} is cut from its .npz file alone")
    cut = {key: array[: train if key.endswith("train") else test] for key, array in arrays.items()}
    with path.open("wb") as file:
        np.savez(file, **cut)
    return path


def _spectra(*arguments: object) -> None:
    """Run a command of spectra in this process.

    Raises:
        SpectraError: it failed; with what it printed last.
    """
    printed = io.StringIO()
    try:
        with redirect_stdout(printed), redirect_stderr(printed):
            command.main([str(argument) for argument in arguments])
    except SystemExit as end:
        if end.code:
            last = (printed.getvalue().strip().splitlines() or [""])[-1]
            raise spectra.SpectraError(f"spectra {arguments[0]} failed: {last}") from None


def trained(recipe: str, folder: Path, *, data: Path | None, epochs: int, seed: int = 0, **settings: object) -> Path:
    """The last checkpoint of a training by `spectra train`; a finished one in the folder is kept."""
    given = [part for key, value in settings.items() for part in ("--set", f"{key}={_word(value)}")]
    where = [] if data is None else ["--data-dir", data]
    _spectra("train", recipe, "--out", folder, "--epochs", epochs, "--every", max(epochs, 1), "--seed", seed,
             "--quiet", *where, *given)  # fmt: skip
    return sorted(folder.glob("epoch_*.pt"))[-1]


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def analyzed(checkpoint: Path, out: Path, *options: object) -> list[Record]:
    """The records of a checkpoint by `spectra analyze`."""
    _spectra("analyze", checkpoint, "--out", out, "--quiet", *options)
    return list(spectra.load_trajectory(out))


def task_of(checkpoint: Path) -> spectra.Task:
    """The built-in task of a checkpoint, with its weights."""
    loaded = spectra.load_checkpoint(checkpoint)
    task = build_task(str(loaded.task), **loaded.task_args)
    loaded.load_into(task.model)
    return task


def value_of(record: Record, name: str) -> float:
    """A sharpness measure, an estimate or a fact of a record; NaN where it does not exist."""
    if name in record.sharpness:
        return record.sharpness[name].value
    found = record.headlines[name].value if name in record.headlines else record.facts.get(name)
    return nan if found is None else float(found)


def mean_spread(values: Sequence[float]) -> tuple[float, float]:
    """The mean of finite values and their standard deviation over arms (NaN for one)."""
    finite = [value for value in values if isfinite(value)]
    if not finite:
        return nan, nan
    return float(np.mean(finite)), float(np.std(finite, ddof=1)) if len(finite) > 1 else nan


def correlations(
    x: Sequence[float], y: Sequence[float], levels: Sequence[Hashable]
) -> tuple[Association, Association, Association | None, Association | None]:
    """Pearson and Kendall over all arms, then both among arms of the same level; None without two arms of a level."""
    return _correlations(tuple(x), tuple(y), tuple(levels), RESAMPLES)


@cache  # table and figure ask for the same
def _correlations(
    x: tuple[float, ...], y: tuple[float, ...], levels: tuple[Hashable, ...], resamples: int
) -> tuple[Association, Association, Association | None, Association | None]:
    overall = associate(x, y, resamples=resamples)
    if len(set(levels)) == len(levels):
        return (*overall, None, None)
    return (*overall, *associate(x, y, levels, resamples=resamples))


def difference_of_pearson(
    a: Sequence[float], b: Sequence[float], y: Sequence[float], resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Pearson's coefficient of ``a`` and ``y`` less that of ``b`` and ``y``; 95 % by resampling the arms in pairs."""
    table = np.array([a, b, y], dtype=np.float64)
    table = table[:, np.isfinite(table).all(axis=0)]

    def difference(rows: np.ndarray) -> float:
        with np.errstate(invalid="ignore"):
            matrix = np.corrcoef(table[:, rows])
        return float(matrix[0, 2] - matrix[1, 2])

    n = table.shape[1]
    random = np.random.default_rng(seed)
    drawn = np.array([difference(random.choice(n, n)) for _ in range(resamples)])
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return difference(np.arange(n)), float(low), float(high)


def verdict_of_sign(value: float, low: float, high: float, wanted: int = 1) -> str:
    """Whether a number has the wanted sign: its whole interval has it, or the other one; else it is not settled."""
    if not isfinite(value) or not low * high > 0:
        return UNTESTED
    return HOLDS if wanted * value > 0 else FAILS


def interval(low: float, high: float) -> str:
    return f"[{low:+.2f}, {high:+.2f}]"


def save(rows: Sequence[Claim], figure: Figure, out: Path, name: str) -> None:
    """The table ``name.csv`` and the figure ``name.png``, each whole or not at all; the table is printed."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow([column.name for column in fields(Claim)])
    writer.writerows(astuple(row) for row in rows)
    replace_file(out / f"{name}.csv", table.getvalue().encode())
    replace_file(out / f"{name}.png", rendered(figure, "png"))
    for row in rows:
        print(f"{row.verdict}: {row.claim}: {row.ours} {row.error} (paper: {row.paper}) {row.remark}")
    print(f"written: {out / name}.csv, {out / name}.png")
