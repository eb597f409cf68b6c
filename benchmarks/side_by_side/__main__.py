"""Measure spectra, other libraries and a reference side by side.

    python -m side_by_side [--repeats 5] [--seconds 25] [--network NAME ...] [--task NAME ...]   (make bench)
    python -m side_by_side --quick                                                      (make bench-quick)
    python -m side_by_side --page-only                write the page and the figure from the stored numbers

`make peers` installs the other libraries; those that are missing are left out, and named. The folder `benchmarks` must
be on PYTHONPATH.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from side_by_side import commands, figure, report, scaling
from side_by_side.contenders import PEERS, missing, offered, preload
from side_by_side.networks import NETWORKS
from side_by_side.quick import verdict
from side_by_side.rounds import Case, Turns, in_own_process
from side_by_side.truth import floors

ROOT = Path(__file__).parents[2]
TASKS = ("product", "slq", "lambda_max", "trace", "diagonal", "command", "scaling")


def cases_of(networks: Sequence[str], tasks: Sequence[str], *, everything: bool = False) -> list[Case]:
    """The cases: products with one batch and with several, the other tasks with one.

    Without ``everything``, networks of large cost have some of the tasks only.
    """
    cases = []
    for name in networks:
        network = NETWORKS[name]
        chosen = [task for task in tasks if everything or task in network.tasks]
        if "product" in chosen:
            cases += [Case(name, 1, "product", kind) for kind in ("hessian", "ggn")]
            several = ("hessian", "ggn") if everything else network.kinds
            cases += [Case(name, network.several, "product", kind) for kind in several]
        cases += [Case(name, 1, task) for task in ("slq", "lambda_max", "trace") if task in chosen]
        if "diagonal" in chosen and network.plain:
            cases += [Case(name, 1, "diagonal", kind) for kind in ("hessian", "ggn")]
    return cases


def processor() -> str:
    """The name of the CPU, as far as it can be known."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def environment() -> dict[str, str]:
    """What the figures depend on."""
    installed = [name for name in PEERS if name not in missing()]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "CPU": f"{processor()}, one thread",
        "Python": f"{platform.python_version()}, {platform.system()}",
        "torch": torch.__version__,
        **{name: importlib.metadata.version(PEERS[name][0]) for name in installed},
        **({"not installed": ", ".join(missing())} if missing() else {}),
    }


def say(words: str, begun: float) -> None:
    print(f"{time.perf_counter() - begun:6.0f} s  {words}", file=sys.stderr, flush=True)


def measure(
    options: argparse.Namespace, only: Sequence[str] = (), save: Callable[[dict[str, Any]], object] = lambda found: None
) -> dict[str, Any]:
    """Measure all that is asked for; ``only``: these contenders; ``save`` is called with what there is so far."""
    begun = time.perf_counter()
    found: dict[str, Any] = {"environment": environment(), "floors": {}, "cases": [], "commands": [], "scaling": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for network in options.network:
            in_own_process(NETWORKS[network].train, folder / f"{network}.pt")
            found["floors"][network] = floor = in_own_process(floors, network)
            say(f"{network}: {', '.join(f'{key} {value:.4g}' for key, value in floor.items())}", begun)
        for case in cases_of(options.network, options.task, everything=options.all):
            columns_few = case.network != "gpt"  # the others have ten outputs
            names = [n for n in offered(case.task, case.kind, exact_trace=columns_few) if n not in missing()]
            names = [n for n in names if n in (only or names)]
            turns = Turns(case, names, folder / f"{case.network}.pt")
            turns.take(options.repeats, options.seconds)
            found["cases"].append(turns.summary())
            times = {n: c.get("gradients", "fails") for n, c in found["cases"][-1]["contenders"].items()}
            words = ", ".join(f"{n} {t if isinstance(t, str) else f'{t:.3g}'}" for n, t in times.items())
            say(f"{case.network}, {report.title(found['cases'][-1])}: {words}", begun)
            save(found)
        if "command" in options.task:
            for network in [network for network in options.network if NETWORKS[network].plain]:
                weights = folder / f"{network}.pt"
                found["commands"].append(commands.measure(network, weights, folder, 1))
                say(f"{network}: whole commands", begun)
        if "scaling" in options.task:
            found["scaling"] = in_own_process(scaling.measure)
            say("growth", begun)
    save(found)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write, or judge; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="side_by_side", description="spectra, other libraries and a reference side by side."
    )
    parser.add_argument("--quick", action="store_true", help="against the reference alone; exit code 1 if too slow")
    parser.add_argument("--page-only", action="store_true", help="measure nothing")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of each case, at most")
    parser.add_argument(
        "--seconds", type=float, default=8.0, help="for the rounds of a case; the first is always taken"
    )
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--all", action="store_true", help="also the tasks that take minutes each, as SLQ of ResNet-20")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "performance.json")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where performance.md is written")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    preload()
    if options.quick:
        options.network = [name for name in options.network if NETWORKS[name].plain]
        options.task = [task for task in options.task if task in ("product", "slq", "lambda_max")]
        lines, code = verdict(measure(options, only=("spectra", "reference"))["cases"])
        print("\n".join(lines))
        return code
    if not options.page_only:
        measure(options, save=lambda found: options.json.write_text(json.dumps(found, indent=1) + "\n"))
    (options.docs / "images").mkdir(parents=True, exist_ok=True)
    found = json.loads(options.json.read_text(encoding="utf-8"))
    (options.docs / "performance.md").write_text(report.page(found), encoding="utf-8")

    figure.draw(found, options.docs / "images" / "performance.png")
    for sentence in report.lost(found["cases"]):
        print(f"lost: {sentence}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
