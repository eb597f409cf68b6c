"""A results file returns what was written to it, and a later run continues it."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from run_files import SETTINGS, failed_record, make_record, same_bits, write

from spectra.errors import StorageError
from spectra.results.identity import Identity
from spectra.results.storage.runfile import RunFile, load_trajectory
from spectra.spectrum.estimates import Estimate
from spectra.spectrum.spectrum import Spectrum
from spectra.spectrum.traces import trace as plain_trace
from spectra.spectrum.tridiagonal import Tridiagonal

DATA = Path(__file__).parents[2] / "data"


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "run.h5", make_record(0), make_record(1), make_record(0, "ggn"))


# --- what is put in comes out -------------------------------------------------------------------------------------


def test_a_record_comes_back_bit_for_bit(tmp_path):
    record = make_record(3, "ggn", "train", notes=("one", "zwei: ü"), provenance={"a": [1, {"b": 0.1}], "c": None})
    back = load_trajectory(write(tmp_path / "run.h5", record))[0]
    assert len({t.steps for t in record.spectrum.tridiagonals}) > 1  # ragged
    for old, new in zip(record.spectrum.tridiagonals, back.spectrum.tridiagonals, strict=True):
        same_bits(old.alphas, new.alphas)
        same_bits(old.betas, new.betas)
        assert (old.exhausted, old.orthogonality) == (new.exhausted, new.orthogonality)
    for name in ("n", "noise", "seed", "distribution", "tensor_sizes"):
        assert getattr(back.spectrum, name) == getattr(record.spectrum, name)
    assert list(back.spectrum.tensor_sizes) == list(record.spectrum.tensor_sizes)
    same_bits(back.spectrum.tensor_forms, record.spectrum.tensor_forms)
    assert back.estimates == record.estimates
    assert list(back.estimates) == list(record.estimates)
    assert back.spectrum.estimates() == record.estimates
    for name in (
        "checkpoint",
        "checkpoint_sha256",
        "epoch",
        "step",
        "operator",
        "bn_mode",
        "status",
        "reason",
        "facts",
    ):
        assert getattr(back, name) == getattr(record, name), name
    assert (back.settings, back.provenance, back.notes) == (record.settings, record.provenance, record.notes)
    assert back.identity == record.identity
    assert {name: type(fact) for name, fact in back.facts.items()} == {
        name: type(fact) for name, fact in record.facts.items()
    }


def test_what_is_not_known_stays_unknown(tmp_path):
    spectrum = Spectrum([Tridiagonal([1.0, 2.0], [0.5, 0.0], exhausted=True)], 2)
    record = make_record(
        checkpoint=None,
        checkpoint_sha256=None,
        epoch=None,
        step=None,
        spectrum=spectrum,
        facts={"loss": None},
        notes=(),
    )
    back = load_trajectory(write(tmp_path / "run.h5", record))[0]
    assert (back.checkpoint, back.checkpoint_sha256, back.epoch, back.step, back.reason) == (None,) * 5
    assert back.facts == {"loss": None}
    assert back.spectrum.seed is None
    assert back.spectrum.tensor_forms is None
    assert back.spectrum.tridiagonals[0].exhausted
    assert math.isnan(back.spectrum.tridiagonals[0].orthogonality)
    assert back.estimates["trace"].stderr is None  # one probe


def test_odd_estimates_and_texts_come_back(tmp_path):
    estimates = {
        "plain": Estimate(1.5, 0.1, 1.2, 1.8, 4, note="a note, with ±"),
        "open": Estimate(2.0, None, -math.inf, None, 4, confidence=0.9),
        "vague": Estimate(0.3, None, 0.0, 0.9, 4, tau=1e-3, resolved=False),
        "clear": Estimate(0.3, 0.0, 0.3, 0.3, 4, tau=1e-3, resolved=True),
    }
    record = make_record(cached_estimates=estimates, checkpoint="odd \udce9\0.pt", step=2**40)
    back = load_trajectory(write(tmp_path / "run.h5", record))[0]
    assert back.estimates == estimates
    assert back.checkpoint == "odd \\udce9\\x00.pt"
    assert back.step == 2**40


def test_records_are_in_training_order_whatever_the_order_of_arrival(tmp_path):
    t = load_trajectory(write(tmp_path / "run.h5", make_record(4), make_record(0), failed_record(2)))
    assert [record.epoch for record in t] == [0, 2, 4]
    assert [record.status for record in t] == ["complete", "failed", "complete"]
    assert t[1].reason == "NaN weights"
    assert t.settings == json.loads(json.dumps(SETTINGS))


def test_the_tree_is_as_the_format_says(path):
    with h5py.File(path) as file:
        assert file.attrs["encoding-type"] == "spectra-run"
        assert file.attrs["encoding-version"] == 1
        assert json.loads(file.attrs["settings"])["task"] == "digits-convnet"
        assert sorted(file["records"]) == ["000000", "000001", "000002"]
        record = file["records/000002"]
        assert record.attrs["operator"] == "ggn"
        assert record.attrs["complete"] == 1
        spectrum = record["spectrum"]
        shapes = {name: (spectrum[name].shape, spectrum[name].dtype.str) for name in spectrum if name != "tensors"}
        assert shapes == {
            "alphas": ((4, 12), "<f8"),
            "betas": ((4, 12), "<f8"),
            "lengths": ((4,), "<i8"),
            "exhausted": ((4,), "|u1"),
            "orthogonality": ((4,), "<f8"),
        }
        assert list(spectrum["tensors/names"].asstr()) == ["conv.weight", "conv.bias", "fc.weight"]
        np.testing.assert_array_equal(
            np.isnan(spectrum["alphas"][()]), np.arange(12) >= spectrum["lengths"][()][:, None]
        )


def test_the_programs_in_the_format_document_give_the_right_numbers(path, monkeypatch, capsys):
    text = (DATA.parent.parent / "docs" / "format.md").read_text(encoding="utf-8")
    first, second = (part.split("```")[0] for part in text.split("```python\n")[1:3])
    monkeypatch.chdir(path.parent)
    record = load_trajectory(path)[0]
    exec(first, {})
    assert capsys.readouterr().out.split() == [
        str(record.estimates["trace"].value),
        "+-",
        str(record.estimates["trace"].stderr),
    ]
    names: dict[str, object] = {}
    exec(second, names)  # leaves the last probe's
    last = record.spectrum.tridiagonals[-1]
    np.testing.assert_allclose(names["nodes"], last.nodes, rtol=0, atol=1e-12)
    np.testing.assert_allclose(names["weights"], last.weights, rtol=0, atol=1e-12)
    np.testing.assert_allclose(names["residuals"], last.residuals, rtol=0, atol=1e-12)


def test_a_record_of_a_hundred_steps_and_eight_probes_is_small(tmp_path):
    tensors = {f"stage{i // 10}.block{i % 10}.conv.weight": 10 for i in range(160)}
    rows = np.random.default_rng(0).standard_normal((8, 100))
    spectrum = Spectrum(
        [Tridiagonal(row, abs(row)) for row in rows], 1600, tensor_sizes=tensors, tensor_forms=np.ones((8, 160))
    )
    path = tmp_path / "run.h5"
    few = {name: Estimate(1.0, 0.1, 0.8, 1.2, 8) for name in make_record().estimates}
    sizes = [0]
    with RunFile.open(path, SETTINGS) as run:
        for epoch in range(3):
            run.append(make_record(epoch, spectrum=spectrum, cached_estimates=few))
            sizes.append(path.stat().st_size)
    assert np.diff(sizes).max() < 100_000


# --- continuing ---------------------------------------------------------------------------------------------------


def identity_of(record):
    return Identity.of(record.place, operator=record.operator, bn_mode=record.bn_mode, settings=SETTINGS)


def test_a_run_goes_on_where_it_stopped(path):
    before = {record.label: record.spectrum.trace() for record in load_trajectory(path)}
    with RunFile.open(path, SETTINGS) as run:
        assert len(run.records) == 3
        assert run.has(identity_of(make_record(0)))
        assert run.has(identity_of(make_record(0, "ggn")))
        assert not run.has(identity_of(make_record(1, "ggn")))
        assert not run.has(identity_of(make_record(2)))
        run.append(make_record(2))
        assert run.has(identity_of(make_record(2)))
    after = {record.label: record.spectrum.trace() for record in load_trajectory(path)}
    assert len(after) == 4
    assert before.items() <= after.items()


def test_a_failed_record_is_tried_again_and_replaced(tmp_path):
    # A checkpoint that could not be read has no hash, and fails before the settings are known.
    unread = failed_record(1, checkpoint_sha256=None, settings={}, epoch=None, step=None)
    path = write(tmp_path / "run.h5", make_record(0), unread, make_record(2))
    with RunFile.open(path, SETTINGS) as run:
        assert not run.has(identity_of(make_record(1)))
        run.append(dataclasses.replace(unread, reason="still"))
    assert [r.reason for r in load_trajectory(path) if r.status == "failed"] == ["still"]
    with RunFile.open(path, SETTINGS) as run:
        run.append(make_record(1))
    assert [(record.epoch, record.status) for record in load_trajectory(path)] == [
        (0, "complete"),
        (1, "complete"),
        (2, "complete"),
    ]


def test_other_settings_are_refused_with_both_values(path):
    other = SETTINGS | {"seed": 1, "lanczos_steps": 50, "samples": 100}
    content = path.read_bytes()
    with pytest.raises(StorageError) as caught:
        RunFile.open(path, other)
    message = str(caught.value)
    assert "seed is 0 in the file, 1 now" in message
    assert "lanczos_steps is 12 in the file, 50 now" in message
    assert "samples is not set in the file, 100 now" in message
    assert "reduction" not in message
    assert path.read_bytes() == content


def test_settings_that_are_equal_as_json_are_the_same(path):
    with RunFile.open(path, SETTINGS | {"batch_sizes": ((64, 2), (10, np.int64(1)))}) as run:
        assert len(run.records) == 3


def test_a_checkpoint_that_was_replaced_is_refused(path):
    changed = make_record(1, checkpoint_sha256="f" * 64)
    with RunFile.open(path, SETTINGS) as run:
        with pytest.raises(StorageError, match=r"SHA-256 was 000000000000\.\.\., now it is ffffffffffff\.\.\."):
            run.has(changed.identity)
        with pytest.raises(StorageError, match="another results file"):
            run.append(changed)
    assert len(load_trajectory(path)) == 3


def test_the_same_record_twice_is_refused(path):
    with RunFile.open(path, SETTINGS) as run, pytest.raises(StorageError, match="already"):
        run.append(make_record(0))


def test_two_writers_of_one_file_are_noticed(tmp_path):
    path = tmp_path / "run.h5"
    first, second = RunFile.open(path, SETTINGS), RunFile.open(path, SETTINGS)
    first.append(make_record(0))
    with pytest.raises(StorageError, match="another process"):
        second.append(make_record(1))
    assert len(load_trajectory(path)) == 1


# --- versions, and the numpy wing ---------------------------------------------------------------------------------


def test_the_file_of_version_1_keeps_loading():
    t = load_trajectory(DATA / "v1.h5")
    wanted = json.loads((DATA / "v1.json").read_text(encoding="utf-8"))
    for record, entry in zip(t, wanted, strict=True):
        for name in ("checkpoint", "checkpoint_sha256", "epoch", "step", "operator", "bn_mode", "status", "reason"):
            assert getattr(record, name) == entry[name]
        assert (record.facts, record.settings) == (entry["facts"], entry["settings"])
        if record.spectrum is not None:
            # Its estimates are of another edition: all of them are computed again from the raw tridiagonals ...
            assert record.cached_estimates is None
            assert record.estimates == record.spectrum.estimates()
            assert record.estimates.keys() >= entry["estimates"].keys()
            # ... which say what they said: the plain mean over the probes, with no eigenvalue taken as known.
            trace = plain_trace(record.spectrum.quadrature.with_nothing_known())
            assert trace.value == pytest.approx(entry["estimates"]["trace"]["value"], rel=1e-12)
            assert trace.stderr == pytest.approx(entry["estimates"]["trace"]["stderr"], rel=1e-9)


def test_reading_and_writing_need_no_torch(path):
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
import spectra
from run_files import SETTINGS, make_record
from spectra.results.storage.runfile import RunFile
t = spectra.load_trajectory({str(path)!r})
t["hessian", "eval"].trace
RunFile.open({str(path)!r}, SETTINGS).append(make_record(9))
assert "torch" not in sys.modules, "torch was imported"
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
