"""Tiny networks of transformers with random weights, their losses written a second time, and the command line on them.

GPT-2 and Llama are written again from their papers with plain functions; BERT and ViT are differentiated twice as they
are, in float64, all data at once. Nothing is fetched from anywhere.
"""

from __future__ import annotations

import copy
import json
import os

import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from spectra import Task
from spectra_cli.main import main

VOCABULARY, LENGTH = 13, 6


def library(name):
    """The package of this name, or a skipped test."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    found = pytest.importorskip(name, reason=f"{name} is not installed: make foreign installs it")
    if name != "pytorch_lightning":
        pytest.importorskip("transformers").logging.set_verbosity_error()
    return found


def network(name, seed=0):
    """A tiny network with random weights, in float32 as they come."""
    import transformers

    torch.manual_seed(seed)
    shape = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12}
    if name == "gpt2":
        sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
        return transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=VOCABULARY, n_positions=LENGTH, initializer_range=0.3, **sizes)
        )
    if name == "llama":
        return transformers.LlamaForCausalLM(
            transformers.LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=1, initializer_range=0.3, **shape)
        )
    if name == "bert":
        return transformers.BertForSequenceClassification(
            transformers.BertConfig(
                vocab_size=VOCABULARY, max_position_embeddings=LENGTH, num_labels=3, initializer_range=0.3, **shape
            )
        )
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=3, initializer_range=0.3, **shape)
    )


def data_of(name):
    """(batches, all inputs, all labels); of a language model the labels are the next symbols."""
    generator = torch.Generator().manual_seed(1)
    if name in ("gpt2", "llama"):
        symbols = torch.randint(VOCABULARY, (7, LENGTH), generator=generator)
        return list(symbols.split((4, 3))), symbols, symbols[:, 1:].flatten()
    x = torch.randint(VOCABULARY, (8, LENGTH), generator=generator)
    if name == "vit":
        x = torch.randn(8, 1, 8, 8, generator=generator)
    y = torch.randint(3, (8,), generator=generator)
    return list(zip(x.split((5, 3)), y.split((5, 3)))), x, y


def next_symbols(model, batch):
    """Scores of the next symbol at every position but the last, (rows, vocabulary)."""
    return model(batch).logits[:, :-1].flatten(0, 1)


def task_of(model, name):
    """The task as a user writes it: a language model says what its target is, a classifier needs nothing more."""
    batches, _, _ = data_of(name)
    if name in ("gpt2", "llama"):
        return Task(model, nn.CrossEntropyLoss(), batches, forward=next_symbols, target=lambda b: b[:, 1:].flatten())
    return Task(model, nn.CrossEntropyLoss(), batches)


def attention(q, k, v):
    """Causal attention, (N, heads, T, d) each."""
    scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
    hidden = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).triu(1)
    return scores.masked_fill(hidden, -torch.inf).softmax(3) @ v


def gpt2_scores(p, x):
    """Radford et al. 2019: pre-norm blocks, learned positions, the embedding tied to the output."""

    def norm(h, at):
        h = h - h.mean(2, keepdim=True)
        return h / torch.sqrt(h.square().mean(2, keepdim=True) + 1e-5) * p[f"{at}.weight"] + p[f"{at}.bias"]

    def linear(h, at):
        return h @ p[f"{at}.weight"] + p[f"{at}.bias"]

    def split(h):
        return h.view(*h.shape[:2], 2, 4).transpose(1, 2)

    h = p["transformer.wte.weight"][x] + p["transformer.wpe.weight"][: x.shape[1]]
    at = "transformer.h.0."
    q, k, v = map(split, linear(norm(h, f"{at}ln_1"), f"{at}attn.c_attn").chunk(3, 2))
    h = h + linear(attention(q, k, v).transpose(1, 2).flatten(2), f"{at}attn.c_proj")
    a = linear(norm(h, f"{at}ln_2"), f"{at}mlp.c_fc")
    a = a / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (a + 0.044715 * a**3)))
    h = h + linear(a, f"{at}mlp.c_proj")
    return norm(h, "transformer.ln_f") @ p["transformer.wte.weight"].T


def llama_scores(p, x):
    """Touvron et al. 2023: root mean square norm, rotary positions, gated units, grouped keys and values."""

    def norm(h, at):
        return p[f"{at}.weight"] * h / torch.sqrt(h.square().mean(2, keepdim=True) + 1e-6)

    angles = torch.arange(x.shape[1])[:, None] * 10000.0 ** (-torch.arange(2) / 2)  # (T, 2), of heads of 4
    turn = torch.polar(torch.ones_like(angles), angles)

    def rotated(h):
        pairs = torch.complex(h[..., :2].contiguous(), h[..., 2:].contiguous()) * turn
        return torch.cat([pairs.real, pairs.imag], 3)

    h = p["model.embed_tokens.weight"][x]
    at = "model.layers.0."
    a = norm(h, f"{at}input_layernorm")
    q, k, v = ((a @ p[f"{at}self_attn.{name}_proj.weight"].T).view(*x.shape, -1, 4).transpose(1, 2) for name in "qkv")
    k, v = rotated(k).expand(-1, 2, -1, -1), v.expand(-1, 2, -1, -1)
    h = h + attention(rotated(q), k, v).transpose(1, 2).flatten(2) @ p[f"{at}self_attn.o_proj.weight"].T
    a = norm(h, f"{at}post_attention_layernorm")
    gate, up, down = (p[f"{at}mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
    h = h + (F.silu(a @ gate.T) * (a @ up.T)) @ down.T
    return norm(h, "model.norm") @ p["lm_head.weight"].T


BY_HAND = {"gpt2": gpt2_scores, "llama": llama_scores}


def reference_scores(model, name):
    """Scores (rows, classes) of all data at once in float64, and the tensors that they are a function of."""
    _, x, _ = data_of(name)
    if name in BY_HAND:
        p = {key: tensor.detach().double().requires_grad_() for key, tensor in model.named_parameters()}
        return BY_HAND[name](p, x)[:, :-1].flatten(0, 1), list(p.values())
    twice = copy.deepcopy(model).double().eval()
    with sdpa_kernel(SDPBackend.MATH):  # the attention that transformers writes out itself has a softmax in float32
        return twice(x.double() if x.is_floating_point() else x).logits, list(twice.parameters())


def reference(model, name, labels=None):
    """The mean loss over all data at once in float64, and the tensors it is a function of."""
    scores, tensors = reference_scores(model, name)
    return F.cross_entropy(scores, data_of(name)[2] if labels is None else labels), tensors


RANK, ALPHA = 2, 6


def adapted(seed):
    """A GPT-2 whose base is always the same, with a LoRA of peft on two of its layers, drawn by ``seed``."""
    import peft

    config = peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True, task_type="CAUSAL_LM"
    )
    model = peft.get_peft_model(network("gpt2"), config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float32) * 0.3)
    return model


def adapted_reference(model):
    """The loss in float64 with ``W + (alpha / r) (B A)'`` written out, and the adapter's tensors."""
    every = {name.removeprefix("base_model.model."): p.detach().double() for name, p in model.named_parameters()}
    free = {name: p.requires_grad_() for name, p in every.items() if "lora_" in name}
    p = {name.replace(".base_layer", ""): tensor for name, tensor in every.items() if "lora_" not in name}
    for name in [name for name in free if "lora_A" in name]:
        weight = f"{name.partition('.lora_A')[0]}.weight"  # (in, out), as GPT-2 has it
        p[weight] = p[weight] + ALPHA / RANK * (free[name.replace("lora_A", "lora_B")] @ free[name]).T
    _, x, y = data_of("gpt2")
    return F.cross_entropy(gpt2_scores(p, x)[:, :-1].flatten(0, 1), y), list(free.values())


def rows():
    """Inputs (24, 4) and three classes."""
    x = torch.randn(24, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    return x, (x.sum(1) > 0).long() + (x[:, 0] > 1)


def classifier():
    """A network for them."""
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


TASK = """
import sys, spectra
sys.path.insert(0, {here!r})
from foreign_networks import *

def task():
    {body}
"""


def command(*words):
    """What a command printed; it must succeed."""
    ran = CliRunner().invoke(main, [str(word) for word in words])
    assert ran.exit_code == 0, ran.output
    return ran.stdout


def write_task(folder, body):
    (folder / "foreign_task.py").write_text(TASK.format(here=os.path.dirname(__file__), body=body))
    return "--task", "foreign_task.py:task"


def analysed(folder, body, *asked):
    """The records of checkpoints in the working directory ``folder``, of the task that ``body`` returns."""
    options = ["-m", "12", "-k", "16", "--metrics", "none", "--out", "out.h5", "--force"]
    command("analyze", *asked, *write_task(folder, body), *options)
    return json.loads(command("show", "out.h5", "--json"))
