"""Correlation of two measures over runs, with bootstrap intervals; also within the levels of a confounder."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from math import isnan, nan

import numpy as np
from scipy import stats

from spectra.errors import ArgumentError

#: With fewer runs than this the interval is not meaningful.
FEWEST = 4


@dataclass(frozen=True)
class Association:
    """A correlation coefficient over runs, with its bootstrap interval.

    The interval is that of the percentiles over resampled runs. With few runs it is too narrow, and ``note`` says so.
    """

    name: str  # "pearson" or "kendall"
    value: float  # NaN where one of the two columns does not vary
    lower: float
    upper: float
    runs: int
    pairs: int  # the number of compared pairs of runs: all, or those within levels
    levels: int = 1
    confidence: float = 0.95
    note: str | None = None

    def __str__(self) -> str:
        within = "" if self.levels == 1 else f" within {self.levels} levels"
        if isnan(self.value):
            return f"{self.name}{within}: not defined: one of the two does not vary"
        return f"{self.name}{within}: {self.value:+.2f} [{self.lower:+.2f}, {self.upper:+.2f}], {self.runs} runs"


def associate(
    x: Sequence[float],
    y: Sequence[float],
    levels: Sequence[Hashable] | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[Association, Association]:
    """Pearson's and Kendall's coefficient of two columns, with bootstrap intervals over the rows.

    With `levels`, such as the batch size of each run, only runs of the same level are compared. Pearson's coefficient
    is that of the residuals of both columns about the mean of each level. Kendall's is tau-b, ``(concordant -
    discordant) / sqrt((pairs not tied in x) (pairs not tied in y))``, over the pairs within levels alone. An effect of
    the confounder on both columns is then not counted as association. Rows are resampled within their level.

    Args:
        x: (n,) the measure; rows that are not finite in either column are left out.
        y: (n,) the other quantity, such as the generalization gap.
        levels: (n,) the levels of the confounder.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        confidence: of the intervals.

    Returns:
        Pearson's and Kendall's coefficient.

    Raises:
        ArgumentError: columns of different length, or fewer than 4 rows that can be compared.

    References:
        M. G. Kendall (1945), The treatment of ties in ranking problems, Biometrika 33; Y. Jiang et al. (2020),
        Fantastic generalization measures and where to find them, ICLR (within levels of a hyperparameter).

    Example:
        >>> pearson, kendall = associate([1, 2, 3, 4, 5], [1, 3, 2, 5, 4])
        >>> round(pearson.value, 6), round(kendall.value, 6)
        (0.8, 0.6)
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    names = list(range(1)) * len(a) if levels is None else list(levels)
    if not len(a) == len(b) == len(names):
        raise ArgumentError(f"columns of {len(a)}, {len(b)} and {len(names)} rows: as many are needed of each")
    finite = np.isfinite(a) & np.isfinite(b)
    known = {name: index for index, name in enumerate(dict.fromkeys(names))}
    group = np.array([known[name] for name in names], dtype=np.int64)[finite]
    a, b = a[finite], b[finite]
    several = [level for level in np.unique(group) if (group == level).sum() > 1]
    usable = np.isin(group, several)
    a, b, group = a[usable], b[usable], group[usable]
    if len(a) < FEWEST:
        raise ArgumentError(f"{len(a)} runs can be compared: at least {FEWEST} are needed, two of a level")
    rows = [np.flatnonzero(group == level) for level in several]
    random = np.random.default_rng(seed)
    drawn = [np.concatenate([random.choice(part, len(part)) for part in rows]) for _ in range(resamples)]
    note = None
    if len(a) < 10:
        note = f"{len(a)} runs: an interval by resampling so few is too narrow"
    pairs = sum(len(part) * (len(part) - 1) // 2 for part in rows)
    tail = 100 * (1 - confidence) / 2

    def result(name: str, function: Callable[[np.ndarray, np.ndarray, np.ndarray], float]) -> Association:
        spread = np.array([function(a[i], b[i], group[i]) for i in drawn])
        spread = spread[np.isfinite(spread)]  # a resample of a single row, repeated, has no coefficient
        low, high = np.percentile(spread, [tail, 100 - tail]) if len(spread) else (nan, nan)
        value = function(a, b, group)
        return Association(name, value, float(low), float(high), len(a), pairs, len(rows), confidence, note)

    return result("pearson", _pearson), result("kendall", _kendall)


def _pearson(a: np.ndarray, b: np.ndarray, group: np.ndarray) -> float:
    u, v = (column - _level_means(column, group) for column in (a, b))
    scale = float(np.sqrt((u @ u) * (v @ v)))
    tiny = len(a) * np.finfo(float).eps * float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(u @ v) / scale if scale > tiny else nan


def _level_means(column: np.ndarray, group: np.ndarray) -> np.ndarray:
    _, place = np.unique(group, return_inverse=True)
    means: np.ndarray = (np.bincount(place, column) / np.bincount(place))[place]
    return means


def _kendall(a: np.ndarray, b: np.ndarray, group: np.ndarray) -> float:
    if (group == group[0]).all():
        with np.errstate(invalid="ignore"):
            return float(stats.kendalltau(a, b).statistic)
    same = np.triu(group[:, None] == group[None, :], 1)
    u, v = (np.sign(column[:, None] - column[None, :])[same] for column in (a, b))
    scale = float(np.sqrt((u @ u) * (v @ v)))
    return float(u @ v) / scale if scale > 0 else nan
