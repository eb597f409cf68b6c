"""The figure of docs/performance.md: a panel per network, a row per task, a mark per contender."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from side_by_side.contenders import CONTENDERS
from side_by_side.networks import NETWORKS
from side_by_side.report import is_exact, title

# The colours of M. Okabe and K. Ito, Color Universal Design (2008).
_COLOURS = ["#D55E00", "#E69F00", "#000000", "#0072B2", "#009E73", "#CC79A7", "#56B4E9"]
_MARKERS = "oPxs^Dv"


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw the times in gradients; contenders that are wrong or fail are left out."""
    networks = [name for name in NETWORKS if any(case["network"] == name for case in found["cases"])]
    rows = {name: [case for case in found["cases"] if case["network"] == name] for name in networks}
    figure, axes = plt.subplots(
        len(networks), 1, sharex=True, squeeze=False, layout="constrained",
        figsize=(8, 0.7 + sum(0.27 * len(cases) + 0.35 for cases in rows.values())),
        height_ratios=[len(cases) + 0.5 for cases in rows.values()],
    )  # fmt: skip
    for axis, name in zip(axes[:, 0], networks):
        for look, contender in enumerate(CONTENDERS):
            points = [
                (case["contenders"][contender]["gradients"], row)
                for row, case in enumerate(rows[name])
                if contender in case["contenders"] and is_exact(case, contender)
            ]
            axis.plot(
                [x for x, _ in points], [y for _, y in points], linestyle="none", marker=_MARKERS[look],
                color=_COLOURS[look], label=contender, markersize=6 if look == 0 else 5, zorder=3 if look == 0 else 2,
                markerfacecolor=_COLOURS[look] if look < 2 else "none",
            )  # fmt: skip
        axis.set_yticks(range(len(rows[name])), [title(case) for case in rows[name]], fontsize=8)
        axis.set_ylim(len(rows[name]) - 0.5, -0.5)
        axis.set_xscale("log")
        axis.set_title(NETWORKS[name].title, fontsize=9, loc="left")
        axis.grid(color="#E6E6E6", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel("CPU time in gradients (less is better)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, fontsize=8, frameon=False)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)
