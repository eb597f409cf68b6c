"""A run of checkpoints into one file: each stored as soon as it is there, what is there kept."""

from __future__ import annotations

from pathlib import Path

import h5py
import pytest
import torch
from small_runs import BOTH, QUICK, Ear, maker, network, rows, status

from spectra import analyze, load_trajectory, save_checkpoint
from spectra.analysis import run as run_room
from spectra.analysis.run import DataChoice, Listener, analyze_run
from spectra.analysis.settings import Settings
from spectra.errors import ArgumentError, StorageError, TaskError


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
