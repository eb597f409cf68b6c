"""The records of a task: complete settings, provenance and notes, refusals, and the choice of data."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from cases import batches_of, conv_batch_norm
from small_nets import make
from torch import nn

from spectra import GGNOperator, HessianOperator, Record, Task, analyze, iter_analyze
from spectra.analysis.settings import Settings, sampled
from spectra.errors import ArgumentError, DataError, NumericsError, OutOfMemory, SpectraError, TaskError
from spectra.krylov import slq as slq_room
from spectra.krylov.probes import draw_probe

pytestmark = pytest.mark.usefixtures("float64")


# -- what was asked, and where it comes from


def test_the_settings_are_complete():
    task = make("mine", l2=0.25)
    (record,) = analyze(
        task,
        lanczos_steps=5,
        num_probes=3,
        seed=7,
        distribution="rademacher",
        params=["0.*", "2.bias"],
        dtype="float32",
        width=2,
    )
    assert record.settings == {
        "task": "mine",
        "loss": "CrossEntropyLoss, mean over the data (targets not ignored) + (l2/2)|theta|^2 with l2=0.25",
        "reduction": "mean",
        "l2": 0.25,
        "data": task.survey().fingerprint,
        "batch_sizes": [[7, 1], [5, 1]],
        "lanczos_steps": 5,
        "num_probes": 3,
        "seed": 7,
        "distribution": "rademacher",
        "params": ["0.*", "2.bias"],
        "dtype": "float32",
        "width": 2,
    }
    assert record.spectrum.tensor_sizes == {"0.weight": 24, "0.bias": 6, "2.bias": 3}
    assert record.facts["n_parameters"] == record.spectrum.n == 33
    assert (record.spectrum.seed, record.spectrum.distribution) == (7, "rademacher")
    assert (record.checkpoint, record.checkpoint_sha256, record.epoch, record.step) == (None, None, None, None)


def test_the_provenance_tells_effort_exactness_and_versions():
    (record,) = analyze(make(None), lanczos_steps=5, num_probes=3)
    known = record.provenance
    assert known["products"] == 15
    assert known["seconds"] > 0
    assert known["torch"] == str(torch.__version__)
    assert known["device"] == "cpu"
    assert known["noise"] == record.spectrum.noise >= known["asymmetry"]
    assert known["data_order"] == "fixed"
    assert 0 <= known["orthogonality"] < 1e-12
    for name in ("date", "command", "spectra", "numpy", "scipy", "h5py", "python", "platform", "threads", "strategy"):
        assert known[name], name
    json.dumps(record.to_json(), allow_nan=False)


def test_notes_say_what_to_know_beside_the_numbers():
    _, train = analyze(make(None, l2=0.5), bn_modes=("eval", "train"), lanczos_steps=2, num_probes=1)
    assert any("no batch-norm layer" in note for note in train.notes)
    assert any("moved by 0.5" in note for note in train.notes)
    (plain,) = analyze(make(None), lanczos_steps=2, num_probes=1, settings=None, notes=("beware",))
    assert plain.notes == ("beware",)


def test_one_record_per_operator_and_mode_in_the_order_asked():
    task, _ = conv_batch_norm()
    seen = []
    records = analyze(
        task,
        operators=("ggn", "hessian", "ggn"),
        bn_modes=("train", "eval"),
        lanczos_steps=3,
        num_probes=2,
        skip=[("hessian", "train")],
        progress=lambda *now: seen.append(now),
    )
    pairs = [("ggn", "train"), ("ggn", "eval"), ("hessian", "eval")]
    assert [(record.operator, record.bn_mode) for record in records] == pairs
    assert [now for now in seen if now[2] == now[3]] == [(*pair, 6, 6) for pair in pairs]
    assert all(isinstance(record, Record) and record.status == "complete" for record in records)


def test_the_same_probes_at_every_operator_and_mode():
    """The first coefficients of Hessian and GGN are of the same vectors, so their differences have paired errors."""
    task, _ = conv_batch_norm()
    hessian, ggn = analyze(task, operators=("hessian", "ggn"), lanczos_steps=1, num_probes=3, seed=5)
    for index in range(3):
        q = draw_probe(hessian.spectrum.n, seed=5, index=index)
        for record, kind in ((hessian, HessianOperator), (ggn, GGNOperator)):
            form = q @ (kind(task) @ q)
            assert record.spectrum.tridiagonals[index].alphas[0] == pytest.approx(form, rel=1e-9)


# -- refusals, as early as they can be


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_probes": 0}, "num_probes=0: at least 1 is needed; 8 is the default"),
        ({"lanczos_steps": 0}, "lanczos_steps=0: at least 1 is needed; 100 is the default"),
        ({"seed": -1}, "seed=-1: at least 0 is needed"),
        ({"width": 0}, "width=0: at least 1 is needed"),
        ({"distribution": "normal"}, "distribution='normal': one of 'sphere', 'rademacher' is needed"),
        (
            {"operators": "fisher"},
            "operator='fisher': one of 'hessian', 'ggn', 'empirical_fisher', 'residual' is needed",
        ),
        ({"operators": ()}, "at least one operator and one BN mode are needed"),
        ({"bn_modes": "both"}, "bn_mode='both': one of 'eval', 'recalibrated', 'train' is needed"),
        ({"dtype": "float16"}, "dtype='float16': 'float32' or 'float64' is needed"),
        ({"params": "nothing*"}, "params='nothing*': no trainable parameter has such a name"),
        ({"settings": Settings(), "seed": 1}, "seed= and settings= exclude each other"),
    ],
)
def test_arguments_out_of_range_are_refused_at_the_call(options, words):
    with pytest.raises(ArgumentError) as caught:
        iter_analyze(make(None), **options)  # not even iterated
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)


def test_a_basis_that_does_not_fit_is_refused_before_the_first_product(monkeypatch):
    monkeypatch.setattr(slq_room, "available_bytes", lambda device: 8000)
    products = []
    monkeypatch.setattr(HessianOperator, "apply", lambda self, block: products.append(1))
    for width in (None, 1):
        with pytest.raises(OutOfMemory, match=r"40 vectors of 51 numbers.* lanczos_steps=13 would fit"):
            analyze(make(None), lanczos_steps=40, num_probes=2, width=width)
    assert products == []
    monkeypatch.undo()
    monkeypatch.setattr(slq_room, "available_bytes", lambda device: 8000)
    (record,) = analyze(make(None), lanczos_steps=13, num_probes=2)
    assert record.settings["width"] == 1


def test_what_one_mode_cannot_do_is_said_before_the_other_is_computed():
    task, _ = conv_batch_norm()
    x, y = torch.cat([b[0] for b in task.data]), torch.cat([b[1] for b in task.data])
    ragged = Task(task.model, task.criterion, batches_of(x, y, 5, 5, 1))
    records = iter_analyze(ragged, bn_modes=("eval", "train"), lanczos_steps=2, num_probes=1)
    with pytest.raises(DataError, match="single sample"):
        next(records)


def test_a_nan_loss_in_a_later_batch_is_found():
    task = make(None)
    data = [*task.data, (torch.full((2, 4), float("nan")), torch.tensor([0, 1]))]
    with pytest.raises(NumericsError, match="nan") as caught:
        analyze(Task(task.model, task.criterion, data), lanczos_steps=2, num_probes=1)
    assert "\n" not in str(caught.value)


def test_the_ggn_of_a_loss_without_a_split_says_why_not():
    task = Task.from_loss(nn.Linear(2, 1), lambda m, b: m(b).pow(4).mean(), [torch.randn(3, 2)])
    with pytest.raises(TaskError, match="split"):
        iter_analyze(task, operators=("hessian", "ggn"))
    assert len(analyze(task, lanczos_steps=3, num_probes=2)) == 1


# -- the choice of data


def test_a_subset_other_batches_and_another_l2():
    task = make("mine")
    chosen = sampled(task, samples=7, data_seed=3, batch_size=4, l2=0.5)
    assert [len(y) for _, y in chosen.data] == [4, 3]
    assert (chosen.l2, chosen.name) == (0.5, "mine")
    same = replace(task, data=task.subset(7, 3).data, l2=0.5)
    (one,) = analyze(chosen, lanczos_steps=4, num_probes=2)
    (other,) = analyze(same, lanczos_steps=4, num_probes=2)
    assert one.spectrum.nodes == pytest.approx(other.spectrum.nodes, rel=1e-9)
    assert sampled(task) is task
    for options in ({"samples": 0}, {"samples": 13}, {"batch_size": 0}, {"l2": -1.0}):
        with pytest.raises(SpectraError, match=next(iter(options))):
            sampled(task, **options)


def test_a_sum_over_the_data_is_the_mean_times_their_number():
    task = make("mine")
    (mean,) = analyze(task, lanczos_steps=4, num_probes=2)
    (total,) = analyze(sampled(task, reduction="sum"), lanczos_steps=4, num_probes=2)
    assert total.spectrum.nodes == pytest.approx(12 * mean.spectrum.nodes, rel=1e-6)
    assert total.facts["loss"] == pytest.approx(12 * mean.facts["loss"], rel=1e-6)
    assert (mean.settings["reduction"], total.settings["reduction"]) == ("mean", "sum")


def test_probes_per_pass_are_decided_once_before_the_first_record(monkeypatch):
    """Where memory shrinks between the records of a task, they are still computed in the same way."""
    fits, asked_of = iter([3, 2, 1, 3]), []

    def fitting(operator, steps, probes):
        asked_of.append((operator.kind, steps, probes))
        return next(fits)

    monkeypatch.setattr("spectra.analysis.analyze.lockstep_width", fitting)
    task = replace(make("twice"), test_data=make("held out").data)
    options = {"operators": ("hessian", "ggn"), "lanczos_steps": 2, "num_probes": 4, "metrics": "none", "check": False}
    records = iter_analyze(task, test_data=True, **options)
    first = next(records)
    assert asked_of == [("hessian", 2, 4)] * 2 + [("ggn", 2, 4)] * 2
    assert [record.settings["width"] for record in (first, *records)] == [2, 1]  # the least of training and test data
    assert len(asked_of) == 4


@pytest.mark.parametrize(("width", "expected"), [(3, 3), (9, 4)])
def test_probes_per_pass_that_are_asked_for_are_taken_up_to_their_number(width, expected, monkeypatch):
    monkeypatch.setattr("spectra.analysis.analyze.lockstep_width", lambda *_: 1)
    (record,) = analyze(make(None), lanczos_steps=2, num_probes=4, width=width, metrics="none", check=False)
    assert record.settings["width"] == expected
