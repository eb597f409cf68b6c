"""The table that a preset adds to a report: the numbers of its paper, in the terms of the paper."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from spectra.results.record import Record
from spectra_cli.layout import new_table, print_line
from spectra_cli.numbers import in_short, plain

_LEGEND = (
    "one Ritz value closest to 0 for the Gauss-Newton matrix, two for the Hessian: masses that depend on m, for "
    "comparison with published ones; 4 d_y (sum N_l + d_x) is a heuristic for the rank and no bound, so 1 - it / n is "
    "none either"
)


def print_preset(records: Sequence[Record], console: Console) -> None:
    """Print the numbers of Granziol (2020) for records that were made with that preset; nothing for others.

    References:
        D. Granziol, Flatness is a False Friend, arXiv:2006.09091 (2020), sections 3.2, 5 and appendix D.
    """
    shown = [
        r for r in records if str(r.settings.get("preset") or "").startswith("granziol") and r.spectrum is not None
    ]
    if not shown:
        return
    columns = [_column(record) for record in shown]
    table = new_table("as printed by Granziol (2020)", *(f"{r.operator}, BN {r.bn_mode}" for r in shown), left=(0,))
    for name in columns[0]:
        table.add_row(name, *(column[name] for column in columns))
    console.print()
    console.print(table)
    print_line(console, _LEGEND, style="dim")


def _column(record: Record) -> dict[str, str]:
    assert record.spectrum is not None
    count = 2 if record.operator == "hessian" else 1
    closest, found = record.spectrum.closest(count), record.headlines
    bound, n = record.facts.get("rank_bound_ff"), record.spectrum.n
    rest = "-" if bound is None else plain(1 - bound / n) if bound < n else "- (it exceeds n)"
    return {
        "Ritz values closest to 0": "two" if count == 2 else "one",
        "their mass (rank degeneracy)": in_short(closest.mass),
        "their weighted mean": in_short(closest.value),
        "the larger of their absolute values": in_short(closest.reach),
        "spectral norm": plain(found["spectral_norm"].value),
        "Frobenius norm |H|_F": in_short(found["frobenius_norm"]),
        "|H|_F^2 / n": in_short(found["second_moment"]),
        "mean eigenvalue Tr H / n": in_short(found["mean_eigenvalue"]),
        "4 d_y (sum N_l + d_x)": plain(bound),
        "1 - 4 d_y (sum N_l + d_x) / n": rest,
    }
