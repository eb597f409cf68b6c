"""Checkpoint: reads a checkpoint without running its code, loads it into a model, and saves one atomically.

A checkpoint written by :func:`save_checkpoint` is a dictionary that ``torch.load(weights_only=True)`` reads::

    {"spectra": {"task": name, "options": {...}}, "model": state_dict, "epoch": ..., "step": ..., **extra}
"""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spectra.checkpoints import optimizers
from spectra.checkpoints.bounds import parse_size
from spectra.checkpoints.contents import check_weights
from spectra.checkpoints.dialects import clean, find_weights, metadata_of
from spectra.checkpoints.discovery import find_checkpoints, order_checkpoints
from spectra.checkpoints.distributed import METADATA, read_distributed
from spectra.checkpoints.folders import files_of, position
from spectra.checkpoints.loading import all_finite, check_finite, fitted, put
from spectra.checkpoints.rawfile import read_hashed
from spectra.checkpoints.shards import is_index, read_shards
from spectra.checkpoints.sidecars import ADAPTER_CONFIG, adapter_config
from spectra.errors import ArgumentError, CheckpointError, escaped
from spectra.results.optimizer import OptimizerSettings
from spectra.results.storage.atomic_write import temporary_file
from spectra.results.storage.safe_open import mode_of_regular

__all__ = [
    "Checkpoint",
    "all_finite",
    "check_finite",
    "find_checkpoints",
    "load_checkpoint",
    "order_checkpoints",
    "save_checkpoint",
]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The content of a checkpoint: of a file, of an index with its shards, or of a folder written by a trainer."""

    path: Path
    sha256: str  # of the file's bytes; of shards, of the lines "NAME SHA256" of the index and its shards by name
    state_dict: dict[str, torch.Tensor]  # on the CPU, without wrappers' prefixes
    epoch: float | None
    step: int | None
    # The task named in the file. It is untrusted text: look it up among the built-in names, and never import, open or
    # run it.
    task: str | None
    task_args: dict[str, Any]
    metadata: dict[str, Any]  # the plain values stored with the weights: config, args, hyper_parameters, ...
    dialect: str  # in words
    key: str | None = None  # of the weights in the file; None for a bare state dict
    others: tuple[str, ...] = ()  # keys of other weights in the file, which weights= chooses
    notes: tuple[str, ...] = field(default=())  # to print
    files: tuple[Path, ...] = ()  # with the weights: one, or an index and its shards
    adapter_config: dict[str, Any] | None = None  # of an adapter by peft
    optimizer: OptimizerSettings | None = None  # None: the checkpoint has no optimizer, or several
    optimizer_state: Mapping[str, Any] | None = field(default=None, repr=False)  # its state dict, where it is asked for

    def load_into(self, model: nn.Module, *, partial: bool = False) -> list[str]:
        """Copy all weights into a model, or raise and leave the model unchanged.

        Prefixes added by wrappers (``module.``, ``_orig_mod.``, Lightning's ``model.``) are removed if the keys then
        fit the model better. The name of an adapter, which peft leaves out, is inserted. Tied weights may be saved once
        or twice; a missing ``num_batches_tracked`` is accepted. Weights of a narrower dtype are widened to the model's
        dtype. For wider weights the whole model is converted to their dtype, so that nothing is rounded.

        Args:
            model: the model to load into.
            partial: the checkpoint may lack keys; the model keeps its own values for them. Frozen parameters
                (``requires_grad=False``) may always be missing. So may all weights outside the adapter, for a
                checkpoint of peft. At least one of the model's keys must be present.

        Returns:
            Notes to print on adjustments made, including the number of tensors that are not from the checkpoint.

        Raises:
            CheckpointError: keys are missing, unexpected or of another shape (the first few and their number); or the
                configuration of an adapter differs from that of the model.
            NumericsError: NaN or infinite weights.
        """
        fit = fitted(self, model, partial)
        check_finite(fit.state_dict, self.path)
        put(fit, self.path, model)
        return list(fit.notes)


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    unsafe: bool = False,
    weights: str | None = None,
    max_size: int | str | None = None,
    optimizer_state: bool = False,
) -> Checkpoint:
    """Read a checkpoint in any of the usual formats.

    Args:
        path: a file by ``torch.save``, or ``.safetensors``; a folder that transformers, accelerate or peft wrote, or
            the index of shards in it.
        unsafe: allow running code that the file names, if it cannot be read otherwise (a pickled model); warns.
        weights: the weights to take from a file with several: a key of its dictionary, or ``"ema"`` / ``"model"`` for
            the averaged / the plain ones under any key. By default averaged weights are preferred (as in timm), with a
            note.
        max_size: bytes that a file may take in memory, or a text such as ``"8G"``. By default 20 times the file size or
            256 MiB, whichever is larger: torch.save does not compress.
        optimizer_state: also keep the state dict of the optimizer, which may be larger than the weights.

    Raises:
        CheckpointError: missing, empty, truncated, not a checkpoint, without weights, or only readable by running
            its code.
        MissingDependency: ``.safetensors`` without the package of that name.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "net_7.pt"
        >>> torch.save({"state_dict": {"module.weight": torch.ones(2, 3)}, "lr": 0.1}, path)
        >>> checkpoint = load_checkpoint(path)
        >>> checkpoint.epoch, list(checkpoint.state_dict), checkpoint.metadata
        (7, ['weight'], {'lr': 0.1})
        >>> checkpoint.dialect
        "dictionary, weights under 'state_dict', prefix module. removed"
    """
    path = Path(path)
    files = files_of(path)
    weight_files = files.weights
    read = read_shards if is_index(files.entry) else read_distributed if files.distributed else read_hashed
    content, sha256 = read(files.entry, unsafe, parse_size(max_size))
    try:
        loaded = find_weights(content, weights)
        if loaded is None:
            raise CheckpointError(_nothing_found(content, weights))
        check_weights(loaded.tensors)
        metadata = metadata_of(content, loaded)
        (epoch, step), note = position(path, files, metadata)
        state, unread = optimizers.state_of(content, files.folder, parse_size(max_size), checked=optimizer_state)
        optimizer = None if state is None else optimizers.settings_of(state)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    tensors, prefix = clean(loaded.tensors)
    task, task_args, notes = _task_of(content)
    notes += [note] if note else []
    if weights is None and loaded.others:
        others = ", ".join(map(repr, loaded.others))
        notes.append(f"weights taken from {loaded.key!r}; the file also holds {others}, which --weights KEY takes")
    if files.unused:
        unused = ", ".join(file.name for file in files.unused)
        notes.append(f"weights taken from {files.entry.name}; the folder also holds {unused}")
    notes += [unread] if unread else []
    config = adapter_config(files.folder) if files.folder is not None and files.is_adapter else None
    if config is not None:
        metadata[ADAPTER_CONFIG.removesuffix(".json")] = config
    return Checkpoint(
        path=path,
        sha256=sha256,
        state_dict=tensors,
        epoch=epoch,
        step=step,
        task=task,
        task_args=task_args,
        metadata={key: value for key, value in metadata.items() if key != "spectra"},
        dialect=_words(weight_files, loaded.words, config) + (f", prefix {prefix} removed" if prefix else ""),
        key=loaded.key,
        others=loaded.others,
        notes=tuple(notes),
        files=tuple(weight_files),
        adapter_config=config,
        optimizer=optimizer,
        optimizer_state=state if optimizer_state else None,
    )


def save_checkpoint(
    path: str | os.PathLike[str],
    model: nn.Module,
    task: str | None = None,
    task_args: Mapping[str, Any] | None = None,
    epoch: float | None = None,
    step: int | None = None,
    **extra: Any,
) -> None:
    """Save a model with its task, epoch and step for ``spectra analyze``. The file is written atomically.

    Args:
        path: the file; its folder must exist. An existing file is replaced.
        model: its ``state_dict`` is saved.
        task: the name of a built-in task, by which the checkpoint can be analysed without ``--task``.
        task_args: the options of that task.
        epoch: of training; may be fractional.
        step: of training.
        extra: further plain values (numbers, texts, lists, dictionaries) and tensors that
            ``torch.load(weights_only=True)`` can read.

    Raises:
        ArgumentError: an argument that could not be read back safely, or a reserved name.
        CheckpointError: the file cannot be written.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model is a {type(model).__name__}: a torch.nn.Module is needed")
    if "spectra" in extra:  # the other keys of the file are arguments of this function already
        raise ArgumentError("'spectra' is a reserved key of the file: choose another name")
    if task is not None and not isinstance(task, str):
        raise ArgumentError(f"task is a {type(task).__name__}: the name of a built-in task is needed")
    if task_args and task is None:
        raise ArgumentError("task_args without task: name the built-in task that they belong to")
    for name, number in (("epoch", epoch), ("step", step)):
        if number is not None and (type(number) not in (int, float) or not math.isfinite(number)):
            raise ArgumentError(f"{name}={number!r}: a plain finite number is needed; convert it with int() or float()")
    options = dict(task_args or {})
    for name, value in options.items():
        if not isinstance(name, str) or type(value) not in (str, int, float, bool, type(None)):
            raise ArgumentError(f"task_args[{name!r}] is a {type(value).__name__}: a plain number or text is needed")
    for name, value in extra.items():
        _check_plain(value, name)
    content: dict[str, Any] = {"spectra": {"task": task, "options": options}} if task is not None else {}
    content.update(model=model.state_dict(), epoch=epoch, step=step, **extra)
    _write_whole(Path(path), content)


def _words(pieces: Sequence[Path], inside: str, config: Mapping[str, Any] | None) -> str:
    """The format in words: the kind of file, the number of its shards, and whether it is an adapter."""
    words = "safetensors" if ".safetensors" in pieces[0].suffixes else inside
    if pieces[0].name == METADATA:
        words = f"torch.distributed.checkpoint in {len(pieces) - 1} files, {inside}"
    elif len(pieces) > 1:
        words += f" in {len(pieces) - 1} shards"
    return words if config is None else f"{words}, an adapter of peft (type {config.get('peft_type')!r})"


def _nothing_found(content: Any, weights: str | None) -> str:
    if not isinstance(content, Mapping):
        return f"no weights in it: it holds a {type(content).__name__}, not a dictionary of tensors"
    keys = ", ".join(escaped(str(key))[:80] for key in list(content)[:8]) + (", ..." if len(content) > 8 else "")
    if weights is not None and find_weights(content) is not None:
        return f"no weights under {weights!r}: it holds {keys}"
    if "param_groups" in content:
        return "the state of an optimizer, not the weights of a model"
    return f"no weights in it: it holds {keys or 'nothing'}"


def _task_of(content: Any) -> tuple[str | None, dict[str, Any], list[str]]:
    """The task named in the file in the form that ``save_checkpoint`` writes, its options, and notes."""
    entry = content.get("spectra") if isinstance(content, Mapping) else None
    if entry is None or isinstance(entry, torch.Tensor):
        return None, {}, []
    task, options = (entry.get("task"), entry.get("options", {})) if isinstance(entry, Mapping) else (entry, {})
    plain = isinstance(options, Mapping) and all(
        isinstance(name, str) and isinstance(value, (str, int, float, bool, type(None)))
        for name, value in options.items()
    )
    plain = plain and all(_is_text(word) for word in (task, *options, *options.values()) if isinstance(word, str))
    if isinstance(entry, Mapping) and task is None:
        return None, {}, []
    if not isinstance(entry, Mapping) or not isinstance(task, str) or not plain:
        return None, {}, ["its entry 'spectra' is not of the form that save_checkpoint writes, and is not used"]
    return task, dict(options), []


def _is_text(word: str) -> bool:
    """Whether the text can be encoded; a lone surrogate cannot."""
    return word.encode("utf-8", "replace").decode() == word


def _check_plain(value: Any, where: str) -> None:
    if type(value) in (str, int, float, bool, bytes, type(None)) or isinstance(value, torch.Tensor):
        return
    if type(value) in (list, tuple):
        for index, item in enumerate(value):
            _check_plain(item, f"{where}[{index}]")
    elif type(value) in (dict, OrderedDict):
        for key, item in value.items():
            if type(key) not in (str, int, float, bool):
                raise ArgumentError(f"{where} has a key of type {type(key).__name__}: a text or number is needed")
            _check_plain(item, f"{where}[{key!r}]")
    else:
        raise ArgumentError(
            f"{where} is a {type(value).__name__}: only plain values and tensors can be read back without running code"
        )


def _write_whole(path: Path, content: Any) -> None:
    try:
        mode_of_regular(path)
        with temporary_file(path) as (temporary, descriptor):
            with open(descriptor, "wb") as file:
                torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch's zip writer reports a full disk as a RuntimeError
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        missing = "" if path.parent.is_dir() else f": there is no folder {path.parent}"
        raise CheckpointError(f"{path}: cannot be written: {why}{missing}") from error
