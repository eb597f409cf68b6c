"""A record in words: its facts, its origin, the settings that it shares with its run, and the cells of its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spectra.results.number_text import estimate_cells as estimate_cells
from spectra.results.number_text import plain
from spectra.results.record import Record
from spectra.results.trajectory import Trajectory

#: The columns of CSV: one row per record x estimate; an empty cell is a number that is not there.
COLUMNS = (
    "file",
    "checkpoint",
    "checkpoint_sha256",
    "epoch",
    "step",
    "operator",
    "bn_mode",
    "status",
    "n_parameters",
    "n_samples",
    "loss",
    "estimate",
    "value",
    "stderr",
    "lower",
    "upper",
    "confidence",
    "num_probes",
    "tau",
    "resolved",
    "reason",
)

FACTS = {  # in this order; what else there is follows
    "loss": "loss of the data",
    "objective": "loss with the l2 term",
    "accuracy": "accuracy",
    "gradient_norm": "gradient norm",
    "weight_norm": "weight norm",
    "n_parameters": "parameters n",
    "n_samples": "samples N",
    "total_weight": "total weight",
    "n_batches": "batches",
    "rank_bound_counting": "rank at most, by counting alone",
    "rank_bound_ff": "4 d_y (sum N_l + d_x), a heuristic for the rank, no bound",
    "d_y": "outputs d_y",
    "d_x": "inputs d_x",
    "sum_of_widths": "widths of all layers, sum N_l",
    "test_loss": "loss of the test data",
    "test_accuracy": "accuracy on the test data",
    "test_n_samples": "test samples",
    "generalization_gap": "generalization gap, test loss - loss",
    "accuracy_gap": "accuracy gap, accuracy - test accuracy",
}


_GRAPHS = ("batches", "kept", "kept_bytes")


def header(trajectory: Trajectory) -> list[tuple[str, str]]:
    """(name, words) of the settings that the records share; unknown ones are left out."""
    settings = trajectory.settings or next((record.settings for record in trajectory), {})
    first = next((record for record in trajectory if record.spectrum is not None), None)
    lines = [
        ("task", settings.get("task")),
        ("loss", settings.get("loss")),
        (
            "reduction",
            settings.get("reduction") and f"{settings['reduction']}, l2 = {plain(settings.get('l2') or 0.0)}",
        ),
    ]
    if first is not None and first.spectrum is not None:
        spectrum = first.spectrum
        asked = settings.get("lanczos_steps", spectrum.lanczos_steps)
        fewer = f" (at most {spectrum.lanczos_steps} taken)" if spectrum.lanczos_steps < asked else ""
        probes = f"k = {spectrum.num_probes} probes ({spectrum.distribution}, seed {spectrum.seed})"
        lines += [
            ("data", f"N = {plain(first.facts.get('n_samples'))}{_batches(settings.get('batch_sizes'))}"),
            ("parameters", f"n = {plain(spectrum.n)}{_selection(settings.get('params'))}"),
            ("Lanczos", ", ".join(filter(None, (f"m = {asked} steps{fewer}", probes, settings.get("dtype"))))),
        ]
    lines += [
        ("matrix", "preconditioned: P^-1/2 H P^-1/2, P of the optimizer" if settings.get("precondition") else None),
        ("preset", settings.get("preset")),
        (
            "snapshot",
            f"one pass of the data, seed {settings.get('data_seed')}" if "snapshot_data" in settings else None,
        ),
    ]
    if first is not None and first.test_spectrum is not None:
        there = plain(first.facts.get("test_n_samples")) + _batches(settings.get("test_batch_sizes"))
        lines.append(("test data", f"N = {there}"))
    return [(name, str(words)) for name, words in lines if words]


def facts_of(record: Record) -> list[tuple[str, str]]:
    """The facts of a record in words, the known ones first."""
    names = [*(name for name in FACTS if name in record.facts), *(name for name in record.facts if name not in FACTS)]
    return [(FACTS.get(name, name.replace("_", " ")), plain(record.facts[name])) for name in names]


def origin_of(record: Record) -> list[tuple[str, str]]:
    """(name, words) of the origin of the numbers: machine, versions, command and times."""
    known = record.provenance
    versions = [f"{name} {known[name]}" for name in ("spectra", "torch", "numpy", "python") if name in known]
    sha = record.checkpoint_sha256
    effort = [
        f"{known['products']:,} products" if isinstance(known.get("products"), int) else "",
        f"{known['block_products']:,} of blocks" if isinstance(known.get("block_products"), int) else "",
        f"{known['test_products']:,} on the test data" if isinstance(known.get("test_products"), int) else "",
        f"{known['seconds']:.1f} s" if isinstance(known.get("seconds"), float) else "",
        f"on {known['device']}" if "device" in known else "",
        f"{known['threads']} threads" if "threads" in known else "",
    ]
    quality = [
        f"{name} {known[name]:.1e}"
        for name in ("noise", "asymmetry", "repeatability", "orthogonality")
        if isinstance(known.get(name), float)
    ]
    pairs = None if record.spectrum is None else record.spectrum.eigenpairs
    lines = [
        ("eigenpairs", "" if pairs is None else pairs.completeness),
        ("overlap of their space", _overlap_words(record)),
        ("checkpoint", f"{record.checkpoint}  sha256 {sha[:16]}..." if sha else _words(record.checkpoint)),
        ("computed", ", ".join(filter(None, effort))),
        ("graphs kept", _kept_words(known.get("graphs"))),
        ("arithmetic", ", ".join(quality)),
        ("versions", ", ".join(versions)),
        ("date", _words(known.get("date"))),
        ("command", _words(known.get("command"))),
    ]
    return [(name, words) for name, words in lines if words not in ("", "-")]


def _overlap_words(record: Record) -> str:
    if record.overlap is None:
        return ""
    known = record.overlap.matrix is not None
    return f"with {record.overlap.before}: " + (f"{record.overlap.value:.3f}" if known else f"{record.overlap.reason}")


def _kept_words(graphs: Any) -> str:
    """How many batches were kept between products, of how many; "" where a record does not have it."""
    if not isinstance(graphs, Mapping) or not all(isinstance(graphs.get(name), int) for name in _GRAPHS):
        return ""
    batches, kept, size = (graphs[name] for name in _GRAPHS)
    return f"{kept} of {batches} batches" + (f", {size / 2**20:,.1f} MiB" if kept else "")


def _words(value: Any) -> str:
    return "-" if value is None else str(value)


def _batches(sizes: Any) -> str:
    """Batch sizes in words, from [size, number of consecutive batches]."""
    if not isinstance(sizes, list) or not sizes:
        return ""
    return f" in batches of {', '.join(f'{count} x {size}' for size, count in sizes)}"


def _selection(params: Any) -> str:
    if params is None:
        return ""
    return f" (only {params if isinstance(params, str) else ', '.join(map(str, params))})"
