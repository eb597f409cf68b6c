"""``python -m spectra.zoo TASK --out DIR``: train a built-in task and save a checkpoint per epoch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from spectra.errors import SpectraError, TaskError
from spectra.zoo.tasks import BUILT_IN, tasks_by_data
from spectra.zoo.training import SCHEDULES, Epoch, train


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    names = "\n".join(f"  {', '.join(names)}" for names in tasks_by_data().values())
    parser = argparse.ArgumentParser(
        prog="python -m spectra.zoo",
        description="Train a built-in task with SGD, and save a checkpoint per epoch, the untrained network first.",
        epilog=f"tasks (--list says what they are):\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("task", metavar="TASK", help="one of the tasks below")
    parser.add_argument("--list", action=_ListTasks, help="print the tasks with their options, and leave")
    parser.add_argument("--out", metavar="DIR", required=True, help="folder of the checkpoints; created if absent")
    parser.add_argument("--data", metavar="PATH", help="where the data are; nothing is downloaded")
    parser.add_argument(
        "--task-arg", metavar="KEY=VALUE", action="append", default=[], help="an option of the network; repeatable"
    )
    parser.add_argument("--epochs", type=int, default=6, help="passes over the data (%(default)s)")
    parser.add_argument("--learning-rate", type=float, default=0.05, help="at the start (%(default)s)")
    parser.add_argument(
        "--schedule",
        choices=SCHEDULES,
        default="constant",
        help="of the learning rate; linear: constant over the first half, then down to 1%% (%(default)s)",
    )
    parser.add_argument("--momentum", type=float, default=0.9, help="of SGD (%(default)s)")
    parser.add_argument("--weight-decay", type=float, default=0.0, help="of SGD (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="of the training steps (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights, the order and dropout (%(default)s)")
    given: dict[str, Any] = vars(parser.parse_args(arguments))
    if given["data"] is None:
        del given["data"]
    task, out = given.pop("task"), given.pop("out")
    try:
        train(task, out, on_epoch=_report, **_network_options(task, given.pop("task_arg")), **given)
    except (SpectraError, OSError) as error:
        print(f"spectra: error: {error}", file=sys.stderr)
        return 1
    return 0


class _ListTasks(argparse.Action):
    """Print every task with its options, data set by data set, and leave."""

    def __init__(self, option_strings: Sequence[str], dest: str, **given: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=given["help"])

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        for names in tasks_by_data().values():
            for name in names:
                options = ", ".join(f"{key}={value}" for key, value in BUILT_IN[name].options.items())
                print(f"{name:20}{BUILT_IN[name].summary}{f' ({options})' if options else ''}")
        parser.exit()


def _network_options(task: str, texts: Sequence[str]) -> dict[str, Any]:
    """``key=value`` texts as the options of a task's network; an unknown task is left to ``train`` to refuse."""
    known = BUILT_IN[task].options if task in BUILT_IN else {}
    options: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise TaskError(f"--task-arg {text!r}: key=value is needed")
        if key in options:
            raise TaskError(f"--task-arg {key} is given twice")
        if key not in known and task in BUILT_IN:
            takes = f"takes {', '.join(known)}" if known else "has no options"
            raise TaskError(f"--task-arg {key}: the network of {task} {takes}")
        try:
            options[key] = int(value) if isinstance(known.get(key), int) else value
        except ValueError:
            raise TaskError(f"--task-arg {key}={value}: an integer is needed") from None
    return options


def _report(saved: Epoch) -> None:
    numbers = "untrained" if saved.loss is None else f"loss {saved.loss:.4f}, accuracy {saved.accuracy:.4f}"
    print(f"{saved.path}  epoch {saved.epoch}, step {saved.step}: {numbers}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
