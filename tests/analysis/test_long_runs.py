"""A run of many checkpoints: memory that does not grow, time in proportion, a file that opens at once."""

from __future__ import annotations

import gc
import time
import tracemalloc

import pytest
import torch
from torch import nn

from spectra import Task, load_trajectory, save_checkpoint
from spectra.analysis.run import Listener, analyze_run
from spectra.analysis.settings import Settings


class Meter(Listener):
    """The memory that Python and NumPy hold, and the time, at each checkpoint."""

    def __init__(self) -> None:
        self.memory, self.times = [], []

    def checkpoint(self, index, total, path):
        gc.collect()
        self.memory.append(tracemalloc.get_traced_memory()[0])
        self.times.append(time.process_time())


@pytest.mark.slow
def test_a_run_of_50_checkpoints(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    model = nn.Sequential(nn.Linear(30, 60), nn.ReLU(), nn.Linear(60, 10))
    for epoch in range(50):
        torch.manual_seed(epoch)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2)
        save_checkpoint(folder / f"net_{epoch}.pt", model, epoch=epoch)
    x, y = torch.randn(64, 30), torch.randint(10, (64,))
    task = Task(model, nn.CrossEntropyLoss(), [(x, y)])
    out = tmp_path / "run.h5"
    meter = Meter()
    paths = [folder / f"net_{epoch}.pt" for epoch in range(50)]
    settings = Settings(operators=("hessian", "ggn"), lanczos_steps=40, num_probes=4)
    tracemalloc.start()
    try:
        analyze_run(paths, lambda _: task, settings, out=out, listener=meter)
    finally:
        tracemalloc.stop()
    growth = (meter.memory[-1] - meter.memory[10]) / 39
    size = out.stat().st_size / 50
    early = (meter.times[20] - meter.times[10]) / 10
    late = (meter.times[-1] - meter.times[-11]) / 10
    start = time.perf_counter()
    trajectory = load_trajectory(out)
    assert trajectory.epochs.tolist() == list(range(50))
    opened = time.perf_counter() - start
    print(
        f"{growth:.0f} bytes more per checkpoint, of which the file takes {size:.0f} on the disk; "
        f"{early:.3f} s each in the beginning, {late:.3f} s in the end; opened in {opened:.3f} s"
    )
    assert growth < 0.05 * size
    assert late < 1.5 * early
    assert opened < 0.2
