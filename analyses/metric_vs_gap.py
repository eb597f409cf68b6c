"""Which measure goes with the generalization gap, over many runs?

    python analyses/metric_vs_gap.py runs/*.h5 --metric minimum_sharpness --metric lambda_max --out figures
    python analyses/metric_vs_gap.py small=a.h5,b.h5,c.h5 large=d.h5,e.h5,f.h5 --metric trace --out figures

A point per run (its last complete checkpoint that has held-out data: `spectra analyze --test-data`), a panel per
measure: a sharpness measure, an estimate, or a fact of the record. Pearson's and Kendall's coefficient with 95 %
bootstrap intervals over the runs. Files given as LABEL=FILE,FILE are levels of a confounder, such as the batch size,
and so are the values of --within KEY (a setting or fact of the record): the coefficients are then of runs of one
level, as in Jiang et al. (2020), "Fantastic generalization measures and where to find them", arXiv:1912.02178. Of a
measure that sets negative entries of the diagonal to 0, each coefficient comes with the range of `clipped` over the
runs: where it is not small, the coefficient is mostly that of what was set to 0. An
association over a handful of runs is a suggestion; over one architecture and data set it is a statement about these.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import nan
from pathlib import Path

import numpy as np
from figure_script import parser_of, run, save, series_of

import spectra
from spectra.figures.frame import blank, wrapped
from spectra.figures.style import ARMS, style
from spectra.results.correlation import associate
from spectra.results.record import Record

DEFAULT = ("trace", "lambda_max", "minimum_sharpness", "normalized_sharpness", "squared_norm")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__, several=True)
    parser.add_argument("--metric", action="append", metavar="NAME", help=f"repeatable ({', '.join(DEFAULT)})")
    parser.add_argument("--gap", default="generalization_gap", help="or accuracy_gap, or another fact")
    parser.add_argument("--within", metavar="KEY", help="a setting or fact whose values are levels of a confounder")
    asked = parser.parse_args(arguments)
    found: list[tuple[str, Record]] = []
    for argument in map(str, asked.files):
        label, _, names = argument.rpartition("=")
        for name in names.split(","):
            series = series_of(spectra.load_trajectory(name), asked.operator, asked.bn)
            having = [record for record in series if record.facts.get(asked.gap) is not None]
            if not having:
                raise spectra.SpectraError(f"{name}: no {asked.gap} in it: analyze with --test-data")
            level = label if asked.within is None else str(_setting(having[-1], asked.within, name))
            found.append((level, having[-1]))
            print(f"{Path(name).name}: {having[-1].label}{f', {level}' if level else ''}: "
                  f"{asked.gap} {having[-1].facts[asked.gap]:.4g}")  # fmt: skip
    levels = [level for level, _ in found]
    gaps = [float(record.facts[asked.gap] or nan) for _, record in found]
    known = set().union(*({*r.sharpness, *r.estimates, *r.facts} for _, r in found))
    metrics = asked.metric or [name for name in DEFAULT if name in known]
    for name in metrics:
        if name not in known:
            raise spectra.SpectraError(f"--metric {name}: no record has it; there are {', '.join(sorted(known))}")
    with style():
        across = min(3, len(metrics))
        down = -(-len(metrics) // across)
        figure = blank(1.0 + 3.5 * across, 1.3 + 2.9 * down)
        axes = figure.subplots(down, across, squeeze=False).ravel()
        looks = {level: ARMS[index % len(ARMS)] for index, level in enumerate(dict.fromkeys(levels))}
        notes = set()
        for ax, name in zip(axes, metrics):
            values = [_value(record, name) for _, record in found]
            clipped = _clipped([record for _, record in found], name)
            results = list(associate(values, gaps))
            if len(looks) > 1:
                results += associate(values, gaps, levels)
            for result in results:
                print(f"{name} and {asked.gap}: {result}{clipped}")
                notes |= {result.note} - {None}
            for level, look in looks.items():
                mine = [i for i, other in enumerate(levels) if other == level]
                ax.plot([values[i] for i in mine], [gaps[i] for i in mine], look.marker, color=look.colour,
                        markerfacecolor=look.face, label=level or None)  # fmt: skip
            usable = [value for value in values if np.isfinite(value)]
            if usable and min(usable) > 0 and max(usable) > 30 * min(usable):
                ax.set_xscale("log")
            ax.set_title("\n".join(_short(result) + clipped for result in results),
                         fontsize=7.5, loc="left")  # fmt: skip
            ax.set_xlabel(name.replace("_", " "))
            ax.set_ylabel(asked.gap.replace("_", " "))
        for ax in axes[len(metrics) :]:
            ax.remove()
        if len(looks) > 1:
            axes[0].legend(loc="best")
        caption = (
            f"A point per run ({len(found)}). In brackets 95 % by resampling the runs"
            + ("; within: runs of one level alone" if len(looks) > 1 else "")
            + f". {' '.join(sorted(notes))}"
        )
        figure.supxlabel(wrapped(caption, figure.get_figwidth() * 16.5), x=0.012, ha="left", fontsize=7.5)
        save(figure, asked.out, "metric_vs_gap", asked.format)


def _short(result: object) -> str:
    return str(result).rpartition(", ")[0] if str(result).endswith("runs") else str(result).partition(": ")[0] + ": -"


def _clipped(records: Sequence[Record], name: str) -> str:
    """The range over the runs of the negative over the positive entries of the diagonal; empty where none is cut."""
    shares = [record.sharpness[name].clipped for record in records if name in record.sharpness]
    known = [share for share in shares if share is not None]
    return f", clipped {min(known):.2g} to {max(known):.2g}" if known else ""


def _value(record: Record, name: str) -> float:
    if name in record.sharpness:
        return record.sharpness[name].value
    found = record.headlines[name].value if name in record.headlines else record.facts.get(name)
    return nan if found is None else float(found)


def _setting(record: Record, key: str, name: str) -> object:
    for holder in (record.settings, record.facts):
        if key in holder:
            return holder[key]
    raise spectra.SpectraError(f"--within {key}: {name} has no setting or fact of this name; "
                               f"there are {', '.join(sorted({*record.settings, *record.facts}))}")  # fmt: skip


if __name__ == "__main__":
    run(main)
