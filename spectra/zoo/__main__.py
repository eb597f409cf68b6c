"""``python -m spectra.zoo TASK --out DIR``: train a built-in task and save a checkpoint per epoch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from spectra.errors import SpectraError
from spectra.zoo.tasks import list_tasks
from spectra.zoo.training import Epoch, train


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    tasks = "\n".join(f"  {name:18}{summary}" for name, summary in list_tasks().items())
    parser = argparse.ArgumentParser(
        prog="python -m spectra.zoo",
        description="Train a built-in task with SGD, and save a checkpoint per epoch, the untrained network first.",
        epilog=f"tasks:\n{tasks}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("task", metavar="TASK", help="one of the tasks below")
    parser.add_argument("--out", metavar="DIR", required=True, help="folder of the checkpoints; created if absent")
    parser.add_argument("--data", metavar="PATH", help="where the data are; nothing is downloaded")
    parser.add_argument("--epochs", type=int, default=6, help="passes over the data (%(default)s)")
    parser.add_argument("--learning-rate", type=float, default=0.05, help="constant (%(default)s)")
    parser.add_argument("--momentum", type=float, default=0.9, help="of SGD (%(default)s)")
    parser.add_argument("--weight-decay", type=float, default=0.0, help="of SGD (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="of the training steps (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the order (%(default)s)")
    given: dict[str, Any] = vars(parser.parse_args(arguments))
    if given["data"] is None:
        del given["data"]
    try:
        train(given.pop("task"), given.pop("out"), on_epoch=_report, **given)
    except (SpectraError, OSError) as error:
        print(f"spectra: error: {error}", file=sys.stderr)
        return 1
    return 0


def _report(saved: Epoch) -> None:
    numbers = "untrained" if saved.loss is None else f"loss {saved.loss:.4f}, accuracy {saved.accuracy:.4f}"
    print(f"{saved.path}  epoch {saved.epoch}, step {saved.step}: {numbers}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
