"""``spectra demo``: training, analysis and figures in one command, on images that come with scikit-learn."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import click

from spectra.analysis.run import DataChoice, analyze_run
from spectra.analysis.settings import Settings
from spectra.errors import StorageError
from spectra.figures.figures import save_figures
from spectra.report.page import write_report
from spectra.report.runs import Run
from spectra.results.storage.runfile import load_trajectory
from spectra.zoo.tasks import build_task
from spectra.zoo.training import Epoch, TrainingListener, train
from spectra_cli import terminal
from spectra_cli.layout import make_console
from spectra_cli.outcome import command_of_all
from spectra_cli.progress import RunDisplay
from spectra_cli.tables import print_trajectory

FIGURES = ("trajectory", "density", "modes", "stems")
TASK, EPOCHS, SAMPLES, BATCH, STEPS, PROBES = "digits-convnet", 6, 512, 256, 40, 5


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("spectra-demo"),
    show_default=True,
    help="Folder for the checkpoints, run.h5, report.html and the figures; created if it does not exist.",
)
@click.option("--quiet", is_flag=True, help="Print only the table.")
def command(out: Path, quiet: bool) -> None:
    """Train a small network with batch norm, analyse its checkpoints, draw the figures: about two minutes.

    The images are scikit-learn's handwritten digits. Hessian and GGN, batch norm in eval and train mode, at every
    epoch: 512 images, m = 40 Lanczos steps, k = 5 probes, which is small enough to wait for and large enough to see.
    """

    def say(words: str = "") -> None:
        if not quiet:
            terminal.say(words)

    start = time.perf_counter()
    task = build_task(TASK)
    parameters = sum(p.numel() for p in task.model.parameters())
    folder = _folder(out)
    say(f"A convolutional network with batch norm ({parameters} parameters) on 8 x 8 images of digits.")
    say(f"Training it for {EPOCHS} epochs, one checkpoint each, the untrained network first, in {folder / 'run'}:")
    paths = train(TASK, folder / "run", epochs=EPOCHS, restart=True, listener=_Lines(say))
    settings = Settings(
        operators=("hessian", "ggn"), bn_modes=("eval", "train"), lanczos_steps=STEPS, num_probes=PROBES
    )
    say(
        f"Analysing {len(paths)} checkpoints with the Hessian and the GGN, batch norm in eval and train mode, "
        f"on {SAMPLES} of the images (m = {STEPS} Lanczos steps, k = {PROBES} probes; "
        f"the defaults are {Settings.lanczos_steps} and {Settings.num_probes}):"
    )
    results = folder / "run.h5"
    with RunDisplay(len(paths) * len(settings.pairs()), quiet=quiet) as display:
        analyze_run(
            paths,
            lambda checkpoint: task,
            settings,
            out=results,
            data=DataChoice(samples=SAMPLES, batch_size=BATCH),
            listener=display,
        )
    trajectory = load_trajectory(results)
    print_trajectory(trajectory, make_console(), title=str(results), more=command_of_all(str(results)))
    figures = save_figures(trajectory, folder / "figures", what=FIGURES)
    page = write_report([Run(str(results), trajectory)], folder / "report.html")
    say(f"Done in {time.perf_counter() - start:.0f} s. Written: {results}, the page {page} (open it in a browser), and")
    say(f"{len(figures)} figures, to begin with:")
    for name in ("trajectory-hessian", f"density-hessian-epoch{EPOCHS}", f"modes-hessian-epoch{EPOCHS}"):
        say(f"  {folder / 'figures' / name}.png")
    say()
    say("What to try next:")
    tries = (
        (f"spectra show {results} --epoch {EPOCHS}", "the last epoch, Hessian and GGN side by side"),
        (f"spectra plot {results} --what degeneracy", "how many eigenvalues are zero, and what m steps can tell"),
        (f"spectra analyze {paths[-1]} --out last.h5", "all images, m = 100, k = 8"),
        ("spectra analyze YOURS.pt --task task.py:task", "your own checkpoint; see spectra analyze --help"),
    )
    width = max(len(line) for line, _ in tries)
    for line, words in tries:
        say(f"  {line:<{width}}  {words}")


def _folder(out: Path) -> Path:
    try:
        out.mkdir(exist_ok=True)
    except OSError as error:
        raise StorageError(f"{out}: the folder cannot be made: {error.strerror}") from error
    return out


class _Lines(TrainingListener):
    """A line for each checkpoint."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say

    def epoch(self, epoch: Epoch) -> None:
        words = "untrained"
        if epoch.loss is not None and epoch.accuracy is not None:
            words = f"training loss {epoch.loss:.3f}, accuracy {epoch.accuracy:.1%}"
        self.say(f"  epoch_{epoch.epoch:03d}.pt: {words}")
