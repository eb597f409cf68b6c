"""``spectra slice``: the loss along directions, as numbers, JSON and a figure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from spectra.analysis.slicing import slice_checkpoint
from spectra.errors import ArgumentError
from spectra.figures.slices import slices_png
from spectra.landscape.directions import NAMED
from spectra.results.slices import TOLERANCE, CriticalSharpness, Slice, Slices
from spectra.results.storage.atomic_write import check_writable, replace_file
from spectra.runtime.phases import reported
from spectra_cli.analysis_options import TaskMaker, settings_in, some_options
from spectra_cli.grouped_help import GroupedCommand, grouped_option
from spectra_cli.layout import make_console, new_table, print_heading, print_line, print_pairs
from spectra_cli.numbers import plain
from spectra_cli.progress import display_of
from spectra_cli.terminal import say

_GROUP = "Which slices"
_SHARED = (
    *(
        "task_option",
        "task_args",
        "weights",
        "partial",
        "unsafe",
        "max_size",
        "memory",
        "device",
        "bn_modes",
        "product",
        "params",
    ),
    *("samples", "batch_size", "snapshot", "data_seed", "test_data", "l2", "reduction", "progress", "quiet"),
)
_EVERY = 2  # of the radii in the table


@click.command("slice", cls=GroupedCommand)
@click.argument("checkpoint", type=click.Path(path_type=Path), metavar="CKPT")
@grouped_option(
    _GROUP,
    "--along",
    multiple=True,
    default=("top", "gradient"),
    show_default=True,
    metavar=f"{'|'.join(NAMED)}|CKPT",
    help="The eigenvector of the largest or smallest eigenvalue, the negative gradient, a random direction, one whose "
    "filters have the norms of the network's, or the way to another checkpoint; repeatable.",
)
@grouped_option(
    _GROUP,
    "--radius",
    type=float,
    metavar="R",
    help="From -R to R. Default: where the quadratic model changes the loss by its own size, at most the norm of the "
    "weights; 1 towards a checkpoint, which is the way to it.",
)
@grouped_option(_GROUP, "--points", type=int, default=41, show_default=True, help="Losses from -R to R, an odd number.")
@grouped_option(_GROUP, "--seed", type=int, default=0, show_default=True, help="Of random directions and the task.")
@grouped_option(
    _GROUP,
    "--dtype",
    type=click.Choice(["float32", "float64"]),
    help="Default: float64 for every model, since differences of losses are taken.",
)
@some_options(*_SHARED)
@grouped_option(
    "Results file and display",
    "--out",
    "file",
    type=click.Path(path_type=Path),
    default="slice.json",
    show_default=True,
    help="The numbers as JSON; the figure is next to it, as PNG.",
)
@grouped_option("Results file and display", "--json", "as_json", is_flag=True, help="Print the content of the file.")
def command(
    checkpoint: Path,
    along: tuple[str, ...],
    radius: float | None,
    points: int,
    file: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Follow the loss along directions, and say how far its quadratic model holds.

    For each direction: the loss at 2k+1 points with the parabola by autograd, and the radius within which the parabola
    is right to 10 % of the change of the loss; the units of ReLU, max pooling and the like that switch, and the
    curvature by finite differences over a radius, which contains their kinks while autograd leaves them out. Along the
    gradient, and towards another checkpoint, the critical sharpness 2 / eta_c; with --test-data that of the test loss.

    \b
    Examples:
      spectra slice ckpt.pt --task task.py:task
      spectra slice ckpt.pt --task task.py:task --along top --along bottom --along random --bn both
      spectra slice epoch_3.pt --task task.py:task --along epoch_4.pt --test-data
    """
    if file.suffix != ".json":
        raise ArgumentError(f"--out {file}: a name that ends in .json is needed; the figure is next to it")
    picture = file.with_suffix(".png")
    for path in (file, picture):
        check_writable(path, shown=str(path))
    asked = settings_in(options)
    with display_of(options["progress"], None, quiet=options["quiet"]) as display, reported(display.phase):
        make_task = TaskMaker(options["task_option"], options["task_args"], asked.analysis.seed, display)
        found = slice_checkpoint(checkpoint, make_task, asked, along, radius=radius, points=points)
    content = json.dumps(found.to_json(), indent=2, allow_nan=False, ensure_ascii=False)
    replace_file(file, content.encode() + b"\n")
    replace_file(picture, slices_png(found))
    if as_json:
        click.echo(content)
    else:
        _print(found, make_console())
        if not options["quiet"]:
            say(f"spectra: saved in {file} and {picture}")


def _print(found: Slices, console: Console) -> None:
    for each in found.slices:
        print_heading(console, f"along {each.line.name}, batch norm {each.bn_mode}")
        print_pairs(console, _facts(each, found.header["product"]))
        if each.kinks.pairs:
            console.print()
            _print_kinks(each, console)
    for note in dict.fromkeys((*found.notes, *(note for each in found.slices for note in each.notes))):
        print_line(console, f"! {note}")


def _facts(each: Slice, product: str) -> list[tuple[str, str]]:
    line, kinks = each.line, each.kinks
    residual = "" if line.residual is None else f", residual {line.residual:.1e}"
    ends = f"{plain(float(each.losses[0]))} at -R, {plain(float(each.losses[-1]))} at R"
    rows = [
        ("t", f"{line.unit}; |d| = {plain(line.length)}; R = {plain(each.radius)}: {each.radius_rule}"),
        ("loss", f"{plain(line.loss)} at 0, {ends}"),
        ("slope g'd", plain(line.slope)),
        ("curvature d'Hd", f"{plain(line.curvature)} by {product}{residual}"),
        ("parabola", _agreement(each)),
    ]
    if each.not_finite:
        where = ", ".join(plain(t, 3) for t in each.not_finite[:4]) + ", ..." * (len(each.not_finite) > 4)
        rows.append(("not finite", f"the loss at {len(each.not_finite)} of {len(each.steps)} points: t = {where}"))
    if not kinks.pairs:
        rows.append(("kinks", "none: the network calls no piecewise-linear function"))
    for name, sharpness in (("critical sharpness", each.critical), ("  relative", each.relative)):
        if sharpness is not None:
            rows.append((name, _sharpness(sharpness)))
    return rows


def _agreement(each: Slice) -> str:
    share = f"{TOLERANCE:.0%} of the change of the loss"
    if each.fails is None:
        return f"right to {share} up to R"
    if each.holds == 0:
        return f"not right to {share} at any |t| that was tried, down to {each.fails:.3g}"
    return f"right to {share} for |t| up to {each.holds:.3g}, not at {each.fails:.3g}"


def _sharpness(found: CriticalSharpness) -> str:
    if found.reason is not None:
        return f"none: {found.reason}"
    bracket = f"{plain(found.lower)} to {plain(found.upper)}"
    step = f"critical step {found.holds:.4g} to {found.exceeds:.4g}"
    return f"{plain(found.value)} ({bracket}); {step} of {found.of}; {found.passes} passes over the data"


def _print_kinks(each: Slice, console: Console) -> None:
    kinks = each.kinks
    table = new_table("radius r", "pairs that switch", "curvature over r", "rounding", "over that by autograd")
    for r, share, curvature, error, ratio in zip(
        kinks.radii, kinks.switched, kinks.curvature, kinks.error, kinks.ratio(each.line.curvature)
    ):
        if r in kinks.radii[::_EVERY]:
            row = (f"{r:.3g}", f"{share:.3%} of {kinks.pairs:,}", plain(float(curvature)), f"{error:.1g}")
            table.add_row(*row, plain(float(ratio), 4))
    console.print(table)
