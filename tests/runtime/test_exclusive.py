"""Threads that analyse at the same time, one model or several: every number is that of a single thread, to the bit."""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import spectra
from spectra import (
    EmpiricalFisherOperator,
    GGNOperator,
    HessianOperator,
    Task,
    analyze,
    eigsh,
    exact_trace,
    iter_analyze,
    slq,
)
from spectra.analysis.run import analyze_run
from spectra.analysis.settings import Settings
from spectra.runtime.exclusive import one_at_a_time

PATIENCE = 120.0  # seconds after which a thread that has not come back is taken for one that never will


@pytest.fixture(autouse=True)
def often_switched():
    """Threads take turns a thousand times as often as they do by default."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(),
        nn.Linear(5, 3),
    )  # fmt: skip
    with torch.no_grad():
        model(torch.randn(64, 4))  # running statistics that are not those of any batch
    return model.train()


def rows(seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(30, 4, generator=generator), torch.randint(3, (30,), generator=generator))


class Drawing(torch.utils.data.Dataset):
    """Rows that draw from the global generators on the way, as augmentations do, and come in a random order."""

    def __init__(self) -> None:
        self.rows = rows(5)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index):
        random.random(), np.random.rand(), torch.rand(3)  # noqa: NPY002
        return self.rows[index]


def task(model: nn.Module | None = None) -> Task:
    return Task(model or network(), nn.CrossEntropyLoss(), DataLoader(rows(), batch_size=10))


def spectrum_of(operator) -> list:
    found = slq(operator, 6, 2, 1)
    return [t.alphas.tolist() + t.betas.tolist() for t in found.tridiagonals]


def numbers(records) -> list:
    return [
        [r.facts, {name: e.value for name, e in r.estimates.items()}, {n: e.value for n, e in r.sharpness.items()}]
        for r in records
    ]


JOBS = {
    "hessian eval": lambda t: spectrum_of(HessianOperator(t)),
    "hessian train": lambda t: spectrum_of(HessianOperator(t, "train")),
    "hessian recalibrated": lambda t: spectrum_of(HessianOperator(t, "recalibrated")),
    "ggn train": lambda t: spectrum_of(GGNOperator(t, "train")),
    "fisher eval": lambda t: spectrum_of(EmpiricalFisherOperator(t)),
    "float64": lambda t: spectrum_of(HessianOperator(t, dtype="float64")),
    "eigsh": lambda t: eigsh(HessianOperator(t, "train"), 2, seed=1).values.tolist(),
    "exact_trace": lambda t: [
        [exact_trace(t, mode).total, exact_trace(t, mode).by_layer] for mode in ("eval", "recalibrated")
    ],
    "bn_sharpness": lambda t: spectra.bn_sharpness(t, bn_mode="train").value,
    "fisher_rao_norm": lambda t: spectra.fisher_rao_norm(t).value,
    "minimum_sharpness": lambda t: spectra.minimum_sharpness(t).value,
    "adaptive_sharpness": lambda t: spectra.adaptive_sharpness(t).value,
    "snapshot": lambda t: [b[0].tolist() for b in Task(t.model, t.criterion, shuffled()).snapshot(3).data],
    "subset": lambda t: [b[0].tolist() for b in Task(t.model, t.criterion, shuffled()).subset(7, 3).batches()],
}


def shuffled() -> DataLoader:
    return DataLoader(Drawing(), batch_size=10, shuffle=True)


def together(jobs: list, repeats: int = 1) -> list:
    """The results of jobs that begin at the same time in threads of their own, each repeated."""
    start = threading.Barrier(len(jobs))

    def work(job):
        start.wait(PATIENCE)
        return [job() for _ in range(repeats)]

    pool = ThreadPoolExecutor(len(jobs))
    try:
        return [future.result(PATIENCE) for future in [pool.submit(work, job) for job in jobs]]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def state_of(model: nn.Module) -> list:
    flags = [
        (m.training, getattr(m, "track_running_stats", None), getattr(m, "momentum", None)) for m in model.modules()
    ]
    kinds = [(name, type(p), p.requires_grad, p.grad) for name, p in model.named_parameters()]
    return [flags, kinds, {name: tensor.tolist() for name, tensor in model.state_dict().items()}]


def switches() -> list:
    backends = torch.backends
    return [
        torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state()),  # noqa: NPY002
        torch.get_num_threads(), torch.is_grad_enabled(), torch.get_float32_matmul_precision(),
        backends.mha.get_fastpath_enabled(), backends.cuda.flash_sdp_enabled(), backends.cuda.math_sdp_enabled(),
        backends.cuda.mem_efficient_sdp_enabled(), backends.cudnn.enabled, backends.cudnn.benchmark,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def alone():
    """What each job gives in a single thread."""
    return {name: job(task()) for name, job in JOBS.items()}


# -- one model


@pytest.mark.parametrize(
    "names",
    [
        ("hessian eval", "hessian train"),
        ("hessian train", "exact_trace"),
        ("hessian recalibrated", "hessian train"),
        ("ggn train", "fisher eval", "float64"),
        ("hessian eval", "hessian train", "hessian recalibrated", "eigsh"),
        ("bn_sharpness", "hessian eval", "fisher_rao_norm"),
        ("minimum_sharpness", "hessian train", "adaptive_sharpness"),
    ],
    ids=", ".join,
)
def test_threads_on_one_model_get_the_numbers_of_one_thread(alone, names):
    shared = task()
    before, global_before = state_of(shared.model), switches()
    for name, found in zip(names, together([lambda job=JOBS[name]: job(shared) for name in names], repeats=5)):
        assert found == [alone[name]] * 5
    assert state_of(shared.model) == before
    assert switches() == global_before


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_any_four_at_once_get_the_numbers_of_one_thread(alone, seed):
    shared = task()
    for _ in range(6):
        names = random.Random(seed).sample(list(JOBS), 4)
        for name, found in zip(names, together([lambda job=JOBS[name]: job(shared) for name in names], repeats=8)):
            assert found == [alone[name]] * 8


def test_tasks_with_a_module_in_common_get_the_numbers_of_one_thread():
    """Two models, neither of which holds the other, with the same batch norm within."""
    body = network()

    def tasks() -> list[Task]:
        models = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            models.append(nn.Sequential(body, nn.Linear(3, 3)))
        return [task(model) for model in models]

    def job(which: Task, mode: str):
        return lambda: spectrum_of(HessianOperator(which, mode))

    expected = [job(each, mode)() for each, mode in zip(tasks(), ("eval", "train"))]
    assert together([job(each, mode) for each, mode in zip(tasks(), ("eval", "train"))], 6) == [
        [e] * 6 for e in expected
    ]


def test_one_operator_may_be_used_by_several_threads(alone):
    for mode in ("train", "recalibrated"):
        operator = HessianOperator(task(), mode)

        def job(operator=operator):
            with operator.prepared():
                return spectrum_of(operator)

        assert together([job] * 3, repeats=2) == [[alone[f"hessian {mode}"]] * 2] * 3


@pytest.mark.slow
def test_records_of_the_same_model_are_those_of_one_thread():
    options = {"lanczos_steps": 4, "num_probes": 2, "metrics": "fisher_rao_diagonal,bn_sharpness"}
    modes = ("eval", "train", "recalibrated")
    shared = task()
    expected = [numbers(analyze(shared, bn_modes=mode, **options)) for mode in modes]
    jobs = [lambda mode=mode: numbers(analyze(shared, bn_modes=mode, **options)) for mode in modes]
    assert together(jobs, repeats=2) == [[one] * 2 for one in expected]


class Coarse(nn.Module):
    """Rounds to half precision on the way, which is measured at parameters moved to and fro."""

    def forward(self, x):
        return x.half().float()


def test_the_checks_before_the_first_product_are_not_in_the_way_of_another_threads_product():
    model = nn.Sequential(network(), Coarse()).eval()
    vector = torch.ones(sum(p.numel() for p in model.parameters()))
    expected = HessianOperator(task(model)) @ vector
    for _ in range(8):
        operator = HessianOperator(task(model))
        for found in together([lambda operator=operator: operator @ vector] * 4, repeats=3):
            assert all(torch.equal(one, expected) for one in found)


# -- several models: what is global


def test_random_numbers_of_one_thread_do_not_depend_on_another(alone):
    tasks = [task() for _ in RANDOM]
    jobs = [lambda name=name, own=own: JOBS[name](own) for name, own in zip(RANDOM, tasks)]
    before = switches()
    for name, found in zip(RANDOM, together(jobs, repeats=10)):
        assert found == [alone[name]] * 10
    assert switches() == before


RANDOM = ("snapshot", "subset", "hessian train", "snapshot")


def test_the_switches_of_torch_are_as_they_were(alone):
    """Each thread puts back what it found: it must not find what another has changed."""
    names = ("hessian eval", "exact_trace", "fisher eval")
    tasks = [task() for _ in names]  # a network is drawn here, and not while others draw
    before = switches()
    for _ in range(5):
        together([lambda name=name, own=own: JOBS[name](own) for name, own in zip(names, tasks)])
        assert switches() == before


def test_another_number_of_threads_is_not_seen_by_others(tmp_path):
    from spectra.analysis.threads import SameThreads

    counts = torch.get_num_threads()
    inside, leave, seen = threading.Event(), threading.Event(), []

    def hold():
        with SameThreads(counts + 1 if counts < (os.cpu_count() or 1) else max(1, counts - 1), lambda words: None):
            inside.set()
            leave.wait(PATIENCE)

    if (os.cpu_count() or 1) == 1:
        pytest.skip("one core: the number of threads cannot change")
    operator, vector = HessianOperator(task()), torch.ones(105)
    _ = operator @ vector  # the next one takes milliseconds
    holder = threading.Thread(target=hold)
    holder.start()
    assert inside.wait(PATIENCE)
    other = threading.Thread(target=lambda: (operator @ vector, seen.append(1)))
    other.start()
    other.join(1.0)
    assert not seen  # it waits until the number is what it was
    leave.set()
    other.join(PATIENCE)
    holder.join(PATIENCE)
    assert seen
    assert torch.get_num_threads() == counts


# -- no deadlock


def test_a_context_that_stays_open_and_a_generator_that_waits_hold_nobody_up(alone):
    shared = task()
    operator = HessianOperator(shared, "train")
    records = iter_analyze(shared, operators=("hessian", "ggn"), lanczos_steps=3, num_probes=1, metrics="none")
    with operator.prepared():
        next(records)
        (found,) = together([lambda: [spectrum_of(operator), JOBS["hessian eval"](shared)]])
    assert found == [[alone["hessian train"], alone["hessian eval"]]]
    kept = [records]
    del records
    together([lambda: (kept.clear(), gc.collect())])  # closed in another thread than it was begun in
    assert JOBS["hessian eval"](shared) == alone["hessian eval"]


def test_a_thread_that_fails_leaves_the_way_free(alone):
    model = network()

    def fails():
        broken = Task(model, nn.CrossEntropyLoss(), [(torch.ones(3, 7), torch.zeros(3).long())])
        with pytest.raises(spectra.SpectraError):
            spectrum_of(HessianOperator(broken))
        return True

    shared = task()
    assert together([fails, lambda: JOBS["hessian train"](shared)], 3) == [[True] * 3, [alone["hessian train"]] * 3]


def test_batches_from_worker_processes_and_threads_of_the_data(alone):
    class Threaded:
        """Reads ahead in a thread of its own, as some loaders do."""

        def __iter__(self):
            loaded: list = []
            reader = threading.Thread(target=lambda: loaded.extend(DataLoader(rows(), batch_size=10)))
            reader.start()
            reader.join(PATIENCE)
            yield from loaded

    workers = Task(network(), nn.CrossEntropyLoss(), DataLoader(rows(), batch_size=10, num_workers=1))
    threaded = Task(network(), nn.CrossEntropyLoss(), Threaded())
    jobs = [lambda: JOBS["hessian train"](threaded), lambda: slq(HessianOperator(workers), 2, 1, 1).trace().value]
    expected = [job() for job in jobs]
    assert together(jobs, 2) == [[e] * 2 for e in expected]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("holder", ["another thread", "this thread"])
def test_a_process_that_is_forked_meanwhile_can_go_on(holder):
    """A worker of a loader, started while another thread is at it, may read data that use spectra."""
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with one_at_a_time:
            inside.set()
            leave.wait(PATIENCE)

    def in_child(queue):
        with one_at_a_time:
            queue.put("free")

    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=in_child, args=(queue,))
    if holder == "this thread":
        with one_at_a_time:
            child.start()
            child.join(30)
    else:
        thread = threading.Thread(target=hold)
        thread.start()
        assert inside.wait(PATIENCE)
        child.start()
        child.join(30)
        leave.set()
        thread.join(PATIENCE)
    alive = child.is_alive()
    if alive:
        child.kill()
    assert not alive
    assert queue.get() == "free"


def test_runs_and_loads_at_the_same_time_end_with_the_numbers_of_one_thread(tmp_path):
    """The runs load other weights into one model; a load on its own takes what a run takes, in another order."""
    shared = task()
    paths = []
    for seed in range(3):
        spectra.save_checkpoint(tmp_path / f"net_{seed}.pt", network(seed), epoch=seed)
        paths.append(tmp_path / f"net_{seed}.pt")
    settings = Settings(lanczos_steps=3, num_probes=1, bn_modes=("train",), metrics="none", check=False)

    def run(name: str, order: list):
        outcome = analyze_run(order, lambda checkpoint: shared, settings, out=tmp_path / name)
        return {record.epoch: [t.alphas.tolist() for t in record.spectrum.tridiagonals] for record in outcome.records}

    def load():
        return [spectra.load_checkpoint(path).epoch for path in paths * 4]

    expected, before = run("alone.h5", paths), list(warnings.filters)
    first, second, loaded = together([lambda: run("first.h5", paths), lambda: run("second.h5", paths[::-1]), load])
    assert first == second == [expected]
    assert loaded == [[0, 1, 2] * 4]
    assert warnings.filters == before
