"""The parts of an error: the data's against many data sets, the others against their sum, and the advice."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from reference import probes_of
from torch import nn

from spectra import GGNOperator, HessianOperator, Task, analyze, slq
from spectra.results.storage.runfile import RunFile, load_trajectory
from spectra.spectrum.error_budget import NAMES, budgets_of, data_error
from spectra.spectrum.estimates import t_quantile
from spectra.spectrum.spectrum import Spectrum

N, BATCH = 240, 12


def regression(seed: int, decay: float = 0.0) -> Task:
    """``0.5 mean (x'w - y)^2``, whose Hessian is the second moment of ``x``: the trace is ``mean |x|^2``."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N, 6, generator=generator, dtype=torch.float64) * torch.tensor([3.0, 1, 1, 1, 0.5, 0.1]).double()
    x = x * (1 + torch.rand(N, 1, generator=generator, dtype=torch.float64))
    data = [(part, torch.zeros(len(part), 1).double()) for part in x.split(BATCH)]

    def half(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return 0.5 * nn.functional.mse_loss(output, target)

    return Task(nn.Linear(6, 1, bias=False).double(), half, data, weight=lambda batch: len(batch[0]), l2=decay)


def test_the_parts_of_the_batches_are_the_quadratic_form_and_leave_every_bit_of_the_numbers():
    task = regression(0, decay=0.3)
    operator = HessianOperator(task)
    block = torch.randn(3, 6, dtype=torch.float64)
    product, parts = operator.apply_in_parts(block)
    assert torch.equal(product, operator.apply(block))
    without_decay = (block * product).sum(1) - 0.3 * (block * block).sum(1)
    np.testing.assert_allclose(parts.forms.sum(1), without_decay.numpy(), rtol=1e-12)
    np.testing.assert_array_equal(parts.weights, [BATCH] * (N // BATCH))


@pytest.mark.slow
def test_the_error_from_the_data_is_that_of_the_trace_over_data_sets():
    """120 data sets and a run on each: the reported error against the scatter of the exact traces."""
    values, reported = [], []
    for seed in range(120):
        task = regression(seed)
        values.append(float(torch.cat([x for x, _ in task.data]).square().sum()) / N)
        found = data_error(slq(HessianOperator(task), 1, 16, seed=seed))
        if found.half_width is not None:
            reported.append(found.half_width / t_quantile(N // BATCH))
    assert len(reported) > 90  # elsewhere the scatter of the probes hides it, which is said
    assert np.median(reported) == pytest.approx(np.std(values, ddof=1), rel=0.35)


def test_recalibrated_statistics_leave_no_independent_parts():
    x, y = torch.randn(60, 4), torch.randint(3, (60,))
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    task = Task(model, nn.CrossEntropyLoss(), list(zip(x.split(6), y.split(6))))
    assert slq(HessianOperator(task, "eval"), 1, 2).batch_forms is not None
    assert slq(HessianOperator(task, "recalibrated"), 1, 2).batch_forms is None


def test_many_batches_are_kept_as_at_most_64_groups():
    x, y = torch.randn(300, 4), torch.randint(3, (300,))
    task = Task(nn.Linear(4, 3), nn.CrossEntropyLoss(), list(zip(x.split(1), y.split(1))))
    spectrum = slq(HessianOperator(task), 2, 2)
    assert spectrum.batch_forms.shape == (2, 64)
    assert spectrum.batch_weights.sum() == 300
    np.testing.assert_allclose(spectrum.batch_forms.sum(1), [t.alphas[0] for t in spectrum.tridiagonals], rtol=1e-5)


def test_a_sum_over_the_data_has_the_relative_error_of_the_mean():
    x, y = torch.randn(60, 4).double(), torch.randint(3, (60,))
    data = list(zip(x.split(7), y.split(7)))
    errors = []
    for reduction in ("mean", "sum"):
        torch.manual_seed(0)
        task = Task(nn.Linear(4, 3).double(), nn.CrossEntropyLoss(reduction=reduction), data)
        spectrum = slq(HessianOperator(task), 1, 60)
        errors.append(data_error(spectrum).half_width / spectrum.trace().value)
    assert errors[0] == pytest.approx(errors[1], rel=1e-10)


@pytest.mark.parametrize("steps", [4, 30])
def test_the_parts_add_up_to_the_interval_and_the_trace_has_none_from_the_steps(steps):
    values = np.linspace(-1.0, 5.0, 200)
    spectrum = Spectrum(probes_of(values, steps, 8, 3), 200, noise=1e-4)
    estimates = spectrum.estimates()
    budgets = budgets_of(spectrum, estimates)
    assert set(budgets) == {name for name in NAMES if name in estimates}
    for name, budget in budgets.items():
        estimate = estimates[name]
        reach = max(estimate.upper - estimate.value, estimate.value - estimate.lower)
        assert (budget.probes or 0) + budget.truncation + budget.arithmetic == pytest.approx(reach, rel=1e-9), name
        assert min(budget.probes or 0, budget.truncation, budget.arithmetic) >= 0, name
    trace = budgets["trace"]
    assert trace.truncation == 0
    assert trace.probes == pytest.approx(t_quantile(8) * estimates["trace"].stderr)
    assert trace.arithmetic == pytest.approx(np.sqrt(200) * 1e-4 * spectrum.spectral_norm().value)
    assert budgets["lambda_max"].largest == "truncation"
    assert trace.largest == "probes"


def test_the_advice_is_right_about_what_helps():
    values = np.linspace(0.0, 1.0, 300)

    def reach(num_probes: int, steps: int, noise: float, name: str) -> float:
        estimate = Spectrum(probes_of(values, steps, num_probes, 1), 300, noise=noise).estimates()[name]
        return max(estimate.upper - estimate.value, estimate.value - estimate.lower)

    start = Spectrum(probes_of(values, 10, 8, 1), 300, noise=1e-9)
    budgets = budgets_of(start, start.estimates())
    assert budgets["trace"].advice.startswith("more probes")
    assert reach(32, 10, 1e-9, "trace") < 0.75 * reach(8, 10, 1e-9, "trace")
    assert reach(8, 40, 1e-9, "trace") == pytest.approx(reach(8, 10, 1e-9, "trace"), rel=1e-6)
    assert budgets["lambda_max"].advice.startswith("more Lanczos steps")
    assert reach(8, 40, 1e-9, "lambda_max") < 0.3 * reach(8, 10, 1e-9, "lambda_max")
    noisy = Spectrum(probes_of(values, 40, 8, 1), 300, noise=2.0)
    assert budgets_of(noisy, noisy.estimates())["trace"].largest == "arithmetic"


def test_few_batches_do_not_tell_how_the_data_scatter():
    x, y = torch.randn(8, 4), torch.randint(3, (8,))
    task = Task(nn.Linear(4, 3), nn.CrossEntropyLoss(), list(zip(x.split(2), y.split(2))))
    (record,) = analyze(task, lanczos_steps=3, num_probes=3, metrics="none")
    budget = record.budgets["trace"]
    assert budget.data is None
    assert "too few batches (4 batches, 5 of about equal weight are needed)" in budget.unknown["data"]
    assert "linear" in record.budgets["frobenius_norm"].unknown["data"]


def test_one_probe_has_no_budget_for_what_it_has_no_error_of():
    spectrum = Spectrum(probes_of(np.arange(20.0), 5, 1, 0), 20)
    budget = budgets_of(spectrum, spectrum.estimates())["trace"]
    assert (budget.probes, budget.truncation, budget.largest) == (None, 0.0, None)
    assert "one probe" in budget.unknown["probes"]


def test_the_parts_come_back_from_a_file_and_go_to_json(tmp_path):
    (record,) = analyze(regression(0), operators="hessian", lanczos_steps=3, num_probes=4, metrics="none")
    with RunFile.open(tmp_path / "run.h5", {"seed": 0}) as run:
        run.append(record)
    (back,) = load_trajectory(tmp_path / "run.h5")
    np.testing.assert_array_equal(back.spectrum.batch_forms, record.spectrum.batch_forms)
    assert back.budgets == record.budgets
    shown = json.loads(json.dumps(back.to_json(), allow_nan=False))["estimates"]["trace"]["budget"]
    assert set(shown) == {"probes", "truncation", "arithmetic", "data", "unknown", "largest", "advice"}
    assert shown["data"] == record.budgets["trace"].data > 0


def test_a_spectrum_knows_whether_it_is_semidefinite_and_keeps_it(tmp_path):
    x, y = torch.randn(30, 4), torch.randint(3, (30,))
    network = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    task = Task(network, nn.CrossEntropyLoss(), [(x, y)])
    records = analyze(task, operators=("hessian", "ggn", "empirical_fisher"), lanczos_steps=6, metrics="none")
    with RunFile.open(tmp_path / "run.h5", {"seed": 0}) as run:
        for record in records:
            run.append(record)
    stored = [record.spectrum for record in load_trajectory(tmp_path / "run.h5")]
    assert sorted(s.semidefinite for s in stored) == [False, True, True]
    for spectrum in stored:
        told = spectrum.evidence(0.1, semidefinite=True)
        if spectrum.semidefinite:
            assert spectrum.evidence(0.1) == told
            assert "certified" not in (spectrum.evidence(0.1).note or "")
    odd = Task(network, nn.CrossEntropyLoss(weight=torch.tensor([1.0, 1.0, -1.0])), [(x, y)])
    assert not GGNOperator(odd).semidefinite  # a negative class weight bends the loss downward


@pytest.mark.parametrize(
    ("criterion", "target", "bound"),
    [
        (nn.CrossEntropyLoss(), torch.tensor([0, 1, 2, -100, 1]), 4 * 2),
        (nn.CrossEntropyLoss(), torch.full((5, 3), 1 / 3), 5 * 2),
        (nn.MSELoss(), torch.zeros(5, 3), 5 * 3),
        (nn.BCEWithLogitsLoss(), torch.zeros(5, 3), 5 * 3),
    ],
)
def test_the_rank_by_counting_is_a_bound_and_is_reached(criterion, target, bound):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 3)).double()
    target = target.double() if target.is_floating_point() else target
    task = Task(model, criterion, [(torch.randn(5, 8, dtype=torch.float64), target)])
    (record,) = analyze(task, operators="ggn", lanczos_steps=3, num_probes=2, metrics="none")
    assert record.facts["rank_bound_counting"] == bound
    operator = GGNOperator(task)
    values = torch.linalg.eigvalsh(operator @ torch.eye(operator.n, dtype=torch.float64))
    assert int((values > 1e-10 * values[-1]).sum()) == bound
    assert any("by counting alone" in note for note in record.notes)
    (other,) = analyze(task, operators="hessian", lanczos_steps=3, num_probes=2, metrics="none")
    assert "rank_bound_counting" not in other.facts
