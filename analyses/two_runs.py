"""Do two ways of training lead to different curvature, or do two runs of one way differ as much?

    python analyses/two_runs.py sgd=s0.h5,s1.h5 decay=d0.h5,d1.h5 --out figures

Each argument is an arm: a label and the files of its runs, or a file alone. Densities of the arms at their last
checkpoint over each other, and trace, largest eigenvalue and degeneracy over training. Printed are the differences with
their errors, tested against the spread of the runs where an arm has several (Welch), against the noise of the probes
where it has one: that says whether two networks differ, not whether two optimizers do. The Wasserstein distance of the
densities stands beside its noise floor.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from figure_script import parser_of, run, save, series_of

import spectra
from spectra.figures.compared import comparison_figure
from spectra.figures.style import style
from spectra.results.comparison import Arm
from spectra.results.run_comparison import compare


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__, several=True)
    parser.add_argument("--epoch", type=float, help="compare at this epoch (the last of each run)")
    asked = parser.parse_args(arguments)
    arms, whole = [], {}
    for argument in map(str, asked.files):
        label, _, names = argument.rpartition("=")
        names = names.split(",")
        series = [series_of(spectra.load_trajectory(name), asked.operator, asked.bn) for name in names]
        label = label or Path(names[0]).stem
        records = [
            one.at(asked.epoch) if asked.epoch is not None else _last_complete(one, name)
            for one, name in zip(series, names)
        ]
        arms.append(Arm(label, tuple(records), tuple(names)))
        whole[label] = series
    if len(arms) < 2:
        raise spectra.SpectraError("two arms are needed: LABEL=FILE,FILE twice, or two files")
    found = compare(arms)
    for warning in found.warnings:
        print(f"note: {warning}")
    for contrast in found.contrasts:
        print(
            f"{contrast.quantity}: {contrast.arm} less {contrast.against}: {contrast.value:.4g}"
            + ("" if contrast.stderr is None else f" +- {contrast.stderr:.2g}")
            + ("" if contrast.p_value is None else f", p = {contrast.p_value:.2g}")
            + f" ({contrast.basis})"
        )
    for gap in found.gaps:
        print(f"Wasserstein distance of {gap.arm} from {gap.against}: {gap.distance}")
    with style():
        save(comparison_figure(arms, whole), asked.out, "two_runs", asked.format)


def _last_complete(series: spectra.Trajectory, name: str) -> spectra.Record:
    complete = [record for record in series if record.spectrum is not None]
    if not complete:
        raise spectra.SpectraError(f"{name}: no complete record")
    return complete[-1]


if __name__ == "__main__":
    run(main)
