"""``spectra merge``: the parts of a run, written by several jobs, into one file."""

from __future__ import annotations

import re
from pathlib import Path

import click

from spectra.errors import ArgumentError
from spectra.results.storage.merge import merge
from spectra_cli.terminal import say


@click.command()
@click.argument("parts", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Default: run.h5 for run.shard-1-of-8.h5 and the others of its kind."
)
@click.option("--quiet", is_flag=True, help="No notes.")
def command(parts: tuple[Path, ...], out: Path | None, quiet: bool) -> None:
    """Join results files of the same settings into one.

    A record that several files have, with equal results, is kept once; a complete one takes the place of one that
    failed. Other results for the same record are refused. The parts stay as they are.

    \b
    Examples:
      spectra merge run.shard-*-of-8.h5
      spectra merge monday.h5 tuesday.h5 --out both.h5
    """
    target = out or _common(parts)
    done = merge(parts, target)
    absent = _absent(parts)
    if quiet:
        return
    words = f"{done.records} record{'' if done.records == 1 else 's'} of {len(parts)} files"
    if done.equal:
        words += f", {done.equal} in several files with equal results"
    if done.failed:
        words += f", {done.failed} failed"
    if done.unverified:
        words += f", {done.unverified} unverified"
    say(f"spectra: {words}, in {target}; next: spectra show {target}")
    if absent:
        say(f"spectra: not among them: shard {', '.join(absent)}")


_PART = re.compile(r"(.+)\.shard-(\d+)-of-(\d+)")


def _common(parts: tuple[Path, ...]) -> Path:
    """The name of the merged file, from the names of the shards."""
    wholes = {
        part.with_name(found.group(1) + part.suffix) if (found := _PART.fullmatch(part.stem)) else None
        for part in parts
    }
    whole = wholes.pop() if len(wholes) == 1 else None
    if whole is None:
        raise ArgumentError("the files are not the shards of one run by their names: say where with --out")
    return whole


def _absent(parts: tuple[Path, ...]) -> list[str]:
    """The missing shards, if all files are shards of one run by their names."""
    found = [_PART.fullmatch(part.stem) for part in parts]
    numbers = {(int(one.group(2)), int(one.group(3))) for one in found if one}
    if len(numbers) < len(parts) or len({shards for _, shards in numbers}) != 1:
        return []
    shards = next(iter(numbers))[1]
    return [f"{number}/{shards}" for number in range(1, shards + 1) if (number, shards) not in numbers]
