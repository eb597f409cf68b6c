"""save_figures: plans the figures that the records of a run allow, draws them and saves them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib import rc_context, rcParams
from matplotlib.figure import Figure

from spectra.errors import ArgumentError, StorageError
from spectra.figures import blocks, class_structure, curve_sheets, eigenvectors, findings, over_training, sheets
from spectra.figures.moments import Moment, check_epochs, chosen_moments, moments_of
from spectra.figures.style import style
from spectra.results.storage.atomic_write import replace_file
from spectra.results.trace_checks import can_tell
from spectra.results.trajectory import Trajectory

KINDS = (
    *("density", "stems", "cumulative", "degeneracy", "negative", "dimension"),
    *("layers", "eigenvectors", "eigenvector-classes", "class-structure"),
    *("blocks", "block-distances", "checks", "modes", "trajectory", "sharpness"),
    *("density-training", "degeneracy-training", "layers-training", "modes-training"),
)
FORMATS = ("png", "pdf", "svg")

_NEEDS = {  # what some kinds need beyond one complete record
    "dimension": "a positive semidefinite matrix: analyze it with --operator ggn or --operator empirical_fisher",
    "checks": "comparisons of traces with exact ones that are not all inconclusive, which these records do not have",
    "sharpness": "a sharpness measure at no less than 2 complete checkpoints",
    "layers": "the traces of the tensors, which these records do not have",
    "eigenvectors": "eigenpairs: analyze it with --eigenpairs 10",
    "eigenvector-classes": "eigenpairs of a task with class targets: analyze it with --eigenpairs 10",
    "class-structure": "the class structure: analyze it with --operator ggn --class-structure",
    "blocks": "spectra of blocks: analyze it with --blocks layer",
    "block-distances": "spectra of at least 2 blocks: analyze it with --blocks layer",
    "modes": "batch norm in eval and in train mode at one checkpoint: analyze it with --bn both",
    "trajectory": "at least 2 complete checkpoints",
    "density-training": "at least 2 complete checkpoints of one batch-norm mode",
    "degeneracy-training": "at least 2 complete checkpoints of one batch-norm mode",
    "layers-training": "the traces of the tensors at no less than 2 complete checkpoints",
    "modes-training": "batch norm in eval and in train mode at no less than 2 checkpoints: analyze with --bn both",
}


@dataclass(frozen=True)
class Sheet:
    """A figure that can be drawn: its name, without a suffix, and the function that draws it."""

    kind: str  # of `KINDS`
    name: str
    draw: Callable[[], Figure]


def save_figures(
    trajectory: Trajectory,
    folder: str | Path,
    formats: Sequence[str] = ("png",),
    *,
    what: Sequence[str] = ("all",),
    epochs: Sequence[float] = (),
) -> list[Path]:
    """Draw a run's figures into a folder; each file is written atomically.

    Args:
        trajectory: the records.
        folder: created if only its last part is missing.
        formats: of ``"png"``, ``"pdf"``, ``"svg"``.
        what: of `KINDS`; ``"all"`` draws the kinds that the records allow; a kind given by name must be possible.
        epochs: at which to draw the spectra; by default the first, the middle and the last.

    Returns:
        The files, in the order in which they were written.

    Raises:
        ArgumentError: there is nothing to draw, or no such epoch, kind or format.
        StorageError: the folder cannot be made, or a file cannot be written.
    """
    for name in formats:
        if name not in FORMATS:
            raise ArgumentError(f"format={name!r}: one of {', '.join(FORMATS)} is needed")
    drawable = plan(trajectory, what=what, epochs=epochs)
    target = Path(folder)
    created = _make_folder(target)
    written = []
    try:
        for sheet in drawable:
            with style():
                figure = sheet.draw()
                for name in dict.fromkeys(formats):
                    path = target / f"{sheet.name}.{name}"
                    replace_file(path, rendered(figure, name))
                    written.append(path)
    except BaseException:
        if created and not written:
            with contextlib.suppress(OSError):
                target.rmdir()
        raise
    return written


def rendered(figure: Figure, form: str) -> bytes:
    """The figure as the bytes of a file, without the date, so that equal figures are equal files."""
    undated: dict[str, dict[str, Any]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
    buffer = io.BytesIO()
    with _laid_out(figure) if form == "png" else contextlib.nullcontext():
        figure.savefig(buffer, format=form, metadata=undated.get(form))
    return buffer.getvalue()


@contextlib.contextmanager
def _laid_out(figure: Figure) -> Iterator[None]:
    """Lay a figure out for pixels. `savefig` gives the same picture, but draws it twice for that."""
    engine, dpi, saved = figure.get_layout_engine(), figure.dpi, rcParams["savefig.dpi"]
    if engine is None or saved == "figure":
        yield
        return
    try:
        figure.set_dpi(saved)
        engine.execute(figure)
        with rc_context({"figure.constrained_layout.use": False, "figure.autolayout": False}):
            figure.set_layout_engine(None)  # what these settings say: none at all
        yield
    finally:
        figure.set_layout_engine(engine)
        figure.set_dpi(dpi)


def plan(trajectory: Trajectory, *, what: Sequence[str] = ("all",), epochs: Sequence[float] = ()) -> list[Sheet]:
    """The requested figures that the records allow; nothing is drawn yet.

    Raises:
        ArgumentError: nothing to draw, an unknown epoch or kind, or a kind that the records do not allow.
    """
    kinds = KINDS if "all" in what or not what else tuple(dict.fromkeys(what))
    for kind in kinds:
        if kind not in KINDS:
            raise ArgumentError(f"what={kind!r}: one of {', '.join(KINDS)} or all is needed")
    complete = [record for record in trajectory if record.spectrum is not None]
    if not complete:
        where = trajectory.path or "the trajectory"
        failed = [record for record in trajectory if record.reason]
        why = f"all {len(failed)} records failed; the first: {failed[0].reason}" if failed else "it has no records"
        raise ArgumentError(f"{where}: nothing to draw: {why}")
    operators = dict.fromkeys(record.operator for record in complete)
    runs = [moments_of(trajectory, operator) for operator in operators]
    check_epochs([moment for moments in runs for moment in moments], epochs)
    drawable = [sheet for moments in runs for sheet in _plan_operator(moments, kinds, epochs)]
    impossible = [kind for kind in kinds if not any(sheet.kind == kind for sheet in drawable)]
    if impossible and kinds is not KINDS:
        raise ArgumentError(f"nothing to draw: {impossible[0]} needs {_NEEDS.get(impossible[0], 'a complete record')}")
    # Sorted by kind first and then by operator.
    return sorted(drawable, key=lambda sheet: kinds.index(sheet.kind))


def _plan_operator(moments: list[Moment], kinds: Sequence[str], epochs: Sequence[float]) -> list[Sheet]:
    planned: list[Sheet] = []

    def add(kind: str, slug: str, draw: Callable[..., Figure], subject: Moment | list[Moment]) -> None:
        if kind in kinds:
            name = "-".join(filter(None, (kind, moments[0].operator, slug)))
            duplicates = sum(sheet.name == name or sheet.name.startswith(f"{name}_") for sheet in planned)
            planned.append(Sheet(kind, f"{name}_{duplicates + 1}" if duplicates else name, lambda: draw(subject)))

    for moment in chosen_moments(moments, epochs):
        add("density", moment.slug, sheets.density_figure, moment)
        add("stems", moment.slug, sheets.stem_figure, moment)
        add("cumulative", moment.slug, curve_sheets.cumulative_figure, moment)
        add("degeneracy", moment.slug, curve_sheets.degeneracy_figure, moment)
        add("negative", moment.slug, curve_sheets.negative_figure, moment)
        if moment.operator in curve_sheets.SEMIDEFINITE:
            add("dimension", moment.slug, curve_sheets.dimension_figure, moment)
        if any(record.spectrum and record.spectrum.tensor_forms is not None for record in moment.complete.values()):
            add("layers", moment.slug, sheets.layer_figure, moment)
        for kind, modes, draw in (
            ("eigenvectors", eigenvectors.modes_with_tensors(moment), eigenvectors.tensor_map),
            ("eigenvector-classes", eigenvectors.modes_with_classes(moment), eigenvectors.class_map),
            ("class-structure", class_structure.modes_with_structure(moment), class_structure.structure_figure),
        ):
            for mode in modes:
                slug = f"{moment.slug}-{mode}" if len(modes) > 1 else moment.slug
                add(kind, slug, partial(draw, mode=mode), moment)
        with_blocks = blocks.modes_with_blocks(moment)
        for mode in with_blocks:
            slug = f"{moment.slug}-{mode}" if len(with_blocks) > 1 else moment.slug
            add("blocks", slug, partial(blocks.density_rows, mode=mode), moment)
            if len(moment.complete[mode].blocks or ()) > 1:
                add("block-distances", slug, partial(blocks.distance_map, mode=mode), moment)
        if any(can_tell(record.checks) for record in moment.complete.values()):
            add("checks", moment.slug, findings.check_figure, moment)
        if len(moment.complete) > 1:
            add("modes", moment.slug, sheets.mode_figure, moment)
    if sum(bool(moment.complete) for moment in moments) > 1:
        add("trajectory", "", sheets.trajectory_figure, moments)
    if findings.measures_of(moments):
        add("sharpness", "", findings.sharpness_figure, moments)
    if over_training.modes_over(moments):
        add("density-training", "", over_training.density_over_training, moments)
        add("degeneracy-training", "", over_training.degeneracy_over_training, moments)
    if over_training.tensors_over(moments):
        add("layers-training", "", over_training.layers_over_training, moments)
    if over_training.pairs_over(moments):
        add("modes-training", "", over_training.modes_over_training, moments)
    return planned


def _make_folder(folder: Path) -> bool:
    """Create the folder if it does not exist; returns whether it was created. Its parent must exist."""
    try:
        folder.mkdir()
    except FileExistsError as error:
        if not folder.is_dir():
            raise StorageError(f"{folder}: is a file; name a folder for the figures with --out") from error
        return False
    except FileNotFoundError as error:
        raise StorageError(f"{folder}: the folder {folder.parent} does not exist; create it first") from error
    except OSError as error:
        words = (error.strerror or str(error)).lower()
        raise StorageError(f"{folder}: the folder cannot be made: {words}; choose another one") from error
    return True
