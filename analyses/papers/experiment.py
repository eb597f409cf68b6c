"""What the scripts in this folder share: options, commands that run once, findings with a verdict, and their table.

A script trains with `spectra train`, analyses with `spectra analyze`, reads the results files, and adds a finding per
claim of a paper. The folder `--out` gets `NAME.csv`, `NAME.png`, and the checkpoints and results files in `runs/`.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import click
import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

import spectra
from spectra.figures.style import style
from spectra.zoo.tasks import build_task
from spectra_cli.main import main as command_line

matplotlib.use("Agg")

VERDICTS = ("holds", "holds in part", "does not hold", "not testable here")


class Finding(NamedTuple):
    """A claim of a paper, and what comes out here; each is a text."""

    claim: str
    paper: str  # its number, or "-"
    ours: str
    error: str  # of our number, or "-"
    verdict: str
    remark: str


class Outcome(NamedTuple):
    """The end of a training, on all its training and test images, in eval mode."""

    train_loss: float
    test_loss: float
    train_accuracy: float
    test_accuracy: float
    correct: np.ndarray  # (test images,) bool

    def gain_over(self, other: Outcome) -> tuple[float, float]:
        """The difference of the test accuracies, and its standard error over images: the images are the same."""
        difference = self.correct.astype(float) - other.correct
        return float(difference.mean()), float(difference.std(ddof=1) / math.sqrt(len(difference)))


@torch.no_grad()
def outcome(folder: Path) -> Outcome:
    """The outcome of a training: what its last checkpoint says, and which test images that network gets right."""
    checkpoint = spectra.load_checkpoint(sorted(folder.glob("epoch_*.pt"))[-1])
    task = build_task(str(checkpoint.task), **{**checkpoint.task_args, "split": "test"})
    checkpoint.load_into(task.model)
    task.model.eval()
    correct = torch.cat([task.model(x).argmax(1) == y for x, y in task.data]).numpy()
    return Outcome(*(float(checkpoint.metadata[name]) for name in Outcome._fields[:-1]), correct)


class Skipped(Exception):
    """The data of the experiment are not there."""


class Experiment:
    """One script: its options, its commands and its findings.

    Args:
        script: the file of the script; its name is that of the experiment.
        text: the docstring of the script: a title, then paragraphs.
        arguments: of the command line; None for those of the process.
    """

    def __init__(self, script: str, text: str | None, arguments: Sequence[str] | None) -> None:
        parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--quick", action="store_true", help="a small form of the experiment, for two cores")
        parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data sets (data)")
        parser.add_argument("--out", type=Path, default=Path("papers"), help="folder of what is written (papers)")
        parser.add_argument("--device", default="cpu", help="of the trainings and analyses (cpu)")
        self.options = parser.parse_args(arguments)
        self.name, self.quick, self.data = Path(script).stem, self.options.quick, self.options.data
        self.out: Path = self.options.out
        self.findings: list[Finding] = []
        self.start = time.perf_counter()
        self.spent_before = 0.0  # seconds of the commands that an earlier call ran

    def needs(self, name: str) -> Path:
        """The path of a data set in the folder of the data.

        Raises:
            Skipped: it is not there.
        """
        path: Path = self.data / name
        if not path.exists():
            raise Skipped(f"{self.name}: skipped: {path}: there are no such data")
        return path

    def train(self, recipe: str, *options: object, data: Path | None = None) -> Path:
        """The folder of the checkpoints of `spectra train RECIPE OPTIONS`, trained unless it has been."""
        words = [recipe, *map(str, options)]
        if data is not None:
            words += ["--data-dir", str(data)]
        return self._done("train", words, "")

    def analyze(self, what: Path, *options: object) -> spectra.Trajectory:
        """The results of `spectra analyze WHAT OPTIONS`, computed unless they have been."""
        return spectra.load_trajectory(self._done("analyze", [str(what), *map(str, options)], ".h5"))

    def _done(self, command: str, words: list[str], ending: str) -> Path:
        """Run a command whose result is a file or folder in `runs/`, named after the command."""
        runs = self.out / "runs"
        text = self._placeholders(f"spectra {command} {' '.join(words)} --device {self.options.device}")
        key = hashlib.sha256(f"{spectra.__version__} {text}".encode()).hexdigest()[:12]
        result, note = runs / f"{self.name}-{key}{ending}", runs / f"{self.name}-{key}.json"
        if result.exists() and note.exists():
            self.spent_before += json.loads(note.read_text())["seconds"]
            return result
        runs.mkdir(parents=True, exist_ok=True)
        print(text, flush=True)
        start = time.perf_counter()
        given = [command, *words, "--device", self.options.device, "--out", str(result), "--quiet"]
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            code = command_line.main(given, standalone_mode=False)
        if code:
            raise spectra.SpectraError(f"{text}: exit code {code}")
        note.write_text(json.dumps({"command": text, "seconds": time.perf_counter() - start}))
        return result

    def _placeholders(self, text: str) -> str:
        """The command without the folders of this machine."""
        here = Path(__file__).resolve().parent
        for folder, word in ((here, "analyses/papers"), (self.out, "OUT"), (self.data, "DATA")):
            text = text.replace(f"{folder}/", f"{word}/")
        return text

    def add(self, claim: str, paper: object, ours: object, error: object, verdict: str, remark: str = "") -> None:
        """Add a finding, and print it.

        Raises:
            ValueError: the verdict is not one of `VERDICTS`.
        """
        if verdict not in VERDICTS:
            raise ValueError(f"verdict={verdict!r}: one of {', '.join(VERDICTS)} is needed")
        found = Finding(claim, str(paper), str(ours), str(error), verdict, remark)
        self.findings.append(found)
        print("\n".join(f"  {name}: {value}" for name, value in found._asdict().items() if value), end="\n\n")

    @contextlib.contextmanager
    def figure(self, width: float, height: float) -> Iterator[Figure]:
        """A figure in the style of the package, which is saved as `NAME.png` at the end."""
        self.out.mkdir(parents=True, exist_ok=True)
        with style():
            figure = Figure(figsize=(width, height), layout="constrained")
            yield figure
            figure.savefig(self.out / f"{self.name}.png", dpi=130)

    def write(self) -> Path:
        """Write `NAME.csv`; its first line is the command that made it, and the time that this took."""
        path = self.out / f"{self.name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        words = [*(["--quick"] if self.quick else []), "--data DATA", "--out OUT"]
        if self.options.device != "cpu":
            words.append(f"--device {self.options.device}")
        seconds = time.perf_counter() - self.start + self.spent_before
        with path.open("w", newline="", encoding="utf-8") as stream:
            stream.write(f"# python analyses/papers/{self.name}.py {' '.join(words)}; {seconds:.0f} s\n")
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerows([Finding._fields, *self.findings])
        print(f"written: {path}")
        return path


def read_findings(path: Path) -> tuple[str | None, list[Finding]]:
    """The command that made a table, if it is known, and the findings in it.

    Raises:
        SpectraError: another table, or a verdict that is not one of `VERDICTS`.
    """
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    command = lines[0].removeprefix("# ").strip() if lines and lines[0].startswith("#") else None
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    if tuple(rows.fieldnames or ()) != Finding._fields:
        raise spectra.SpectraError(f"{path}: the columns must be {', '.join(Finding._fields)}")
    found = [Finding(**row) for row in rows]
    for one in found:
        if one.verdict not in VERDICTS:
            raise spectra.SpectraError(f"{path}: verdict {one.verdict!r}: one of {', '.join(VERDICTS)} is needed")
    return command, found


def started(main: Callable[[Sequence[str] | None], None]) -> None:
    """Run a script: missing data are said in one line, what is wrong becomes one line and exit code 1."""
    try:
        main(None)
    except Skipped as reason:
        print(reason)
    except (click.Abort, KeyboardInterrupt):
        print("interrupted: the same command goes on", file=sys.stderr)
        sys.exit(130)
    except (spectra.SpectraError, OSError) as error:
        print(f"{Path(sys.argv[0]).name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
