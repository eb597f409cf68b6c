"""Checkpoints that hold a part of the weights: adapters, what was trained, a head; the rest is the task's own."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from spectra import Task, load_checkpoint, load_trajectory
from spectra.analysis.run import analyze_run
from spectra.analysis.settings import Settings
from spectra.analysis.store import Listener
from spectra.checkpoints.loading import Recipient
from spectra.errors import CheckpointError, NumericsError, StorageError

QUICK = Settings(lanczos_steps=3, num_probes=2, metrics="none", check=False)


class LoraLinear(nn.Module):
    """A linear layer as peft makes it: the layer itself, frozen, and two trained factors by the name of the adapter."""

    def __init__(self, base: nn.Linear, names: tuple[str, ...] = ("default",)) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        size = {"in_features": base.in_features, "out_features": base.out_features}
        self.lora_A = nn.ModuleDict({n: nn.Linear(size["in_features"], 2, bias=False) for n in names})
        self.lora_B = nn.ModuleDict({n: nn.Linear(2, size["out_features"], bias=False) for n in names})
        self.names = names

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        name = self.names[0]
        return self.base_layer(x) + 4.0 * self.lora_B[name](self.lora_A[name](x))


class ToSave(nn.Module):
    """A module that peft trains whole: a frozen original and a copy by the name of the adapter."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.original_module = module.requires_grad_(False)
        copy = nn.Linear(module.in_features, module.out_features)
        self.modules_to_save = nn.ModuleDict({"default": copy})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.modules_to_save["default"](x)


class Wrapped(nn.Module):
    """The attributes that peft puts around a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.base_model = nn.Module()
        self.base_model.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_model.model(x)


def adapted(seed: int = 0, names: tuple[str, ...] = ("default",), **options: object) -> nn.Module:
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))
    body.requires_grad_(False)
    body[0] = LoraLinear(body[0], names)
    if options.get("head"):
        body[3] = ToSave(body[3])
    return Wrapped(body)


def in_file(model: nn.Module, name: str = "default") -> dict[str, torch.Tensor]:
    """What peft saves of a model: the adapter alone, without its name in the keys."""
    found = {}
    for key, value in model.state_dict().items():
        if f".modules_to_save.{name}." in key:
            found[key.replace(f".modules_to_save.{name}.", ".")] = value
        elif f".{name}." in key:
            found[key.replace(f".{name}.", ".")] = value
    return found


def peft_folder(folder: Path, weights: dict[str, torch.Tensor], **config: object) -> Path:
    folder.mkdir(parents=True)
    torch.save(weights, folder / "adapter_model.bin")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 8} | config))
    return folder


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def changed(before: dict[str, torch.Tensor], model: nn.Module) -> set[str]:
    return {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}


def refusal(path: Path, model: nn.Module, **options: object) -> str:
    before = state(model)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path).load_into(model, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert changed(before, model) == set()
    return message


# -- adapters of peft


@pytest.mark.parametrize("name", ["default", "second"])
def test_an_adapter_is_loaded_under_the_name_that_it_has_in_the_model(tmp_path, name):
    source, target = adapted(1, (name,)), adapted(2, (name,))
    folder = peft_folder(tmp_path / "adapter", in_file(source, name))
    before = state(target)
    notes = load_checkpoint(folder).load_into(target)
    keys = {f"base_model.model.0.lora_{which}.{name}.weight" for which in "AB"}
    assert changed(before, target) == keys
    assert all(torch.equal(target.state_dict()[key], source.state_dict()[key]) for key in keys)
    assert notes == ["2 of 11 tensors are from the checkpoint, 9 are the task's own (6 frozen, 3 buffers)"]


def test_a_module_that_the_adapter_trains_whole_goes_to_its_copy(tmp_path):
    source, target = adapted(1, head=True), adapted(2, head=True)
    folder = peft_folder(tmp_path / "adapter", in_file(source))
    original = target.base_model.model[3].original_module.weight.clone()
    load_checkpoint(folder).load_into(target)
    head = target.base_model.model[3]
    assert torch.equal(
        head.modules_to_save["default"].weight, source.base_model.model[3].modules_to_save["default"].weight
    )
    assert torch.equal(head.original_module.weight, original)


@pytest.mark.parametrize(
    ("in_model", "saved_as"),
    [
        ("fc.lora_embedding_A.default", "fc.lora_embedding_A"),
        ("fc.ia3_l.default", "fc.ia3_l"),
        ("fc.lora_magnitude_vector.default.weight", "fc.lora_magnitude_vector"),
        ("fc.token_adapter.trainable_tokens_delta.default", "fc.token_adapter.trainable_tokens_delta"),
        ("prompt_encoder.default.embedding.weight", "prompt_embeddings"),
    ],
)
def test_other_kinds_of_adapters_are_named_too(in_model, saved_as):
    from spectra.checkpoints.adapters import with_adapter_name

    found, name = with_adapter_name({saved_as: 1}, {in_model, "fc.base_layer.weight"}, any_key=True)
    assert (found, name) == ({in_model: 1}, "default")


def test_an_adapter_that_is_put_into_a_model_without_the_wrapper_of_peft_is_loaded(tmp_path):
    folder = peft_folder(tmp_path / "adapter", in_file(adapted(1)))
    target = adapted(2).base_model.model
    load_checkpoint(folder).load_into(target)
    assert torch.equal(target[0].lora_B["default"].weight, adapted(1).base_model.model[0].lora_B["default"].weight)
    inner = nn.ModuleDict({"net": adapted(3)})
    load_checkpoint(folder).load_into(inner)
    assert torch.equal(inner["net"].base_model.model[0].lora_A["default"].weight, target[0].lora_A["default"].weight)


def test_of_several_adapters_the_default_is_meant_and_without_one_it_is_refused(tmp_path):
    folder = peft_folder(tmp_path / "adapter", in_file(adapted(1)))
    target = adapted(2, ("default", "other"))
    before = state(target)
    load_checkpoint(folder).load_into(target, partial=True)
    assert changed(before, target) == {f"base_model.model.0.lora_{which}.default.weight" for which in "AB"}
    assert "several adapters that it fits (a, b)" in refusal(folder, adapted(2, ("a", "b")))


def test_a_trained_parameter_that_the_adapter_lacks_is_an_error_that_names_the_option(tmp_path):
    weights = in_file(adapted(1))
    del weights["base_model.model.0.lora_B.weight"]
    folder = peft_folder(tmp_path / "adapter", weights)
    message = refusal(folder, adapted(2))
    assert "1 of 11 keys missing (base_model.model.0.lora_B.default.weight); --partial (partial=True)" in message
    notes = load_checkpoint(folder).load_into(adapted(2), partial=True)
    assert notes == [
        "1 of 11 tensors are from the checkpoint, 10 are the task's own (6 frozen, 1 trainable, 3 buffers)"
    ]


def test_what_an_adapter_is_put_around_is_the_tasks_own_also_where_it_is_not_frozen(tmp_path):
    """It is said that it would be trained: an adapter's file has nothing of it."""
    folder = peft_folder(tmp_path / "adapter", in_file(adapted(1)))
    notes = load_checkpoint(folder).load_into(adapted(2).requires_grad_(True))
    assert notes == ["2 of 11 tensors are from the checkpoint, 9 are the task's own (6 trainable, 3 buffers)"]


def test_keys_that_hold_anything_are_told_in_one_line(tmp_path):
    folder = peft_folder(tmp_path / "adapter", {**in_file(adapted(1)), "a\nb": torch.ones(1)})
    assert "unexpected (a b)" in refusal(folder, adapted(2))


def test_a_key_of_the_adapter_that_the_model_lacks_is_an_error_also_with_partial(tmp_path):
    weights = {**in_file(adapted(1)), "base_model.model.9.lora_A.weight": torch.ones(2, 2)}
    folder = peft_folder(tmp_path / "adapter", weights)
    for options in ({}, {"partial": True}):
        assert "1 of 3 keys in the file unexpected (base_model.model.9.lora_A.weight)" in refusal(
            folder, adapted(2), **options
        )


def test_an_adapter_for_a_model_that_has_none_says_so(tmp_path):
    folder = peft_folder(tmp_path / "adapter", in_file(adapted(1)))
    plain = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    for options in ({}, {"partial": True}):
        message = refusal(folder, plain, **options)
        assert message.endswith("it is an adapter of peft: the task makes the model with that adapter in it")


@pytest.mark.parametrize(
    ("there", "here", "words"),
    [
        ({}, {"lora_alpha": 16}, "adapter_config.json has lora_alpha=8, the adapter of the task's model 16"),
        ({"use_rslora": True}, {"use_rslora": False}, "use_rslora=True"),
        ({"alpha_pattern": {"0": 4}}, {"alpha_pattern": {}}, "alpha_pattern={'0': 4}"),
    ],
)
def test_an_adapter_that_the_model_scales_in_another_way_is_refused(tmp_path, there, here, words):
    """The same two factors with another scale are another network."""
    folder = peft_folder(tmp_path / "adapter", in_file(adapted(1)), **there)
    target = adapted(2)
    same = {"peft_type": SimpleNamespace(value="LORA"), "r": 2, "lora_alpha": 8}
    target.peft_config = {"default": SimpleNamespace(**same | here)}
    assert words in refusal(folder, target)
    target.peft_config = {"default": SimpleNamespace(**same | there)}
    load_checkpoint(folder).load_into(target)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "holds a list, not a JSON object"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON: nested too deeply"),
        ('{"r": "2"}', "r is a str: int is needed"),
        ('{"r": true}', "r is a bool: int is needed"),
        ('{"peft_type": 1}', "peft_type is a int: str is needed"),
        ('{"alpha_pattern": []}', "alpha_pattern is a list: dict is needed"),
        (b"\xff\xfe\x00", "not JSON"),
    ],
)
def test_a_configuration_that_is_none_is_refused_in_one_line(tmp_path, content, words):
    folder = peft_folder(tmp_path / "adapter", in_file(adapted(1)))
    file = folder / "adapter_config.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    assert str(caught.value).startswith(f"{file}: {words}")
    assert len(str(caught.value).splitlines()) == 1


def test_a_configuration_of_any_size_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("spectra.checkpoints.sidecars.MAX_BYTES", 100)
    folder = peft_folder(tmp_path / "adapter", in_file(adapted(1)), padding="x" * 100)
    with pytest.raises(CheckpointError, match=r"adapter_config\.json: larger than"):
        load_checkpoint(folder)


def test_the_configuration_of_an_adapter_is_among_the_plain_values_for_the_task(tmp_path):
    folder = peft_folder(tmp_path / "adapter", in_file(adapted(1)), target_modules=["0"])
    assert load_checkpoint(folder).metadata["adapter_config"]["target_modules"] == ["0"]
    assert load_checkpoint(folder / "adapter_model.bin").metadata["adapter_config"]["r"] == 2


# -- other parts


def test_a_file_of_the_trained_parameters_alone_is_enough_where_the_others_are_frozen(tmp_path):
    source, target = adapted(1), adapted(2)
    for model in (source, target):
        model.base_model.model[1] = nn.LayerNorm(5).requires_grad_(False)  # no buffers
    trained = {name: p.detach() for name, p in source.named_parameters() if p.requires_grad}
    path = tmp_path / "trained.pt"
    torch.save({"state_dict": trained, "epoch": 2}, path)
    before = state(target)
    notes = load_checkpoint(path).load_into(target)
    assert changed(before, target) == set(trained)
    assert "the task's own (6 frozen)" in notes[0]


def test_factors_without_the_adapters_name_are_found_in_a_file_of_their_own(tmp_path):
    path = tmp_path / "lora.pt"
    torch.save(in_file(adapted(1)), path)
    target = adapted(2)
    assert "2 of 11 keys missing" in refusal(path, target)  # the buffers of batch norm: not known to be of peft
    load_checkpoint(path).load_into(target, partial=True)
    assert torch.equal(
        target.base_model.model[0].lora_A["default"].weight, in_file(adapted(1))["base_model.model.0.lora_A.weight"]
    )


def test_a_number_in_a_key_is_not_taken_for_the_name_of_an_adapter(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"body.weight": torch.ones(3, 3)}, path)
    model = nn.ModuleDict({"body": nn.Sequential(nn.Linear(3, 3))})
    assert "unexpected (body.weight)" in refusal(path, model, partial=True)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))


def head(seed: int, path: Path) -> Path:
    torch.save({key: value for key, value in network(seed).state_dict().items() if key.startswith("3.")}, path)
    return path


def test_a_part_is_refused_without_the_option_which_the_error_names(tmp_path):
    path = head(1, tmp_path / "head.pt")
    message = refusal(path, network(2))
    assert message.endswith(
        "6 of 9 keys missing (0.weight, 0.bias, 1.weight, and 3 more); "
        "--partial (partial=True) leaves them as the task made them"
    )
    target = network(2)
    before = state(target)
    notes = load_checkpoint(path).load_into(target, partial=True)
    assert changed(before, target) == {"3.weight", "3.bias"}
    assert notes == ["2 of 9 tensors are from the checkpoint, 7 are the task's own (4 trainable, 3 buffers)"]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("content", [{"x": torch.ones(1)}, {"9.num_batches_tracked": torch.tensor(3)}])
def test_none_of_the_models_keys_is_never_enough(tmp_path, content, frozen):
    path = tmp_path / "a.pt"
    torch.save(content, path)
    model = network().requires_grad_(not frozen)
    for options in ({}, {"partial": True}):
        message = refusal(path, model, **options)
        assert "keys missing" in message
        assert "--partial" not in message


def test_a_whole_checkpoint_says_nothing_of_shares(tmp_path):
    torch.save(network(1).state_dict(), tmp_path / "a.pt")
    target = network(2)
    assert load_checkpoint(tmp_path / "a.pt").load_into(target, partial=True) == []
    without_counter = {k: v for k, v in network(1).state_dict().items() if "num_batches" not in k}
    torch.save(without_counter, tmp_path / "b.pt")
    assert load_checkpoint(tmp_path / "b.pt").load_into(target) == []


def test_what_the_task_does_not_have_either_cannot_be_its_own(tmp_path):
    path = head(1, tmp_path / "head.pt")
    lazy = nn.Sequential(nn.LazyLinear(5), nn.Identity(), nn.Tanh(), nn.Linear(5, 3))
    assert "2 of 4 keys missing (0.weight, 0.bias)" in refusal_of_lazy(path, lazy)
    with torch.device("meta"):
        nowhere = nn.Linear(4, 5)
    assert "2 of 4 keys missing" in refusal_of_lazy(
        path, nn.Sequential(nowhere, nn.Identity(), nn.Tanh(), nn.Linear(5, 3))
    )


def refusal_of_lazy(path: Path, model: nn.Module) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path).load_into(model, partial=True)
    assert "--partial" not in str(caught.value)
    return str(caught.value)


def test_the_tasks_own_weights_must_be_finite_too(tmp_path):
    path = head(1, tmp_path / "head.pt")
    target = network(2)
    with torch.no_grad():
        target[0].bias[0] = float("nan")
    with pytest.raises(NumericsError, match=r"1 of 9 tensors: 0\.bias"):
        load_checkpoint(path).load_into(target, partial=True)


def test_wider_weights_convert_the_tasks_own_too(tmp_path):
    source = network(1).double()
    torch.save({"3.weight": source[3].weight, "3.bias": source[3].bias}, tmp_path / "head.pt")
    target = network(2)
    own = target[0].weight.detach().clone()
    load_checkpoint(tmp_path / "head.pt").load_into(target, partial=True)
    assert target[0].weight.dtype == torch.float64
    assert torch.equal(target[0].weight, own.double())
    assert torch.equal(target[3].weight, source[3].weight)


# -- one checkpoint after another


def test_what_a_checkpoint_lacks_is_the_tasks_own_and_not_of_the_checkpoint_before(tmp_path):
    torch.save(network(1).state_dict(), tmp_path / "whole.pt")
    own = network(2).state_dict()
    model, recipient = network(2), Recipient(partial=True)
    recipient.load(load_checkpoint(tmp_path / "whole.pt"), model)
    recipient.load(load_checkpoint(head(3, tmp_path / "head.pt")), model)
    found = model.state_dict()
    assert all(torch.equal(found[key], network(3).state_dict()[key]) for key in ("3.weight", "3.bias"))
    assert all(torch.equal(found[key], own[key]) for key in found if not key.startswith("3."))


def test_own_weights_that_a_whole_checkpoint_has_replaced_are_missed_rather_than_replaced(tmp_path):
    """Without the option nothing is kept of what a whole checkpoint replaces."""
    model = network(2)
    model[0].requires_grad_(False)
    torch.save(network(1).state_dict(), tmp_path / "whole.pt")
    torch.save({k: v for k, v in network(3).state_dict().items() if not k.startswith("0.")}, tmp_path / "part.pt")
    recipient = Recipient()
    recipient.load(load_checkpoint(tmp_path / "whole.pt"), model)
    with pytest.raises(CheckpointError, match=r"part\.pt: lacks 0\.weight, and a checkpoint before it has replaced"):
        recipient.load(load_checkpoint(tmp_path / "part.pt"), model)
    other = network(2)
    other[0].requires_grad_(False)
    recipient.load(load_checkpoint(tmp_path / "part.pt"), other)  # another model has its own
    recipient.load(load_checkpoint(tmp_path / "part.pt"), other)


# -- records


class Ear(Listener):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, words: str) -> None:
        self.lines.append(words)


def maker(model: nn.Module):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 4, generator=generator), torch.randint(3, (12,), generator=generator)
    task = Task(model, nn.CrossEntropyLoss(), [(x, y)], name="net")
    return lambda checkpoint: task


def test_a_run_of_adapters_says_once_how_many_tensors_are_the_tasks_own_and_each_record_says_it(tmp_path):
    paths = [peft_folder(tmp_path / f"checkpoint-{step}", in_file(adapted(step))) for step in (8, 16)]
    ear, out = Ear(), tmp_path / "run.h5"
    analyze_run(paths, maker(adapted(0)), QUICK, out=out, listener=ear)
    words = "2 of 11 tensors are from the checkpoint, 9 are the task's own (6 frozen, 3 buffers)"
    assert ear.lines == [f"{paths[0]}: {words}"]
    records = list(load_trajectory(out))
    assert [record.step for record in records] == [8, 16]
    assert all(words in record.notes and record.own_tensors == 9 for record in records)
    assert records[0].weights_sha256 != records[1].weights_sha256
    assert records[0].to_json()["own_tensors"] == 9
    again = analyze_run(paths, maker(adapted(0)), QUICK, out=out)
    assert (again.new, again.kept) == (frozenset(), 2)


def test_the_same_adapter_on_other_weights_of_the_task_is_not_the_same_record(tmp_path):
    folder, out = peft_folder(tmp_path / "adapter", in_file(adapted(1))), tmp_path / "run.h5"
    analyze_run([folder], maker(adapted(0)), QUICK, out=out)
    with pytest.raises(StorageError, match=r"adapter was completed by other weights of the task when it was analysed"):
        analyze_run([folder], maker(adapted(5)), QUICK, out=out)
    outcome = analyze_run([folder], maker(adapted(5)), QUICK, out=out, force=True)
    assert (len(outcome.new), len(load_trajectory(out))) == (1, 1)


def test_a_part_that_does_not_fit_any_more_leaves_its_record_as_that_of_a_whole_checkpoint_does(tmp_path):
    steps = (2, 8, 16, 24)
    paths = [peft_folder(tmp_path / f"checkpoint-{n}", in_file(adapted(n)), lora_alpha=n) for n in steps]
    out, ear, other = tmp_path / "run.h5", Ear(), adapted(0)
    analyze_run(paths, maker(adapted(0)), QUICK, out=out)
    other.peft_config = {"default": SimpleNamespace(lora_alpha=8)}
    outcome = analyze_run(paths, maker(other), QUICK, out=out, listener=ear)
    kept = [line.partition(":")[0] for line in ear.lines if line.endswith("; its records in the file are kept")]
    assert kept == [str(paths[0]), str(paths[2]), str(paths[3])]  # also the one before the file was opened
    assert (outcome.new, outcome.kept) == (frozenset(), 1)
    assert [record.status for record in load_trajectory(out)] == ["complete"] * 4


def test_a_part_is_analysed_with_the_option_and_fails_without(tmp_path):
    path, out = head(1, tmp_path / "head.pt"), tmp_path / "run.h5"
    with pytest.raises(CheckpointError, match="--partial"):
        analyze_run([path], maker(network(2)), QUICK, out=out)
    assert not out.exists()
    analyze_run([path], maker(network(2)), QUICK, out=out, partial=True)
    (record,) = load_trajectory(out)
    assert record.own_tensors == 7
    assert record.identity.subject == f"{record.checkpoint_sha256} {record.weights_sha256}"
