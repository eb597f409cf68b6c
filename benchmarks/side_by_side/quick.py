"""The verdict of `make bench-quick`: spectra against the reference alone."""

from __future__ import annotations

from typing import Any

from side_by_side.networks import NETWORKS
from side_by_side.report import is_exact, key_of, ratio, title

# Times of spectra in those of the reference, as a full run measured them, rounded up, and what noise may add.
STATED = {
    ("mlp", 1, "product", "hessian"): 1.0,
    ("mlp", 1, "product", "ggn"): 1.1,
    ("mlp", 4, "product", "hessian"): 1.1,
    ("mlp", 4, "product", "ggn"): 1.1,
    ("mlp", 1, "slq", "hessian"): 0.9,
    ("mlp", 1, "lambda_max", "hessian"): 1.9,
    ("lenet", 1, "product", "hessian"): 0.5,
    ("lenet", 1, "product", "ggn"): 0.42,
    ("lenet", 4, "product", "hessian"): 0.5,
    ("lenet", 4, "product", "ggn"): 0.42,
    ("lenet", 1, "slq", "hessian"): 0.5,
    ("lenet", 1, "lambda_max", "hessian"): 1.0,
}
MARGIN = 1.25


def verdict(cases: list[dict[str, Any]]) -> tuple[list[str], int]:
    """A line per case, and the exit code: 1 if spectra is slower than stated, or wrong."""
    lines, code = [], 0
    by_key = {key_of(case): case for case in cases}
    for key, stated in STATED.items():
        if key not in by_key:
            lines.append(f"MISSING {key}")
            code = 1
            continue
        case = by_key[key]
        where = f"{NETWORKS[case['network']].title}, {title(case)}"
        wrong = [name for name in ("spectra", "reference") if not is_exact(case, name)]
        if wrong:
            lines.append(f"WRONG  {where}: {', '.join(wrong)}")
            code = 1
            continue
        found = ratio(case, "spectra", "reference")
        slow = found > MARGIN * stated
        code = 1 if slow else code
        lines.append(f"{'SLOWER' if slow else 'ok':<6} {where}: {found:.2f} of the reference, {stated:.2f} stated")
    return lines, code
