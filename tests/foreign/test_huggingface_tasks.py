"""``--task hf:...``: folders of transformers analysed without a task file, beside losses written a second time."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_networks import BY_HAND, command, library, network
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from spectra import EmpiricalFisherOperator, GGNOperator, HessianOperator, Task
from spectra.checkpoints.checkpoint import load_checkpoint
from spectra.errors import DataError, SpectraError, TaskError
from spectra_cli.task_source import resolve

pytestmark = [pytest.mark.foreign, pytest.mark.usefixtures("transformers")]
WORDS = [
    "[UNK]",
    "[PAD]",
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "dog",
    "ran",
    "to",
    "it",
]  # 13, the vocabulary of the networks
TEXT = "the cat sat on a mat and the dog ran to it and sat on the mat and the cat ran to a dog it sat on"  # 27 words
QUICK = ["-m", "12", "-k", "16", "--metrics", "none", "--out", "out.h5", "--force"]


@pytest.fixture(scope="module")
def transformers():
    return library("transformers")


@pytest.fixture(autouse=True)
def _in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def save_tokenizer(folder, **options):
    """A tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    options = {"pad_token": "[PAD]", "unk_token": "[UNK]", **options}
    PreTrainedTokenizerFast(tokenizer_object=words, **options).save_pretrained(folder)


def ids_of(text):
    return torch.tensor([WORDS.index(word) for word in text.split()])


def trained(name, folder, steps=(2, 4)):
    """A network trained a few steps on arbitrary data and saved as a run of checkpoint-N; the last weights."""
    model = network(name).float().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ids = ids_of(TEXT)[:24].view(4, 6)
    for step in range(1, max(steps) + 1):
        labels = torch.tensor([0, 1, 2, 1]) if name == "bert" else ids
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        if step in steps:
            model.save_pretrained(f"{folder}/checkpoint-{step}")
            save_tokenizer(f"{folder}/checkpoint-{step}")
    return model.eval()


def flat(pieces):
    return torch.cat([piece.reshape(-1) for piece in pieces])


def task_at(folder, spec, *args):
    """The task that the command line makes of a folder, with its weights."""
    read = load_checkpoint(folder)
    source = resolve(spec, args, read)
    task = source.task(read)
    source.renamed(read, task.model).load_into(task.model)
    return task


def product_by_hand(loss, tensors, v):
    gradient = flat(torch.autograd.grad(loss, tensors, create_graph=True))
    return flat(torch.autograd.grad(gradient @ v, tensors, retain_graph=True))


def gpt2_loss(model, rows, labels):
    """The mean over all labels that count, by the plain functions of the paper, without any padding in a row."""
    p = {key: tensor.detach().double().requires_grad_() for key, tensor in model.named_parameters()}
    total, count = 0.0, 0
    for row, label in zip(rows, labels):
        scores = BY_HAND["gpt2"](p, row[None])[0, :-1]
        total = total + F.cross_entropy(scores, label[1:], reduction="sum", ignore_index=-100)
        count += int((label[1:] != -100).sum())
    return total / count, list(p.values())


def check_products(task, loss, tensors):
    operator = HessianOperator(task, dtype="float64")
    v = torch.randn(operator.n, dtype=torch.float64)
    truth = product_by_hand(loss, tensors, v)
    assert float(truth.norm()) > 1e-2
    assert float((operator @ v - truth).norm()) <= 1e-12 * float(truth.norm())


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_products_of_a_text_are_those_of_a_double_backward_in_float64(batch_size):
    """27 tokens in rows of 6: the last row has 3, and padding that must not count."""
    model = trained("gpt2", "run")
    Path("text.txt").write_text(TEXT)
    task = task_at("run/checkpoint-4", "hf:causal-lm", "data=text.txt", "length=6", f"batch_size={batch_size}")
    rows = ids_of(TEXT).split(6)
    assert [len(row) for row in rows] == [6, 6, 6, 6, 3]
    loss, tensors = gpt2_loss(model, rows, rows)
    assert task.survey().total_weight == 22
    check_products(task, loss, tensors)
    assert GGNOperator(task) @ np.ones(1040, np.float32) is not None
    assert EmpiricalFisherOperator(task) @ np.ones(1040, np.float32) is not None


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("form", ["pt", "npz"])
def test_ids_with_padding_and_ignored_labels_are_weighted_by_the_labels_that_count(form):
    """Rows of 6, 3 and 5 tokens, an ignored prompt, and a row in which nothing counts."""
    model = trained("gpt2", "run")
    lengths = (6, 3, 5, 4)
    ids = ids_of(TEXT)[:24].view(4, 6).clone()
    mask = (torch.arange(6) < torch.tensor(lengths)[:, None]).long()
    labels = ids.masked_fill(mask == 0, -100)
    labels[0, :3], labels[3] = -100, -100
    columns = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    if form == "pt":
        torch.save(columns, "ids.pt")
    else:
        np.savez("ids.npz", **{name: tensor.numpy() for name, tensor in columns.items()})
    loss, tensors = gpt2_loss(
        model, [row[:n] for row, n in zip(ids, lengths)], [row[:n] for row, n in zip(labels, lengths)]
    )
    for size in (1, 3, 4):
        check_products(
            task_at("run/checkpoint-4", "hf:causal-lm", f"data=ids.{form}", f"batch_size={size}"), loss, tensors
        )


@pytest.mark.usefixtures("float64")
def test_plain_arrays_of_ids_are_rows_or_one_sequence():
    model = trained("gpt2", "run")
    rows = ids_of(TEXT)[:24].view(4, 6)
    np.save("rows.npy", rows.numpy().astype(np.uint16))
    np.save("line.npy", rows.flatten().numpy())
    for args in (["data=rows.npy"], ["data=line.npy", "length=6"], ["data=line.npy"]):  # 6 is what the model takes
        check_products(task_at("run/checkpoint-4", "hf:causal-lm", *args), *gpt2_loss(model, rows, rows))


def bert_loss(model, rows, labels):
    """The mean cross-entropy of one text after the other, none of them padded."""
    twice = copy.deepcopy(model).double().eval()
    with sdpa_kernel(SDPBackend.MATH):
        scores = torch.cat([twice(input_ids=row[None]).logits for row in rows])
    return F.cross_entropy(scores, torch.tensor(labels)), list(twice.parameters())


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_classifier_of_texts_of_several_lengths(suffix):
    model = trained("bert", "run")
    texts, labels = ["the cat sat", "a dog", "the mat and it ran to", "to it", "on a mat"], [0, 2, 1, 1, 2]
    if suffix == "csv":
        lines = ["text,label", *(f'"{text}",{label}' for text, label in zip(texts, labels))]
    else:
        lines = [json.dumps({"label": f"LABEL_{label}", "text": text}) for text, label in zip(texts, labels)]
    Path(f"data.{suffix}").write_text("\n".join(lines))
    loss, tensors = bert_loss(model, [ids_of(text) for text in texts], labels)
    for size in (2, 32):
        args = [f"data=data.{suffix}", f"batch_size={size}"]
        check_products(task_at("run/checkpoint-4", "hf:sequence-classification", *args), loss, tensors)
    cut, tensors = bert_loss(model, [ids_of(text)[:2] for text in texts], labels)
    check_products(
        task_at("run/checkpoint-4", "hf:sequence-classification", f"data=data.{suffix}", "length=2"), cut, tensors
    )


def test_a_run_of_checkpoint_folders_is_analysed_from_the_command_line():
    trained("gpt2", "run")
    Path("text.txt").write_text(TEXT)
    asked = ["--task", "hf:causal-lm", "--task-arg", "data=text.txt", "--task-arg", "length=6", "--operator", "ggn"]
    command("analyze", "run", *asked, "--operator", "hessian", "--samples", "3", *QUICK)
    records = json.loads(command("show", "out.h5", "--json"))
    assert [(r["step"], r["operator"]) for r in records] == [(2, "ggn"), (2, "hessian"), (4, "ggn"), (4, "hessian")]
    assert records[2]["facts"]["loss"] < records[0]["facts"]["loss"]
    assert all(record["status"] == "complete" for record in records)
    command("analyze", "run", *asked, "--operator", "hessian", "--samples", "3", *QUICK[:-1])  # goes on with the file
    command("plan", "run", *asked)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("layout", ["bytes last", "bytes first", "floats"])
def test_a_vit_is_read_under_the_names_that_transformers_writes_and_its_images_are_normalised(layout):
    model = network("vit", seed=4).float()
    model.save_pretrained("vit")
    says = {"do_rescale": True, "rescale_factor": 0.01, "do_normalize": True, "image_mean": [0.4], "image_std": [0.7]}
    Path("vit/preprocessor_config.json").write_text(json.dumps(says))
    pixels = torch.randint(256, (5, 1, 8, 8), dtype=torch.uint8)
    x, y = (pixels.double() * 0.01 - 0.4) / 0.7, torch.tensor([0, 2, 1, 1, 0])
    x = x.float().double()
    images = {"bytes last": pixels.permute(0, 2, 3, 1), "bytes first": pixels[:, 0], "floats": x.float()}[layout]
    np.savez("images.npz", images=images.numpy(), labels=y.numpy())
    task = task_at("vit", "hf:image-classification", "data=images.npz", "batch_size=3")
    twice = copy.deepcopy(model).double().eval()
    with sdpa_kernel(SDPBackend.MATH):
        loss = F.cross_entropy(twice(x).logits, y)
    check_products(task, loss, list(twice.parameters()))


def test_images_that_do_not_fit_are_refused():
    network("vit").save_pretrained("vit")

    def says(images, labels):
        np.savez("images.npz", images=images, labels=labels)
        return refusal("vit", "hf:image-classification", "data=images.npz", kind=DataError)

    two = np.array([0, 1])
    assert "(2, 1, 4, 4) that the model refuses" in says(np.ones((2, 4, 4), np.float32), two)
    assert "takes 1 channels" in says(np.ones((2, 3, 8, 8), np.float32), two)
    assert "classes 0 to 2" in says(np.ones((2, 8, 8), np.float32), two + 2)
    assert "no preprocessor_config.json" in says(np.ones((2, 8, 8), np.uint8), two)
    Path("vit/preprocessor_config.json").write_text('{"do_normalize": true}')
    assert "no image_mean" in says(np.ones((2, 8, 8), np.uint8), two)


def test_a_network_that_cannot_use_the_attention_of_torch_takes_its_own():
    """Gemma 2 caps the scores of its attention."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    sizes = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12, "head_dim": 4}
    config = Gemma2Config(
        vocab_size=13, num_key_value_heads=1, initializer_range=0.9, attn_logit_softcapping=0.1, pad_token_id=0, **sizes
    )
    torch.manual_seed(0)
    model = Gemma2ForCausalLM._from_config(config, attn_implementation="eager").eval()
    model.save_pretrained("model")
    ids = torch.arange(12).view(2, 6)
    np.save("ids.npy", ids.numpy())
    task = task_at("model", "hf:causal-lm", "data=ids.npy")
    assert task.loss_of(task.data[0]).item() == pytest.approx(model(input_ids=ids, labels=ids).loss.item(), rel=1e-5)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_a_collator_that_pads_are_taken_as_they_are(workers):
    """BatchEncoding of several lengths from a loader with workers, in a task of the user's own."""
    from transformers import AutoTokenizer, BatchEncoding, DataCollatorWithPadding

    model = trained("bert", "run")
    texts, labels = ["the cat sat", "a dog", "the mat and it ran to", "to it", "on a mat"], [0, 2, 1, 1, 2]
    tokenizer = AutoTokenizer.from_pretrained("run/checkpoint-4")
    rows = [{**tokenizer(text), "labels": label} for text, label in zip(texts, labels)]
    loader = torch.utils.data.DataLoader(
        rows, batch_size=2, collate_fn=DataCollatorWithPadding(tokenizer), num_workers=workers
    )
    assert all(isinstance(batch, BatchEncoding) for batch in loader)
    task = Task(
        model,
        torch.nn.CrossEntropyLoss(),
        loader,
        forward=lambda m, b: m(input_ids=b["input_ids"], attention_mask=b["attention_mask"]).logits,
        target=lambda b: b["labels"],
    )
    check_products(task, *bert_loss(model, [ids_of(text) for text in texts], labels))
    chosen = task.subset(4)
    assert chosen.survey().num_samples == 4
    assert HessianOperator(chosen) @ np.ones(HessianOperator(chosen).n, np.float32) is not None


def test_held_out_data_are_read_as_the_others_are():
    trained("gpt2", "run")
    np.save("ids.npy", np.arange(12))
    np.save("test.npy", np.arange(11))
    task = task_at("run/checkpoint-4", "hf:causal-lm", "data=ids.npy", "test_data=test.npy", "length=6")
    assert (task.survey().total_weight, task.held_out().survey().total_weight) == (10, 9)


def test_weights_of_the_base_model_and_what_the_class_ignores_are_fitted_as_transformers_does():
    """GPT-2's own file has no prefix, no copy of the tied output, and masks that are no weights any more."""
    model = network("gpt2", seed=3).float()
    model.save_pretrained("model")
    weights = {
        name.removeprefix("transformer."): t for name, t in model.state_dict().items() if name != "lm_head.weight"
    }
    weights["h.0.attn.bias"] = torch.ones(6, 6, dtype=torch.bool).tril()[None, None]
    weights["h.0.attn.masked_bias"] = torch.tensor(-1e4)
    Path("model/model.safetensors").unlink()
    torch.save(weights, "model/pytorch_model.bin")
    np.save("ids.npy", np.arange(12))
    task = task_at("model", "hf:causal-lm", "data=ids.npy")
    for name, tensor in model.state_dict().items():
        assert torch.equal(task.model.state_dict()[name], tensor)


def test_sharded_folders_and_weights_in_half_precision():
    network("gpt2", seed=3).to(torch.bfloat16).save_pretrained("model", max_shard_size="2KB")
    assert len(list(Path("model").glob("model-*.safetensors"))) > 1
    np.save("ids.npy", np.arange(12))
    task = task_at("model", "hf:causal-lm", "data=ids.npy")
    assert {p.dtype for p in task.model.parameters()} == {torch.float32}


def refusal(folder, spec, *args, kind=SpectraError):
    with pytest.raises(kind) as caught:
        task_at(folder, spec, *args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_missing_or_does_not_fit_is_named_in_one_line():
    network("gpt2").save_pretrained("model")
    Path("text.txt").write_text(TEXT)
    np.save("ids.npy", np.array([1, 2, 13]))
    lm = "hf:causal-lm"
    assert "no tokenizer" in refusal("model", lm, "data=text.txt", kind=DataError)
    assert "'data' is not given" in refusal("model", lm, kind=TaskError)
    assert "no such file" in refusal("model", lm, "data=none.txt", kind=DataError)
    words = refusal("model", lm, "data=ids.npy", kind=DataError)
    assert "from 1 to 13" in words
    assert "0 to 12" in words
    assert "6 positions" in refusal("model", lm, "data=ids.npy", "length=7", kind=DataError)
    np.save("long.npy", np.ones((2, 7), int))
    assert "the model takes 6" in refusal("model", lm, "data=long.npy", kind=DataError)
    np.save("floats.npy", np.ones((2, 4)))
    assert "integers" in refusal("model", lm, "data=floats.npy", kind=DataError)
    np.savez("mask.npz", input_ids=np.ones((2, 4), int), attention_mask=np.full((2, 4), 2))
    assert "attention mask" in refusal("model", lm, "data=mask.npz", kind=DataError)
    np.savez("labels.npz", input_ids=np.ones((2, 4), int), labels=np.full((2, 4), 13))
    assert "labels outside" in refusal("model", lm, "data=labels.npz", kind=DataError)
    assert "there are hf:causal-lm" in refusal("model", "hf:masked-lm", "data=ids.npy", kind=TaskError)
    torch.save(network("gpt2").state_dict(), "alone.pt")
    assert "no config.json" in refusal("alone.pt", lm, "data=ids.npy", kind=TaskError)
    save_tokenizer("model")
    Path("table.csv").write_text("text\nthe cat\n")
    assert "a table" in refusal("model", lm, "data=table.csv", kind=DataError)


def test_the_tokenizer_of_a_trainer_may_be_above_the_checkpoint_or_named():
    trained("gpt2", "run")
    Path("text.txt").write_text(TEXT)
    whole = task_at("run/checkpoint-4", "hf:causal-lm", "data=text.txt").survey().fingerprint
    save_tokenizer("run")
    save_tokenizer("elsewhere")
    for file in Path("run/checkpoint-4").glob("tokenizer*"):
        file.unlink()
    assert task_at("run/checkpoint-4", "hf:causal-lm", "data=text.txt").survey().fingerprint == whole
    for file in Path("run").glob("tokenizer*"):
        file.unlink()
    named = task_at("run/checkpoint-4", "hf:causal-lm", "data=text.txt", "tokenizer=elsewhere")
    assert named.survey().fingerprint == whole
    assert "no tokenizer" in refusal("run/checkpoint-4", "hf:causal-lm", "data=text.txt", kind=DataError)


def test_a_classifier_refuses_labels_and_texts_that_do_not_fit():
    network("bert").save_pretrained("model")
    save_tokenizer("model")
    task = "hf:sequence-classification"

    def says(content):
        Path("data.csv").write_text(content)
        return refusal("model", task, "data=data.csv", kind=DataError)

    assert "classes 0 to 2" in says("text,label\nthe cat,3\n")
    assert "no class number" in says("text,label\nthe cat,good\n")
    assert "line 3" in says("text,label\nthe cat,1\na dog\n")
    assert "'text' and 'label'" in says("words,label\nthe cat,1\n")
    assert "no rows" in says("text,label\n")
    assert "length=6" in says("text,label\nthe cat sat on a mat and,1\n")
    Path("data.jsonl").write_text('{"text": "a", "label": 1}\n[1]\n')
    assert "line 2" in refusal("model", task, "data=data.jsonl", kind=DataError)
    save_tokenizer("model", pad_token=None)
    assert "no padding token" in says("text,label\nthe cat,1\na,1\n")


def test_a_padding_that_the_model_takes_for_text_is_refused():
    """GPT-2 classifies at the last token that is not ``pad_token_id``."""
    from transformers import GPT2Config, GPT2ForSequenceClassification

    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0, "n_positions": 6}
    save_tokenizer("model")
    Path("data.csv").write_text("text,label\nthe cat sat,1\na dog,0\n")
    for pad, fits in ((1, True), (5, False), (None, False)):
        config = GPT2Config(vocab_size=13, initializer_range=0.3, num_labels=2, pad_token_id=pad, **sizes)
        GPT2ForSequenceClassification(config).save_pretrained("model")
        if fits:
            assert task_at("model", "hf:sequence-classification", "data=data.csv").survey().num_samples == 2
        else:
            assert "padding" in refusal("model", "hf:sequence-classification", "data=data.csv", kind=DataError)


def test_a_network_that_sees_later_tokens_is_no_language_model():
    from transformers import BertConfig, BertLMHeadModel

    shape = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12}
    BertLMHeadModel(BertConfig(vocab_size=13, max_position_embeddings=6, **shape)).save_pretrained("model")
    np.save("ids.npy", np.arange(12))
    assert "is not causal" in refusal("model", "hf:causal-lm", "data=ids.npy", kind=TaskError)


def test_code_in_the_folder_is_never_run_and_quantised_weights_are_refused():
    network("gpt2").save_pretrained("model")
    np.save("ids.npy", np.arange(12))
    config = json.loads(Path("model/config.json").read_text())
    trap = "import os\nos.mkdir('ran')\nclass Own:\n    pass\n"
    Path("model/own.py").write_text(trap)
    auto = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}
    Path("model/config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": auto}))
    assert "auto_map" in refusal("model", "hf:causal-lm", "data=ids.npy", kind=TaskError)
    Path("model/config.json").write_text(json.dumps({**config, "auto_map": auto, "attn_implementation": "a/kernel"}))
    task = task_at("model", "hf:causal-lm", "data=ids.npy")  # transformers has the class itself
    assert type(task.model).__name__ == "GPT2LMHeadModel"
    assert not Path("ran").exists()
    Path("model/config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    assert "quantised" in refusal("model", "hf:causal-lm", "data=ids.npy", kind=TaskError)


def test_checkpoints_of_another_configuration_do_not_share_a_network():
    """The same shapes with another activation: with the first network the numbers would be wrong and look right."""
    for step, activation in ((1, "gelu_new"), (2, "relu")):
        model = network("gpt2")
        model.config.activation_function = activation
        model.save_pretrained(f"run/checkpoint-{step}")
    np.save("ids.npy", np.arange(12))
    first, second = (load_checkpoint(f"run/checkpoint-{step}") for step in (1, 2))
    source = resolve("hf:causal-lm", ["data=ids.npy"], first)
    one = source.task(first)
    assert source.task(first) is one
    assert type(source.task(second).model.transformer.h[0].mlp.act) is not type(one.model.transformer.h[0].mlp.act)
    assert source.per_checkpoint
