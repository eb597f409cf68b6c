"""The page docs/performance.md, from the measurements alone."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

from side_by_side.contenders import CONTENDERS, PEERS
from side_by_side.networks import NETWORKS

OURS = ("spectra", "spectra, exact trace")
# Errors above which a result does not count as that of an exact contender; traces of ten probes have no such bound.
BOUNDS = {"product": 1e-3, "diagonal": 1e-3, "lambda_max": 1e-3, "slq": 2e-3, "trace": float("inf")}
_CLEAR = 1.05  # a ratio that is said in words
_TASKS = {
    ("product", "hessian"): "Hessian product",
    ("product", "ggn"): "Gauss-Newton product",
    ("slq", "hessian"): "SLQ, one probe",
    ("lambda_max", "hessian"): "largest eigenvalue to 1e-3",
    ("trace", "hessian"): "trace, ten probes",
    ("diagonal", "hessian"): "exact diagonal of the Hessian",
    ("diagonal", "ggn"): "exact diagonal of the Gauss-Newton matrix",
}


def key_of(case: dict[str, Any]) -> tuple[str, int, str, str]:
    """What identifies a case."""
    return case["network"], case["batches"], case["task"], case["kind"]


def title(case: dict[str, Any]) -> str:
    """The task of a case in words."""
    words = _TASKS[case["task"], case["kind"]]
    if case["task"] == "slq":
        words += f", m = {NETWORKS[case['network']].steps}"
    return f"{words}, {case['batches']} batches" if case["batches"] > 1 else words


def is_exact(case: dict[str, Any], name: str) -> bool:
    """Whether a contender finished, with an error within the bound of the task."""
    found = case["contenders"][name]
    return "failed" not in found and (found["error"] is None or found["error"] <= BOUNDS[case["task"]])


def ratio(case: dict[str, Any], name: str, other: str) -> float:
    """CPU time of ``name`` divided by that of ``other``: the median over the rounds."""
    pair = (case["contenders"][name]["cpu"], case["contenders"][other]["cpu"])
    return median(a / b for a, b in zip(*pair))


def best_peer(case: dict[str, Any]) -> str | None:
    """The fastest exact contender that is neither spectra nor the reference."""
    exact = [name for name in PEERS if name in case["contenders"] and is_exact(case, name)]
    return min(exact, key=lambda name: case["contenders"][name]["gradients"], default=None)


def lost(cases: list[dict[str, Any]]) -> Iterator[str]:
    """A sentence for every task in which an exact contender is faster than spectra by more than 5 %."""
    for case in cases:
        where = f"{NETWORKS[case['network']].title}, {title(case)}"
        if "spectra" not in case["contenders"] or not is_exact(case, "spectra"):
            yield f"{where}: spectra has no exact result"
            continue
        for other in (best_peer(case), "reference"):
            if other in case["contenders"] and is_exact(case, other) and ratio(case, "spectra", other) > _CLEAR:
                yield f"{where}: {ratio(case, 'spectra', other):.2f} times the time of {other}"


def wrong(cases: list[dict[str, Any]]) -> Iterator[str]:
    """A sentence for every contender that fails or exceeds the bound on the error."""
    for case in cases:
        for name, found in case["contenders"].items():
            where = f"{NETWORKS[case['network']].title}, {title(case)}, {name}"
            if "failed" in found:
                yield f"{where}: fails, {found['failed']}"
            elif not is_exact(case, name):
                yield f"{where}: off by {found['error']:.1e}"


def case_table(cases: list[dict[str, Any]]) -> Iterator[str]:
    """The rows of one network."""
    names = [name for name in CONTENDERS if any(name in case["contenders"] for case in cases)]
    yield f"| gradients | {' | '.join(names)} | spectra / best peer | spectra / reference |"
    yield "|---" * (len(names) + 3) + "|"
    for case in cases:
        cells = [title(case)]
        for name in names:
            found = case["contenders"].get(name)
            if found is None or "failed" in found:
                cells.append("" if found is None else "fails")
            else:
                cells.append(f"{found['gradients']:.3g}{'' if is_exact(case, name) else ' (wrong)'}")
        peer = best_peer(case)
        for other in (peer, "reference"):
            known = other in case["contenders"] and is_exact(case, other) and "cpu" in case["contenders"]["spectra"]
            cells.append(f"{ratio(case, 'spectra', other):.2f}" if known else "")
        yield f"| {' | '.join(cells)} |"


def detail_table(cases: list[dict[str, Any]]) -> Iterator[str]:
    """Error, set-up and memory of every contender, for each task of one network."""
    yield "| | contender | error | CPU s | wall s | set-up, gradients | memory, MiB |"
    yield "|---|---|---|---|---|---|---|"
    for case in cases:
        for name, found in case["contenders"].items():
            if "failed" in found:
                yield f"| {title(case)} | {name} | fails: {found['failed'].replace('|', '/')} | | | | |"
                continue
            error = "" if found["error"] is None else f"{found['error']:.0e}"
            set_up = f"{found['set_up_gradients']:.1f}" if case["task"] == "product" else ""
            cpu, wall = median(found["cpu"]), median(found["wall"])
            yield f"| {title(case)} | {name} | {error} | {cpu:.3g} | {wall:.3g} | {set_up} | {found['peak_mib']:.0f} |"


def command_table(found: dict[str, Any]) -> Iterator[str]:
    """Whole commands."""
    yield "| CPU s | import torch | set-up, with imports | spectrum alone | whole | set-up share | reference |"
    yield "|---|---|---|---|---|---|---|"
    for command in found["commands"]:
        cpu = {what: median(run["cpu"] for run in runs) for what, runs in command["runs"].items()}
        cells = [NETWORKS[command["network"]].title]
        cells += [f"{cpu[what]:.1f}" for what in ("import torch", "set-up", "spectrum", "whole")]
        cells += [f"{100 * cpu['set-up'] / cpu['whole']:.0f} %", f"{cpu['reference']:.1f}"]
        yield f"| {' | '.join(cells)} |"


def floor_table(found: dict[str, Any]) -> Iterator[str]:
    """Operations of products, and what was measured."""
    yield "| in gradients | Hessian: floor | kept graphs | measured | Gauss-Newton: floor | kept graphs | measured |"
    yield "|---|---|---|---|---|---|---|"
    for network, floor in found["floors"].items():
        cells = [NETWORKS[network].title]
        for kind in ("hessian", "ggn"):
            cells += [f"{floor[kind]:.2f}", f"{floor[f'{kind} by graphs']:.2f}"]
            key = (network, 1, "product", kind)
            measured = [case["contenders"]["spectra"] for case in found["cases"] if key_of(case) == key]
            cells.append(f"{measured[0]['gradients']:.2f}" if measured and "gradients" in measured[0] else "")
        yield f"| {' | '.join(cells)} |"


def page(found: dict[str, Any]) -> str:
    """The whole page."""
    facts = found["environment"]
    rows = ["| environment | |", "|---|---|", *(f"| {key} | {value} |" for key, value in facts.items())]
    lines = [_HEAD.format(environment="\n".join(rows))]
    lines += ["![time of each task and contender](images/performance.png)", "", "## What spectra loses", ""]
    lines += [f"- {sentence}." for sentence in lost(found["cases"])] or ["Nothing by more than 5 %."]
    lines += ["", "## Wrong or failing results, not compared", ""]
    lines += [f"- {sentence.rstrip('.')}." for sentence in wrong(found["cases"])] or ["None."]
    lines += ["", "## Floors", "", _FLOORS, ""]
    lines += [*floor_table(found), "", "## Tasks", "", _CASES]
    for network in NETWORKS:
        cases = [case for case in found["cases"] if case["network"] == network]
        if cases:
            lines += ["", f"### {NETWORKS[network].title}", "", *case_table(cases)]
    if found["commands"]:
        lines += ["", "## The whole command", "", _COMMANDS, "", *command_table(found)]
    if found["scaling"]:
        lines += ["", "## Growth", "", _SCALING, "", "| variable | values | CPU s | exponent |", "|---|---|---|---|"]
        for sweep in found["scaling"]:
            values = ", ".join(f"{value:,}" for value in sweep["values"])
            seconds = ", ".join(f"{value:.2g}" for value in sweep["seconds"])
            lines.append(f"| {sweep['variable']} | {values} | {seconds} | {sweep['exponent']:.2f} |")
    lines += ["", "## Errors, set-up and memory", "", _DETAILS]
    for network in NETWORKS:
        cases = [case for case in found["cases"] if case["network"] == network]
        if cases:
            lines += ["", f"### {NETWORKS[network].title}: details", "", *detail_table(cases)]
    return "\n".join(lines) + "\n"


_HEAD = """# Performance

Written by `make bench`, with all numbers in `benchmarks/performance.json`.

{environment}

The unit is a **gradient**: one forward and one backward pass over all data in plain torch, measured in the same
process just before each turn. Every contender and task has a process of its own, on one thread. The processes take
turns (A B C A B C), and the medians over the rounds are given. Times are CPU seconds. Weights are those after ten
steps of training on synthetic data, in float32. *Reference* is what a careful user would write by hand: kept autograd
graphs in plain torch, and Lanczos that orthogonalises twice in float32 (`benchmarks/side_by_side/reference.py`). A
peer is *exact* if its error against a float64 result is within 0.1 % (SLQ: 0.2 %, of the largest node); only exact
peers are compared.
"""
_FLOORS = """A Hessian product needs at least 2 gradients in floating-point operations, and a Gauss-Newton product
with kept state 4/3. Less is needed where the first layer is large: it has no derivative in its input. *Kept graphs*
is what torch executes in the reference, as `torch.utils.flop_counter` counts it. Times can be below or above these
ratios: operations of different shapes have different speeds, and elementwise operations are not counted."""
_CASES = """Products are taken from prepared state where a contender can keep it. Products are measured with all data
in one batch and in several, the other tasks with one. The large networks have fewer tasks; `--all` measures all,
which takes minutes for each. All other tasks start from the model and include the set-up: for spectra, the checks
before the first product. curvlinops does not orthogonalise the Lanczos vectors of SLQ, which saves time and leaves
spurious copies of eigenvalues. The diagonal of the Hessian by spectra includes the certificate that its entries are
the Hessian's; that of the Gauss-Newton matrix has none."""
_COMMANDS = """`spectra analyze` with `-m 40 -k 4`, whole processes from start to exit. *Set-up* is the same command
with one step and one probe. *Spectrum alone* is with `--no-check --metrics none`. *Reference* is a script with the
same 160 products and no checks, file or report."""
_SCALING = """SLQ for the Hessian of an MLP 784-256-256-10, 256 samples, m = 25, k = 1, without the set-up; one
variable changes at a time (n by the widths of the hidden layers). The exponent is that of a fitted power law."""
_DETAILS = """Errors: of products, relative to the norm; of diagonals, on twelve entries; of the largest eigenvalue,
that of the float64 Rayleigh quotient relative to the largest one found; of SLQ, that of the largest node; of traces,
relative to the exact one, where it is known. Memory is the peak above that of the process with model, data and
libraries."""
