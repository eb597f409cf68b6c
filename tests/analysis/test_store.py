"""The results file of a run: asking what it has changes nothing, keeping it counts."""

from __future__ import annotations

import torch
from torch import nn

from spectra import Task, save_checkpoint
from spectra.analysis.run import Listener, analyze_run
from spectra.analysis.settings import RunSettings, Settings, run_settings
from spectra.analysis.store import Store
from spectra.results.record import Place

QUICK = Settings(lanczos_steps=2, num_probes=2, metrics="none", check=False)
PAIR = ("hessian", "eval")


def make_task(checkpoint):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(6, 4, generator=generator), torch.randint(3, (6,), generator=generator)
    return Task(nn.Linear(4, 3), nn.CrossEntropyLoss(), [(x, y)], name="net")


def test_asking_whether_a_record_is_there_counts_nothing(tmp_path):
    path, out = tmp_path / "net.pt", tmp_path / "run.h5"
    save_checkpoint(path, make_task(None).model, epoch=1)
    (record,) = analyze_run([path], make_task, QUICK, out=out).records
    listener = Listener()
    with Store(RunSettings(QUICK, out=out), listener) as store:
        assert not store.has(PAIR, record.place)  # not opened
        assert store.keep_all([PAIR], record.place) == []
        store.open(run_settings(make_task(None), QUICK))
        assert [store.has(PAIR, record.place) for _ in range(3)] == [True] * 3
        assert not store.has(("ggn", "eval"), record.place)
        assert not store.has(PAIR, Place(checkpoint="other.pt", sha256="0"))
        assert (store.kept, store.eigenspaces._last) == (0, {})
        assert store.keep_all([PAIR, ("ggn", "eval")], record.place) == [PAIR]
        assert (store.kept, store.eigenspaces._last) == (1, {PAIR: record.place})
        assert store.close().kept == 1
