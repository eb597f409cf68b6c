"""Tasks for folders that transformers wrote: ``hf:causal-lm``, ``hf:sequence-classification``, ...

The network is built from ``config.json`` by the classes that are part of transformers. Code that a folder brings is
never run, nothing is fetched, and the weights are read by spectra. Networks are built in float32.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spectra.checkpoints.checkpoint import Checkpoint
from spectra.checkpoints.sidecars import read_json
from spectra.errors import DataError, TaskError
from spectra.frameworks.data import (
    ARRAYS,
    as_pixels,
    class_labels,
    existing,
    in_batches,
    normalised,
    pairs,
    read_arrays,
    read_images,
    read_labelled_texts,
    whole_number,
)
from spectra.frameworks.pretrained import build, check_causal, check_padding, positions, vocabulary
from spectra.frameworks.tokens import (
    TOKENIZER_FILES,
    blocks_of,
    check_columns,
    encoded,
    token_columns,
    tokenizer_of,
    tokens_of,
)
from spectra.task.task import Task
from spectra.task.user_errors import words_of

# The files that decide on network and data.
_OF_TOKENIZERS = (*TOKENIZER_FILES, "special_tokens_map.json", "added_tokens.json", "merges.txt")
_BESIDE = ("config.json", "preprocessor_config.json", *_OF_TOKENIZERS)


def causal_lm(
    checkpoint: Checkpoint,
    data: str,
    length: int | None = None,
    batch_size: int = 8,
    tokenizer: str | None = None,
    test_data: str | None = None,
) -> Task:
    """A language model with the mean cross-entropy of the next token, over all tokens that are not ignored.

    Args:
        checkpoint: in a folder with ``config.json``.
        data: a text, which the tokenizer of the folder divides into tokens; or an array of token ids: (T,), cut like a
            text, or (rows, length). An ``.npz`` or ``.pt`` file may hold ``input_ids``, ``attention_mask`` and
            ``labels`` of one shape; a label of -100 is ignored.
        length: of the blocks into which a text is cut. The tokens of a block are predicted from those before them in
            the block; its first token is not. Default: 128, or the number of positions of the model if smaller.
        batch_size: blocks per batch.
        tokenizer: a folder with the tokenizer, if it is another one.
        test_data: as ``data``.
    """
    folder = folder_of(checkpoint)
    model = build(folder, "AutoModelForCausalLM", _numbers_in(checkpoint))
    limit = positions(model)
    size = whole_number("batch_size", batch_size, 1)
    blocks = min(128, limit or 128) if length is None else whole_number("length", length, 2)
    if limit and blocks > limit:
        raise DataError(f"length={blocks}: the model has {limit} positions")

    def batches(file: str) -> list[dict[str, torch.Tensor]]:
        path = existing(file)
        if path.suffix.lower() in ARRAYS:
            columns = token_columns(read_arrays(path), blocks, path)
        else:
            columns = blocks_of(tokens_of(path, tokenizer_of(folder, tokenizer)), blocks, path)
        check_columns(columns, vocabulary(model), limit, path)
        return in_batches(columns, size)

    read = batches(data)
    check_causal(model, read[0]["input_ids"][:1, :4])
    test = None if test_data is None else batches(test_data)
    return Task(model, nn.CrossEntropyLoss(), read, forward=_next_scores, target=_next_tokens, test_data=test)


def sequence_classification(
    checkpoint: Checkpoint,
    data: str,
    length: int | None = None,
    batch_size: int = 32,
    tokenizer: str | None = None,
    test_data: str | None = None,
) -> Task:
    """A classifier of texts with the mean cross-entropy.

    Args:
        checkpoint: in a folder with ``config.json`` and a tokenizer.
        data: CSV with the columns ``text`` and ``label``, or JSON lines with these keys. A label is the number of a
            class, or its name in ``config.json``.
        length: longer texts are cut to this number of tokens. Without it, texts longer than the model takes are an
            error.
        batch_size: texts per batch. All texts are padded to the length of the longest.
        tokenizer: a folder with the tokenizer, if it is another one.
        test_data: as ``data``.
    """
    folder = folder_of(checkpoint)
    model = build(folder, "AutoModelForSequenceClassification", _numbers_in(checkpoint))
    config: Any = model.config
    if config.problem_type not in (None, "single_label_classification") or config.num_labels < 2:
        raise TaskError(
            f"{folder}: a model of {config.problem_type or 'regression'} with {config.num_labels} outputs: only "
            "classifiers with one label per text are built in; write a task function"
        )
    size = whole_number("batch_size", batch_size, 1)
    cut = None if length is None else whole_number("length", length, 1)

    def batches(file: str) -> list[dict[str, torch.Tensor]]:
        path = existing(file)
        texts, labels = read_labelled_texts(path)
        columns = encoded(texts, tokenizer_of(folder, tokenizer), cut, path)
        check_columns(columns, vocabulary(model), positions(model), path)
        check_padding(model, columns, path)
        numbers = torch.tensor([_class_number(label, config, path) for label in labels])
        return in_batches({**columns, "labels": class_labels(numbers, config.num_labels, path)}, size)

    test = None if test_data is None else batches(test_data)
    return Task(model, nn.CrossEntropyLoss(), batches(data), forward=_scores, target=_labels, test_data=test)


def image_classification(checkpoint: Checkpoint, data: str, batch_size: int = 32, test_data: str | None = None) -> Task:
    """A classifier of images with the mean cross-entropy.

    Args:
        checkpoint: in a folder with ``config.json``.
        data: an ``.npz`` file with ``images`` and ``labels``. Bytes are scaled and normalised as
            ``preprocessor_config.json`` says; images of floating-point numbers are taken as they are. No image is
            resized or cropped.
        batch_size: images per batch.
        test_data: as ``data``.
    """
    folder = folder_of(checkpoint)
    model = build(folder, "AutoModelForImageClassification", _numbers_in(checkpoint))
    config: Any = model.config
    size = whole_number("batch_size", batch_size, 1)

    def batches(file: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
        path = existing(file)
        images, labels = read_images(path)
        pixels = as_pixels(images, int(getattr(config, "num_channels", 3)), path)
        pixels = pixels.float() if pixels.is_floating_point() else _processed(pixels, folder, path)
        try:
            with torch.no_grad():
                model(pixels[:1])
        except Exception as error:
            raise DataError(
                f"{path}: images {tuple(pixels.shape)} that the model refuses: {words_of(error)}"
            ) from error
        return pairs(pixels, class_labels(labels, config.num_labels, path), size)

    test = None if test_data is None else batches(test_data)
    return Task(model, nn.CrossEntropyLoss(), batches(data), test_data=test)


TASKS: Mapping[str, Callable[..., Task]] = {
    "hf:causal-lm": causal_lm,
    "hf:sequence-classification": sequence_classification,
    "hf:image-classification": image_classification,
}


def folder_of(checkpoint: Checkpoint) -> Path:
    """The folder with the configuration of a checkpoint."""
    return checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent


def _numbers_in(checkpoint: Checkpoint) -> int:
    """How many numbers the weights of a checkpoint have."""
    return sum(tensor.numel() for tensor in checkpoint.state_dict.values())


def identity_of(checkpoint: Checkpoint) -> str:
    """A digest of the files from which the task is made: equal for checkpoints that can share one task."""
    folder = folder_of(checkpoint)
    digest = hashlib.sha256()
    for name in _BESIDE:
        file = folder / name
        content = file.read_bytes() if file.is_file() else b""
        digest.update(f"{name} {len(content)} ".encode() + content)
    return digest.hexdigest()


def _next_scores(model: nn.Module, batch: Mapping[str, torch.Tensor]) -> Any:
    scores = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return scores[:, :-1].flatten(0, 1)


def _next_tokens(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return batch["labels"][:, 1:].flatten()


def _scores(model: nn.Module, batch: Mapping[str, torch.Tensor]) -> Any:
    return model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits


def _labels(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return batch["labels"]


def _class_number(label: Any, config: Any, path: Path) -> int:
    names = getattr(config, "label2id", None) or {}
    if isinstance(label, str) and label in names:
        return int(names[label])
    try:
        if isinstance(label, (bool, float)):
            raise ValueError(label)
        return int(label)
    except (TypeError, ValueError):
        known = ", ".join(list(names)[:8])
        raise DataError(
            f"{path}: the label {label!r} is no class number and no name in config.json ({known})"
        ) from None


def _processed(pixels: torch.Tensor, folder: Path, path: Path) -> torch.Tensor:
    """Bytes, scaled and normalised as ``preprocessor_config.json`` says."""
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        raise DataError(
            f"{path}: images of whole numbers, and {folder} has no preprocessor_config.json that says how to normalise "
            "them: pass images of floating-point numbers, as in training"
        )
    says = read_json(file)
    factor = says.get("rescale_factor", 1 / 255) if says.get("do_rescale", True) else 1.0
    mean, std = (says.get("image_mean"), says.get("image_std")) if says.get("do_normalize", True) else (0.0, 1.0)
    if mean is None or std is None:
        raise DataError(f"{file}: no image_mean and image_std in it: pass images of floating-point numbers")
    try:
        return normalised(pixels, float(factor), mean, std)
    except (TypeError, ValueError) as error:
        raise DataError(f"{file}: {error}") from error
