"""Do the stochastic traces agree with the exact ones, at every checkpoint?

    python analyses/exact_check.py run.h5 --out figures

Above, the estimated trace less the exact one over training, in percent of the exact one, with bars of two standard
errors; the band is the discrepancy that the comparison would find with a chance of 80 %. Below, z of all comparisons
(total and every parameter tensor) with the limits of agreement. Where the exact trace is not the Hessian's (the table
says why), the Gauss-Newton matrix is compared. The exact trace is that of Ibayashi et al. (2021), arXiv:2106.12612, in
the variance form.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from figure_script import parser_of, run, save, series_of
from matplotlib.ticker import MaxNLocator

import spectra
from spectra.figures.frame import blank, finished
from spectra.figures.moments import axis_of, moments_of
from spectra.figures.style import GREY, PALE, look_of, style

#: How each verdict is drawn: marker, filled, size.
_MARKS = {"agrees": ("o", True, 3.5), "inconclusive": ("o", False, 3.5), "disagrees": ("X", True, 8)}


def main(arguments: Sequence[str] | None = None) -> None:
    asked = parser_of(__doc__).parse_args(arguments)
    trajectory = spectra.load_trajectory(asked.files[0])
    series = series_of(trajectory, asked.operator, asked.bn)
    moments = [
        moment
        for moment in moments_of(series, series.operator)
        if any(record.checks for record in moment.complete.values())
    ]
    if not moments:
        raise spectra.SpectraError(
            f"{asked.files[0]}: no comparison with exact traces in the records of {series.operator} {series.bn_mode}: "
            "analyze without --no-check, with batch norm in eval mode"
        )
    position, words = axis_of(moments)
    records = [moment.complete[series.bn_mode] for moment in moments]
    total = [next(check for check in record.checks if check.name == "trace") for record in records]
    for record in records:
        for check in record.checks:
            print(f"{record.where}: {check} (would notice {check.detectable:.3g})")
    exact = np.array([check.exact for check in total])
    look = look_of(series.bn_mode)
    with style():
        figure = blank(8.0, 6.0)
        above, below = figure.subplots(2, 1, sharex=True)
        percent = 100 / np.abs(exact)
        above.fill_between(
            position, *(sign * percent * [check.detectable for check in total] for sign in (-1, 1)), color=PALE,
            linewidth=0, label="would be noticed beyond",
        )  # fmt: skip
        above.errorbar(
            position, percent * ([check.estimate for check in total] - exact), 2 * percent * [c.error for c in total],
            color=look.colour, marker=look.marker, linestyle="none", label="estimate less exact, two standard errors",
        )  # fmt: skip
        above.axhline(0, color=GREY, linewidth=0.8)
        above.set_ylabel("trace: estimate less exact value,\nin percent of the exact one")
        above.legend(loc="best")
        limit = np.nanmax([check.critical for record in records for check in record.checks])
        below.axhspan(-limit, limit, color=PALE, linewidth=0)
        for at, record in zip(position, records):
            for verdict, (marker, face, size) in _MARKS.items():
                z = [check.z for check in record.checks if check.verdict == verdict]
                colour = "#D55E00" if verdict == "disagrees" else look.colour
                label = verdict if at == position[0] else None
                below.plot([at] * len(z), z, marker, color=colour, markersize=size, label=label,
                           markerfacecolor=colour if face else "none")  # fmt: skip
        below.legend(loc="lower right", ncols=len(_MARKS))
        below.set_ylabel("z of all comparisons\n(total and tensors)")
        below.set_xlabel(words)
        below.xaxis.set_major_locator(MaxNLocator("auto", integer=bool((position == np.round(position)).all())))
        caption = (
            "Grey above: what the comparison would not find with a chance of 80 %. Grey below: agreement (Student's t, "
            "corrected for the number of comparisons of a record). Inconclusive: a discrepancy as large as the value "
            "itself would have gone unnoticed. The probes are the same at every checkpoint, so the points of a tensor "
            "are correlated."
        )
        save(finished(figure, moments, caption), asked.out, "exact_check", asked.format)


if __name__ == "__main__":
    run(main)
