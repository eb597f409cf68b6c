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
    with pytest.raises(ArgumentError, match="preset='granzol': one of 'granziol' is needed"):
        analyze(task, preset="granzol")
