"""How does the spectrum look at the beginning, in the middle and at the end of training?

    python analyses/spectrum_at_epochs.py run.h5 --epochs 0,3,6 --out figures

One panel per epoch, all on one axis (logarithmic on both sides of 0) and with one Gaussian, so that panels can be
compared. The band holds the density pointwise with 95 % over the probes. The triangles are the outermost Ritz values:
the eigenvalues lie within them but for what the table says. Follows the figures of spectra over training of
Papyan (2018), arXiv:1811.07062, and Ghorbani, Krishnan and Xiao (2019), arXiv:1901.10159.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from figure_script import epochs_of, parser_of, run, save, series_of

import spectra
from spectra.figures.draw import draw_density
from spectra.figures.frame import blank, finished, matrix_at
from spectra.figures.moments import moments_of
from spectra.figures.style import look_of, style


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--epochs", metavar="LIST", help="as 0,5,20 (the first, the middle and the last)")
    asked = parser.parse_args(arguments)
    trajectory = spectra.load_trajectory(asked.files[0])
    series = series_of(trajectory, asked.operator, asked.bn)
    epochs = epochs_of(asked.epochs, series)
    spectra_at = {epoch: series.spectrum(epoch) for epoch in epochs}

    own = [spectrum.density(view="asinh") for spectrum in spectra_at.values()]
    threshold = max(density.linear_threshold or 0.0 for density in own)
    sigma = max(density.sigma for density in own)
    ends = [[np.arcsinh(density.grid[end] / threshold) for density in own] for end in (0, -1)]
    grid = threshold * np.sinh(np.linspace(min(ends[0]), max(ends[1]), 1200))
    moments = [moment for moment in moments_of(series, series.operator) if moment.epoch in epochs and moment.complete]
    with style():
        figure = blank(8.0, 1.7 + 1.75 * len(epochs))
        axes = figure.subplots(len(epochs), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        look = look_of(series.bn_mode)
        print(f"{'epoch':>6}  {'trace':>18}  {'lambda_min':>26}  {'lambda_max':>26}  {'negative mass':>14}")
        for ax, (epoch, spectrum) in zip(axes, spectra_at.items()):
            density = spectrum.density(view="asinh", grid=grid, sigma=sigma, linear_threshold=threshold)
            draw_density(ax, density, n=spectrum.n, look=look)
            low, high = spectrum.lambda_min(), spectrum.lambda_max()
            ax.plot([low.value, high.value], [ax.get_ylim()[0]] * 2, "^k", markersize=5, clip_on=False)
            ax.set_ylabel("")
            ax.set_title(f"epoch {epoch:g}", loc="left")
            negative = spectrum.negative_mass()
            print(
                f"{epoch:>6g}  {series.at(epoch).headline('trace')!s:>18}  {low.lower:>12.5g} to {low.upper:<10.5g}  "
                f"{high.lower:>12.5g} to {high.upper:<10.5g}  {negative.value:>14.4g}"
            )
        figure.supylabel(r"density per unit of asinh($\lambda/s$) (mass 1)", fontsize=9)
        axes[-1].set_xlabel(rf"eigenvalue $\lambda$ of the {matrix_at(moments[0])}")
        caption = (
            f"Band: 95 % over probes, pointwise; one Gaussian of a tenth of a decade for all. The axis is linear in "
            f"the shaded strip |λ| ≤ s = {threshold:.2g}. Triangles: the outermost Ritz values."
        )
        save(finished(figure, moments, caption), asked.out, "spectrum_at_epochs", asked.format)


if __name__ == "__main__":
    run(main)
