"""The catalogue of sharpness measures: definition, cost, and the changes of the weights that leave each unchanged."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from spectra.errors import ArgumentError

# Changes of the weights that leave the function unchanged, or add one number to all logits (shift), or multiply them
# by one factor (scale).
CHANGES = {
    "layers": "layers",  # W_d times alpha_d, the product of all alpha_d is 1, biases rescaled to match
    "units": "units",  # a hidden unit times c > 0, the weights that read it divided by c
    "order": "unit order",
    "shift": "logit shift",
    "logits": "logit scale",
    "bn_eval": "BN filters (eval)",  # filter, running mean and deviation times a > 0
    "bn_train": "BN filters (train)",  # filter times a > 0, eps -> 0
    "split": "split paths",  # relu(W1 x) + relu(W2 x) from (W/2, W/2) to (W, 0)
}


@dataclass(frozen=True)
class Entry:
    """One measure of the catalogue."""

    words: str  # the definition, in one line
    cost: str  # in gradients over the data; C classes
    keeps: tuple[str, ...]  # the CHANGES under which it is invariant; from draws, up to their standard error
    home: str  # module:function
    options: Mapping[str, Any] = field(default_factory=dict)
    cheap: bool = True
    passes: float = 0.0  # passes over all data in float64, in addition to the exact trace or diagonal
    drawn: Mapping[str, Any] = field(default_factory=dict)  # the options of its Monte-Carlo form, if it has one
    train_mode: bool = False  # whether it exists with batch norm by the statistics of each batch
    always_train: bool = False  # it is defined in that mode only, whatever the mode of the record
    lacks: tuple[str, ...] = ()  # the CHANGES for whose networks it is not defined, apart from that of train mode

    @property
    def invariant(self) -> str:
        """The changes that leave the measure unchanged, in words."""
        return ", ".join(CHANGES[change] for change in self.keeps) or "nothing"

    def under(self, change: str) -> str:
        """``"="`` where the measure is invariant, ``"x"`` where it is not, ``"-"`` where it is not defined."""
        missing = change in self.lacks or (change == "bn_train" and not self.train_mode)
        return "-" if missing else "=" if change in self.keeps else "x"


_EXACT = "about C/2 (linear layers) to C"  # that of the exact trace or diagonal
_MEASURES = "spectra.sharpness.measures"
_DRAWN = {"method": "monte-carlo"}

CATALOGUE: dict[str, Entry] = {
    "minimum_sharpness": Entry(
        "least trace over rescalings of whole layers (Ibayashi et al. 2021)",
        _EXACT,
        ("layers", "order", "shift", "bn_eval"),
        f"{_MEASURES}:minimum_sharpness",
        drawn=_DRAWN,
    ),
    "node_minimum_sharpness": Entry(
        "least trace over rescalings of single units; chains of layers only",
        _EXACT,
        ("layers", "units", "order", "shift", "bn_eval"),
        f"{_MEASURES}:node_minimum_sharpness",
        lacks=("split",),
    ),
    "normalized_sharpness": Entry(
        "least noise-weighted curvature over scales of units, arXiv form (Tsuzuku et al. 2019)",
        _EXACT,
        ("layers", "units", "order", "shift", "bn_eval", "split"),
        f"{_MEASURES}:normalized_sharpness",
        drawn={"diagonal": "monte-carlo"},
    ),
    "normalized_sharpness_pacbayes": Entry(
        "half of normalized_sharpness, the scale of the PAC-Bayes bounds (Tsuzuku et al. 2020)",
        _EXACT,
        ("layers", "units", "order", "shift", "bn_eval", "split"),
        f"{_MEASURES}:normalized_sharpness",
        {"form": "pacbayes"},
        cheap=False,
        drawn={"diagonal": "monte-carlo"},
    ),
    "normalized_sharpness_icml": Entry(
        "equation (35) of Tsuzuku et al. 2020 as printed, scales of outputs: another number than normalized_sharpness",
        _EXACT,
        ("layers", "units", "order", "shift", "bn_eval", "split"),
        f"{_MEASURES}:normalized_sharpness",
        {"form": "icml"},
        cheap=False,
        drawn={"diagonal": "monte-carlo"},
    ),
    "normalized_sharpness_icml_input": Entry(
        "the same equation with scales of inputs, to compare with programs that use them",
        _EXACT,
        ("layers", "units", "order", "shift", "bn_eval", "split"),
        f"{_MEASURES}:normalized_sharpness",
        {"form": "icml", "side": "input"},
        cheap=False,
        drawn={"diagonal": "monte-carlo"},
    ),
    "normalized_sharpness_of_normalized_loss": Entry(
        "the same with the cross-entropy of normalised logits; three classes and more",
        _EXACT,
        ("layers", "units", "order", "shift", "logits", "bn_eval", "split"),
        f"{_MEASURES}:normalized_sharpness",
        {"loss": "normalized"},
        drawn={"diagonal": "monte-carlo"},
    ),
    "ns_direct": Entry(
        "least rise of the loss under noise plus the noise's cost (Tsuzuku et al. 2019, equation 62); an upper bound",
        "about 100 and the exact diagonal",
        ("layers", "units", "order", "shift", "bn_eval"),
        "spectra.sharpness.direct:normalized_sharpness_direct",
        cheap=False,
        lacks=("split",),
    ),
    "penalised_sharpness": Entry(
        "the same with a scale per parameter, at a price: NS'(1) over log-scales -10 to 10 (Tsuzuku et al. 2020, (17))",
        _EXACT,
        ("order",),
        "spectra.sharpness.penalised:penalised_sharpness",
        cheap=False,
    ),
    "matrix_normalized_sharpness": Entry(
        "sum over weight matrices of sqrt(|W|_F^2 Tr H_W)",
        _EXACT,
        ("layers", "order", "shift", "split"),
        f"{_MEASURES}:matrix_normalized_sharpness",
        drawn=_DRAWN,
    ),
    "fisher_rao_diagonal": Entry(
        "sum_i w_i^2 mean_n (dl_n/dw_i)^2 (Tsuzuku et al. 2019, equation 25)",
        "2 to 3",
        ("layers", "units", "order", "bn_eval"),
        "spectra.sharpness.fisher_rao:fisher_rao_norm",
        passes=3,
    ),
    "fisher_rao_liang": Entry(
        "mean_n <w, grad l_n>^2 (Liang et al. 2019)",
        "3",
        ("layers", "units", "order", "shift", "bn_eval", "split"),
        "spectra.sharpness.fisher_rao:fisher_rao_norm",
        {"form": "liang"},
        passes=3,
    ),
    "fisher_rao_hessian": Entry(
        "sum_i w_i^2 H_ii (Tsuzuku et al. 2020, equation 16)",
        _EXACT,
        ("layers", "units", "order", "bn_eval"),
        "spectra.sharpness.fisher_rao:fisher_rao_norm",
        {"form": "hessian"},
        drawn=_DRAWN,
    ),
    "squared_norm": Entry(
        "sum of squared weights; a baseline",
        "none",
        ("order",),
        "spectra.sharpness.norms:squared_norm",
        train_mode=True,
    ),
    "squared_norm_of_matrices": Entry(
        "sum of |W_l|_F^2 over weights of two dimensions and more; a baseline",
        "none",
        ("order", "shift"),
        "spectra.sharpness.norms:squared_norm",
        {"form": "matrices"},
        cheap=False,
        train_mode=True,
    ),
    "gradient_norm": Entry(
        "|grad L|, without the l2 term; a baseline",
        "1",
        ("order", "shift"),
        "spectra.sharpness.norms:gradient_norm",
        passes=1,
        train_mode=True,
    ),
    "bn_sharpness": Entry(
        "largest mean change of the loss along directions scaled to the filters (Yi et al. 2019); a lower bound",
        "up to 8 per step of 20",
        ("order", "shift", "bn_eval", "bn_train"),
        "spectra.sharpness.bn_sharpness:bn_sharpness",
        cheap=False,
        train_mode=True,
        always_train=True,
    ),
    "delta_sharpness_mean": Entry(
        "root mean square change of the loss in a ball of radius 1e-3; a baseline",
        "about 11",
        ("order", "shift"),
        "spectra.sharpness.delta_sharpness:delta_sharpness",
        cheap=False,
        train_mode=True,
    ),
    "delta_sharpness_max": Entry(
        "largest change of the loss in that ball (Keskar et al. 2017); a lower bound",
        "up to 40",
        ("order", "shift"),
        "spectra.sharpness.delta_sharpness:delta_sharpness",
        {"p": float("inf")},
        cheap=False,
        train_mode=True,
    ),
    "adaptive_sharpness_average": Entry(
        "mean rise of the loss under noise of 5 % of each weight (Kwon et al. 2021)",
        "about 11",
        ("layers", "units", "order", "bn_eval", "bn_train"),
        "spectra.sharpness.adaptive:adaptive_sharpness",
        cheap=False,
        train_mode=True,
    ),
    "adaptive_sharpness_worst": Entry(
        "largest rise of the loss under such changes of norm 0.05; a lower bound",
        "up to 20",
        ("layers", "units", "order", "bn_eval", "bn_train"),
        "spectra.sharpness.adaptive:adaptive_sharpness",
        {"form": "worst"},
        cheap=False,
        train_mode=True,
    ),
}


def chosen_measures(asked: str | Sequence[str]) -> tuple[str, ...]:
    """The names of the measures chosen by ``"all"``, ``"none"``, ``"cheap"`` or names, in the order of the catalogue.

    Raises:
        ArgumentError: a name that is not in the catalogue.

    Example:
        >>> chosen_measures("gradient_norm, squared_norm")
        ('squared_norm', 'gradient_norm')
    """
    names = _names(asked)
    if names == ["none"]:
        return ()
    if names == ["all"]:
        return tuple(CATALOGUE)
    meant = {name for name, entry in CATALOGUE.items() if entry.cheap and "cheap" in names}
    for name in names:
        if name != "cheap" and name not in CATALOGUE:
            near = difflib.get_close_matches(name, CATALOGUE, n=1) or [long for long in CATALOGUE if name in long]
            hint = f"; did you mean {near[0]}?" if name and near else ""
            raise ArgumentError(
                f"metrics={name!r}: all, none, cheap, or names that `spectra metrics` lists are needed{hint}"
            )
        meant.add(name)
    return tuple(name for name in CATALOGUE if name in meant)


def named_measures(asked: str | Sequence[str]) -> frozenset[str]:
    """The measures that are chosen by name or by ``"all"``; these are computed whatever they cost.

    Example:
        >>> sorted(named_measures("cheap, gradient_norm")), sorted(named_measures("cheap"))
        (['gradient_norm'], [])
    """
    names = _names(asked)
    return frozenset(chosen_measures([name for name in names if name != "cheap"] or "none"))


def _names(asked: str | Sequence[str]) -> list[str]:
    return [name.strip() for name in asked.split(",")] if isinstance(asked, str) else list(asked)


def invariance_table() -> str:
    """The catalogue's measures and the changes, as a table in Markdown."""
    lines = [f"| measure | {' | '.join(CHANGES.values())} |", "|---" * (1 + len(CHANGES)) + "|"]
    lines += [
        f"| `{name}` | {' | '.join(entry.under(change) for change in CHANGES)} |" for name, entry in CATALOGUE.items()
    ]
    return "\n".join(lines)
