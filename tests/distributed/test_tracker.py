"""A tracker in a training loop of several processes, whose analyses they share."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributed as dist
from processes import in_processes
from shared_cases import task
from torch.nn.parallel import DistributedDataParallel

from spectra import Task, Tracker, load_trajectory


def trained(out: str, shared: bool) -> list[float]:
    plain = task("conv")
    model = DistributedDataParallel(plain.model) if shared else plain.model
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = list(plain.data)[:2]  # of one size: the mean of the gradients is that of both
    with Tracker(Task(model, plain.criterion, batches), out=out, lanczos_steps=4, num_probes=2, bn_modes="eval",
                 eigenpairs=1) as tracker:  # fmt: skip
        for epoch in range(3):
            assert tracker(epoch=epoch)
            sgd.zero_grad()
            x, y = batches[dist.get_rank() if shared else 0]
            plain.criterion(model(x), y).backward()
            sgd.step()
    return [float(p.detach().sum()) for p in plain.model.parameters()]


@pytest.mark.slow
def test_a_tracker_of_all_processes_writes_one_file(tmp_path):
    found = in_processes(2, trained, str(tmp_path / "shared.h5"), True)
    assert found[0] == found[1]
    assert all(isinstance(value, float) for value in found[0])
    records = load_trajectory(tmp_path / "shared.h5")
    assert [record.epoch for record in records] == [0, 1, 2]
    assert [record.status for record in records] == ["complete"] * 3
    assert records[0].provenance["ranks"]["world_size"] == 2
    trained(str(tmp_path / "alone.h5"), False)
    alone = load_trajectory(tmp_path / "alone.h5")[0]  # before the first step
    for t, u in zip(alone.spectrum.tridiagonals, records[0].spectrum.tridiagonals):
        np.testing.assert_allclose(t.alphas, u.alphas, atol=1e-10)
    assert records[0].overlap is None
    assert 0 <= records[1].overlap.value <= 1 + 1e-9
