"""Complete figures of one checkpoint for functions of the spectrum: distribution, counts over tau, dimension."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spectra.figures.curves import cumulative_grid, draw_cumulative, draw_degeneracy, draw_dimension
from spectra.figures.frame import band_of, blank, finished, matrix_at, mode_words
from spectra.figures.moments import Moment
from spectra.figures.style import look_of
from spectra.results.record import Record
from spectra.spectrum.fractions import CountCurve

#: The operators that are positive semidefinite by construction.
SEMIDEFINITE = ("ggn", "empirical_fisher")

_WIDTH = 6.4  # inches: its heading in two lines, and legible at the width of a column


def cumulative_figure(moment: Moment) -> Figure:
    """The cumulative distribution of the eigenvalues with its bounds, one panel per batch-norm mode."""
    modes = moment.complete
    figure = blank(_WIDTH, 1.7 + 2.5 * len(modes))
    axes = figure.subplots(len(modes), 1, sharex=True, squeeze=False)[:, 0]
    spectra = {mode: record.spectrum for mode, record in modes.items() if record.spectrum is not None}
    threshold = max(spectrum.linear_threshold() for spectrum in spectra.values())
    limits: list[float] = []
    for ax, (mode, spectrum) in zip(axes, spectra.items()):
        draw_cumulative(
            ax, spectrum.cumulative(cumulative_grid(spectrum)), spectrum, look=look_of(mode), threshold=threshold
        )
        ax.set_title(mode_words(mode), loc="left")
        ax.legend(loc="lower right")
        limits += ax.get_xlim()
    axes[-1].set_xlim(min(limits), max(limits))
    axes[-1].set_xlabel(rf"eigenvalue $\lambda$ of the {matrix_at(moment)} (asinh axis)")
    caption = (
        "Dark: Chebyshev-Markov-Stieltjes bounds, which hold whatever the spectrum between the Ritz values is. Light: "
        f"with the error of the probes, 95 %, at each point. The axis is linear within {threshold:.2g} of 0."
    )
    return finished(figure, [moment], caption)


def degeneracy_figure(moment: Moment) -> Figure:
    """The fraction of eigenvalues near 0 over the tolerance at one checkpoint, one panel per batch-norm mode."""
    modes = moment.complete
    figure = blank(2.4 + 3.7 * len(modes), 4.6)
    axes = figure.subplots(1, len(modes), sharey=True, squeeze=False)[0]
    for ax, (mode, record) in zip(axes, modes.items()):
        spectrum = record.spectrum
        assert spectrum is not None
        _draw_counts(ax, mode, record, spectrum.degeneracy_curve(), "rank_degeneracy")
        ax.label_outer()
    caption = (
        "Resolved: the Gauss-Radau bracket of m steps is narrower than 0.02; the bars and the band are the bracket "
        "with 95 % over probes. The star is the smallest resolved tolerance. Hatched: m steps cannot tell."
    )
    return finished(figure, [moment], caption)


def negative_figure(moment: Moment) -> Figure:
    """The fractions of eigenvalues near 0 and below 0 over the tolerance, two panels per batch-norm mode."""
    modes = moment.complete
    figure = blank(7.4, 1.6 + 2.9 * len(modes))
    rows = figure.subplots(len(modes), 2, sharey=True, squeeze=False)
    for axes, (mode, record) in zip(rows, modes.items()):
        spectrum = record.spectrum
        assert spectrum is not None
        for ax, curve, name, counted in (
            (axes[0], spectrum.degeneracy_curve(), "rank_degeneracy", r"$|\lambda| \leq \tau$"),
            (axes[1], spectrum.negative_curve(), "negative_mass", r"$\lambda < -\tau$"),
        ):
            _draw_counts(ax, mode, record, curve, name, label="resolved", counted=counted)
    caption = (
        "Left: eigenvalues near 0; right: those below it by more than τ. Resolved: the bracket of m steps is narrower "
        "than 0.02; the bars and the band are the bracket with 95 % over probes. The star is the smallest resolved "
        "tolerance. Hatched: m steps cannot tell."
    )
    return finished(figure, [moment], caption)


def _draw_counts(ax: Axes, mode: str, record: Record, curve: CountCurve, name: str, **words: str) -> None:
    """Draw a count over the tolerance, with its legend, or without one its title, above the axes."""
    assert record.spectrum is not None
    stored = record.estimates.get("spectral_norm")
    scale = (stored or record.spectrum.spectral_norm()).value
    draw_degeneracy(ax, curve, scale, headline=record.estimates.get(name), look=look_of(mode), **words)
    if ax.get_legend_handles_labels()[0]:
        place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "borderaxespad": 0.1}
        ax.legend(title=mode_words(mode), alignment="left", **place)
    else:
        ax.set_title(mode_words(mode), loc="left")


def dimension_figure(moment: Moment) -> Figure:
    """The effective dimension over the regularisation ``g``, one curve per batch-norm mode."""
    figure = blank(_WIDTH, 4.2)
    ax = figure.subplots()
    for mode, record in moment.complete.items():
        assert record.spectrum is not None
        draw_dimension(ax, record.spectrum, look=look_of(mode), label=mode_words(mode))
    if ax.lines:
        ax.legend(loc="lower left")
    else:  # the axes contain only the reason why there is no curve
        ax.set_xticks([])
        ax.set_yticks([])
    band = (
        "No band: a single probe has no error."
        if band_of(moment).startswith("none")
        else ("Band: the bounds of the Gauss and Gauss-Radau rules with the error of the probes, 95 %.")
    )
    caption = f"λ: of the {matrix_at(moment)}. Two curves compare at one g. {band}"
    return finished(figure, [moment], caption)
