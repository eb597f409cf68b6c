"""How do the sharpness measures change over training, and do they tell the same story?

    python analyses/sharpness_over_training.py run.h5 --out figures

One panel per measure, a line per batch-norm mode. Bars are 1.96 standard errors where a measure is drawn at random; the
others have no such error. A measure that does not exist at a checkpoint is a gap, and its reason is printed. Trace,
Frobenius and spectral norm change when the network is rescaled without changing its function, the others do not
(`spectra metrics` says which). Follows the figures of Tsuzuku, Sato and Sugiyama (2020), "Normalized flat minima",
ICML, and Ibayashi et al. (2021), "Minimum sharpness", arXiv:2106.12612.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from figure_script import parser_of, run, save, series_of

import spectra
from spectra.figures.findings import measures_of, sharpness_figure
from spectra.figures.moments import moments_of
from spectra.figures.style import style


def main(arguments: Sequence[str] | None = None) -> None:
    asked = parser_of(__doc__).parse_args(arguments)
    trajectory = spectra.load_trajectory(asked.files[0])
    series = series_of(trajectory, asked.operator, asked.bn)
    shown = [record for record in trajectory if record.operator == series.operator]
    if asked.bn is not None:
        shown = [record for record in shown if record.bn_mode == asked.bn]
    moments = moments_of(shown, series.operator)
    names = measures_of(moments)
    if not names:
        raise spectra.SpectraError(
            f"{asked.files[0]}: no sharpness measure at two checkpoints or more: analyze with --metrics cheap or all"
        )
    for name in names:
        found = [(record, record.sharpness[name]) for record in shown if name in record.sharpness]
        numbers = [(record.epoch, record.bn_mode, measure) for record, measure in found if np.isfinite(measure.value)]
        print(f"{name}: " + ", ".join(f"{measure} (epoch {epoch:g}, {mode})" for epoch, mode, measure in numbers))
        for record, measure in found:
            if not np.isfinite(measure.value):
                print(f"  {record.where}, {record.bn_mode}: none: {measure.reason}")
    with style():
        save(sharpness_figure(moments), asked.out, "sharpness_over_training", asked.format)


if __name__ == "__main__":
    run(main)
