"""Files with contents that no training leaves: each is refused with its own reason, and the rest of a run goes on."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from spectra import Task, analyze, load_trajectory
from spectra.analysis.run import analyze_run
from spectra.analysis.settings import Settings
from spectra.checkpoints.checkpoint import load_checkpoint
from spectra.errors import CheckpointError, TaskError

QUICK = Settings(lanczos_steps=3, num_probes=2, metrics="none", check=False)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


def task():
    generator = torch.Generator().manual_seed(0)
    rows = [(torch.randn(8, 4, generator=generator), torch.randint(2, (8,), generator=generator))]
    return Task(network(), nn.CrossEntropyLoss(), rows, name="net")


def cyclic(kind):
    found = kind()
    found.append(found) if kind is list else found.update(self=found)
    return found


def wrapper_in_itself():
    found = {}
    found["model"] = found
    return found


def with_bias(make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that such tensors are a prototype
        return {"model": network().state_dict() | {"2.bias": make(torch.ones(2))}}


ODD = {
    "sparse": (lambda: with_bias(lambda t: t.to_sparse()), "'2.bias' is a sparse tensor"),
    "csr": (lambda: with_bias(lambda t: t[None].to_sparse_csr()), "'2.bias' is a sparse tensor"),
    "nested": (lambda: with_bias(lambda t: torch.nested.nested_tensor([t, t[:1]])), "'2.bias' is a nested tensor"),
    "meta": (lambda: with_bias(lambda t: t.to("meta")), "'2.bias' is a meta tensor"),
    "meta_alone": (lambda: {"weight": torch.ones(2, device="meta")}, "'weight' is a meta tensor"),
    "quantized": (lambda: with_bias(lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)), "does not fit"),
    "float8": (lambda: with_bias(lambda t: t.to(torch.float8_e4m3fn)), "(2,) float8_e4m3fn, which a scale belongs to"),
    "float8_e5m2": (lambda: with_bias(lambda t: t.to(torch.float8_e5m2)), "(2,) float8_e5m2, which a scale belongs to"),
    "name_of_half_a_pair": (lambda: {"model": network().state_dict() | {"\ud800": torch.ones(2)}}, "not valid Unicode"),
    "list_in_itself": (lambda: {"model": network().state_dict(), "config": cyclic(list)}, "contains itself"),
    "dict_in_itself": (lambda: {"model": network().state_dict(), "config": cyclic(dict)}, "contains itself"),
    "wrapper_in_itself": (wrapper_in_itself, "contains itself"),
    "epoch_of_many_digits": (lambda: {"model": network().state_dict(), "epoch": "9" * 5000}, "epoch is larger"),
    "epoch_of_70_bits": (lambda: {"model": network().state_dict(), "epoch": 2**70}, "epoch is larger"),
    "epoch_below": (lambda: {"model": network().state_dict(), "epoch": -(2**70)}, "epoch is larger"),
    "epoch_of_a_float": (lambda: {"model": network().state_dict(), "epoch": 1e300}, "epoch is larger"),
    "step_of_70_bits": (lambda: {"model": network().state_dict(), "global_step": 2**70}, "step is larger"),
    "step_of_many_digits": (lambda: {"model": network().state_dict(), "step": "1" * 5000}, "step is larger"),
}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    contents = {"first": network().state_dict(), **{name: make() for name, (make, _) in ODD.items()}}
    last = {name: tensor + 1 for name, tensor in network().state_dict().items()}
    paths = []
    for name, content in {**contents, "last": last}.items():
        paths.append(folder / f"{name}.pt")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.save(content, paths[-1])
    made = task()
    analyze_run(paths, lambda checkpoint: made, QUICK, out=folder / "run.h5")
    return {str(record.checkpoint).rpartition("/")[2]: record for record in load_trajectory(folder / "run.h5")}


@pytest.mark.parametrize("name", list(ODD))
def test_it_is_recorded_as_failed_with_the_reason(outcome, name):
    record = outcome[f"{name}.pt"]
    assert record.status == "failed"
    assert ODD[name][1] in record.reason
    assert f"{name}.pt" in record.reason
    assert len(record.reason.splitlines()) == 1


def test_the_others_are_analysed(outcome):
    assert [name for name, record in outcome.items() if record.status == "complete"] == ["first.pt", "last.pt"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_16_bits_are_widened(tmp_path, dtype):
    torch.save({"model": {name: t.to(dtype) for name, t in network().state_dict().items()}}, tmp_path / "a.pt")
    made = task()
    analyze_run([tmp_path / "a.pt"], lambda checkpoint: made, QUICK, out=tmp_path / "run.h5")
    (record,) = load_trajectory(tmp_path / "run.h5")
    assert record.status == "complete"
    assert torch.equal(made.model[2].bias, network()[2].bias.to(dtype).float())


ODDITIES = [[1, 2], {"task": "x", "options": [1]}, {"task": "x", "options": {"a": [1]}}, 3, {"task": "\ud800"}, [[]]]


@pytest.mark.parametrize("entry", ODDITIES, ids=str)
def test_settings_of_another_form_are_not_used(tmp_path, entry):
    torch.save(
        {"model": network().state_dict(), "spectra": entry, "settings": [1, [2]], "args": [3]}, tmp_path / "a.pt"
    )
    found = load_checkpoint(tmp_path / "a.pt")
    assert found.task is None
    assert "not of the form" in found.notes[0]
    assert found.metadata == {"settings": [1, [2]], "args": [3]}


def test_half_a_surrogate_pair_in_a_value_is_written_out(tmp_path):
    torch.save({"model": network().state_dict(), "name\udc00": ["a\ud800b"]}, tmp_path / "a.pt")
    assert load_checkpoint(tmp_path / "a.pt").metadata == {"name\\udc00": ["a\\ud800b"]}


def test_a_number_in_a_name_that_no_epoch_is_does_not_count(tmp_path):
    path = tmp_path / f"epoch_{'9' * 200}.pt"
    torch.save(network().state_dict(), path)
    found = load_checkpoint(path)
    assert (found.epoch, found.step) == (None, None)


def test_a_file_without_weights_shows_its_keys_on_one_line(tmp_path):
    torch.save({"a\n\x1b[2Kspectra: saved": 1}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / "a.pt")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("target", [torch.zeros(8).long(), torch.ones(8, 1)])
@pytest.mark.parametrize("hidden", [0, 3])
def test_one_class_is_refused_as_such(target, hidden):
    layers = [nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, 1)] if hidden else [nn.Linear(4, 1)]
    one = Task(nn.Sequential(*layers), nn.CrossEntropyLoss(), [(torch.randn(8, 4), target)])
    with pytest.raises(TaskError, match="a cross-entropy over one class is always 0"):
        analyze(one, lanczos_steps=2, num_probes=1)
