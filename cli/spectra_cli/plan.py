"""``spectra plan``: what an analysis will cost, before it is run."""

from __future__ import annotations

import json
from typing import Any

import click
from rich.console import Console

from spectra.analysis.plan import plan_checkpoints
from spectra.analysis.predicted import Plan, RecordCost
from spectra.checkpoints.bounds import parse_size
from spectra.runtime.memory import in_words
from spectra_cli.analysis_options import TaskMaker, analysis_options, settings_in
from spectra_cli.checkpoint_choice import Choice, checkpoint_choice
from spectra_cli.grouped_help import GroupedCommand, grouped_option
from spectra_cli.layout import make_console, new_table, print_line, print_pairs
from spectra_cli.progress import display_of

_BANDWIDTH = 1e9  # bytes per second, to make traffic readable


@click.command(cls=GroupedCommand)
@checkpoint_choice
@analysis_options
@grouped_option("Results file and display", "--json", "as_json", is_flag=True, help="Print the plan as JSON.")
@grouped_option(
    "Several processes",
    "--processes",
    type=click.IntRange(1),
    default=1,
    metavar="N",
    help="Also the cost if N processes share the analysis, as torchrun starts them.",
)
def command(as_json: bool, processes: int, **options: Any) -> None:
    """Predict time, products, memory and file size of `spectra analyze` with the same options. Nothing is written.

    The first checkpoint is read and tested as in an analysis, and a few products are computed on its first batches.
    The time is that of this machine as busy as it is now. What would make the analysis cheaper is printed with the
    time that it saves.

    \b
    Examples:
      spectra plan ckpt.pt --task task.py:task
      spectra plan run/ --task task.py:task --operator hessian --operator ggn --epochs 0:100:10
    """
    choice = Choice.taken_from(options)
    asked = settings_in(options)
    with display_of(options["progress"], None, quiet=options["quiet"]) as display:
        paths, _ = choice.paths(asked.max_size, display.note)
        make_task = TaskMaker(options["task_option"], options["task_args"], asked.analysis.seed, display)
        plan = plan_checkpoints(paths, make_task, asked)
    if as_json:
        shared = {} if processes == 1 else {"shared": _shared_as_json(plan, processes)}
        click.echo(json.dumps(_as_json(plan) | shared, indent=2, allow_nan=False))
    else:
        _print(plan, processes)


def _as_json(plan: Plan) -> dict[str, Any]:
    seconds, cpu_seconds = map(float, plan.time())
    return {
        "checkpoints": plan.checkpoints,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_memory_bytes": round(plan.memory),
        "file_bytes": plan.file_bytes,
        "records": [_record_as_json(record) for record in plan.records],
        "savings": [{"change": s.change, "seconds": s.seconds, "price": s.price} for s in plan.savings()],
        "notes": list(plan.notes),
    }


def _record_as_json(record: RecordCost) -> dict[str, Any]:
    seconds, cpu_seconds = map(float, record.time())
    return {
        "operator": record.operator,
        "bn_mode": record.bn_mode,
        "products": record.products,
        "test_products": record.products * (len(record.trials) - 1),
        "eigenpair_products_at_most": record.search,
        "block_products_at_most": record.block_products,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "probes_per_pass": record.width,
        "batches": record.batches,
        "kept_share": min(map(record.kept_share, record.trials)),
        "graph_bytes": round(record.graphs),
        "file_bytes": record.bytes,
    }


def _shared_as_json(plan: Plan, processes: int) -> dict[str, Any]:
    return {
        "processes": processes,
        "seconds_without_communication": float(plan.time(processes=processes)[0]),
        "sent_bytes_per_process": round(plan.traffic(processes)),
        "peak_memory_bytes_per_process": round(plan.memory_of_each(processes)),
    }


def _print_shared(console: Console, plan: Plan, processes: int) -> None:
    """What each of several processes takes."""
    sent = plan.traffic(processes)
    batches = min(record.batches for record in plan.records)
    console.print()
    print_line(console, f"each of {processes} processes:")
    print_pairs(
        console,
        [
            ("time", f"about {duration(float(plan.time(processes=processes)[0]))}, without communication"),
            ("sends", f"{in_words(sent)}: {duration(sent / _BANDWIDTH)} at 1 GB/s"),
            ("peak memory", f"about {in_words(plan.memory_of_each(processes))}"),
        ],
    )
    if processes > batches:
        print_line(console, f"! {batches} batches: no more processes can share them; a smaller --batch-size gives more")


def _print(plan: Plan, processes: int) -> None:
    console = make_console()
    table = new_table("operator", "BN", "products", "time", "graphs kept", "all graphs", title="per checkpoint")
    table.columns[0].justify = table.columns[1].justify = "left"
    for record in plan.records:
        more = record.search + record.block_products
        search = f" + at most {more:,}" if more else ""
        count = f"{record.products * len(record.trials):,}{search}"
        kept = f"{min(map(record.kept_share, record.trials)):.0%}"
        time = duration(float(record.time()[0]))
        table.add_row(record.operator, record.bn_mode, count, time, kept, in_words(record.graphs))
    console.print(table)
    products = plan.checkpoints * sum(record.products * len(record.trials) for record in plan.records)
    console.print()
    print_pairs(
        console,
        [
            ("checkpoints", f"{plan.checkpoints:,}"),
            ("products", f"{products:,}"),
            ("time", f"about {duration(float(plan.time()[0]))}"),
            ("peak memory", f"about {in_words(plan.memory)}"),
            ("results file", f"about {in_words(plan.file_bytes)}"),
        ],
    )
    if processes > 1:
        _print_shared(console, plan, processes)
    if savings := plan.savings():
        console.print()
        print_line(console, "cheaper:")
        print_pairs(console, [(s.change, f"saves {duration(s.seconds)}: {s.price}") for s in savings])
    limit = parse_size(plan.asked.memory, "memory")
    if limit is not None and plan.memory > limit:
        print_line(console, f"! more than --memory {plan.asked.memory}: about {in_words(plan.memory)} would fit")
    for note in plan.notes:
        print_line(console, f"! {note}")


def duration(seconds: float) -> str:
    """A time in words, to two or three digits.

    >>> duration(7.24), duration(90), duration(7300), duration(200000)
    ('7.2 s', '90 s', '2.0 h', '2.3 days')
    """
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60), (172800, "h", 3600)):
        if seconds < limit:
            value = seconds / size
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{seconds / 86400:.1f} days"
