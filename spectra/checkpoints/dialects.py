"""Checkpoint formats: where the weights are, which prefixes the keys have, and the epoch and step.

The order in which weights are looked for is that of timm's ``load_state_dict``: averaged weights (EMA) first, then
``state_dict``, ``model`` and the other names in use, then the dictionary itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spectra.checkpoints.contents import Plain, number_of
from spectra.checkpoints.rebuilding import Unusable
from spectra.errors import CheckpointError
from spectra.natural_order import natural_key

EMA_KEYS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "ema_model")
PLAIN_KEYS = ("state_dict", "model", "model_state_dict", "net", "network", "model_state", "module")
STEP_KEYS = ("global_step", "iter_num", "step", "iteration")
WRAPPERS = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile
# Keys that training scripts save with the weights and that do not help to rebuild the model.
_NOT_METADATA = re.compile(r"optim|scheduler|rng|scaler|callbacks|loops|^amp$", re.IGNORECASE)
_MAX_WRAPPERS = 8
_SUFFIX = re.compile(r"\.(pt|pth|ckpt|tar|bin|t7|pkl|pickle|safetensors|model|weights)$", re.IGNORECASE)

_EPOCH_WORD = re.compile(r"(?<![a-z])(?:epochs?|ep|e)[-_=. ]*(\d+(?:\.\d+)?)(?![\d.]*[a-z])", re.IGNORECASE)
_STEP_WORD = re.compile(
    r"(?<![a-z])(?:global[-_]?step|steps?|iterations?|iters?|it)[-_=. ]*(\d+)(?!\d*[a-z])", re.IGNORECASE
)
_FOLDER = re.compile(
    r"(?:(?:checkpoint|ckpt|global[-_]?step|step|iteration|iter|it|epoch|ep)s?[-_= ]*\d+(?:\.\d+)?(?:[-_, ]+|$))+",
    re.IGNORECASE,
)
_BARE = re.compile(
    r"(?:^|.*[^a-z])?(?:ckpts?|checkpoints?|chkpts?|cp|models?|nets?|networks?|weights|params|states?|snapshots?)"
    r"[-_=. ]*(\d+)|(\d+)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Weights:
    """The weights in a file, their key, and the keys of other weights."""

    tensors: dict[str, Any]  # keys as in the file
    key: str | None  # None: the dictionary itself
    words: str
    others: tuple[str, ...]


def find_weights(content: Any, choice: str | None = None, depth: int = 0) -> Weights | None:
    """The weights in the content of a checkpoint file; None if there are none (or none under the chosen key).

    Args:
        content: the object in the file.
        choice: a key of the dictionary, or ``"ema"`` / ``"model"`` for the averaged / the plain weights under any key.
        depth: number of enclosing wrappers already opened.

    Raises:
        CheckpointError: too many wrappers, or one that contains itself.
    """
    if depth > _MAX_WRAPPERS:
        raise CheckpointError(f"weights under more than {_MAX_WRAPPERS} wrappers, or a dictionary that contains itself")
    if isinstance(content, nn.Module):
        return Weights(dict(content.state_dict()), None, f"pickled {type(content).__name__}", ())
    if not isinstance(content, Mapping):
        return None
    known_keys = [key for key in (*EMA_KEYS, *PLAIN_KEYS) if _tensors(content.get(key))]
    others = [key for key in content if isinstance(key, str) and key not in known_keys and _tensors(content[key])]
    others = [key for key in others if not _NOT_METADATA.search(key)]
    if choice is None:
        # A single unknown key with weights is unambiguous; several are not.
        key = known_keys[0] if known_keys else others[0] if len(others) == 1 and not _has_tensor(content) else None
    else:
        group = {"ema": EMA_KEYS, "model": PLAIN_KEYS}.get(choice, ())
        candidates = [choice, *group] if choice in (*known_keys, *others) else group
        key = next((name for name in candidates if name in known_keys or name in others), None)
        if key is None:
            return None
    if key is not None:
        tensors = _tensors(content[key]) or {}
        other_keys = tuple(name for name in (*known_keys, *others) if name != key)
        kind = f"pickled {type(content[key]).__name__}" if isinstance(content[key], nn.Module) else "weights"
        return Weights(tensors, key, f"{_family(content)}, {kind} under {key!r}{_ema_words(key)}", other_keys)
    if _has_tensor(content):
        return Weights({k: v for k, v in content.items() if isinstance(k, str)}, None, "bare state_dict", ())
    for key in (*EMA_KEYS, *PLAIN_KEYS):  # a wrapper within a wrapper
        if isinstance(content.get(key), Mapping) and (inner := find_weights(content[key], depth=depth + 1)):
            return Weights(inner.tensors, key, f"{_family(content)}, under {key!r}: {inner.words}", ())
    return None


def strip_wrappers(keys: Iterable[str]) -> str:
    """The common prefix of all keys made of ``module.`` and ``_orig_mod.`` in any order.

    Example:
        >>> strip_wrappers(["_orig_mod.module.fc.weight", "_orig_mod.module.fc.bias"])
        '_orig_mod.module.'
    """
    remaining = list(keys)
    prefix = ""
    while remaining:
        wrapper = next((w for w in WRAPPERS if all(k.startswith(w) and len(k) > len(w) for k in remaining)), None)
        if wrapper is None:
            break
        prefix += wrapper
        remaining = [key[len(wrapper) :] for key in remaining]
    return prefix


def clean(weights: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], str]:
    """The tensors with the wrappers' prefix removed from their keys, and that prefix."""
    tensors = {key: value for key, value in weights.items() if isinstance(value, torch.Tensor)}
    if "n_averaged" in tensors and strip_wrappers(key for key in tensors if key != "n_averaged"):
        del tensors["n_averaged"]  # the counter of torch.optim.swa_utils.AveragedModel, beside the averaged module
    prefix = strip_wrappers(tensors)
    return {key[len(prefix) :]: value for key, value in tensors.items()}, prefix


def metadata_of(content: Any, weights: Weights) -> dict[str, Any]:
    """The plain values stored with the weights: numbers, texts, and lists and dictionaries of them.

    Raises:
        CheckpointError: nested too deeply, or too many.
    """
    plainly = Plain()
    if not isinstance(content, Mapping):
        return {}
    plain_values: dict[str, Any] = {}
    for key, value in content.items():
        if key == "__metadata__" and isinstance(value, Mapping):  # the texts in the header of a .safetensors file
            plain_values.update({str(name): text for name, text in value.items()})
            continue
        if not isinstance(key, str) or key in (weights.key, *weights.others):
            continue
        if weights.key is None and isinstance(value, torch.Tensor):
            continue
        machinery = _NOT_METADATA.search(key) and not isinstance(value, (str, int, float))
        is_plain, plain = plainly(value)
        if is_plain and not machinery:
            plain_values[plainly(key)[1]] = plain
    return plain_values


def position_of(metadata: Mapping[str, Any], path: Path) -> tuple[float | None, int | None]:
    """Epoch and step: from the keys ``epoch``, ``global_step``, ``iter_num``, ``step``, ``iteration``, else by name.

    The content of the file has precedence; the name is used only if the content has neither.

    Raises:
        CheckpointError: a number larger than any epoch or step.
    """
    epoch = number_of(metadata.get("epoch"), "epoch")
    step = next((int(n) for n in (number_of(metadata.get(key), "step") for key in STEP_KEYS) if n is not None), None)
    return (epoch, step) if epoch is not None or step is not None else position_in_name(path)


def position_in_name(path: Path) -> tuple[float | None, int | None]:
    """Epoch and step from the name of a file, by the words before the numbers.

    ``epoch``, ``ep``, ``e`` mark an epoch; ``step``, ``iter``, ``iteration``, ``it`` a step. A bare number counts as
    the epoch if it is the whole name, or ends it after a word like ``ckpt``, ``checkpoint``, ``model``, ``weights``;
    ``resnet18.pt`` has none. If the name has none, the name of the folder is used, provided it says nothing else.

    Example:
        >>> position_in_name(Path("epoch=3-step=1200.ckpt"))
        (3, 1200)
        >>> position_in_name(Path("checkpoint-00100.pt")), position_in_name(Path("resnet18.pt"))
        ((100, None), (None, None))
    """
    stem = _stem(path.name)
    epoch, step = _EPOCH_WORD.search(stem), _STEP_WORD.search(stem)
    if epoch or step:
        return _in_name(epoch), _in_name(step)
    if bare := _BARE.fullmatch(stem):
        return _in_name(bare), None
    return position_in_folder(path.parent.name)


def _in_name(match: re.Match[str] | None) -> Any:
    """The matched number; None if it is larger than any epoch or step, such as a date with time."""
    digits = next((group for group in match.groups() if group), None) if match else None
    try:
        return number_of(digits, "number")
    except CheckpointError:
        return None


def position_in_folder(name: str) -> tuple[float | None, int | None]:
    """Epoch and step from the name of a folder, if it says nothing else: ``lr1e-3`` is not epoch 3.

    ``checkpoint-500`` is a step, as in the trainer of transformers.

    Example:
        >>> position_in_folder("checkpoint-500"), position_in_folder("epoch_3"), position_in_folder("lr1e-3")
        ((None, 500), (3, None), (None, None))
    """
    if not _FOLDER.fullmatch(name):
        return None, None
    if of_trainer := re.fullmatch(r"checkpoint-(\d+)", name):
        return None, _in_name(of_trainer)
    return position_in_name(Path("/") / name)


def name_key(path: Path) -> list[list[tuple[int, int | str]]]:
    """A sorting key in natural order under which ``ckpt10.pt`` comes after ``ckpt9.pt``, and ``ckpt9-v1.pt`` too."""
    stem = _stem(path.name)
    return [natural_key(str(path.parent)), natural_key(stem), natural_key(path.name[len(stem) :])]


def _stem(name: str) -> str:
    for _ in range(2):  # model_12.pth.tar
        name = _SUFFIX.sub("", name)
    return name


def _tensors(value: Any) -> dict[str, Any] | None:
    """The state dict that a value is or has, or None."""
    if isinstance(value, nn.Module):
        return dict(value.state_dict())
    if isinstance(value, Mapping) and _has_tensor(value):
        return {key: item for key, item in value.items() if isinstance(key, str)}
    return None


def _has_tensor(value: Mapping[Any, Any]) -> bool:
    return any(isinstance(key, str) and isinstance(item, (torch.Tensor, Unusable)) for key, item in value.items())


def _family(content: Mapping[Any, Any]) -> str:
    if "spectra" in content and "model" in content:
        return "saved by spectra"
    if "pytorch-lightning_version" in content:
        return "Lightning checkpoint"
    if "iter_num" in content and "model_args" in content:
        return "nanoGPT checkpoint"
    return "dictionary"


def _ema_words(key: str) -> str:
    return " (a moving average)" if key in EMA_KEYS else ""
