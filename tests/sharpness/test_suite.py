"""The measures of a record: by name, once per mode, at the run's own parameters, and never an invented number."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import re

import pytest
import torch
from torch import nn

import spectra
import spectra.exact.trace
import spectra.sharpness.norms
from spectra import Task, analyze, iter_analyze
from spectra.errors import ArgumentError
from spectra.exact.linearised import Linearised
from spectra.results.measure_catalogue import CATALOGUE, chosen_measures
from spectra.results.storage.runfile import RunFile, load_trajectory
from spectra.sharpness.suite import measure_all

CHEAP = [name for name, entry in CATALOGUE.items() if entry.cheap]


def make_task(activation: nn.Module | None = None, batch_norm: bool = False) -> Task:
    torch.manual_seed(0)
    norm = [nn.BatchNorm1d(6)] if batch_norm else []
    model = nn.Sequential(nn.Linear(5, 6), *norm, activation or nn.ReLU(), nn.Linear(6, 3)).double()
    x, y = torch.randn(12, 5, dtype=torch.float64), torch.randint(3, (12,))
    return Task(model, nn.CrossEntropyLoss(), [(x[:8], y[:8]), (x[8:], y[8:])])


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_name_leads_to_a_public_function(name):
    module, _, function = CATALOGUE[name].home.partition(":")
    assert getattr(spectra, function) is getattr(importlib.import_module(module), function)


def test_the_measures_of_a_record_are_those_of_the_functions():
    task = make_task()
    found = measure_all(task, "all")
    assert list(found) == list(CATALOGUE)
    assert found["minimum_sharpness"] == spectra.minimum_sharpness(task)
    assert found["fisher_rao_liang"] == spectra.fisher_rao_norm(task, "liang")
    assert found["adaptive_sharpness_worst"] == spectra.adaptive_sharpness(task, form="worst")
    assert found["bn_sharpness"] == spectra.bn_sharpness(task, bn_mode="train")
    assert found["normalized_sharpness_of_normalized_loss"].loss == "normalized"
    assert found["normalized_sharpness_pacbayes"] == spectra.normalized_sharpness(task, "pacbayes")
    assert found["normalized_sharpness_icml"] == spectra.normalized_sharpness(task, "icml")
    assert found["normalized_sharpness_icml_input"] == spectra.normalized_sharpness(task, "icml", side="input")
    assert found["squared_norm_of_matrices"] == spectra.squared_norm(task, form="matrices")
    half, printed = (found[f"normalized_sharpness_{form}"].value for form in ("pacbayes", "icml"))
    assert 2 * half == pytest.approx(found["normalized_sharpness"].value, rel=1e-12)
    assert 0 < printed < half < math.sqrt(6) * printed
    assert all(math.isfinite(measure.value) for measure in found.values())


def test_logistic_regression_has_no_scale_and_so_the_trace_itself_for_a_minimum():
    torch.manual_seed(0)
    x, y = torch.randn(9, 4), torch.randint(3, (9,))
    task = Task(nn.Linear(4, 3).double(), nn.CrossEntropyLoss(), [(x.double(), y)])
    found = measure_all(task)
    trace = spectra.exact_trace(task).total
    assert found["minimum_sharpness"].value == pytest.approx(trace, rel=1e-12)
    assert found["node_minimum_sharpness"].value == pytest.approx(trace, rel=1e-12)
    assert found["node_minimum_sharpness"].certificate == 0.0


def test_the_certificate_is_measured_once_for_all_that_rest_on_it(monkeypatch):
    calls = []
    original = spectra.exact.trace.certify
    monkeypatch.setattr(spectra.exact.trace, "certify", lambda *a, **k: calls.append(1) or original(*a, **k))
    names = "normalized_sharpness, matrix_normalized_sharpness, fisher_rao_hessian"
    alone = measure_all(make_task(), names)
    assert len(calls) == 3
    calls.clear()
    (record,) = analyze(make_task(), lanczos_steps=2, num_probes=2, metrics=names)
    assert len(calls) == 1
    for name, measure in record.sharpness.items():
        assert measure.to_json() == alone[name].to_json()


def test_what_goes_wrong_in_a_measure_does_not_lose_the_record(monkeypatch):
    def broken(*args, **options):
        raise IndexError("out of\nrange")

    monkeypatch.setattr(spectra.sharpness.norms, "gradient_norm", broken)
    (record,) = analyze(make_task(), lanczos_steps=2, num_probes=2, metrics="gradient_norm")
    assert record.status == "unverified"
    assert record.spectrum is not None
    assert record.sharpness["gradient_norm"].reason == "IndexError: out of range"


def test_what_does_not_exist_here_is_nan_with_its_reason_and_null_in_json():
    (record,) = analyze(make_task(nn.GELU()), lanczos_steps=2, num_probes=2)
    missing = record.sharpness["minimum_sharpness"]
    assert math.isnan(missing.value)
    assert "gelu" in missing.reason.lower()
    assert record.to_json()["sharpness"]["minimum_sharpness"]["value"] is None
    labelled = record.sharpness["normalized_sharpness"]
    assert labelled.curvature == "ggn"
    assert math.isfinite(labelled.value)


def test_a_task_without_a_criterion_has_reasons_in_place_of_numbers():
    model = nn.Linear(3, 1)
    task = Task.from_loss(model, lambda model, x: model(x).square().mean(), [torch.randn(4, 3)])
    found = measure_all(task)
    assert all(math.isnan(found[name].value) for name in ("minimum_sharpness", "fisher_rao_diagonal"))
    assert all(measure.reason for measure in found.values() if math.isnan(measure.value))
    assert found["gradient_norm"].value > 0


def test_measures_are_computed_once_per_mode_and_in_train_mode_only_those_that_exist_there():
    records = analyze(
        make_task(batch_norm=True),
        operators=("hessian", "ggn"),
        bn_modes=("eval", "train"),
        lanczos_steps=2,
        num_probes=2,
    )
    named = {(record.operator, record.bn_mode): list(record.sharpness) for record in records}
    assert named == {
        ("hessian", "eval"): CHEAP,
        ("hessian", "train"): ["squared_norm", "gradient_norm"],
        ("ggn", "eval"): [],
        ("ggn", "train"): [],
    }


def test_measures_are_of_the_parameters_at_the_call_though_training_has_gone_on():
    task = make_task()
    before = spectra.gradient_norm(task).value
    records = iter_analyze(task, lanczos_steps=2, num_probes=2, metrics="gradient_norm, squared_norm")
    with torch.no_grad():
        for p in task.model.parameters():
            p.mul_(2.0)
    (record,) = records
    assert list(record.sharpness) == ["squared_norm", "gradient_norm"]
    assert record.sharpness["gradient_norm"].value == before
    assert spectra.gradient_norm(task).value != before


def test_chosen_parameters_have_no_measures_of_the_whole_network():
    (record,) = analyze(make_task(), lanczos_steps=2, num_probes=2, params="2.*")
    assert record.sharpness == {}


def test_names_are_checked_at_the_call_with_a_near_one():
    assert chosen_measures("none") == ()
    assert chosen_measures("cheap") == tuple(CHEAP)
    assert chosen_measures("bn_sharpness,cheap") == (*CHEAP, "bn_sharpness")
    with pytest.raises(ArgumentError, match="did you mean normalized_sharpness_icml"):
        chosen_measures("icml")
    with pytest.raises(ArgumentError, match="did you mean minimum_sharpness"):
        analyze(make_task(), metrics="minimal_sharpness")


def test_measures_come_back_from_a_file(tmp_path):
    (record,) = analyze(make_task(nn.Tanh()), lanczos_steps=2, num_probes=2, metrics="all")
    with RunFile.open(tmp_path / "run.h5", {"seed": 0}) as run:
        run.append(record)
    (back,) = load_trajectory(tmp_path / "run.h5")
    assert list(back.sharpness) == list(record.sharpness)
    for name, measure in record.sharpness.items():
        assert back.sharpness[name].to_json() == measure.to_json(), name


# -- what they may cost


def language_model(vocabulary=40, positions=12, rows=10) -> Task:
    """Sequences of tokens and a prediction at each: as many columns as positions times words, and layers that bend."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(vocabulary, 6), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, vocabulary))
    x, y = torch.randint(vocabulary, (2, rows, positions))

    def forward(model, batch):
        return model(batch[0]).transpose(1, 2)

    return Task(model, nn.CrossEntropyLoss(), [(x[:6], y[:6]), (x[6:], y[6:])], forward=forward)


@pytest.fixture
def columns(monkeypatch):
    """How many columns were pulled back through the data, a batch for its part of the rows."""
    pulled = []
    real = Linearised.squares

    def counted(self, columns, signs, diagonal):
        pulled.append(len(columns) * self.layout.samples / 10)
        return real(self, columns, signs, diagonal)

    monkeypatch.setattr(Linearised, "squares", counted)
    return pulled


@pytest.fixture
def nothing_is_small(monkeypatch):
    monkeypatch.setattr("spectra.runtime.allowance.SMALL", 0.0)


EXACT_COLUMNS = 39 * 12


@pytest.mark.usefixtures("nothing_is_small")
def test_default_measures_of_a_language_model_are_drawn_and_cost_no_more_than_the_spectrum(columns):
    (record,) = analyze(language_model(), lanczos_steps=100, num_probes=4)
    assert 32 <= sum(columns) <= 2.5 * 400
    found = record.sharpness["normalized_sharpness"]
    assert found.reason.startswith("not exact (Monte-Carlo: 32 draws for 468 columns)")
    truth = spectra.normalized_sharpness(language_model())
    assert abs(found.value - truth.value) < 2 * found.stderr
    assert found.stderr < 0.2 * found.value


@pytest.mark.usefixtures("nothing_is_small")
@pytest.mark.parametrize(("steps", "probes"), [(1, 2), (3, 2), (4, 3)])
def test_the_less_the_spectrum_costs_the_more_is_left_out_with_the_reason(steps, probes, columns):
    (record,) = analyze(language_model(), lanczos_steps=steps, num_probes=probes)
    budget = 2.5 * steps * probes
    assert sum(columns) <= budget - 2.5 * probes + 1e-9  # a product with each probe is for the check
    assert list(record.sharpness) == CHEAP
    assert record.sharpness["squared_norm"].value > 0  # which costs nothing
    missing = record.sharpness["normalized_sharpness"]
    assert math.isnan(missing.value)
    assert re.fullmatch(
        rf"left out: all columns: about 470 gradients, and \S+ of a budget of {budget:.2g} are left; 8 draws: about 8 "
        rf"gradients, and \S+ of a budget of {budget:.2g} are left; --metrics normalized_sharpness computes it",
        missing.reason,
    )
    assert record.to_json()["sharpness"]["normalized_sharpness"]["reason"] == missing.reason


@pytest.mark.usefixtures("nothing_is_small")
@pytest.mark.parametrize("asked", ["normalized_sharpness", "cheap, normalized_sharpness", "all"])
def test_a_measure_that_is_named_is_exact_whatever_it_costs(asked, columns):
    (record,) = analyze(language_model(), lanczos_steps=1, num_probes=1, metrics=asked, check=False)
    found = record.sharpness["normalized_sharpness"]
    assert found.to_json() == spectra.normalized_sharpness(language_model()).to_json()
    assert sum(columns) >= EXACT_COLUMNS
    if asked == "cheap, normalized_sharpness":
        assert "left out" in record.sharpness["matrix_normalized_sharpness"].reason


@pytest.mark.usefixtures("nothing_is_small")
def test_why_a_measure_does_not_exist_is_said_rather_than_what_it_would_cost():
    task = language_model()
    task.model[2] = nn.Tanh()
    (record,) = analyze(task, lanczos_steps=1, num_probes=2)
    assert "not positively homogeneous" in record.sharpness["minimum_sharpness"].reason


@pytest.mark.usefixtures("nothing_is_small")
def test_what_is_left_out_does_not_depend_on_the_clock(monkeypatch):
    (record,) = analyze(language_model(), lanczos_steps=20, num_probes=2)
    clock = itertools.count(0, 1000)
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    (slow,) = analyze(language_model(), lanczos_steps=20, num_probes=2)
    assert json.dumps([m.to_json() for m in slow.sharpness.values()]) == json.dumps(
        [m.to_json() for m in record.sharpness.values()]
    )


def test_small_networks_have_all_their_measures_whatever_the_spectrum_costs():
    (record,) = analyze(make_task(), lanczos_steps=1, num_probes=1)
    assert all(math.isfinite(measure.value) for measure in record.sharpness.values())
    assert all(measure.stderr is None for measure in record.sharpness.values())


def test_the_bounds_that_are_asked_for_have_no_limit(monkeypatch):
    monkeypatch.setattr("spectra.runtime.allowance.SMALL", 0.0)
    (record,) = analyze(make_task(), lanczos_steps=1, num_probes=1, metrics="none", check=False, bounds=True)
    assert all(math.isfinite(measure.value) for measure in record.sharpness.values())
