"""Token ids as batches: texts cut into blocks or padded, arrays of ids, and the tokenizer beside a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from spectra.errors import DataError, SpectraError
from spectra.frameworks.data import read_text
from spectra.frameworks.pretrained import library
from spectra.task.user_errors import words_of

IGNORED = -100  # the label of a position that does not count
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "tokenizer.model")
_TABLES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".arrow")
_RUN = re.compile(r"checkpoint-\d+")  # a folder of a trainer, whose tokenizer may be one level above


def tokenizer_of(folder: Path, named: str | None) -> Any:
    """The tokenizer in the folder; of a trainer's ``checkpoint-N`` also that in the folder above."""
    places = [Path(named).expanduser()] if named is not None else [folder]
    if named is None and _RUN.fullmatch(folder.resolve().name):
        places.append(folder.resolve().parent)
    place = next((p for p in places if any((p / name).is_file() for name in TOKENIZER_FILES)), None)
    if place is None:
        raise DataError(
            f"{places[0]}: no tokenizer in it ({', '.join(TOKENIZER_FILES[:3])}, ...): save it there with "
            "tokenizer.save_pretrained, name its folder with --task-arg tokenizer=DIR, or pass token ids as data "
            "(.npy, .npz or .pt)"
        )
    try:
        return library().AutoTokenizer.from_pretrained(str(place), local_files_only=True, trust_remote_code=False)
    except SpectraError:
        raise
    except Exception as error:
        raise DataError(f"{place}: its tokenizer cannot be loaded: {words_of(error)}") from error


def tokens_of(path: Path, tokenizer: Any) -> torch.Tensor:
    """The token ids of a whole text, (T,).

    Raises:
        DataError: the file cannot be read, or the tokenizer fails.
    """
    if path.suffix.lower() in _TABLES:
        raise DataError(f"{path}: a table, and a language model needs a text (.txt) or token ids (.npy, .npz, .pt)")
    text = read_text(path)
    try:
        return torch.tensor(tokenizer(text, verbose=False)["input_ids"], dtype=torch.int64)
    except Exception as error:
        raise DataError(f"{path}: the tokenizer fails: {words_of(error)}") from error


def blocks_of(tokens: torch.Tensor, length: int, path: Path) -> dict[str, torch.Tensor]:
    """A sequence (T,) cut into rows of ``length``; the last row is padded, and its padding does not count."""
    if len(tokens) < 2:
        raise DataError(f"{path}: {len(tokens)} tokens: at least 2 are needed")
    if len(tokens) % length == 1 and len(tokens) > length:
        tokens = tokens[:-1]  # alone in the last row, it would predict nothing
    length = min(length, len(tokens))
    rows = -(-len(tokens) // length)
    count = torch.arange(rows * length).view(rows, length) < len(tokens)
    ids = torch.zeros(rows, length, dtype=torch.int64)
    ids[count] = tokens
    return _columns(ids, count.long())


def token_columns(arrays: Mapping[str, torch.Tensor], length: int, path: Path) -> dict[str, torch.Tensor]:
    """The columns of a file of arrays."""
    ids = arrays.get("input_ids", arrays.get("") if len(arrays) == 1 else None)
    if ids is None:
        raise DataError(f"{path}: no input_ids in it; it holds {', '.join(arrays)}")
    mask, labels = arrays.get("attention_mask"), arrays.get("labels")
    for name, array in (("input_ids", ids), ("attention_mask", mask), ("labels", labels)):
        if array is not None and (array.is_floating_point() or array.is_complex() or array.shape != ids.shape):
            what = f"{name} {tuple(array.shape)} of type {array.dtype}"
            raise DataError(f"{path}: {what}: integers of the shape {tuple(ids.shape)} are needed")
    if ids.ndim == 1 and mask is None and labels is None:
        return blocks_of(ids.long(), length, path)
    if ids.ndim != 2 or ids.shape[1] < 2 or not len(ids):
        raise DataError(f"{path}: input_ids {tuple(ids.shape)}: (rows, length) with at least 2 tokens is needed")
    return _columns(ids.long(), torch.ones_like(ids).long() if mask is None else mask.long(), labels)


def _columns(ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    labels = ids.masked_fill(mask == 0, IGNORED) if labels is None else labels.long()
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def encoded(texts: list[str], tokenizer: Any, cut: int | None, path: Path) -> dict[str, torch.Tensor]:
    """Input ids, attention mask, ... of texts, padded to the longest."""
    try:
        rows = tokenizer(texts, truncation=cut is not None, max_length=cut, verbose=False)
        if len({len(row) for row in rows["input_ids"]}) > 1 and tokenizer.pad_token_id is None:
            raise DataError(f"{path}: texts of several lengths, and the tokenizer has no padding token")
        padded = tokenizer.pad(rows, padding=tokenizer.pad_token_id is not None, return_tensors="pt")
    except SpectraError:
        raise
    except Exception as error:
        raise DataError(f"{path}: the tokenizer fails: {words_of(error)}") from error
    return dict(padded)


def check_columns(columns: Mapping[str, torch.Tensor], vocabulary: int, positions: int | None, path: Path) -> None:
    """Token ids, labels and masks within their ranges.

    Raises:
        DataError: they are not.
    """
    ids, mask = columns["input_ids"], columns["attention_mask"]
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocabulary:
        raise DataError(
            f"{path}: token ids run from {low} to {high}, but the model's vocabulary has 0 to {vocabulary - 1}: the "
            "tokenizer or the ids belong to another model"
        )
    if bool(((mask != 0) & (mask != 1)).any()):
        raise DataError(f"{path}: the attention mask holds other numbers than 0 and 1")
    if "labels" in columns:
        labels = columns["labels"]
        if bool(((labels != IGNORED) & ((labels < 0) | (labels >= vocabulary))).any()):
            raise DataError(f"{path}: labels outside 0 to {vocabulary - 1}; {IGNORED} is what is ignored")
    if positions and ids.shape[1] > positions:
        raise DataError(
            f"{path}: rows of {ids.shape[1]} tokens, and the model takes {positions}: --task-arg length={positions} "
            "cuts longer texts"
        )
