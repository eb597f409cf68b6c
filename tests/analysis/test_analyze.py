"""The records of a task: right numbers within their errors, complete settings, the same bits again, nothing touched."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import batches_of, conv_batch_norm, dense_hessian, mlp_ragged, parameters, with_weight_decay
from torch import nn
from torch.nn import functional as F

from spectra import GGNOperator, HessianOperator, Record, Task, analyze, iter_analyze
from spectra.analysis.settings import Settings, sampled
from spectra.errors import ArgumentError, DataError, NumericsError, OutOfMemory, SpectraError, TaskError
from spectra.krylov import slq as slq_room
from spectra.krylov.probes import draw_probe
from spectra.spectrum.traces import trace as plain_trace

pytestmark = pytest.mark.usefixtures("float64")

PROBES = 40


def wide_logistic():
    """Five samples of ten features in three classes: at most 10 of the 33 eigenvalues are not zero."""
    model = nn.Linear(10, 3)
    x, y = torch.randn(5, 10), torch.randint(3, (5,))
    return Task(model, nn.CrossEntropyLoss(), batches_of(x, y, 3, 2)), lambda: F.cross_entropy(model(x), y)


NETS = {
    "mlp": (mlp_ragged, "eval"),
    "weight decay": (with_weight_decay, "eval"),
    "logistic": (wide_logistic, "eval"),
    "conv, BN eval": (conv_batch_norm, "eval"),
    "conv, BN train": (conv_batch_norm, "train"),
}


def loss_in(written, mode):
    return written(mode) if mode == "train" else written()


def make(name, criterion=None, data=None, **options) -> Task:
    """A small task on twelve rows of four features in three classes."""
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    x, y = torch.randn(12, 4), torch.randint(3, (12,))
    return Task(model, criterion or nn.CrossEntropyLoss(), data or batches_of(x, y, 7, 5), name=name, **options)


@pytest.fixture(scope="module", params=list(NETS))
def solved(request):
    """A net, its record with as many steps as parameters, and its eigenvalues from the dense Hessian."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(3)
    maker, mode = NETS[request.param]
    task, written = maker()
    matrix = dense_hessian(loss_in(written, mode), parameters(task)).numpy()
    (record,) = analyze(task, bn_modes=mode, lanczos_steps=len(matrix), num_probes=PROBES, seed=1)
    torch.set_default_dtype(before)
    return record, matrix


# -- the numbers


def test_every_number_is_that_of_the_dense_hessian_within_its_error(solved):
    record, matrix = solved
    values = np.linalg.eigvalsh(matrix)
    tau = record.estimates["rank_degeneracy"].tau
    truth = {
        "trace": values.sum(),
        "mean_eigenvalue": values.mean(),
        "second_moment": (values**2).mean(),
        "frobenius_norm": np.linalg.norm(values),
        "spectral_norm": np.abs(values).max(),
        "lambda_max": values.max(),
        "lambda_min": values.min(),
        "rank_degeneracy": (np.abs(values) <= tau).mean(),
    }
    rounding = 1e-13 * truth["spectral_norm"]  # of the reference, which is not exact either
    for name, value in truth.items():
        estimate = record.estimates[name]
        assert estimate.lower - rounding <= value <= estimate.upper + rounding, name
        assert estimate.num_probes == PROBES
    for name in ("spectral_norm", "lambda_max", "lambda_min"):  # all steps were taken: these are known to rounding
        assert record.estimates[name].upper - record.estimates[name].lower < 1e-8 * truth["spectral_norm"], name
    assert record.estimates["rank_degeneracy"].resolved


def test_every_probe_gives_its_own_quadratic_form_exactly(solved):
    """Without luck: ``q' H^p q`` of the probes that the seed stands for, by the dense matrix."""
    record, matrix = solved
    n = len(matrix)
    probes = [draw_probe(n, seed=1, index=index) for index in range(PROBES)]
    scale = np.abs(np.linalg.eigvalsh(matrix)).max()
    powers = [q.copy() for q in probes]
    for p in range(1, 7):
        powers = [matrix @ v for v in powers]
        exact = np.mean([q @ v for q, v in zip(probes, powers)])
        forms = [t.moment(p) for t in record.spectrum.tridiagonals]
        assert np.mean(forms) == pytest.approx(exact, abs=1e-9 * scale**p), p
    trace = n * np.array([q @ matrix @ q for q in probes])
    plain = plain_trace(record.spectrum.quadrature.with_nothing_known())
    assert plain.value == pytest.approx(trace.mean(), abs=1e-9 * scale * n)
    assert plain.stderr >= trace.std(ddof=1) / np.sqrt(PROBES) * (1 - 1e-6)


def test_every_eigenvalue_is_found_where_all_steps_are_taken(solved):
    record, matrix = solved
    values = np.linalg.eigvalsh(matrix)
    scale = np.abs(values).max()
    for nodes, weights in zip(record.spectrum.nodes, record.spectrum.weights):
        nodes = nodes[np.isfinite(nodes)]
        distance = np.abs(nodes[:, None] - values).min(1)
        assert distance.max() < 1e-8 * scale
        seen = np.abs(values[:, None] - nodes).min(1) < 1e-7 * scale
        assert seen[np.abs(values) > 1e-6 * scale].all()
        assert np.nansum(weights) == pytest.approx(1.0, abs=1e-12)


def test_the_density_has_the_moments_of_the_spectrum(solved):
    record, _ = solved
    density = record.spectrum.density()
    mass = np.trapezoid(density.values, density.grid)
    mean = np.trapezoid(density.values * density.grid, density.grid)
    square = np.trapezoid(density.values * density.grid**2, density.grid)
    scale = record.estimates["spectral_norm"].value
    assert mass == pytest.approx(1.0, abs=1e-6)
    assert mean == pytest.approx(record.estimates["mean_eigenvalue"].value, abs=1e-6 * scale)
    assert square == pytest.approx(record.estimates["second_moment"].value + density.sigma**2, abs=1e-6 * scale**2)


def test_the_traces_of_the_tensors_are_those_of_the_diagonal_blocks(solved):
    record, matrix = solved
    start = 0
    for name, estimate in record.spectrum.tensor_traces().items():
        stop = start + record.spectrum.tensor_sizes[name]
        block = np.trace(matrix[start:stop, start:stop])
        assert abs(estimate.value - block) <= 4 * estimate.stderr + 1e-10, name
        start = stop
    assert start == len(matrix)
    total = sum(estimate.value for estimate in record.spectrum.tensor_traces().values())
    plain = len(matrix) * np.mean([t.alphas[0] for t in record.spectrum.tridiagonals])
    assert total == pytest.approx(plain, rel=1e-10, abs=1e-12)


def test_the_degeneracy_of_a_known_rank():
    torch.manual_seed(3)
    task, _ = wide_logistic()
    (record,) = analyze(task, lanczos_steps=33, num_probes=60)
    degeneracy = record.estimates["rank_degeneracy"]
    assert degeneracy.resolved
    assert degeneracy.lower <= 23 / 33 <= degeneracy.upper
    assert degeneracy.upper - degeneracy.lower < 0.1
    assert abs(degeneracy.value - 23 / 33) < 4 * degeneracy.stderr


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_ggn_of_a_record_is_that_of_the_outputs(mode):
    """For softmax cross-entropy, ``G = sum_n J_n' (diag p - p p') J_n / N``, with the Jacobian taken row by row."""
    torch.manual_seed(3)
    task, _ = conv_batch_norm()
    (record,) = analyze(task, operators="ggn", bn_modes=mode, lanczos_steps=200, num_probes=PROBES)
    model, params = task.model, parameters(task)
    model.eval()
    model.bn.train(mode == "train")
    dense, rows = np.zeros((record.spectrum.n,) * 2), 0
    for x, _ in task.data:
        output = model(x)
        for row in output:
            jacobian = np.stack(
                [
                    torch.cat([g.reshape(-1) for g in torch.autograd.grad(entry, params, retain_graph=True)]).numpy()
                    for entry in row
                ]
            )
            p = row.softmax(0).detach().numpy()
            dense += jacobian.T @ (np.diag(p) - np.outer(p, p)) @ jacobian
            rows += 1
    values = np.linalg.eigvalsh(dense / rows)
    assert record.estimates["lambda_max"].value == pytest.approx(values.max(), rel=1e-9)
    for name, value in (("trace", values.sum()), ("frobenius_norm", np.linalg.norm(values))):
        assert record.estimates[name].lower <= value <= record.estimates[name].upper, name


# -- the facts


@pytest.mark.parametrize("name", list(NETS))
def test_loss_gradient_and_accuracy_are_those_computed_directly(name):
    torch.manual_seed(3)
    maker, mode = NETS[name]
    task, written = maker()
    (record,) = analyze(task, bn_modes=mode, lanczos_steps=1, num_probes=1)
    facts, params = record.facts, parameters(task)
    objective = loss_in(written, mode)
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(objective, params)])
    weights = torch.cat([p.detach().reshape(-1) for p in params])
    assert facts["objective"] == pytest.approx(objective.item(), rel=1e-12)
    assert facts["loss"] == pytest.approx((objective - task.l2 / 2 * weights.square().sum()).item(), rel=1e-12)
    assert facts["gradient_norm"] == pytest.approx(float(gradient.norm()), rel=1e-10)
    assert facts["weight_norm"] == pytest.approx(float(weights.norm()), rel=1e-12)
    rows = sum(len(y) for _, y in task.data)
    assert (facts["n_parameters"], facts["n_samples"], facts["n_batches"]) == (len(weights), rows, len(task.data))
    assert facts["total_weight"] == rows
    if mode == "eval":
        task.model.eval()
        right = sum(int((task.model(x).argmax(1) == y).sum()) for x, y in task.data)
        assert facts["accuracy"] == right / rows


def test_the_heuristic_bound_and_what_it_is_made_of():
    (record,) = analyze(make(None), lanczos_steps=2, num_probes=1)
    assert {name: record.facts[name] for name in ("d_x", "d_y", "sum_of_widths", "rank_bound_ff")} == {
        "d_x": 4,
        "d_y": 3,
        "sum_of_widths": 9,
        "rank_bound_ff": 4 * 3 * (9 + 4),
    }


def test_a_regression_has_no_accuracy():
    x = torch.randn(6, 4)
    task = Task(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), nn.MSELoss(), [(x, torch.randn(6, 2))])
    (record,) = analyze(task, lanczos_steps=2, num_probes=1)
    assert record.facts["accuracy"] is None
    assert record.to_json()["facts"]["accuracy"] is None


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


# -- the same again


def bits(record):
    columns = [np.concatenate([t.alphas, t.betas]) for t in record.spectrum.tridiagonals]
    return b"".join(column.tobytes() for column in columns) + record.spectrum.tensor_forms.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_same_seed_gives_the_same_bits(mode, dtype):
    task, _ = conv_batch_norm()
    options = {"operators": ("hessian", "ggn"), "bn_modes": mode, "lanczos_steps": 20, "num_probes": 3, "dtype": dtype}
    first, again = analyze(task, **options), analyze(task, **options)
    for one, other in zip(first, again):
        assert bits(one) == bits(other)
        assert one.facts == other.facts
        assert one.settings == other.settings
        assert one.provenance["noise"] == other.provenance["noise"]
        assert one.to_json()["estimates"] == other.to_json()["estimates"]
    (other,) = analyze(task, **(options | {"operators": "hessian", "seed": 1}))
    assert bits(other) != bits(first[0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("operator", ["hessian", "ggn"])
def test_sharing_the_pass_over_the_data_does_not_change_a_bit(operator, dtype):
    task, _ = conv_batch_norm()
    found = [
        analyze(task, operators=operator, lanczos_steps=20, num_probes=5, dtype=dtype, width=width)[0]
        for width in (1, 2, 5)
    ]
    assert len({bits(record) for record in found}) == 1
    assert [record.settings["width"] for record in found] == [1, 2, 5]


@pytest.mark.parametrize("name", ["mlp", "conv, BN eval", "conv, BN train"])
@pytest.mark.parametrize("steps", [8, 30])
def test_float32_agrees_with_float64_within_ten_times_its_noise(name, steps):
    torch.manual_seed(3)
    maker, mode = NETS[name]
    task, _ = maker()
    single, double = (
        analyze(task, bn_modes=mode, lanczos_steps=steps, num_probes=4, dtype=dtype)[0]
        for dtype in ("float32", "float64")
    )
    assert double.spectrum.noise < 1e-14 < single.spectrum.noise < 1e-4
    allowed = 10 * single.spectrum.noise * double.estimates["spectral_norm"].value
    assert single.spectrum.nodes.shape == double.spectrum.nodes.shape
    assert np.abs(single.spectrum.nodes - double.spectrum.nodes).max() <= allowed
    assert single.estimates["trace"].value == pytest.approx(
        double.estimates["trace"].value, abs=double.spectrum.n * allowed
    )
    assert single.facts["loss"] == pytest.approx(double.facts["loss"], rel=1e-6)


# -- nothing of the user's is touched


def everything_of(model):
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [(m.training, getattr(m, "track_running_stats", None)) for m in model.modules()]
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    generators = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002
    return tensors, modes, grads, generators, torch.is_grad_enabled(), torch.get_default_dtype()


def assert_untouched(before, model):
    after = everything_of(model)
    assert before[1] == after[1]
    assert before[3:] == after[3:]
    for name, tensor in before[0].items():
        assert torch.equal(tensor, after[0][name]), name
    for one, other in zip(before[2], after[2]):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)


def test_an_analysis_leaves_the_model_as_it_was():
    task, written = conv_batch_norm()
    written().backward()
    task.model.train()
    task.model.drop.eval()
    before = everything_of(task.model)
    analyze(task, operators=("hessian", "ggn"), bn_modes=("eval", "train"), lanczos_steps=3, num_probes=2)
    assert_untouched(before, task.model)


def test_an_analysis_that_is_abandoned_in_the_middle_leaves_the_model_as_it_was():
    task, _ = conv_batch_norm()
    task.model.train()
    before = everything_of(task.model)

    def stop(*now):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        analyze(task, bn_modes="train", lanczos_steps=3, num_probes=2, progress=stop)
    assert_untouched(before, task.model)
    records = iter_analyze(task, bn_modes=("eval", "train"), lanczos_steps=3, num_probes=2)
    next(records)
    assert_untouched(before, task.model)  # between two records, too
    del records
    assert_untouched(before, task.model)


def test_records_are_of_the_parameters_at_the_call():
    task = make(None)
    (still,) = analyze(task, operators="ggn", lanczos_steps=3, num_probes=2)
    records = iter_analyze(task, operators=("hessian", "ggn"), lanczos_steps=3, num_probes=2)
    next(records)
    with torch.no_grad():
        task.model[0].weight.mul_(2.0)  # training goes on while the records are read
    assert bits(next(records)) == bits(still)


# -- refusals, as early as they can be


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_probes": 0}, "num_probes=0: at least 1 is needed; 8 is the default"),
        ({"lanczos_steps": 0}, "lanczos_steps=0: at least 1 is needed; 100 is the default"),
        ({"seed": -1}, "seed=-1: at least 0 is needed"),
        ({"width": 0}, "width=0: at least 1 is needed"),
        ({"distribution": "normal"}, "distribution='normal': one of 'sphere', 'rademacher' is needed"),
        ({"operators": "fisher"}, "operator='fisher': one of 'hessian', 'ggn', 'empirical_fisher' is needed"),
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
