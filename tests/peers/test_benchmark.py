"""The side-by-side benchmark runs, and times nothing before the products agree. No time is tested."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

FILE = Path(__file__).parents[2] / "benchmarks" / "peers.py"
SMALL = ["--repeats", "1", "--samples", "32", "--batch-size", "16", "--network", "mlp"]


@pytest.fixture
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_of_peers", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows_of(printed):
    return [line.split()[:3] for line in printed.splitlines() if line.startswith("mlp")]


def test_it_runs_without_the_other_libraries_and_says_which_are_left_out(benchmark, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "PEERS", {"no_such_library_here": "no-such-library"})
    benchmark.main(SMALL)
    printed = capsys.readouterr().out
    assert "not installed, and left out: no-such-library" in printed
    assert f"torch {torch.__version__}" in printed
    assert rows_of(printed) == [["mlp", kind, block] for kind in ("hessian", "ggn") for block in ("1", "8")]


@pytest.mark.peers
def test_it_compares_with_those_that_are_installed(benchmark, capsys):
    for name in benchmark.PEERS:
        pytest.importorskip(name)
    benchmark.main(SMALL)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("mlp")]
    assert len(lines) == 4
    assert all(name in line for line in lines for name in benchmark.PEERS)


def test_ratios_are_taken_within_each_repeat(benchmark):
    assert benchmark.ratios([2.0, 9.0, 4.0], [1.0, 3.0, 1.0]) == (2.0, 3.0, 4.0)


def test_products_that_differ_are_not_timed(benchmark):
    block = torch.ones(3, 1)
    with pytest.raises(SystemExit, match=r"other and spectra differ by 1.0e-02"):
        benchmark.check_agreement({"spectra": lambda b: b, "other": lambda b: 1.01 * b}, block)
    benchmark.check_agreement({"spectra": lambda b: b, "other": lambda b: (1 + 1e-6) * b}, block)


def test_unequal_batches_are_refused_since_not_every_library_weights_them(benchmark, capsys):
    with pytest.raises(SystemExit):
        benchmark.main([*SMALL, "--samples", "24"])
    assert "--samples=24: a multiple of --batch-size=16 is needed" in capsys.readouterr().err
