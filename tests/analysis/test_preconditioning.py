"""Spectra of ``P^-1/2 H P^-1/2`` with the denominators of Adam, against dense float64 matrices."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from cases import dense_hessian
from torch import nn

from spectra import Task, analyze, load_checkpoint, save_checkpoint
from spectra.analysis.preconditioning import NOTE
from spectra.analysis.run import analyze_run
from spectra.analysis.settings import Settings
from spectra.checkpoints.preconditioners import parameter_names, preconditioner_of
from spectra.errors import ArgumentError, CheckpointError
from spectra.results.run_comparison import Arm, compare
from spectra.results.storage.runfile import load_trajectory

MAKERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True, eps=1e-4),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, betas=(0.8, 0.9)),
    "adamw, two groups": lambda p: torch.optim.AdamW(decay_groups(p), lr=1e-2),
}
OPTIONS = {"lanczos_steps": 60, "num_probes": 4, "dtype": "float64", "metrics": "none"}


def decay_groups(parameters):
    """As the trainer of transformers makes them: matrices with weight decay, all else without."""
    parameters = list(parameters)
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def make_task(batch_size: int = 15):
    torch.manual_seed(0)
    x, y = torch.randn(30, 4, dtype=torch.float64), torch.randint(3, (30,))
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    batches = [(x[i : i + batch_size], y[i : i + batch_size]) for i in range(0, 30, batch_size)]
    return Task(model, nn.CrossEntropyLoss(), batches, test_data=[(x[:10] + 0.1, y[:10])])


def trained(path, make, steps: int = 7):
    """A checkpoint after steps of an optimizer, and the dense ``P^-1/2 H P^-1/2`` by P as torch has it at its step."""
    task = make_task()
    optimizer = make(task.model.parameters())
    ((x, y),) = make_task(30).data
    for _ in range(steps):
        optimizer.zero_grad()
        task.criterion(task.model(x), y).backward()
        before = [p.detach().clone() for p in task.model.parameters()]
        optimizer.step()
    save_checkpoint(path, task.model, step=steps, optimizer=optimizer.state_dict())
    # The change of a step is -lr m / (1 - beta1^t) / P, and without the decoupled weight decay P follows from it.
    denominators = []
    for p, was in zip(task.model.parameters(), before):
        (group,) = [g for g in optimizer.param_groups if any(p is q for q in g["params"])]
        decayed = was * (1 - group["lr"] * group["weight_decay"]) if group["decoupled_weight_decay"] else was
        momentum = optimizer.state[p]["exp_avg"] / (1 - group["betas"][0] ** steps)
        denominators.append((group["lr"] * momentum / (decayed - p.detach())).flatten())
    hessian = dense_hessian(task.criterion(task.model(x), y), list(task.model.parameters())).detach()
    scale = torch.cat(denominators).rsqrt()
    return task, scale[:, None] * hessian * scale


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_the_spectrum_is_that_of_the_dense_matrix(tmp_path, make):
    task, dense = trained(tmp_path / "a.pt", make)
    checkpoint = load_checkpoint(tmp_path / "a.pt", optimizer_state=True)
    (record,) = analyze(task, checkpoint=checkpoint, precondition="optimizer", **OPTIONS)
    eigenvalues = torch.linalg.eigvalsh(dense).numpy()
    found = record.estimates
    assert found["lambda_max"].value == pytest.approx(eigenvalues[-1], rel=1e-7)
    assert found["lambda_min"].value == pytest.approx(eigenvalues[0], rel=1e-7, abs=1e-7 * eigenvalues[-1])
    assert found["trace"].lower <= eigenvalues.sum() <= found["trace"].upper
    np.testing.assert_allclose(record.spectrum.tridiagonals[0].nodes[[0, -1]], eigenvalues[[0, -1]], rtol=1e-6)
    assert NOTE in record.notes
    assert (record.exact, record.checks) == (None, ())
    assert record.settings["precondition"] == "optimizer"
    assert record.edge.value == pytest.approx(
        2 * (1 + record.optimizer.groups[0]["betas"][0]) / ((1 - record.optimizer.groups[0]["betas"][0]) * 1e-2),
        rel=1e-3,
    )


def test_l2_blocks_test_data_and_chosen_parameters_are_preconditioned_too(tmp_path):
    task, dense = trained(tmp_path / "a.pt", MAKERS["adam"])
    checkpoint = load_checkpoint(tmp_path / "a.pt", optimizer_state=True)
    options = {"checkpoint": checkpoint, "precondition": "optimizer", **OPTIONS}
    (whole,) = analyze(task, blocks="layer", test_data=True, **options)
    for name, rows in (("0", slice(0, 30)), ("2", slice(30, 51))):
        wanted = float(torch.linalg.eigvalsh(dense[rows, rows])[-1])
        assert whole.blocks[name].lambda_max().value == pytest.approx(wanted, rel=1e-6)
        (part,) = analyze(task, params=f"{name}.*", **options)
        assert part.estimates["lambda_max"].value == pytest.approx(wanted, rel=1e-6)
    ((x, y),) = task.test_data
    hessian = dense_hessian(task.criterion(task.model(x), y), list(task.model.parameters())).detach()
    denominators = preconditioner_of(checkpoint.optimizer_state, task.model)
    scale = torch.cat([entries.flatten() for entries in denominators.values()]).rsqrt()
    wanted = float(torch.linalg.eigvalsh(scale[:, None] * hessian * scale)[-1])
    assert whole.test_estimates["lambda_max"].value == pytest.approx(wanted, rel=1e-7)
    (shifted,) = analyze(dataclasses.replace(task, l2=0.5), **options)
    wanted = float(torch.linalg.eigvalsh(dense + 0.5 * torch.diag(scale**2))[-1])
    assert shifted.estimates["lambda_max"].value == pytest.approx(wanted, rel=1e-7)


def test_float32_products_have_the_noise_of_the_preconditioned_matrix(tmp_path):
    task, dense = trained(tmp_path / "a.pt", MAKERS["adam"])
    checkpoint = load_checkpoint(tmp_path / "a.pt", optimizer_state=True)
    (record,) = analyze(task, checkpoint=checkpoint, precondition="optimizer", **(OPTIONS | {"dtype": "float32"}))
    exact = float(torch.linalg.eigvalsh(dense)[-1])
    found = record.estimates["lambda_max"]
    assert found.lower <= exact <= found.upper
    assert record.spectrum.noise < 1e-4


# --- the names of the parameters ----------------------------------------------------------------------------------


def _state(model, parameters, **options):
    optimizer = torch.optim.Adam(parameters, **options)
    for p in model.parameters():
        p.grad = torch.full_like(p, float(p.numel())) if p.requires_grad else None
    optimizer.step()
    return optimizer.state_dict()


def _network():
    return nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 3))


def test_numbers_become_names_by_the_order_within_groups_and_by_shapes():
    model = _network()
    names = [name for name, _ in model.named_parameters()]
    assert list(parameter_names(_state(model, model.parameters()), model).values()) == names
    found = parameter_names(_state(model, decay_groups(model.parameters())), model)
    decayed = [name for name, p in model.named_parameters() if p.ndim > 1]
    assert list(found.values()) == [*decayed, *(name for name in names if name not in decayed)]
    head_first = [{"params": model[3].parameters()}, {"params": model[:3].parameters()}]
    assert list(parameter_names(_state(model, head_first), model).values())[:2] == ["3.weight", "3.bias"]


def test_frozen_parameters_may_be_in_the_optimizer_or_not():
    model = _network()
    model[0].requires_grad_(False)
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    for parameters in (model.parameters(), [p for p in model.parameters() if p.requires_grad]):
        assert list(preconditioner_of(_state(model, parameters), model)) == trainable


def test_names_in_the_state_decide_in_any_order():
    model = _network()
    reverse = list(model.named_parameters())[::-1]
    state = _state(model, reverse)
    assert list(parameter_names(state, model).values()) == [name for name, _ in reverse]
    state["param_groups"][0]["param_names"] = [f"_orig_mod.{name}" for name, _ in reverse]
    assert list(parameter_names(state, model).values()) == [name for name, _ in reverse]


def test_what_does_not_fit_or_fits_in_several_ways_is_refused():
    model = _network()
    alike = [{"params": [model[0].bias, model[1].bias]}, {"params": [model[1].weight, model[2].bias]}]
    rest = [p for p in model.parameters() if not any(p is q for group in alike for q in group["params"])]
    cases = {
        "fit those of the model in several ways": _state(model, [*alike, {"params": rest}]),
        "has 7 parameters and the model 8": _state(model, list(model.parameters())[1:]),
        "do not fit those of the model": _state(model, list(model.parameters())[::-1]),
    }
    for words, state in cases.items():
        with pytest.raises(CheckpointError, match=words):
            parameter_names(state, model)
    odd = _state(model, model.parameters())
    odd["param_groups"][0]["params"][1] = 0
    with pytest.raises(CheckpointError, match="do not number"):
        parameter_names(odd, model)


def _broken(change):
    def state(model):
        found = copy.deepcopy(_state(model, model.parameters()))
        change(found)
        return found

    return state


REFUSED = {
    "no state": (lambda model: None, "no state of one optimizer"),
    "sgd": (lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9).state_dict(), "optimizer sgd has"),
    "no steps": (_broken(lambda s: s["state"][0].update(step=0)), "0.weight has taken no step"),
    "no moment": (_broken(lambda s: s["state"][2].pop("exp_avg_sq")), "1.weight has no exp_avg_sq"),
    "nan": (_broken(lambda s: s["state"][3]["exp_avg_sq"].fill_(float("nan"))), "1.bias has entries"),
    "sparse": (
        _broken(lambda s: s["state"][3].update(exp_avg_sq=torch.ones(6).to_sparse())),
        "1.bias has no exp_avg_sq",
    ),
    "negative": (_broken(lambda s: s["state"][3]["exp_avg_sq"].fill_(-1.0)), "1.bias has entries"),
    "a state that is no mapping": (_broken(lambda s: s["state"].update({0: 3})), "0.weight is a int"),
}


@pytest.mark.parametrize(("make", "words"), REFUSED.values(), ids=REFUSED)
def test_another_optimizer_or_a_damaged_state_is_refused_with_the_reason(make, words):
    model = _network()
    with pytest.raises(CheckpointError, match=words):
        preconditioner_of(make(model), model)


# --- runs ---------------------------------------------------------------------------------------------------------


def _run(folder, paths, **settings):
    # Each checkpoint in a model of its own.
    return analyze_run(paths, lambda checkpoint: make_task(), Settings(**OPTIONS, **settings), out=folder / "run.h5")


def test_a_run_reads_the_state_of_every_checkpoint_and_a_checkpoint_without_steps_fails_alone(tmp_path):
    paths = [tmp_path / f"step_{steps}.pt" for steps in (0, 3, 9)]
    dense = [trained(path, MAKERS["adam"], steps)[1] for path, steps in zip(paths[1:], (3, 9))]
    model = make_task().model
    save_checkpoint(paths[0], model, step=0, optimizer=torch.optim.Adam(model.parameters()).state_dict())
    _run(tmp_path, paths, precondition="optimizer")
    first, *others = load_trajectory(tmp_path / "run.h5")
    assert first.status == "failed"
    assert "no state for the parameter 0.weight" in first.reason
    for record, matrix in zip(others, dense):
        wanted = float(torch.linalg.eigvalsh(matrix)[-1])
        assert record.estimates["lambda_max"].value == pytest.approx(wanted, rel=1e-7)
        assert record.over_edge.value == pytest.approx(wanted / 3800)
    with pytest.raises(Exception, match="precondition"):  # a file has one matrix
        _run(tmp_path, paths[1:])


def test_preconditioned_and_plain_records_are_not_compared(tmp_path):
    task, _ = trained(tmp_path / "a.pt", MAKERS["adam"])
    checkpoint = load_checkpoint(tmp_path / "a.pt", optimizer_state=True)
    arms = []
    for how in (None, "optimizer"):
        (record,) = analyze(task, checkpoint=checkpoint, precondition=how, **OPTIONS)
        arms.append(Arm(str(how), (record,)))
    with pytest.raises(ArgumentError, match="matrices that are plain and preconditioned cannot be compared"):
        compare(arms)


@pytest.mark.parametrize("other", [{"check": True}, {"exact_spectrum": 5}, {"eigenpairs": 2}])
def test_settings_that_need_the_plain_matrix_are_refused(other):
    with pytest.raises(ArgumentError, match="precondition with"):
        Settings(precondition="optimizer", **other)
    with pytest.raises(ArgumentError, match="'optimizer' is needed"):
        Settings(precondition="adam")


def test_without_a_checkpoint_there_is_no_preconditioner():
    with pytest.raises(ArgumentError, match="a checkpoint with the state of its optimizer is needed"):
        analyze(make_task(), precondition="optimizer", **OPTIONS)


@pytest.mark.parametrize("bn_mode", ["eval", "train"])
def test_batch_norm_in_eval_mode_is_not_the_loss_that_the_optimizer_saw(tmp_path, bn_mode):
    """A bias before batch norm has no gradient in training, so that its P is eps, and curvature in eval mode."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))
    x, y = torch.randn(20, 4), torch.randint(3, (20,))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    save_checkpoint(tmp_path / "a.pt", model, optimizer=optimizer.state_dict())
    checkpoint = load_checkpoint(tmp_path / "a.pt", optimizer_state=True)
    task = Task(model, nn.CrossEntropyLoss(), [(x, y)])
    (record,) = analyze(task, checkpoint=checkpoint, precondition="optimizer", bn_modes=(bn_mode,), **OPTIONS)
    said = any("--bn train" in note for note in record.notes)
    assert said == (bn_mode == "eval")
