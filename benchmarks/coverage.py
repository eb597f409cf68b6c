"""How often the 95 % intervals hold the truth, and whether numbers contradict each other, by kind of spectrum.

    python benchmarks/coverage.py [--runs 2000] [--out docs/coverage.md]

A probe's tridiagonal depends on the matrix only through its eigenvalues and the probe's weights on their eigenspaces,
which are independent chi-squares divided by their sum (sphere probes). So the probes are drawn as such, their Lanczos
recurrences are run in NumPy, and the estimates are those of ``spectra.Spectrum``: what is tested is not imitated.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spectra.spectrum.consistency import contradictions
from spectra.spectrum.eigenpairs import Eigenpairs
from spectra.spectrum.spectrum import Spectrum
from spectra.spectrum.tridiagonal import Tridiagonal

ROWS = 10_000
STEPS = 20
PAIRS = 10  # eigenpairs taken out
PROBES = (2, 4, 8)
GOOD = 93.0  # percent: what is below by more than three standard errors is a defect
QUANTITIES = {
    "trace": "trace",
    "Frobenius": "frobenius_norm",
    "stable rank": "stable_rank",
    "trace, deflated": "deflated_trace",
    "Frobenius, deflated": "deflated_frobenius_norm",
}
CHECKED = (2, 4)  # contradictions are looked for in every run, at these numbers of probes in turn


def _rest(values: np.ndarray, *taken: np.ndarray) -> np.ndarray:
    """The taken ones, then the values, each as often as fills up the rows."""
    room = ROWS - sum(map(len, taken))
    return np.concatenate([*taken, np.repeat(values, np.diff(np.linspace(0, room, len(values) + 1).astype(int)))])


def spectra() -> dict[str, np.ndarray]:
    """Eigenvalues by kind of spectrum, each (ROWS,)."""
    bulk = np.linspace(-1.0, 1.0, 41)[1:-1]
    semicircle = 0.02 * np.sin(np.linspace(-np.pi / 2, np.pi / 2, 42)[1:-1])
    head = np.arange(1.0, 101.0)
    tail = np.geomspace(101.0, ROWS, 40)
    return {
        "bulk": _rest(1.5 + bulk),
        "one dominant": _rest(0.01 * (1 + bulk), np.array([30.0])),
        "ten equal": _rest(0.001 * (1 + bulk), np.full(10, 5.0)),
        "ten geometric": _rest(0.0001 * (1 + bulk), 10.0 * 2.0 ** -np.arange(10)),
        "twenty geometric": _rest(0.0001 * (1 + bulk), 10.0 * 1.5 ** -np.arange(20)),
        "power law 1/2": _rest(tail**-0.5, head**-0.5),
        "power law 1": _rest(1 / tail, 1 / head),
        "power law 2": _rest(tail**-2, head**-2),
        "Gauss-Newton": _rest(
            np.concatenate([np.zeros(36), np.geomspace(1e-4, 0.05, 4)]), np.linspace(4.0, 12.0, 9), [0.4, 0.3, 0.2, 0.1]
        ),
        "Hessian": _rest(semicircle, np.linspace(2.0, 9.0, 9), [0.5, 0.4, 0.3], [-0.8, -0.5, -0.3]),
        "spike on a flat bulk": _rest(np.array([0.05]), np.array([13.7])),
        "double spike": _rest(0.01 * (1 + bulk), np.full(2, 30.0)),
        "three spikes, one double": _rest(0.01 * (1 + bulk), np.array([30.0, 20.0, 20.0, 12.0])),
        "close pair": _rest(0.01 * (1 + bulk), np.array([30.0, 30.0 + 1e-6])),
    }


@dataclass
class Run:
    """What the probes of one run left of a diagonal matrix."""

    n: int
    tridiagonals: list[Tridiagonal]
    overlaps: np.ndarray  # (probes, PAIRS)
    start_overlaps: np.ndarray  # (probes, m)
    pairs: Eigenpairs

    def spectrum(self, k: int, *, with_overlaps: bool = True) -> Spectrum:
        """That of the first k probes."""
        return Spectrum(
            self.tridiagonals[:k],
            self.n,
            eigenpairs=self.pairs,
            overlaps=self.overlaps[:k],
            start_overlaps=self.start_overlaps[:k] if with_overlaps else None,
        )


def draw(eigenvalues: np.ndarray, runs: int, probes: int, seed: int) -> Iterator[Run]:
    """Runs of sphere probes of a diagonal matrix: their recurrences, and overlaps with the largest eigenpairs."""
    rng = np.random.default_rng(seed)
    order = np.argsort(-np.abs(eigenvalues), kind="stable")
    top, rest = eigenvalues[order[:PAIRS]], eigenvalues[order[PAIRS:]]
    values, multiplicity = np.unique(rest, return_counts=True)
    start = np.sqrt(rng.chisquare(multiplicity, (1, len(values))))  # of the last start of a search, orthogonal to them
    found_rest = _tridiagonal(*(rows[0] for rows in _lanczos(values, start / np.linalg.norm(start), 2 * STEPS)[:2]))
    found = Eigenpairs(
        top,
        np.zeros(PAIRS),
        np.ones(PAIRS, bool),
        scale=float(np.abs(top[0])),
        complete=True,
        completeness="exact",
        rest=found_rest.nodes,
    )
    for _ in range(runs):
        single = rng.standard_normal((probes, PAIRS))
        # Of each eigenspace the part along the first probe's own part, and the rest of it.
        along = rng.standard_normal((probes, len(values)))
        across = np.where(multiplicity > 1, rng.chisquare(np.maximum(multiplicity - 1, 1), along.shape), 0.0)
        grouped = along**2 + across
        along[0] = np.sqrt(grouped[0])
        lengths = np.sqrt((single**2).sum(1, keepdims=True) + grouped.sum(1, keepdims=True))
        starts = np.concatenate([single, np.sqrt(grouped)], axis=1) / lengths
        alphas, betas, basis = _lanczos(np.concatenate([top, values]), starts, STEPS)
        tridiagonals = [_tridiagonal(*rows) for rows in zip(alphas, betas)]
        products = (np.concatenate([single, along], axis=1) / lengths) @ basis[: tridiagonals[0].steps].T
        yield Run(len(eigenvalues), tridiagonals, single / lengths, products, found)


def _lanczos(values: np.ndarray, starts: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lanczos with full re-orthogonalisation on a diagonal matrix, for all starts at once; (count, steps) each.

    The third is the basis of the first start, (steps, d).
    """
    count, d = starts.shape
    basis = np.zeros((count, steps + 1, d))
    basis[:, 0] = starts
    alphas, betas = np.zeros((count, steps)), np.zeros((count, steps))
    for j in range(steps):
        rest = values * basis[:, j]
        alphas[:, j] = (basis[:, j] * rest).sum(1)
        for _ in range(2):
            inner = np.matmul(basis[:, : j + 1], rest[:, :, None])
            rest -= np.matmul(inner.transpose(0, 2, 1), basis[:, : j + 1])[:, 0]
        betas[:, j] = np.sqrt((rest**2).sum(1))
        basis[:, j + 1] = rest / np.maximum(betas[:, j], 1e-300)[:, None]
    return alphas, betas, basis[0, :steps]


def _tridiagonal(alphas: np.ndarray, betas: np.ndarray) -> Tridiagonal:
    ended = np.flatnonzero(betas <= 1e-10 * (np.abs(alphas) + betas).max())
    steps = int(ended[0]) + 1 if ended.size else len(alphas)
    return Tridiagonal(alphas[:steps], betas[:steps], exhausted=bool(ended.size))


@dataclass
class Cell:
    """Of one quantity at one number of probes: how often the interval held the truth and was flagged, in percent."""

    covered: float
    flagged: float
    width: float  # of the interval, relative to the truth: the median over runs
    error: float  # of the value, relative to the truth: the median over runs

    def __str__(self) -> str:
        return f"{self.covered:.1f}{'*' if self.flagged > 50 else ''}"


@dataclass
class Measured:
    """What came of one kind of spectrum."""

    cells: dict[tuple[str, int], Cell]
    stored: dict[tuple[str, int], Cell]  # without the overlaps of the starts, as in files of before
    records: int
    contradictions: list[str]


def measure(eigenvalues: np.ndarray, runs: int, seed: int) -> Measured:
    """Coverage, widths and contradictions of one kind of spectrum."""
    truth = {
        "trace": eigenvalues.sum(),
        "Frobenius": np.linalg.norm(eigenvalues),
        "stable rank": (eigenvalues**2).sum() / np.abs(eigenvalues).max() ** 2,
    }
    seen: dict[tuple[bool, str, int], list[tuple[bool, bool, float, float]]] = {}
    broken: list[str] = []
    records = 0
    for number, run in enumerate(draw(eigenvalues, runs, max(PROBES), seed)):
        for k in PROBES:
            for with_overlaps in (True, False):
                spectrum = run.spectrum(k, with_overlaps=with_overlaps)
                if with_overlaps and k == CHECKED[number % len(CHECKED)]:
                    records += 1
                    broken += contradictions(spectrum.estimates(), run.n)
                for name in list(QUANTITIES)[: len(QUANTITIES) if with_overlaps else 2]:
                    estimate = getattr(spectrum, QUANTITIES[name])()
                    true = float(truth[name.split(",")[0]])
                    slack = 1e-12 * abs(true)
                    held = bool(estimate.lower - slack <= true <= estimate.upper + slack)
                    width, error = (estimate.upper - estimate.lower) / abs(true), abs(estimate.value / true - 1)
                    rows = seen.setdefault((with_overlaps, name, k), [])
                    rows.append((held, estimate.note is not None, width, error))
    cells = {
        key: Cell(
            100 * float(np.mean([row[0] for row in rows])),
            100 * float(np.mean([row[1] for row in rows])),
            float(np.median([row[2] for row in rows])),
            float(np.median([row[3] for row in rows])),
        )
        for key, rows in seen.items()
    }
    by_kind = [{(name, k): cell for (w, name, k), cell in cells.items() if w == kind} for kind in (True, False)]
    return Measured(by_kind[0], by_kind[1], records, broken)


WORDS = """# How often the intervals hold the truth

Measured, not assumed: the nominal 95 % intervals of `trace`, `frobenius_norm` and `stable_rank`, and of
`trace_deflated` and `frobenius_norm_deflated`, by kind of spectrum and number of probes `k`. Each cell is the
percentage of {runs} runs with other probes in which the interval held the exact value; its own standard error is
{error:.1f}. Written by `python benchmarks/coverage.py` (seeds fixed), which draws sphere probes of diagonal
matrices of {rows} rows, runs Lanczos with m = {steps} on them, and calls the methods of `spectra.Spectrum`. A
sphere probe knows no direction, so what holds for a diagonal matrix holds for every matrix with its eigenvalues.

## How to read it

* An eigenvalue that has converged in every probe is taken as known, if it is simple: it adds nothing to the error
  of the probes ([quantities.md](quantities.md) has the formula). That is why the intervals of spectra with few
  large eigenvalues are narrow. Whether an eigenvalue is simple is seen from the scalar products of the probes with
  the first probe's Krylov basis, which each record keeps.
* The standard error of the remainder is never taken below what its known Ritz values imply, which is why some cells
  lie well above 95: there the interval is wider than it need be.
* A cell below {good:.0f} % by more than three of its standard errors would be a defect of the package. {verdict}
* *Deflated*: the {pairs} eigenvalues of the largest magnitude are taken out by a search of their own (`--eigenpairs
  {pairs}`).
* The intervals are those of the probes alone. Seeing a sample of the data is another error, and not in them.
* The stable rank's interval has to hold for two norms at once, and covers more than it says.

## Coverage, percent

{coverage}

## Width of the interval, and error of the value

Upper end less lower end over the truth, in percent, at k = 8: the median over the runs. In brackets the median
error of the value, in percent.

{widths}

## Files without the scalar products of the probes

Files of before these were kept have the tridiagonals alone. Then the law of the weights decides whether an
eigenvalue is simple, and one in doubt stays with the probes. A single multiple eigenvalue among simple ones is not
always recognised; that is the price, and it is seen in the rows of the double spikes. Percent:

{stored}

## Contradictions

In {checked} records, of every kind with 2 or 4 probes, all standard estimates were held against each other,
values and intervals: `|H|_2 <= |H|_F <= sqrt(n) |H|_2`, `lambda_min <= Tr H / n <= lambda_max`, stable <=
participation <= entropy rank, the fractions against the ends and norms, and the other relations of
`spectra/spectrum/consistency.py`. Contradictions found: {contradictions}.

## The spectra

{spectra}
"""

ABOUT = {
    "bulk": "evenly spread over [0.5, 2.5]",
    "one dominant": "30, and a bulk within [0, 0.02]",
    "ten equal": "ten times 5, and a bulk within [0, 0.002]",
    "ten geometric": "10, 5, 2.5, ... (ten of them), and a bulk within [0, 0.0002]",
    "twenty geometric": "10, 6.7, 4.4, ... (twenty of them): half remain when ten are taken out",
    "power law 1/2": "`j^-1/2` for j up to n (the tail in 40 groups)",
    "power law 1": "`1/j`",
    "power law 2": "`j^-2`",
    "Gauss-Newton": "C - 1 = 9 outliers from 4 to 12, four of 0.1 to 0.4, 90 % zeros and a small rest",
    "Hessian": "9 outliers from 2 to 9, a few up to 0.5 on either side, and a bulk of both signs within 0.02",
    "spike on a flat bulk": "13.7, and all others 0.05",
    "double spike": "twice 30, and a bulk within [0, 0.02]",
    "three spikes, one double": "30, twice 20, 12, and a bulk within [0, 0.02]",
    "close pair": "30 and 30.000001, and a bulk within [0, 0.02]",
}


def report(table: dict[str, Measured], runs: int) -> str:
    """The page."""
    silent = [
        f"{name}, {quantity}, k = {k}: {cell}"
        for name, measured in table.items()
        for (quantity, k), cell in measured.cells.items()
        if cell.covered + 300 * np.sqrt(0.95 * 0.05 / runs) < GOOD and cell.flagged <= 50
    ]
    head = [f"{quantity}, k={k}" for quantity in QUANTITIES for k in PROBES]
    few = list(QUANTITIES)[:2]
    coverage = [[name, *(str(row.cells[q, k]) for q in QUANTITIES for k in PROBES)] for name, row in table.items()]
    stored = [[name, *(str(row.stored[q, k]) for q in few for k in PROBES)] for name, row in table.items()]
    widths = [
        [name, *(f"{100 * row.cells[q, 8].width:.2g} ({100 * row.cells[q, 8].error:.1g})" for q in QUANTITIES)]
        for name, row in table.items()
    ]
    broken = [words for row in table.values() for words in row.contradictions]
    return WORDS.format(
        runs=runs,
        error=100 * np.sqrt(0.95 * 0.05 / runs),
        rows=f"{ROWS:,}",
        steps=STEPS,
        good=GOOD,
        pairs=PAIRS,
        verdict="There is none." if not silent else "There are: " + "; ".join(silent) + ".",
        coverage=_markdown(["spectrum", *head], coverage),
        widths=_markdown(["spectrum", *QUANTITIES], widths),
        stored=_markdown(["spectrum", *(f"{quantity}, k={k}" for quantity in few for k in PROBES)], stored),
        checked=f"{sum(row.records for row in table.values()):,}",
        contradictions=f"{len(broken)}" + (f", the first: {broken[0]}" if broken else ""),
        spectra=_markdown(["spectrum", "eigenvalues"], [[name, ABOUT[name]] for name in table]),
    )


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "coverage.md")
    options = parser.parse_args()
    table = {}
    for name, eigenvalues in spectra().items():
        start = time.perf_counter()
        table[name] = measure(eigenvalues, options.runs, seed=7)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    options.out.write_text(report(table, options.runs), encoding="utf-8")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
