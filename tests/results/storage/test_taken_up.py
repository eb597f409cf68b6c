"""What resuming rests on: the hash of the weights, and probes that slq takes up as they are."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch import nn

from spectra.analysis.resume import Unfinished, weights_sha256
from spectra.errors import ArgumentError
from spectra.krylov.slq import slq
from spectra.operators.dense import DenseOperator


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))


def test_the_hash_of_weights_is_of_names_types_shapes_and_bytes():
    torch.manual_seed(0)
    model = network()
    first = weights_sha256(model)
    assert weights_sha256(model) == first
    model[1].running_mean += 1e-7  # buffers, too
    second = weights_sha256(model)
    assert len({first, second, weights_sha256(model.double())}) == 3


def test_finished_probes_of_slq_are_taken_up_as_they_are():
    operator = DenseOperator(np.diag(np.linspace(-1, 3, 30)))
    kept = []
    whole = slq(operator, 6, 5, width=2, group_done=lambda finished: kept.append(list(finished)))
    assert [len(group) for group in kept] == [2, 4, 5]
    for done in kept:
        again = slq(operator, 6, 5, width=2, done=done)
        np.testing.assert_array_equal(again.nodes, whole.nodes)
    with pytest.raises(ArgumentError, match="done has 5 probes: at most num_probes=4"):
        slq(operator, 6, 4, done=kept[-1])


def test_the_seconds_of_an_earlier_process_count(tmp_path):
    first = Unfinished(tmp_path / "run.h5", print)
    first.begin({"a": 1}, 1, fixed=False)
    time.sleep(0.05)
    first.keep(0, [])
    second = Unfinished(tmp_path / "run.h5", print)
    second.begin({"a": 1}, 1, fixed=False)
    assert second.seconds >= 0.05
    second.end()
    second.begin({"a": 2}, 1, fixed=False)
    assert second.seconds == 0
