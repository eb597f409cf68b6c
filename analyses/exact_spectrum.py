"""Is the density that Lanczos gives that of the eigenvalues?

    python analyses/exact_spectrum.py run.h5 --epoch 6 --out figures

All eigenvalues of the Gauss-Newton matrix on a subsample, computed from a Gram matrix without Lanczos
(`spectra analyze --operator ggn --exact-spectrum 300`), as the fraction of them above a point, beside the same by
stochastic Lanczos quadrature of the whole data, with its bounds. Steps are eigenvalues. The two are of different data,
unless the subsample is all of them; the comparison on the same data is in the record, and printed. The rank that
counting alone allows, min(n, N (C - 1)), ends the exact curve.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from figure_script import parser_of, run, save, series_of

import spectra
from spectra.figures.frame import blank, finished
from spectra.figures.moments import moments_of
from spectra.figures.style import LOOKS, style


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--epoch", type=float, help="(the last that has one)")
    asked = parser.parse_args(arguments)
    trajectory = spectra.load_trajectory(asked.files[0])
    series = series_of(trajectory, asked.operator or "ggn", asked.bn)
    having = [record for record in series if record.exact_spectrum is not None]
    if not having:
        raise spectra.SpectraError(
            f"{asked.files[0]}: no exact spectrum in it: analyze with --operator ggn --exact-spectrum N"
        )
    record = having[-1] if asked.epoch is None else series.at(asked.epoch)
    exact, spectrum = record.exact_spectrum, record.spectrum
    if exact is None or spectrum is None:
        raise spectra.SpectraError(f"{record.label}: no exact spectrum")
    for check in record.checks:
        if not check.name.startswith("trace"):
            print(f"on the same samples: {check}")
    values = np.sort(exact.eigenvalues)[::-1]
    positive = values[values > exact.n * np.finfo(float).eps * values[0]]
    most = min(exact.n, exact.rank_bound)
    print(
        f"{record.where}: {len(positive)} eigenvalues above roundoff, at most {most} by counting; "
        f"trace {exact.trace:.6g} exactly on {exact.num_samples} samples, {spectrum.trace()} by probes on all"
    )
    points = np.geomspace(max(positive[-1], positive[0] * 1e-9) / 3, positive[0] * 1.5, 400)
    found = spectrum.cumulative(points)
    with style():
        figure = blank(8.0, 4.8)
        ax = figure.subplots()
        one, other = LOOKS["train"], LOOKS["eval"]
        above, low, high = (
            np.maximum(1 - np.asarray(c), 0.02 / exact.n) for c in (found.value, found.upper, found.lower)
        )
        ax.fill_between(
            points, low, high, color=other.colour, alpha=0.2, linewidth=0, label="its bounds, 95 % over probes"
        )
        ax.plot(points, above, color=other.colour, label=f"Lanczos, all {record.facts.get('n_samples')} samples")
        ax.step(positive, np.arange(1, len(positive) + 1) / exact.n, where="pre", color=one.colour, linestyle=one.line,
                label=f"all eigenvalues, {exact.num_samples} samples")  # fmt: skip
        ax.axhline(most / exact.n, color="#666666", linewidth=0.8, linestyle=":")
        ax.text(
            points[-1],
            most / exact.n * 1.1,
            "rank that counting allows",
            ha="right",
            fontsize=7.5,
        )
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_ylim(0.5 / exact.n, 2)
        ax.set_xlabel(r"eigenvalue $\lambda$ of the Gauss-Newton matrix")
        ax.set_ylabel(r"fraction of eigenvalues above $\lambda$")
        ax.legend(loc="lower left")
        moments = moments_of([record], record.operator)
        caption = (
            f"Dashed: every eigenvalue of the matrix on {exact.num_samples} samples, from its Gram matrix. Line and "
            "band: stochastic Lanczos quadrature on all samples, with bounds that hold for any matrix."
        )
        save(finished(figure, moments, caption), asked.out, "exact_spectrum", asked.format)


if __name__ == "__main__":
    run(main)
