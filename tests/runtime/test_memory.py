"""A limit on memory bounds what computations plan with and changes no number; a refusal names what would fit."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from small_runs import maker, network, rows
from torch import nn

from spectra import Task, analyze
from spectra.analysis.run import analyze_run
from spectra.analysis.settings import RunSettings, Settings, run_settings
from spectra.errors import ArgumentError, OutOfMemory
from spectra.krylov.eigsh import eigsh
from spectra.operators.dense import DenseOperator
from spectra.operators.hessian import HessianOperator
from spectra.runtime import memory
from spectra.runtime.memory import available_bytes, memory_limited

CPU = torch.device("cpu")
USED = 2**30
QUICK = {"lanczos_steps": 6, "num_probes": 3}


@pytest.fixture(autouse=True)
def _resident_memory_is_constant(monkeypatch):
    monkeypatch.setattr(memory, "used_bytes", lambda device: USED)
    monkeypatch.setattr(memory, "_free_bytes", lambda device: 2**33)


def task():
    torch.manual_seed(0)
    return Task(network(), nn.CrossEntropyLoss(), rows())


def images():
    """Data that take much more memory than a Krylov basis, for a network with convolutions and batch norm."""
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten()
    x, y = torch.randn(60, 1, 8, 8), torch.randint(3, (60,))
    data = [(x[:40], y[:40]), (x[40:], y[40:])]
    return Task(nn.Sequential(*layers, nn.Linear(32, 3)), nn.CrossEntropyLoss(), data)


def numbers(record):
    """All numbers of a record: as JSON without the origin, and the tridiagonal matrices."""
    shown = {name: value for name, value in record.to_json().items() if name != "provenance"}
    return shown, [(t.alphas.tolist(), t.betas.tolist()) for t in record.spectrum.tridiagonals]


def test_the_limit_leaves_what_the_process_does_not_use():
    with memory_limited(USED + 1000):
        assert available_bytes(CPU) == 1000
        with memory_limited(None):
            assert available_bytes(CPU) == 1000
        with memory_limited(USED - 1):
            assert available_bytes(CPU) == 0
    assert available_bytes(CPU) == 2**33
    with memory_limited(2**40):
        assert available_bytes(CPU) == 2**33


@pytest.mark.parametrize(
    ("operator", "mode"),
    [
        ("hessian", "train"),
        ("ggn", "recalibrated"),
        pytest.param("hessian", "eval", marks=pytest.mark.slow),
        pytest.param("empirical_fisher", "eval", marks=pytest.mark.slow),
    ],
)
def test_a_limit_that_keeps_nothing_changes_no_number(operator, mode):
    asked = {"operators": operator, "bn_modes": mode, "metrics": "all", **QUICK}
    free = analyze(images(), **asked)[0]
    tight = analyze(images(), memory=USED + 15_000, **asked)[0]
    assert free.provenance["graphs"]["kept"] == free.provenance["graphs"]["batches"] == 2
    assert free.provenance["graphs"]["kept_bytes"] > 10_000
    assert tight.provenance["graphs"] == {"batches": 2, "kept": 0, "kept_bytes": 0}
    assert (free.settings["width"], tight.settings["width"]) == (3, 1)  # the probes do not share their passes
    for record in (free, tight):
        record.settings.pop("width")
    assert numbers(tight) == numbers(free)


def test_a_limit_changes_no_eigenpair():
    matrix = np.diag(np.linspace(1, 50, 400) ** 2)
    free = eigsh(DenseOperator(matrix), 3)
    with memory_limited(USED + 2**22):
        assert_array_equal(eigsh(DenseOperator(matrix), 3).values, free.values)
    eight_vectors = 2 * 400 * (6 + 8) * 8
    with memory_limited(USED + eight_vectors), pytest.raises(OutOfMemory) as caught:
        eigsh(DenseOperator(matrix), 3)
    fits = re.search(r"memory=1.0 GiB, of which 1.0 GiB are in use: (\d+)M would fit", str(caught.value))
    with memory_limited(int(fits[1]) * 2**20):
        assert_array_equal(eigsh(DenseOperator(matrix), 3).values, free.values)


def test_a_limit_below_what_is_used_is_refused_with_one_that_fits():
    with pytest.raises(OutOfMemory, match=r"of which 1\.0 GiB are in use: 1025M would fit") as caught:
        analyze(task(), memory="512M", **QUICK)
    assert "\n" not in str(caught.value)
    assert analyze(task(), memory="1025M", **QUICK)[0].status == "complete"


def test_a_machine_without_memory_is_not_told_as_a_limit(monkeypatch):
    monkeypatch.setattr(memory, "_free_bytes", lambda device: 1000)
    with pytest.raises(OutOfMemory, match="1000 B are free") as caught:
        analyze(task(), memory="8G", **QUICK)
    assert "memory=" not in str(caught.value)


def test_a_limit_that_is_no_size_is_refused():
    with pytest.raises(ArgumentError, match="memory='much': a size in bytes, or with K, M, G or T, is needed: 8G"):
        Settings(memory="much")


def test_the_limit_is_no_setting_that_makes_records_comparable():
    assert run_settings(task(), Settings(memory="8G")) == run_settings(task(), Settings())


def test_the_limit_holds_for_a_run_and_ends_with_it(tmp_path, monkeypatch):
    torch.save(network().state_dict(), tmp_path / "net.pt")
    seen = []
    whole = HessianOperator.prepared
    monkeypatch.setattr(HessianOperator, "prepared", lambda self: seen.append(available_bytes(CPU)) or whole(self))
    asked = RunSettings(Settings(memory=USED + 10_000, **QUICK), out=tmp_path / "run.h5")
    analyze_run([tmp_path / "net.pt"], maker(), asked.analysis, out=asked.out)
    assert set(seen) == {10_000}
    assert available_bytes(CPU) == 2**33
