"""What does batch norm in train mode do to the curvature, at the same weights?

    python analyses/eval_vs_train.py run.h5 --out figures

Trace, norms and both ends of the spectrum in eval and in train mode over training, and their difference with its error.
Both modes are measured by the same probes, so the difference is taken probe by probe. The loss in train mode depends on
how the data are cut into batches. Granziol (2020), arXiv:2006.09091, appendix, and Yi et al. (2019), IJCAI, discuss
curvature with batch norm in either mode.
"""

from __future__ import annotations

from collections.abc import Sequence

from figure_script import parser_of, run, save, series_of

import spectra
from spectra.figures.moments import moments_of
from spectra.figures.over_training import modes_over_training, pairs_over
from spectra.figures.style import style
from spectra.results.headline_difference import headline_difference


def main(arguments: Sequence[str] | None = None) -> None:
    asked = parser_of(__doc__).parse_args(arguments)
    trajectory = spectra.load_trajectory(asked.files[0])
    series = series_of(trajectory, asked.operator, asked.bn)
    moments = moments_of(trajectory, series.operator)
    pair = pairs_over(moments)
    if pair is None:
        raise spectra.SpectraError(
            f"{asked.files[0]}: both modes at two checkpoints are needed: analyze with --bn both"
        )
    first, second = pair
    for moment in moments:
        if {first, second} <= moment.complete.keys():
            a, b = (moment.complete[mode] for mode in pair)
            for name in ("trace", "frobenius_norm", "lambda_max"):
                print(f"{moment.label}: {name}, {second} less {first}: {headline_difference(b, a, name)}")
    with style():
        save(modes_over_training(moments), asked.out, "eval_vs_train", asked.format)


if __name__ == "__main__":
    run(main)
