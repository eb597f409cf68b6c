"""Networks of transformers from ``config.json``, and checkpoints under their names. No code of a folder is run.

Access to the network is turned off, and weights are read by spectra. Networks are built in float32.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spectra.checkpoints.checkpoint import Checkpoint
from spectra.checkpoints.sidecars import ADAPTER_CONFIG, read_json
from spectra.errors import DataError, MissingDependency, TaskError
from spectra.frameworks.declared_size import TooLarge, no_larger_than
from spectra.frameworks.rearranged import rearranged
from spectra.task.user_errors import words_of

# Masks, positions and rotary frequencies, which older versions saved and which the configuration determines.
_OLD_BUFFERS = r"(rotary_emb\.inv_freq|(^|\.)position_ids|\.attn(\.attention)?\.masked_bias)$"


def library() -> Any:
    """The package transformers, with its access to the network turned off for the rest of the process.

    Raises:
        MissingDependency: it is not installed.
    """
    os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
    try:
        import transformers  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise MissingDependency(
            f"the tasks hf:... need transformers, which cannot be imported ({error}): pip install transformers"
        ) from error
    if (constants := sys.modules.get("huggingface_hub.constants")) is not None:
        constants.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]  # where it was imported before
    transformers.logging.set_verbosity_error()  # standard error may be read by a program
    return transformers


def build(folder: Path, auto: str, stored: int) -> nn.Module:
    """The network of ``config.json`` in float32 with random weights, in eval mode.

    Args:
        folder: of the checkpoint.
        auto: the class of transformers that chooses the network.
        stored: how many numbers the weights have.

    Raises:
        MissingDependency: transformers is not installed.
        TaskError: there is no configuration, no network can be built from it without code of the folder, or it would
            be many times as large as the weights.
    """
    transformers = library()
    if not (folder / "config.json").is_file():
        adapter = (
            "an adapter of peft, whose base a task function makes; " if (folder / ADAPTER_CONFIG).is_file() else ""
        )
        raise TaskError(
            f"{folder}: {adapter}no config.json in it, which says what network it is: save_pretrained writes one"
        )
    written = read_json(folder / "config.json")
    if written.get("quantization_config"):
        raise TaskError(f"{folder}: its weights are quantised (quantization_config), so the loss has no derivatives")
    try:
        config = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        config.use_cache = False
        if hasattr(type(config), "_experts_implementation"):
            config._experts_implementation = "eager"  # kernels for all experts at once have no second derivative
        chosen = getattr(transformers, auto)
        _check_size(chosen, config, stored)
        with no_larger_than(stored):
            return _from_config(chosen, config).eval()
    except Exception as error:
        own = "; code in the folder (auto_map) is never run: write a task function" if "auto_map" in written else ""
        raise TaskError(f"{folder}: no network can be built from config.json: {words_of(error)}{own}") from error


def _check_size(auto: Any, config: Any, stored: int) -> None:
    """Raise TooLarge, before anything is allocated, for a network of many times ``stored`` numbers."""
    try:
        with no_larger_than(stored), torch.device("meta"):
            _from_config(auto, config)
    except TooLarge:
        raise
    except Exception:  # some networks read numbers while they are built; errors are those of the real one
        return


def _from_config(auto: Any, config: Any) -> nn.Module:
    """The network with PyTorch's own attention, or the written out one; never with kernels that the file names."""
    chosen = {"dtype": torch.float32, "trust_remote_code": False}
    try:
        model: nn.Module = auto.from_config(config, attn_implementation="sdpa", **chosen)
    except (ValueError, ImportError):  # the class has no such form
        model = auto.from_config(config, attn_implementation="eager", **chosen)
    return model


def renamed(checkpoint: Checkpoint, model: nn.Module) -> Checkpoint:
    """The checkpoint with its tensors under the names of the model, by the rules of transformers' own loading.

    They are: names of older versions, the base model's prefix, ``gamma`` and ``beta`` for the weight and bias of layer
    norms, and tensors that the class declares to be ignored.
    """
    entries = model.state_dict()
    written = _written_names(model, entries)
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    add_prefix = not any(key.startswith(prefix) for key in checkpoint.state_dict)

    def name_of(key: str) -> str:
        plain = re.sub(r"(LayerNorm\.)(gamma|beta)$", lambda m: m[1] + {"gamma": "weight", "beta": "bias"}[m[2]], key)
        candidates = [key, plain, *([prefix + plain] if add_prefix else [])]
        for name in (*candidates, *(written.get(name, "") for name in candidates)):
            if name in entries:
                return name
        return key

    names = {key: name_of(key) for key in checkpoint.state_dict}
    ignored = [key for key, name in names.items() if name not in entries and _is_ignored(name, model, prefix)]
    tensors = {names[key]: tensor for key, tensor in checkpoint.state_dict.items() if key not in ignored}
    if len(tensors) + len(ignored) < len(names):
        return checkpoint  # two tensors of one name, which does not fit
    joined = rearranged(tensors, model)
    if joined is tensors and not ignored and list(tensors) == list(names):
        return checkpoint
    return replace(checkpoint, state_dict=dict(joined))


def _written_names(model: nn.Module, entries: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Name in a file that ``save_pretrained`` writes -> name in the model, where only names differ."""
    try:
        from transformers.core_model_loading import (  # type: ignore[import-not-found, unused-ignore]
            revert_weight_conversion,
        )
    except ImportError:  # versions before 5 write the model's own names
        return {}
    by_identity = {id(tensor): name for name, tensor in entries.items()}
    written = revert_weight_conversion(model, dict(entries))
    return {name: by_identity[id(tensor)] for name, tensor in written.items() if id(tensor) in by_identity}


def _is_ignored(name: str, model: nn.Module, prefix: str) -> bool:
    """Whether a tensor is one that the class ignores, or a buffer that the model has and does not save."""
    patterns = {_OLD_BUFFERS, *(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())}
    buffers = {buffer for buffer, _ in model.named_buffers()}
    return any(re.search(p, name) for p in patterns) or name in buffers or prefix + name in buffers


def vocabulary(model: Any) -> int:
    """The number of token ids that the model embeds."""
    return int(model.get_input_embeddings().weight.shape[0])


def positions(model: Any) -> int | None:
    """The longest input; None without a limit. RoBERTa and its kin count positions from the padding id + 1 on."""
    config = model.config
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:
        return None
    offset = any(
        getattr(module, "padding_idx", None) is not None
        for name, module in model.named_modules()
        if name.endswith("position_embeddings")
    )
    return limit - config.pad_token_id - 1 if offset else limit


def check_causal(model: nn.Module, ids: torch.Tensor) -> None:
    """Refuse a network in which a token sees later ones: the loss of the next token would mean nothing."""
    changed = ids.clone()
    changed[:, -1] = (ids[:, -1] + 1) % vocabulary(model)
    try:
        with torch.no_grad():
            first, second = (model(input_ids=rows).logits[:, :-1] for rows in (ids, changed))
    except Exception as error:
        raise TaskError(f"the model cannot be called with token ids: {words_of(error)}") from error
    if not torch.allclose(first, second, rtol=1e-4, atol=1e-6):
        raise TaskError(
            f"{type(model).__name__} is not causal: scores of earlier tokens depend on a later one (is_decoder in "
            "config.json?), so the next token is no secret to it"
        )


def check_padding(model: nn.Module, columns: Mapping[str, torch.Tensor], path: Path) -> None:
    """Refuse a padding on which the scores depend, such as one that the model does not know (``pad_token_id``)."""
    kept = columns["attention_mask"].bool()
    row = int(kept.sum(1).argmin())
    padded = {name: tensor[row : row + 1] for name, tensor in columns.items()}
    bare = {name: tensor[:, kept[row]] for name, tensor in padded.items()}
    try:
        with torch.no_grad():
            first, second = (model(**batch).logits for batch in (padded, bare))
    except Exception as error:
        raise TaskError(f"the model cannot be called with the tokens of a text: {words_of(error)}") from error
    if not torch.allclose(first, second, rtol=1e-4, atol=1e-5):
        raise DataError(
            f"{path}: the scores of a text depend on its padding: the tokenizer pads with token "
            f"{int(padded['input_ids'][~kept[row : row + 1]][0])}, and config.json has pad_token_id="
            f"{getattr(model.config, 'pad_token_id', None)}"
        )
