"""How much of the spectrum is near zero, and how near is "near"?

    python analyses/degeneracy_over_training.py run.h5 --out figures

Above, the fraction of eigenvalues within the tolerance that the Lanczos steps resolve, with its bracket, and the line
of the rank bound; beside it what "Flatness is a False Friend" (Granziol 2020, arXiv:2006.09091, figures 1 and 11 to
14) takes for it: the mass of the one or two Ritz values closest to zero. Below, where those Ritz values lie: the
paper's figure becomes a statement about degeneracy only where they are zero to the precision of the products. With m
steps no spectrum of a network is resolved down to zero; the table says what was.
"""

from __future__ import annotations

from collections.abc import Sequence

from figure_script import parser_of, run, save, series_of

import spectra
from spectra.figures.moments import moments_of
from spectra.figures.over_training import degeneracy_over_training, modes_over
from spectra.figures.style import style


def main(arguments: Sequence[str] | None = None) -> None:
    asked = parser_of(__doc__).parse_args(arguments)
    trajectory = spectra.load_trajectory(asked.files[0])
    series = series_of(trajectory, asked.operator, asked.bn)
    shown = [record for record in trajectory if record.operator == series.operator]
    if asked.bn is not None:
        shown = [record for record in shown if record.bn_mode == asked.bn]
    moments = moments_of(shown, series.operator)
    if not modes_over(moments):
        raise spectra.SpectraError(f"{asked.files[0]}: at least 2 complete checkpoints are needed")
    for record in shown:
        if record.spectrum is None:
            print(f"{record.label}: failed: {record.reason}")
            continue
        near, one = record.spectrum.rank_degeneracy(), record.estimates["closest_one_mass"]
        words = f"{near.lower:.4f} to {near.upper:.4f}" + ("" if near.resolved else ", not resolved")
        print(
            f"{record.label}: fraction within {near.tau:.3g} of zero: {words}; mass of the Ritz value closest to zero: "
            f"{one}; rank bound of the paper: {record.facts.get('rank_bound_ff')}"
        )
    with style():
        save(degeneracy_over_training(moments), asked.out, "degeneracy_over_training", asked.format)


if __name__ == "__main__":
    run(main)
