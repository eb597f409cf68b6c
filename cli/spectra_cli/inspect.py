"""``spectra inspect``: the contents of a checkpoint or a folder. No task is needed, and no code of a file is run."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table

from spectra.checkpoints.checkpoint import Checkpoint, all_finite, find_checkpoints, load_checkpoint
from spectra.checkpoints.discovery import in_training_order
from spectra.checkpoints.folders import files_of
from spectra.errors import SpectraError
from spectra.results.optimizer import OptimizerSettings
from spectra_cli.analysis_options import MAX_SIZE
from spectra_cli.console import SafeConsole
from spectra_cli.main import ERROR, one_line, print_error
from spectra_cli.terminal import say

FIRST = 20  # tensors shown unless all are asked for
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@click.command("inspect")
@click.argument("checkpoints", metavar="CKPT...", nargs=-1, required=True, type=click.Path())
@click.option("--all", "show_all", is_flag=True, help=f"List all tensors, not only the first {FIRST}.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list, one entry per checkpoint.")
@click.option("--weights", metavar="KEY", help="Which weights, if the file has several: a key of it, or ema or model.")
@click.option("--unsafe-load", is_flag=True, help="Run the code that a file names. Only for files you trust.")
@click.option(*MAX_SIZE[0], **MAX_SIZE[1])
def command(
    checkpoints: Sequence[str],
    show_all: bool,
    as_json: bool,
    weights: str | None,
    unsafe_load: bool,
    max_size: str | None,
) -> None:
    """Show what is in checkpoint files: dialect, epoch, task, tensors with their norms, NaN, metadata.

    CKPT is a file, a folder or a pattern. Of a folder it is shown first which checkpoints are in it, in the order of
    training. The exit code is 1 if any file cannot be read.
    """
    entries: list[dict[str, Any]] = []
    failed = False
    words: list[str] = []
    there = find_checkpoints(checkpoints, passed=words.append)
    for line in words:
        say(f"spectra: {line}")
    for folder in checkpoints:
        if not as_json and Path(folder).expanduser().is_dir():
            _print_folder(Path(folder).expanduser(), max_size)
    for path in there:
        try:
            checkpoint = load_checkpoint(path, unsafe=unsafe_load, weights=weights, max_size=max_size)
            entry = describe(checkpoint)
        except SpectraError as error:
            print_error(error)
            failed = True
            continue
        if as_json:
            entries.append(entry)
        else:
            _print(entry, show_all, checkpoint.optimizer)
    if as_json:
        click.echo(json.dumps(entries, indent=2, allow_nan=False))
    if failed:
        sys.exit(ERROR)


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Everything that ``inspect`` shows, as plain values; numbers that are not finite are None."""
    tensors = [_tensor(name, tensor) for name, tensor in checkpoint.state_dict.items()]
    once = _first_of_each_storage(checkpoint.state_dict)
    weights = [t for t in tensors if not t["statistic"]]
    norms = [t["norm"] for t in weights if t["name"] in once]
    return {
        "checkpoint": str(checkpoint.path),
        "sha256": checkpoint.sha256,
        "bytes": sum(file.stat().st_size for file in checkpoint.files),
        "files": [file.name for file in checkpoint.files],
        "dialect": checkpoint.dialect,
        "weights": checkpoint.key,
        "other_weights": list(checkpoint.others),
        "epoch": checkpoint.epoch,
        "step": checkpoint.step,
        "task": checkpoint.task,
        "task_args": checkpoint.task_args,
        "optimizer": None if checkpoint.optimizer is None else checkpoint.optimizer.to_json(),
        "n_tensors": len(tensors),
        "n_weights": sum(t["size"] for t in weights if t["name"] in once),
        "n_statistics": sum(t["size"] for t in tensors if t["statistic"]),
        "n_shared": len(tensors) - len(once),
        "dtypes": sorted({t["dtype"] for t in tensors}),
        "norm": None if None in norms else math.hypot(*norms),
        "not_finite": [t["name"] for t in tensors if not t["finite"]],
        "metadata": sorted(checkpoint.metadata),
        "notes": list(checkpoint.notes),
        "tensors": tensors,
    }


def _tensor(name: str, tensor: torch.Tensor) -> dict[str, Any]:
    finite = all_finite(tensor)
    wide = torch.complex128 if tensor.is_complex() else torch.float64
    norm = float(torch.linalg.vector_norm(tensor.to(wide))) if finite and not tensor.is_quantized else None
    return {
        "name": name,
        "shape": list(tensor.shape),
        "size": tensor.numel(),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "norm": norm,
        "finite": finite,
        "statistic": name.rsplit(".", 1)[-1] in _STATISTICS,
    }


def _first_of_each_storage(state_dict: dict[str, torch.Tensor]) -> set[str]:
    """The names of the tensors without those that share their storage with an earlier one (tied weights)."""
    seen: dict[tuple[int, int], str] = {}
    for index, (name, tensor) in enumerate(state_dict.items()):
        seen.setdefault((tensor.data_ptr(), tensor.numel()) if tensor.numel() else (-1, index), name)
    return set(seen.values())


def _console() -> Console:
    # A terminal has a fixed width; elsewhere no cell is truncated.
    width = None if sys.stdout.isatty() else 4000
    return SafeConsole(width=width, highlight=False, markup=False, soft_wrap=True)


def _print_folder(folder: Path, max_size: str | None) -> None:
    """The checkpoints of a folder in the order of training, with the files of each and other files in the folder."""
    console = _console()
    found = in_training_order(find_checkpoints([folder]), max_size)
    console.print(f"{folder}: {len(found)} checkpoint{'' if len(found) == 1 else 's'}", style="bold")
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    for heading in ("  checkpoint", "epoch", "step", "weights in", "other files"):
        table.add_column(heading, justify="right" if heading in ("epoch", "step") else "left")
    for one in found:
        name = "  " + ("." if one.path == folder else str(one.path.relative_to(folder)))
        weights, others = _in_words(one.path)
        table.add_row(name, _known(one.epoch), _known(one.step), weights, others)
    console.print(table)
    console.print()


def _in_words(path: Path) -> tuple[str, str]:
    """The names of the weight files of a checkpoint, and of the other files if it is a folder."""
    try:
        files = files_of(path)
        names = [file.name for file in files.weights]
        others = sorted(file.name for file in path.iterdir()) if path.is_dir() else []
    except (SpectraError, OSError) as error:
        return one_line(error), ""
    words = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} shards"
    return words, ", ".join(name for name in others if name not in names)


def _known(value: Any) -> str:
    return "unknown" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _print(entry: dict[str, Any], show_all: bool, optimizer: OptimizerSettings | None) -> None:
    console = _console()
    console.print(entry["checkpoint"], style="bold")
    facts = _facts(entry)
    if optimizer is not None:
        facts.insert(next(i for i, (name, _) in enumerate(facts) if name == "tensors"), ("optimizer", optimizer.words))
    for name, value in facts:
        console.print(f"  {name:<11} {value}")
    shown = entry["tensors"] if show_all else entry["tensors"][:FIRST]
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    for heading in ("  tensor", "shape", "dtype", "norm"):
        table.add_column(heading, justify="right" if heading == "norm" else "left", no_wrap=not sys.stdout.isatty())
    for tensor in shown:
        shape = " x ".join(map(str, tensor["shape"])) or "scalar"
        norm = f"{tensor['norm']:.6g}" if tensor["norm"] is not None else "not finite" if not tensor["finite"] else "-"
        table.add_row(f"  {tensor['name']}", shape, tensor["dtype"], norm)
    console.print(table)
    if left := len(entry["tensors"]) - len(shown):
        console.print(f"  and {left} more (--all lists them)")
    console.print()


def _facts(entry: dict[str, Any]) -> list[tuple[str, str]]:
    """The lines above the table."""
    statistics = f", and {entry['n_statistics']} of batch-norm statistics" if entry["n_statistics"] else ""
    shared = f"; {entry['n_shared']} tensors share theirs with another" if entry["n_shared"] else ""
    options = ", ".join(f"{key}={value!r}" for key, value in entry["task_args"].items())
    bad = entry["not_finite"]
    facts = [
        ("dialect", entry["dialect"]),
        ("epoch", _known(entry["epoch"])),
        ("step", _known(entry["step"])),
        ("task", f"{entry['task']} ({options})" if entry["task"] else "not named in the file"),
        ("tensors", f"{entry['n_tensors']} ({', '.join(entry['dtypes'])})"),
        ("weights", f"{entry['n_weights']}{statistics}{shared}"),
        ("norm", _known(entry["norm"]) + (" (not finite)" if entry["norm"] is None and bad else "")),
        ("finite", f"NO: NaN or infinity in {', '.join(bad[:5])}" if bad else "yes"),
        ("metadata", ", ".join(entry["metadata"]) or "none"),
        ("sha256", entry["sha256"]),
    ]
    if len(entry["files"]) > 1 or entry["files"] != [Path(entry["checkpoint"]).name]:
        facts.insert(1, ("files", ", ".join(entry["files"])))
    facts += [("note", note) for note in entry["notes"]]
    if entry["other_weights"]:
        facts.insert(1, ("others", f"weights also under {', '.join(entry['other_weights'])} (--weights KEY)"))
    return facts
