"""A run of checkpoints into one file: each stored as soon as it is there, failures recorded, what is there kept."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import h5py
import pytest
import torch
from choices import crossed
from torch import nn

from spectra import Task, analyze, load_trajectory, save_checkpoint
from spectra.analysis import run as run_room
from spectra.analysis.run import DataChoice, Listener, analyze_run
from spectra.analysis.settings import Settings
from spectra.checkpoints import discovery
from spectra.errors import (
    ArgumentError,
    CheckpointError,
    DataError,
    NumericsError,
    OutOfMemory,
    StorageError,
    TaskError,
)
from spectra.operators.ggn import GGNOperator

QUICK = Settings(lanczos_steps=4, num_probes=2)
BOTH = Settings(operators=("hessian", "ggn"), lanczos_steps=4, num_probes=2)


def network(width: int = 5) -> nn.Module:
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3))


def rows(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(12, 4, generator=generator), torch.randint(3, (12,), generator=generator)
    return [(x[:7], y[:7]), (x[7:], y[7:])]


def maker(data=None):
    task = Task(network(), nn.CrossEntropyLoss(), data or rows(), name="net")
    return lambda checkpoint: task


class Ear(Listener):
    def __init__(self):
        self.heard = []

    def checkpoint(self, index, total, path):
        self.heard.append((path.name, index, total))

    def record(self, record):
        self.heard.append((record.operator, record.bn_mode, record.status))

    def kept(self, place, operator, bn_mode):
        self.heard.append((operator, bn_mode, "kept"))


@pytest.fixture
def run(tmp_path):
    """Three good checkpoints, in a folder of their own."""
    folder = tmp_path / "run"
    folder.mkdir()
    for epoch in range(3):
        torch.manual_seed(epoch)
        save_checkpoint(folder / f"net_{epoch}.pt", network(), epoch=epoch)
    return sorted(folder.iterdir())


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "run.h5"


def damage(path: Path, value: float = float("nan"), width: int = 5) -> None:
    model = network(width)
    with torch.no_grad():
        model[2].bias[0] = value
    save_checkpoint(path, model, epoch=9)


def status(path):
    return [(Path(record.checkpoint).name, record.operator, record.status) for record in load_trajectory(path)]


def same(one, other):
    """Whether two trajectories hold the same numbers, whenever they were computed."""
    return len(one) == len(other) and all(
        a.identity == b.identity
        and a.facts == b.facts
        and a.settings == b.settings
        and (a.spectrum.nodes == b.spectrum.nodes).all()
        and (a.spectrum.weights == b.spectrum.weights).all()
        for a, b in zip(one, other)
    )


# -- what is written


def test_every_checkpoint_is_stored_as_analyze_computes_it(run, out):
    ear = Ear()
    outcome = analyze_run(run, maker(), BOTH, out=out, listener=ear)
    stored = load_trajectory(out)
    assert (len(outcome.records), outcome.kept, outcome.failed) == (6, 0, ())
    assert [(r.epoch, r.operator) for r in stored] == [(e, o) for e in range(3) for o in ("hessian", "ggn")]
    for path, pair in zip(run, (stored.records[0:2], stored.records[2:4], stored.records[4:6])):
        task = maker()(None)
        task.model.load_state_dict(torch.load(path)["model"])
        for record, direct in zip(pair, analyze(task, settings=BOTH)):
            assert record.checkpoint == str(path)
            assert len(record.checkpoint_sha256) == 64
            assert (record.spectrum.nodes == direct.spectrum.nodes).all()
            assert record.facts == direct.facts
            assert record.settings == {**direct.settings, "samples": None, "data_seed": None}
    assert ear.heard[:3] == [("net_0.pt", 0, 3), ("hessian", "eval", "complete"), ("ggn", "eval", "complete")]
    assert [path.name for path in out.parent.iterdir()] == ["run.h5"]


def test_the_choice_of_data_is_made_once_and_recorded(run, out):
    class Counting(list):
        passes = 0

        def __iter__(self):
            type(self).passes += 1
            return super().__iter__()

    data = Counting(rows())
    choice = DataChoice(samples=8, data_seed=3, batch_size=5, l2=0.5)
    analyze_run(run, maker(data), QUICK, out=out, data=choice)
    stored = load_trajectory(out)
    assert {name: stored.settings[name] for name in ("samples", "data_seed", "batch_sizes", "l2")} == {
        "samples": 8,
        "data_seed": 3,
        "batch_sizes": [[5, 1], [3, 1]],
        "l2": 0.5,
    }
    assert all(record.facts["n_samples"] == 8 for record in stored)
    assert Counting.passes == 2  # the rows are counted, then chosen


def test_a_task_per_checkpoint_is_a_run_as_long_as_it_is_the_same_task(run, out):
    analyze_run(run, lambda checkpoint: maker()(checkpoint), QUICK, out=out)
    assert len(load_trajectory(out)) == 3
    other = out.with_name("other.h5")
    with pytest.raises(TaskError, match=r"not that of the first one: data is '\w+' in place of '\w+'"):
        analyze_run(run, lambda checkpoint: maker(rows(int(checkpoint.epoch)))(checkpoint), QUICK, out=other)
    assert status(other) == [("net_0.pt", "hessian", "complete")]


# -- an existing file


def test_a_file_of_the_same_run_is_continued(run, out):
    analyze_run(run[:2], maker(), QUICK, out=out)
    ear = Ear()
    outcome = analyze_run(run, maker(), BOTH, out=out, listener=ear)
    assert (len(outcome.records), outcome.kept) == (4, 2)
    assert [heard for heard in ear.heard if heard[2] == "kept"] == [("hessian", "eval", "kept")] * 2
    again = analyze_run(run, maker(), BOTH, out=out)
    assert (again.records, again.kept) == ((), 6)
    whole = out.with_name("whole.h5")
    analyze_run(run, maker(), BOTH, out=whole)
    key = lambda record: (record.epoch, record.operator)  # noqa: E731
    assert same(sorted(load_trajectory(out), key=key), sorted(load_trajectory(whole), key=key))


def test_what_is_there_already_costs_no_product(run, out, monkeypatch):
    analyze_run(run, maker(), QUICK, out=out)
    monkeypatch.setattr(run_room, "records_of", lambda run, *a, skip, **k: iter(set(run.settings.pairs()) - {*skip}))
    assert analyze_run(run, maker(), QUICK, out=out).kept == 3


@pytest.mark.parametrize(
    ("settings", "choice", "words"),
    [
        (Settings(lanczos_steps=5, num_probes=2), DataChoice(), "lanczos_steps is 4 in the file, 5 now"),
        (Settings(lanczos_steps=4, num_probes=3), DataChoice(), "num_probes is 2 in the file, 3 now"),
        (Settings(lanczos_steps=4, num_probes=2, seed=1), DataChoice(), "seed is 0 in the file, 1 now"),
        (Settings(lanczos_steps=4, num_probes=2, dtype="float64"), DataChoice(), 'dtype is "float32" in the file'),
        (Settings(lanczos_steps=4, num_probes=2, params="0.*"), DataChoice(), 'params is null in the file, "0.*" now'),
        (QUICK, DataChoice(samples=8), "samples is null in the file, 8 now"),
        (QUICK, DataChoice(batch_size=4), "batch_sizes is"),
        (QUICK, DataChoice(l2=0.1), "l2 is 0.0 in the file, 0.1 now"),
    ],
)
def test_a_file_of_another_run_is_refused_and_left_alone(run, out, settings, choice, words):
    analyze_run(run[:1], maker(), QUICK, out=out)
    before = out.read_bytes()
    with pytest.raises(StorageError) as caught:
        analyze_run(run, maker(), settings, out=out, data=choice)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert out.read_bytes() == before
    assert [path.name for path in out.parent.iterdir()] == ["run.h5"]


def test_a_checkpoint_that_was_replaced_under_its_name_is_refused(run, out):
    analyze_run(run, maker(), QUICK, out=out)
    before = out.read_bytes()
    torch.manual_seed(99)
    save_checkpoint(run[1], network(), epoch=1)
    with pytest.raises(StorageError, match="was another file when it was analysed"):
        analyze_run(run, maker(), QUICK, out=out)
    assert out.read_bytes() == before


def test_a_copy_of_a_checkpoint_is_not_analysed_twice(run, out):
    copy = run[0].with_name("best.pt")
    copy.write_bytes(run[0].read_bytes())
    outcome = analyze_run([run[0], copy], maker(), QUICK, out=out)
    assert (len(outcome.records), outcome.kept) == (1, 1)


# -- failures


def test_failures_among_several_are_recorded_with_their_reasons(run, out):
    """A corrupt file first, when the run is not known yet; then NaN, then keys that do not fit; the rest goes on."""
    folder = run[0].parent
    corrupt, nan, infinite, wide = (folder / name for name in ("corrupt.pt", "nan.pt", "inf.pt", "wide.pt"))
    corrupt.write_bytes(run[0].read_bytes()[:-100])
    damage(nan)
    damage(infinite, float("inf"))
    damage(wide, 0.0, width=7)
    ear = Ear()
    paths = [corrupt, run[0], nan, infinite, wide, run[1]]
    outcome = analyze_run(paths, maker(), BOTH, out=out, listener=ear)
    assert [Path(record.checkpoint).name for record in outcome.failed[::2]] == [
        "corrupt.pt",
        "nan.pt",
        "inf.pt",
        "wide.pt",
    ]
    stored = load_trajectory(out)
    reasons = {(Path(r.checkpoint).name, r.operator): r.reason for r in stored if r.status == "failed"}
    assert len(reasons) == 8
    for name, words in {
        "corrupt.pt": "damaged",
        "nan.pt": "NaN or infinite weights in 1 of 4 tensors: 2.bias",
        "inf.pt": "NaN or infinite weights in 1 of 4 tensors: 2.bias",
        "wide.pt": "does not fit the model",
    }.items():
        for operator in ("hessian", "ggn"):
            assert words in reasons[name, operator]
            assert "\n" not in reasons[name, operator]
    complete = [record for record in stored if record.status == "complete"]
    assert [(record.epoch, record.operator) for record in complete] == [
        (epoch, operator) for epoch in range(2) for operator in ("hessian", "ggn")
    ]
    # As they were told, so they are stored: the early failure has the settings of the run, too.
    assert {record.identity for record in outcome.records} == {record.identity for record in stored}
    assert all(record.settings["seed"] == 0 for record in outcome.records)
    assert ear.heard[1] == ("hessian", "eval", "failed")
    for record in stored:
        if record.status == "failed":
            entry = record.to_json()
            assert (entry["loss"], entry["estimates"], entry["reason"]) == (None, {}, record.reason)


def test_a_loss_that_is_not_finite_is_a_failure_of_its_checkpoint(run, out):
    far = run[0].with_name("far.pt")
    model = network()
    with torch.no_grad():
        model[2].weight.fill_(1e38)
    model[2].weight.data[1:] *= -1
    save_checkpoint(far, model)
    outcome = analyze_run([run[0], far, run[1]], maker(), QUICK, out=out)
    (failed,) = outcome.failed
    assert failed.checkpoint == str(far)
    assert "nan" in failed.reason or "inf" in failed.reason
    assert [entry[2] for entry in status(out)].count("complete") == 2


def test_a_failure_after_the_first_operator_keeps_what_was_finished_and_is_tried_again(run, out, monkeypatch):
    whole = GGNOperator._pass
    poison = torch.load(run[1])["model"]["0.weight"].flatten()

    def broken(self, block, seen):
        if torch.equal(self.function.theta[0].flatten(), poison):
            raise NumericsError("a product with the ggn holds NaN or infinity")
        return whole(self, block, seen)

    monkeypatch.setattr(GGNOperator, "_pass", broken)
    outcome = analyze_run(run, maker(), BOTH, out=out)
    assert [(record.operator, record.epoch) for record in outcome.failed] == [("ggn", 1)]
    assert len(load_trajectory(out)) == 6
    monkeypatch.undo()
    again = analyze_run(run, maker(), BOTH, out=out)
    assert (again.kept, [(r.operator, r.epoch, r.status) for r in again.records]) == (5, [("ggn", 1, "complete")])
    assert len(load_trajectory(out)) == 6


@pytest.mark.parametrize("existing", [False, True])
def test_a_single_checkpoint_that_fails_raises_and_leaves_no_file(run, out, existing):
    if existing:
        analyze_run(run[1:], maker(), QUICK, out=out)
    before = out.read_bytes() if existing else None
    damage(run[0])
    with pytest.raises(NumericsError, match="NaN or infinite weights"):
        analyze_run(run[:1], maker(), QUICK, out=out)
    assert (out.read_bytes() if existing else None) == before
    assert [path.name for path in out.parent.iterdir()] == (["run.h5"] if existing else [])


def test_when_every_checkpoint_fails_there_is_no_file_and_the_first_reason_is_told(run, out):
    for path in run:
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"none of the checkpoints could be analysed; the first: .*net_0\.pt"):
        analyze_run(run, maker(), QUICK, out=out)
    assert list(out.parent.iterdir()) == []
    with pytest.raises(CheckpointError, match="no checkpoint to analyse"):
        analyze_run([], maker(), QUICK, out=out)


def test_what_is_wrong_with_the_task_stops_the_run(run, out):
    x, y = rows()[0]
    with pytest.raises(DataError, match="labels reach from 8 to 9"):
        analyze_run(run, maker([(x, y % 2 + 8)]), QUICK, out=out)

    def no_task(checkpoint):
        raise TaskError("the function raised") from KeyError("inner")

    with pytest.raises(TaskError, match="the function raised") as caught:
        analyze_run(run, no_task, QUICK, out=out)
    assert isinstance(caught.value.__cause__, KeyError)  # which --debug shows
    assert list(out.parent.iterdir()) == []


# -- the output


def not_ours(out: Path) -> None:
    with h5py.File(out, "w") as file:
        file["x"] = 1


OUTPUTS = {
    "in a folder that does not exist": (lambda out: out.parent / "none" / "run.h5", lambda out: None, "does not exist"),
    "beyond a file": (lambda out: out / "run.h5", lambda out: out.write_text("x"), "is not a folder"),
    "a folder": (lambda out: out, lambda out: out.mkdir(), "is a folder"),
    "a text": (lambda out: out, lambda out: out.write_text("notes"), "is not an HDF5 file"),
    "empty": (lambda out: out, lambda out: out.write_bytes(b""), "is an empty file"),
    "of another program": (lambda out: out, not_ours, "not one that spectra wrote"),
}


@pytest.mark.parametrize("case", list(OUTPUTS))
def test_the_output_is_checked_before_a_checkpoint_is_read(run, out, case, monkeypatch):
    place, prepare, words = OUTPUTS[case]
    prepare(out)
    before = out.read_bytes() if out.is_file() else None
    monkeypatch.setattr(run_room, "load_checkpoint", lambda *a, **k: pytest.fail("a checkpoint was read"))
    with pytest.raises(StorageError, match=words) as caught:
        analyze_run(run, maker(), QUICK, out=place(out))
    assert "\n" not in str(caught.value)
    assert (out.read_bytes() if out.is_file() else None) == before
    assert len(list(out.parent.iterdir())) == out.exists()


def test_a_folder_that_may_not_be_written_to(run, out, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(
        "spectra.results.storage.atomic_write.os.open", refuse
    )  # the tests may run as root, whom no mode binds
    monkeypatch.setattr(run_room, "load_checkpoint", lambda *a, **k: pytest.fail("a checkpoint was read"))
    with pytest.raises(StorageError, match="permission denied; choose a folder that can be written to"):
        analyze_run(run, maker(), QUICK, out=out)
    assert list(out.parent.iterdir()) == []


# -- interruption


@pytest.mark.parametrize(
    ("name", "products", "records"),
    [("net_1.pt", 0, 2), ("net_1.pt", 5, 2), ("net_2.pt", 8, 4), ("net_2.pt", 9, 5)],  # of a record: 8 products
)
def test_an_interrupted_run_keeps_its_whole_records_and_goes_on_with_the_same_numbers(
    run, out, name, products, records
):
    class Interrupting(Ear):
        def checkpoint(self, index, total, path):
            self.path = path.name
            self.stop_at(0)

        def progress(self, operator, bn_mode, done, total):
            self.stop_at(done + (total if operator == "ggn" else 0))

        def stop_at(self, done):
            if self.path == name and done >= products:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        analyze_run(run, maker(), BOTH, out=out, listener=Interrupting())
    assert len(status(out)) == records
    assert all(entry[2] == "complete" for entry in status(out))
    assert [path.name for path in out.parent.iterdir()] == ["run.h5"]
    analyze_run(run, maker(), BOTH, out=out)
    whole = out.with_name("whole.h5")
    analyze_run(run, maker(), BOTH, out=whole)
    assert same(load_trajectory(out), load_trajectory(whole))


# -- the device


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "mps", "meta"])
def test_a_device_that_is_none_of_ours(run, out, name):
    with pytest.raises(ArgumentError, match=f"device='{name}': 'cpu'"):
        analyze_run(run, maker(), QUICK, out=out, device=name)
    assert list(out.parent.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:3"])
def test_a_gpu_that_is_not_there(run, out, name):
    with pytest.raises(ArgumentError, match=f"device='{name}': 0 CUDA devices are available here; --device cpu works"):
        analyze_run(run, maker(), QUICK, out=out, device=name)
    assert list(out.parent.iterdir()) == []


def test_the_cpu_can_be_asked_for(run, out):
    analyze_run(run[:1], maker(), QUICK, out=out, device="cpu")
    assert load_trajectory(out)[0].provenance["device"] == "cpu"


# --- a run that ends before its end, and h5py alone ---------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, StorageError])
def test_however_a_run_ends_h5py_alone_finds_every_record_in_the_file(run, out, error):
    class Ending(Listener):
        count = 0

        def record(self, record):
            self.count += 1
            if self.count == 6:
                raise error("ended")

    four = Settings(operators=("hessian", "ggn", "empirical_fisher"), bn_modes=("eval",), lanczos_steps=4, num_probes=2)
    with pytest.raises(error):
        analyze_run(run, maker(), four, out=out, listener=Ending())
    with h5py.File(out, "r") as file:
        assert len(file["records"]) == 6
        assert "growing" not in file.attrs
    assert analyze_run(run, maker(), four, out=out).kept == 6
    with h5py.File(out, "r") as file:
        assert len(file["records"]) == 9
        assert "growing" not in file.attrs


@pytest.mark.parametrize(
    ("where", "error"),
    crossed(
        ["reading", "putting in"],
        [
            MemoryError(),
            OutOfMemory("the weights need 9 GB and 2 GB are free"),
            RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
            torch.OutOfMemoryError("CUDA out of memory"),
            RecursionError("maximum recursion depth exceeded"),
            OSError(5, "Input/output error"),
            FileNotFoundError(2, "No such file or directory"),
            UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
            KeyError("weight"),
            OverflowError(),
            struct.error("unpack requires a buffer of 4 bytes"),
        ],
        lambda entry: entry if isinstance(entry, str) else type(entry).__name__,
    ),
)
def test_whatever_ends_the_loading_of_one_checkpoint_is_recorded_and_the_rest_goes_on(
    run, tmp_path, monkeypatch, where, error
):
    load, put = run_room.load_checkpoint, run_room.Recipient.load

    def loading(path, **options):
        if where == "reading" and path == run[1]:
            raise error
        return load(path, **options)

    def putting(self, checkpoint, model):
        if where == "putting in" and checkpoint.path == run[1]:
            with torch.no_grad():
                next(model.parameters()).fill_(float("nan"))  # half of it is there
            raise error
        return put(self, checkpoint, model)

    monkeypatch.setattr(run_room, "load_checkpoint", loading)
    monkeypatch.setattr(run_room.Recipient, "load", putting)
    outcome = analyze_run(run, maker(), QUICK, out=tmp_path / "run.h5")
    assert [record.status for record in outcome.records] == ["complete", "failed", "complete"]
    (failed,) = outcome.failed
    words = " ".join(str(error).split()) or type(error).__name__
    assert words in failed.reason
    assert "\n" not in failed.reason
    for options, paths in (({"strict": True}, run), ({}, run[1:2])):
        with pytest.raises(CheckpointError, match=re.escape(words)):
            analyze_run(paths, maker(), QUICK, out=tmp_path / "strict.h5", **options)


def test_memory_that_runs_out_while_checkpoints_are_ordered_is_of_that_checkpoint(run, monkeypatch):
    read = discovery.read_raw

    def reading(path, **options):
        if path.name == "net_1.pt":
            raise MemoryError
        return read(path, **options)

    monkeypatch.setattr(discovery, "read_raw", reading)
    assert [one.epoch for one in discovery.in_training_order(run)] == [0, 1, 2]
