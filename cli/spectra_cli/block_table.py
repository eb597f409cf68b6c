"""The table of the diagonal blocks of a record, and how much their spectra differ."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from rich.console import Console

from spectra.results.record import Record
from spectra.spectrum.block_spectra import BlockSpectra
from spectra.spectrum.estimates import Estimate
from spectra_cli.layout import new_table, print_heading, print_line
from spectra_cli.numbers import as_range, in_short, interval, number, plain


def print_blocks(record: Record, console: Console, *, of: str = "") -> None:
    """Each block with its numbers and their errors, its mean distance from the others, and the mean over all pairs.

    Args:
        record: the record; one without blocks prints nothing.
        console: where to.
        of: the record in a few words, for the heading.
    """
    blocks = record.blocks
    if blocks is None:
        return
    print_heading(console, f"spectra of the {counted(blocks)}{f', of {of}' if of else ''}")
    several = ["distance"] if len(blocks) > 1 else []
    sums = new_table("block", "n", "trace", "+-", "|H|_F", "+-", *several, left=(0,))
    ends = new_table(
        *("block", "lambda_max from", "to", "lambda_min from", "to", "within tau", "tau"),
        title="ends of the spectra, and rank degeneracy",
        left=(0,),
    )
    between = blocks.distances.value.sum(axis=1) / max(1, len(blocks) - 1)
    for (name, found), distance in zip(blocks.estimates.items(), between):
        cells = [*number(found["trace"]), *number(found["frobenius_norm"]), *(f"{distance:.2f}" for _ in several)]
        sums.add_row(name, plain(blocks[name].n), *cells)
        limits = [as_range(found[end]).partition(" to ")[::2] for end in ("lambda_max", "lambda_min")]
        ends.add_row(name, *limits[0], *limits[1], *_fraction(found["rank_degeneracy"]))
    console.print(sums)
    console.print()
    console.print(ends)
    print_line(console, "within tau: fraction of the eigenvalues; in brackets where it is not resolved", style="dim")
    if (mean := blocks.heterogeneity) is not None:
        farthest = np.unravel_index(blocks.distances.value.argmax(), blocks.distances.value.shape)
        first, second = (list(blocks)[index] for index in sorted(farthest))
        print_line(console, f"mean distance of all pairs: {in_words(blocks)}")
        print_line(console, f"largest: {first} and {second}, {blocks.distances.value.max():.2f}")
        words = "distance: Jensen-Shannon distance between the shapes of two spectra (0: equal, 1: no overlap)"
        print_line(console, f"{words}; in a row, the mean distance from the other blocks", style="dim")
        if mean.lower is None:
            print_line(console, "with a single probe the distances have no error", style="dim")


def _fraction(found: Estimate) -> tuple[str, str]:
    """A fraction with its error, or its bracket where it is not resolved; and its tolerance."""
    tau = "" if found.tau is None else f"{found.tau:.2g}"
    if found.resolved is False:
        return interval(found.lower, found.upper), tau
    return in_short(replace(found, tau=None)), tau


def counted(blocks: BlockSpectra) -> str:
    """The number of the blocks, and how they were chosen: ``4 blocks by layer``."""
    by = blocks.how if blocks.how in ("layer", "module") else repr(blocks.how)
    return f"{len(blocks)} block{'' if len(blocks) == 1 else 's'} by {by}"


def in_words(blocks: BlockSpectra) -> str:
    """The mean Jensen-Shannon distance with its error and interval; `-` for a single block."""
    mean = blocks.heterogeneity
    if mean is None:
        return "-"
    return f"{in_short(mean)} {interval(mean.lower, mean.upper)}".strip()
