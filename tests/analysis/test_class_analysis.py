"""`class_structure` of an analysis: with the Gauss-Newton matrix only, from the exact trace where it is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import conv_batch_norm
from small_nets import make
from torch import nn

from spectra import GGNOperator, Task, analyze
from spectra.analysis import class_analysis
from spectra.errors import ArgumentError
from spectra.exact.class_structure import class_structure

pytestmark = pytest.mark.usefixtures("float64")

QUICK = {"lanczos_steps": 8, "num_probes": 3, "metrics": "none", "class_structure": True}


def test_a_record_of_the_gauss_newton_matrix_has_it():
    task = make("mine", l2=0.25)
    hessian, ggn = analyze(task, operators=("hessian", "ggn"), check=True, eigenpairs=6, **QUICK)
    assert hessian.class_structure is None
    found = ggn.class_structure
    assert found.total == pytest.approx(ggn.exact.total - 0.25 * 51, rel=1e-12)
    assert found.total_error == 0
    again = class_structure(GGNOperator(task), found.total)
    np.testing.assert_allclose(found.gram, again.gram)
    top = ggn.spectrum.eigenpairs.values - 0.25
    assert (found.eigenvalues <= top[: len(found.labels)] + 1e-12).all()
    assert hessian.settings["class_structure"] is True
    assert ggn.to_json()["class_structure"]["shares"].keys() == {"class", "same_class", "cross_class", "within"}


def test_without_an_exact_trace_the_total_is_that_of_the_probes():
    (ggn,) = analyze(make("mine", l2=0.25), operators="ggn", check=False, **QUICK)
    trace = ggn.estimates["trace"]
    assert ggn.class_structure.total == pytest.approx(trace.value - 0.25 * 51, rel=1e-12)
    assert ggn.class_structure.total_error == pytest.approx(trace.stderr)
    (one,) = analyze(make("mine"), operators="ggn", check=False, **(QUICK | {"num_probes": 1}))
    assert one.class_structure.total_error is None


def test_batch_norm_in_train_mode_has_one():
    (ggn,) = analyze(conv_batch_norm()[0], operators="ggn", bn_modes="train", eigenpairs=3, check=False, **QUICK)
    top = ggn.spectrum.eigenpairs.values
    assert (ggn.class_structure.eigenvalues[:3] <= top[: len(ggn.class_structure.eigenvalues)] + 1e-12).all()


def test_refusals_and_faults(monkeypatch):
    with pytest.raises(ArgumentError, match="add the operator 'ggn'"):
        analyze(make("mine"), operators="hessian", **QUICK)
    regression = Task(nn.Linear(2, 1), nn.MSELoss(), [(torch.randn(5, 2), torch.randn(5, 1))])
    (record,) = analyze(regression, operators="ggn", check=False, **QUICK)
    assert (record.status, record.class_structure) == ("complete", None)
    assert any(note.startswith("class structure: not computed: no classes") for note in record.notes)

    def broken(*_):
        raise RuntimeError("no luck")

    monkeypatch.setattr(class_analysis, "class_structure", broken)
    (record,) = analyze(make("mine"), operators="ggn", check=False, **QUICK)
    assert record.status == "unverified"
    assert "the class structure: RuntimeError: no luck" in record.reason
