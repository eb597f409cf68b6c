"""TensorBoard and Weights & Biases themselves: what they have stored is read back and compared with the records."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from click.testing import CliRunner
from run_files import failed_record, make_record, write
from small_runs import maker, network

from spectra import Tracker, load_trajectory
from spectra.logs.entries import entry_of
from spectra_cli.main import main

pytestmark = pytest.mark.foreign


def in_tensorboard(folder):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: make foreign installs it")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0, "tensors": 0})
    found.Reload()
    return found


def in_wandb(folder):
    """The history of the only offline run in a folder. Its file is a log of LevelDB's format, of blocks of 32 KiB."""
    import wandb
    from wandb.proto import wandb_internal_pb2

    wandb.teardown()  # waits until all is on the disk
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    data, at, whole, history, metrics = file.read_bytes(), 7, b"", [], []
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        whole = data[at + 7 : at + 7 + size] if kind in (1, 2) else whole + data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind not in (1, 4):
            continue
        record = wandb_internal_pb2.Record()
        record.ParseFromString(whole)
        if record.WhichOneof("record_type") == "history":
            entries = {}
            for item in record.history.item:
                entries[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
            history.append(entries)
        elif record.WhichOneof("record_type") == "metric":
            metrics.append((record.metric.glob_name, record.metric.step_metric))
    return history, metrics


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Nothing is sent, and what wandb writes is in the folder of the test."""
    for name, value in {"MODE": "offline", "DIR": tmp_path, "SILENT": "true", "CONFIG_DIR": tmp_path / "c"}.items():
        monkeypatch.setenv(f"WANDB_{name}", str(value))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    wandb = pytest.importorskip("wandb", reason="wandb is not installed: make foreign installs it")
    yield wandb
    wandb.teardown()  # it keeps its settings in the process


RECORDS = (make_record(0.0), make_record(1.0), make_record(1.0, "ggn", "train"), failed_record(2.0))


def test_tensorboard_has_the_numbers_the_density_and_the_failure(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: make foreign installs it")
    path = write(tmp_path / "run.h5", *RECORDS)
    done = CliRunner().invoke(main, ["log", str(path), f"tensorboard:{tmp_path / 'events'}"])
    assert done.exit_code == 0, done.output
    found = in_tensorboard(tmp_path / "events")
    for record in RECORDS:
        entry = entry_of(record)
        for tag, number in entry.numbers.items():
            (event,) = [event for event in found.Scalars(tag) if event.step == record.step]
            assert event.value == np.float32(number), tag
        for tag, histogram in entry.histograms.items():
            (event,) = [event for event in found.Histograms(tag) if event.step == record.step]
            assert event.histogram_value.bucket == pytest.approx(histogram.counts.tolist(), rel=1e-12)
            assert sum(event.histogram_value.bucket) == pytest.approx(200)
            limits = [event.histogram_value.min, *event.histogram_value.bucket_limit]
            assert limits == pytest.approx(histogram.edges.tolist(), rel=1e-12)
            assert event.histogram_value.sum == pytest.approx(record.spectrum.trace().value)
    assert len(found.Scalars("spectra/hessian/eval/lambda_max")) == 2
    (event,) = found.Tensors("spectra/hessian/eval/reason/text_summary")
    assert (event.step, event.tensor_proto.string_val[0]) == (200, b"failed: NaN weights")


def test_wandb_has_the_numbers_the_density_and_the_failure(tmp_path, offline):
    path = write(tmp_path / "run.h5", *RECORDS)
    done = CliRunner().invoke(main, ["log", str(path), "wandb:project"])
    assert done.exit_code == 0, done.output
    history, metrics = in_wandb(tmp_path)
    assert metrics == [("spectra/*", "spectra/x")]
    assert len(history) == len(RECORDS)
    for entries, record in zip(history, load_trajectory(path)):
        entry = entry_of(record)
        assert entries["spectra/x"] == record.step
        assert {tag: entries[tag] for tag in entry.numbers} == dict(entry.numbers)
        assert {tag: entries[tag] for tag in entry.words} == dict(entry.words)
        for tag, histogram in entry.histograms.items():
            assert entries[f"{tag}._type"] == "histogram"
            assert entries[f"{tag}.values"] == pytest.approx(histogram.counts.tolist())
            assert entries[f"{tag}.bins"] == pytest.approx(histogram.edges.tolist())
    assert history[-1]["spectra/hessian/eval/reason"] == "failed: NaN weights"


def test_a_tracker_logs_into_the_run_of_a_training_and_leaves_it_open(tmp_path, offline):
    task = maker()(None)
    quick = {"lanczos_steps": 4, "num_probes": 2, "check": False, "metrics": "none"}
    run = offline.init(project="training")
    events = f"tensorboard:{tmp_path / 'events'}"
    with Tracker(task, out=tmp_path / "run.h5", log=["wandb:other", events], **quick) as tracker:
        for step in range(3):
            run.log({"loss": 1.0 / (1 + step)}, step=100 * step)  # far ahead of the steps of the tracker
            task.model.load_state_dict(network().state_dict())
            tracker(step=step)
    run.log({"loss": 0.0}, step=999)
    run.finish()
    history, _ = in_wandb(tmp_path)
    logged = [entries for entries in history if "spectra/x" in entries]
    records = list(load_trajectory(tmp_path / "run.h5"))
    assert [entries["spectra/x"] for entries in logged] == [0, 1, 2]
    expected = [record.headline("trace").value for record in records]
    assert [entries["spectra/hessian/eval/trace"] for entries in logged] == expected
    assert history[-1]["loss"] == 0.0
    scalars = in_tensorboard(tmp_path / "events").Scalars("spectra/hessian/eval/trace")
    assert [(event.step, event.value) for event in scalars] == list(enumerate(map(np.float32, expected)))
