"""A preset is the options that it stands for, unless one is given."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from spectra import Task, analyze
from spectra.analysis.presets import filled
from spectra.errors import ArgumentError


@pytest.fixture(scope="module")
def task():
    torch.manual_seed(0)
    x, y = torch.randn(12, 4), torch.randint(3, (12,))
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))
    return Task(model, nn.CrossEntropyLoss(), [(x[:7], y[:7]), (x[7:], y[7:])])


def test_granziol_is_both_matrices_in_both_modes_with_one_probe_and_a_hundred_steps(task):
    by_name = analyze(task, preset="granziol")
    by_hand = analyze(
        task, operators=("hessian", "ggn"), bn_modes=("recalibrated", "train"), num_probes=1, lanczos_steps=100
    )
    modes = [(r.operator, r.bn_mode) for r in by_name]
    assert modes == [(name, mode) for name in ("hessian", "ggn") for mode in ("recalibrated", "train")]
    for one, other in zip(by_name, by_hand):
        assert one.estimates == other.estimates
        assert one.settings == other.settings | {"preset": "granziol"}
        assert (one.settings["lanczos_steps"], one.spectrum.num_probes) == (100, 1)


def test_what_is_given_wins_and_is_recorded_where_the_records_of_a_run_share_it(task):
    record, other = analyze(task, preset="granziol", operators="ggn", lanczos_steps=5)
    assert (record.operator, record.bn_mode, record.spectrum.lanczos_steps) == ("ggn", "recalibrated", 5)
    assert (other.operator, other.bn_mode, other.spectrum.lanczos_steps) == ("ggn", "train", 5)
    assert record.settings["preset"] == "granziol, but lanczos_steps=5 in place of 100"
    same = filled("granziol", operators=["hessian", "ggn"], num_probes=1)
    assert same["preset"] == "granziol"


def test_an_unknown_preset_is_refused(task):
    with pytest.raises(ArgumentError, match="preset='granzol': one of 'granziol', 'sharpness' is needed"):
        analyze(task, preset="granzol")


def test_sharpness_is_the_largest_eigenvalue_to_a_thousandth_in_few_products_and_nothing_else():
    torch.manual_seed(0)
    x, y = torch.randn(200, 10), torch.randint(3, (200,))
    model = nn.Sequential(nn.Linear(10, 100), nn.Tanh(), nn.Linear(100, 3))
    task = Task(model, nn.CrossEntropyLoss(), [(x, y)])
    (record,) = analyze(task, preset="sharpness")
    found = record.estimates["lambda_max"]
    assert record.spectrum.num_probes == 1
    assert record.provenance["products"] <= 40
    assert found.upper - found.lower <= 2e-3 * found.value
    exact = analyze(task, num_probes=1, lanczos_steps=300, check=False, metrics="none", dtype="float64")[0]
    assert found.lower <= exact.estimates["lambda_max"].value <= found.upper
    assert (record.exact, record.checks, dict(record.sharpness)) == (None, (), {})
    assert record.settings["preset"] == "sharpness"


def test_other_aims_and_probes_replace_those_of_the_preset_and_are_recorded():
    found = filled("sharpness", rtol=(("trace", 0.05),), check=True)
    assert found["preset"] == (
        "sharpness, but num_probes=64 in place of 1, rtol=trace=0.05 in place of lambda_max=0.001, "
        "check=True in place of False"
    )
    assert filled("sharpness", rtol={"lambda_max": 0.001}, num_probes=1)["preset"] == "sharpness"
