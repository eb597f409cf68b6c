"""Numbers on test data: those of a task whose data they are, in the same record as those of the training data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from run_files import make_record, make_spectrum
from torch import nn

from spectra import GGNOperator, Task, analyze, load_trajectory, save_checkpoint, slq
from spectra.analysis.run import DataChoice, analyze_run
from spectra.analysis.settings import Settings
from spectra.errors import DataError, StorageError
from spectra.operators.point import measure_point
from spectra.results.storage.runfile import RunFile
from spectra.zoo.tasks import build_task

QUICK = {"lanczos_steps": 6, "num_probes": 3}


def rows(seed, *sizes):
    generator = torch.Generator().manual_seed(seed)
    total = sum(sizes)
    x, y = torch.randn(total, 4, generator=generator) + seed, torch.randint(3, (total,), generator=generator)
    return list(zip(x.split(sizes), y.split(sizes)))


def make_task(test=True, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))
    return Task(model, nn.CrossEntropyLoss(), rows(0, 9, 7), test_data=rows(1, 6, 5) if test else None, **options)


def equal(a, b):
    return all(
        np.array_equal(s.alphas, t.alphas) and np.array_equal(s.betas, t.betas)
        for s, t in zip(a.tridiagonals, b.tridiagonals, strict=True)
    )


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("operator", ["hessian", "ggn"])
def test_they_are_bit_for_bit_those_of_a_task_with_these_data(operator, mode):
    task = make_task()
    (record,) = analyze(task, operators=operator, bn_modes=mode, test_data=True, **QUICK)
    (training,) = analyze(task, operators=operator, bn_modes=mode, **QUICK)
    swapped = Task(task.model, nn.CrossEntropyLoss(), rows(1, 6, 5))
    (alone,) = analyze(swapped, operators=operator, bn_modes=mode, **QUICK)
    assert equal(record.spectrum, training.spectrum)
    assert equal(record.test_spectrum, alone.spectrum)
    assert not equal(record.spectrum, record.test_spectrum)
    assert record.test_estimates == alone.spectrum.estimates()  # without the exact trace, which is of the training data
    for name in ("loss", "accuracy", "n_samples"):
        assert record.facts[f"test_{name}"] == alone.facts[name]
        assert record.facts[name] == training.facts[name]
    assert record.facts["generalization_gap"] == alone.facts["loss"] - training.facts["loss"]
    assert record.facts["accuracy_gap"] == training.facts["accuracy"] - alone.facts["accuracy"]
    assert "test_loss" not in training.facts
    assert training.test_spectrum is None
    assert training.test_estimates == {}
    assert "test" not in training.to_json()


def test_recalibrated_statistics_are_those_of_the_training_data():
    task = make_task()
    (record,) = analyze(task, bn_modes="recalibrated", operators="ggn", test_data=True, **QUICK)
    # The same by hand: the statistics of the training data, by momentum, in a model that is evaluated in eval mode.
    model, means, variances = task.model, [], []
    for x, _ in task.data:
        h = model[0](x).detach()
        means.append(h.mean(0))
        variances.append(h.var(0))
    weights = torch.tensor([9 / 16, 7 / 16])
    model[1].running_mean.copy_(weights @ torch.stack(means))
    model[1].running_var.copy_(weights @ torch.stack(variances))
    alone = GGNOperator(Task(model, nn.CrossEntropyLoss(), rows(1, 6, 5)))
    np.testing.assert_allclose(record.test_spectrum.nodes, slq(alone, 6, 3, 0).nodes, rtol=1e-4, atol=1e-6)
    assert record.facts["test_loss"] == pytest.approx(measure_point(alone)["loss"], rel=1e-6)
    own = measure_point(GGNOperator(Task(model, nn.CrossEntropyLoss(), rows(1, 6, 5)), "recalibrated"))["loss"]
    assert abs(own - record.facts["test_loss"]) > 1e-3  # statistics of the test data would give another number
    assert any("running statistics estimated over the training data" in note for note in record.notes)


def test_recalibration_checks_the_batches_that_it_reads():
    """A single test row is no obstacle, since nothing is estimated from it; a single training row is one."""
    task = make_task()
    lonely = Task(task.model, nn.CrossEntropyLoss(), task.data, test_data=rows(1, 6, 1))
    analyze(lonely, bn_modes="recalibrated", test_data=True, **QUICK)
    with pytest.raises(DataError, match=r"test data: batch 1 of 2 holds a single sample"):
        analyze(lonely, bn_modes="train", test_data=True, **QUICK)
    held_out = Task(task.model, nn.CrossEntropyLoss(), rows(0, 9, 1), test_data=rows(1, 6)).held_out()
    with pytest.raises(DataError, match=r"batch 1 of 2 holds a single sample"):
        GGNOperator(held_out, "recalibrated") @ torch.zeros(53)


def test_what_cannot_be_used_is_one_line():
    with pytest.raises(DataError, match="the task has no test data: pass test_data="):
        analyze(make_task(test=False), test_data=True, **QUICK)
    with pytest.raises(DataError, match="test_data is a list_iterator, which can be read only once"):
        Task(nn.Linear(4, 3), nn.CrossEntropyLoss(), rows(0, 5), test_data=iter(rows(1, 5)))
    far = [(x, y + 7) for x, y in rows(1, 5)]
    with pytest.raises(DataError, match="test data: labels reach"):
        analyze(Task(nn.Linear(4, 3), nn.CrossEntropyLoss(), rows(0, 5), test_data=far), test_data=True, **QUICK)


def test_sums_over_data_of_other_sizes_are_not_compared():
    (record,) = analyze(make_task(reduction="sum"), test_data=True, **QUICK)
    assert "generalization_gap" not in record.facts
    assert "accuracy_gap" in record.facts
    assert any("not comparable" in note for note in record.notes)


def test_other_batches_are_those_of_the_test_data_too_and_a_subset_is_not():
    task = make_task().rebatched(4).subset(8)
    assert [len(y) for _, y in task.held_out().data] == [4, 4, 3]
    assert task.held_out().calibration is task


def test_the_progress_is_one_for_both():
    heard = []
    analyze(make_task(), test_data=True, progress=lambda *told: heard.append(told[2:]), **QUICK)
    done = [number for number, _ in heard]
    assert done == sorted(done)
    assert heard[-1] == (36, 36)
    assert {total for _, total in heard} == {36}


# --- stored and shown ---------------------------------------------------------------------------------------------


def test_they_come_back_from_a_file(tmp_path):
    record = make_record(test_spectrum=make_spectrum(1))
    with RunFile.open(tmp_path / "run.h5", {}) as run:
        run.append(record)
        run.append(make_record(1.0))
    found, without = load_trajectory(tmp_path / "run.h5")
    assert equal(found.test_spectrum, record.test_spectrum)
    assert found.test_estimates == record.test_estimates
    assert found.test_estimates != found.estimates
    assert without.test_spectrum is None


def test_damage_to_them_is_found(tmp_path):
    import h5py

    from spectra.results.storage.record_codec import read_record, write_record

    with h5py.File(tmp_path / "one.h5", "w") as file:
        write_record(file.create_group("r"), make_record(test_spectrum=make_spectrum(1)))
        file["r/test/estimates/value"][0] = 7.0
        mended = read_record(file["r"])
        assert mended.test_estimates == make_spectrum(1).estimates()
        assert any("damaged" in note for note in mended.notes)
        file["r/test/spectrum/alphas"][0, 0] = 7.0
        with pytest.raises(ValueError, match="/r/test/spectrum"):
            read_record(file["r"])


def test_json_has_a_part_of_its_own():
    facts = {"loss": 1.0, "test_loss": 2.0, "test_accuracy": None, "test_n_samples": 11}
    test = make_record(test_spectrum=make_spectrum(1), facts=facts).to_json()["test"]
    assert (test["loss"], test["accuracy"], test["n_samples"]) == (2.0, None, 11)
    assert test["estimates"]["trace"]["value"] == make_spectrum(1).trace().value


def test_a_run_with_test_data_is_another_one(tmp_path):
    paths = [tmp_path / "0.pt", tmp_path / "1.pt"]
    for epoch, path in enumerate(paths):
        save_checkpoint(path, make_task().model, epoch=epoch)
    out, with_test = tmp_path / "run.h5", Settings(test_data=True, **QUICK)
    task = make_task()
    analyze_run(paths[:1], lambda _: task, with_test, out=out)
    outcome = analyze_run(paths, lambda _: task, with_test, out=out)
    assert (outcome.kept, len(outcome.records)) == (1, 1)
    assert all(record.test_spectrum is not None for record in load_trajectory(out))
    with pytest.raises(StorageError, match=r"test_data is .* in the file, not set now"):
        analyze_run(paths, lambda _: task, Settings(**QUICK), out=out)
    with pytest.raises(StorageError, match=r"test_batch_sizes is \[\[6, 1\], \[5, 1\]\] in the file"):
        analyze_run(paths, lambda _: task, with_test, out=out, data=DataChoice(batch_size=9))


def test_built_in_tasks_hold_out_the_other_split_and_read_it_late():
    task = build_task("digits-logistic", batch_size=200)
    assert [len(y) for _, y in task.held_out().data] == [200, 159]
    test = build_task("digits-logistic", batch_size=200, split="test")
    assert task.held_out().survey().fingerprint == test.survey().fingerprint
    with pytest.raises(DataError, match="built-in tasks have theirs for split=train"):
        test.held_out()
