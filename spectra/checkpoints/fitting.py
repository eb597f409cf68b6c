"""Matches the keys, shapes and dtypes of a checkpoint with those of a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from spectra.checkpoints.adapters import with_adapter_name
from spectra.checkpoints.dialects import strip_wrappers

_SHOWN = 3  # keys of each kind in a message
_UNINITIALIZED = (nn.UninitializedParameter, nn.UninitializedBuffer)


@dataclass(frozen=True)
class Fit:
    """The weights to load into the model, or the reason why they do not fit."""

    state_dict: dict[str, Any]  # under the model's own keys, all of them
    mismatch: str  # empty if it fits
    convert_to: torch.dtype | None  # the model must be converted to this first, so that no weight is rounded
    notes: tuple[str, ...]
    own: tuple[str, ...] = ()  # keys that the checkpoint lacks; the model keeps its own values for them
    shares: str = ""  # how many tensors are from the checkpoint and how many are the model's own, if some are
    adapter: str | None = None  # the name, in the model, of the adapter that the checkpoint is of


def fit(weights: Mapping[str, torch.Tensor], model: nn.Module, *, partial: bool = False, of_peft: bool = False) -> Fit:
    """Match weights with the entries of a model, by key.

    Missing keys are a mismatch, with two exceptions: frozen parameters (``requires_grad=False``), which a checkpoint of
    the trained weights leaves out, and the weights of the base model of an adapter.

    Args:
        weights: of the checkpoint.
        model: the model to load into.
        partial: any keys may be missing, but not all.
        of_peft: the weights are those of an adapter; only the trained parameters of that adapter must be present.

    Raises:
        CheckpointError: the adapter of the model is ambiguous.
    """
    entries = model.state_dict(keep_vars=True)
    plain = _plain_names(entries)  # model's key -> key without wrappers
    wanted = set(plain.values())
    best, note, adapter = _best_naming(weights, wanted, of_peft)
    by_key = {key: best[name] for key, name in plain.items() if name in best}
    missing = [key for key in entries if key not in by_key]
    unexpected = [name for name in best if name not in wanted and not _harmless(name)]
    notes = [note] if note else []
    nothing_fits = all(map(_harmless, by_key))

    loaded: dict[str, Any] = dict(by_key)
    still_missing, own, counters = [], [], []
    for key in missing:
        tied = next((k for k in by_key if entries[k] is entries[key]), None)
        if tied is not None:  # one tensor in the model, saved once
            loaded[key] = by_key[tied]
        elif _harmless(key) or key.endswith("_extra_state"):
            loaded[key] = entries[key].clone() if isinstance(entries[key], torch.Tensor) else entries[key]
            counters += [key] if isinstance(entries[key], torch.Tensor) else []
        elif not nothing_fits and _may_stay(entries[key], partial or (of_peft and adapter not in key.split("."))):
            loaded[key] = entries[key]
            own.append(key)
        else:
            still_missing.append(key)
    other_shape = [
        f"{key} ({_form(loaded[key])} in the file, {_form(entries[key])} in the model)"
        for key in by_key
        if not _same_form(key, loaded[key], entries[key])
    ]
    others = [
        _listed(unexpected, f"of {len(best)} keys in the file unexpected"),
        _listed(other_shape, "of another shape or kind"),
        _listed(list(_torn_ties(entries, by_key)), "pairs that the model ties differ in the file"),
    ]
    could_stay = not any(others) and not nothing_fits and all(_may_stay(entries[k], True) for k in still_missing)
    hint = "; --partial (partial=True) leaves them as the task made them" if could_stay else ""
    mismatches = [_listed(still_missing, f"of {len(entries)} keys missing"), *others]
    mismatch = "; ".join(part for part in mismatches if part) + (hint if still_missing else "")
    convert_to, cast_notes = (None, []) if mismatch else _dtypes(entries, by_key)
    own += counters if own else []
    shares = _shares(entries, own) if own else ""
    notes += [*cast_notes, *([shares] if own else [])]
    return Fit(loaded, mismatch, convert_to, tuple(notes), tuple(own), shares, adapter)


def _may_stay(entry: Any, any_kind: bool) -> bool:
    """Whether a checkpoint may lack this entry: any entry with numbers (``any_kind``), or only a frozen parameter."""
    if not isinstance(entry, torch.Tensor) or entry.is_meta or isinstance(entry, _UNINITIALIZED):
        return False
    return any_kind or (isinstance(entry, nn.Parameter) and not entry.requires_grad)


def _shares(entries: Mapping[str, Any], own: Sequence[str]) -> str:
    """How many tensors are from the checkpoint, and how many are the task's own, in words."""
    kept = [entries[key] for key in own]
    buffers = sum(not isinstance(entry, nn.Parameter) for entry in kept)
    trained = sum(isinstance(entry, nn.Parameter) and entry.requires_grad for entry in kept)
    kinds = {"frozen": len(kept) - buffers - trained, "trainable": trained, "buffers": buffers}
    words = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
    total = len(entries)
    return f"{total - len(own)} of {total} tensors are from the checkpoint, {len(own)} are the task's own ({words})"


def _plain_names(entries: Mapping[str, Any]) -> dict[str, str]:
    """The model's keys without what torch.compile and DataParallel add to them."""
    names = [key.replace("_orig_mod.", "") for key in entries]
    prefix = strip_wrappers(names)
    return {key: name[len(prefix) :] for key, name in zip(entries, names)}


def _best_naming(
    weights: Mapping[str, torch.Tensor], wanted: set[str], of_peft: bool
) -> tuple[dict[str, torch.Tensor], str, str | None]:
    """The weights under the names that fit the model best, a note, and the adapter name that was inserted.

    Candidates are the names in the file, without a common prefix, or with a prefix of the model.
    """
    as_is = {key.replace("_orig_mod.", ""): value for key, value in weights.items()}
    candidates: list[tuple[dict[str, torch.Tensor], str]] = [(as_is, "")]
    current, removed = as_is, ""
    for _ in range(3):  # Lightning's attribute, and a wrapper or two inside of it
        prefix = _common_segment(current)
        if not prefix:
            break
        removed += prefix
        current = {key[len(prefix) :]: value for key, value in current.items()}
        candidates.append((current, f"prefix {removed} taken off the keys of the file: they fit the model better so"))
    if prefix := _common_segment(wanted):
        put = {prefix + key: value for key, value in as_is.items()}
        candidates.append((put, f"prefix {prefix} put before the keys of the file: they fit the model better so"))

    def misfits(candidate: tuple[dict[str, torch.Tensor], str, str | None]) -> int:
        return sum(not _harmless(key) for key in wanted.symmetric_difference(candidate[0]))

    named = []
    for keys, note in candidates:
        with_name, adapter = with_adapter_name(keys, wanted, any_key=of_peft)
        named.append((with_name, note, adapter))
    return min(named, key=misfits)  # the first of equals


def _common_segment(keys: Iterable[str]) -> str:
    """``"model."`` if all keys start with it and go on, else nothing."""
    keys = list(keys)
    first, dot, _ = keys[0].partition(".") if keys else ("", "", "")
    prefix = first + dot
    return prefix if dot and all(key.startswith(prefix) and len(key) > len(prefix) for key in keys) else ""


def _harmless(key: str) -> bool:
    """Whether a key is batch norm's counter, which does not affect the loss; files before torch 0.4.1 lack it."""
    return key.rsplit(".", 1)[-1] == "num_batches_tracked"


def _form(value: Any) -> str:
    shape = tuple(value.shape)
    if _is_scaled(value):
        return f"{shape} {_name(value.dtype)}, which a scale belongs to: save it in float32"
    return str(shape) if value.is_floating_point() else f"{shape} {str(value.dtype).removeprefix('torch.')}"


def _is_scaled(value: Any) -> bool:
    """Whether a tensor has a floating type of 8 bits or fewer, whose numbers need a separate scale."""
    return bool(value.is_floating_point() and value.element_size() < 2)


def _same_form(key: str, given: Any, wanted: Any) -> bool:
    if not isinstance(wanted, torch.Tensor):
        return True
    if isinstance(wanted, _UNINITIALIZED):
        return True
    if _is_scaled(given) and given.dtype != wanted.dtype:
        return False
    same_kind = given.is_floating_point() == wanted.is_floating_point() and given.is_complex() == wanted.is_complex()
    return bool(given.shape == wanted.shape and (same_kind or _harmless(key)) and not given.is_quantized)


def _torn_ties(entries: Mapping[str, Any], by_key: Mapping[str, torch.Tensor]) -> Iterator[str]:
    """Pairs of keys that are one tensor in the model but hold different values in the file."""
    first: dict[int, str] = {}
    for key in by_key:
        tied = first.setdefault(id(entries[key]), key)
        if tied != key and by_key[tied].shape == by_key[key].shape and not torch.equal(by_key[tied], by_key[key]):
            yield f"{tied} and {key}"


def _dtypes(entries: Mapping[str, Any], by_key: Mapping[str, torch.Tensor]) -> tuple[torch.dtype | None, list[str]]:
    """The dtype to convert the model to, if any weight is wider than the model's; notes on widened weights."""
    narrow: set[str] = set()
    wide: dict[torch.dtype, str] = {}
    for key, value in by_key.items():
        place = entries[key]
        if not isinstance(place, torch.Tensor) or not value.is_floating_point() or value.dtype == place.dtype:
            continue
        if torch.promote_types(value.dtype, place.dtype) == place.dtype:
            narrow.add(_name(value.dtype))
        else:
            wide.setdefault(torch.promote_types(value.dtype, place.dtype), key)
    if wide:
        target = max(wide, key=lambda dtype: torch.finfo(dtype).bits)
        return target, [f"the model is converted to {_name(target)}: the checkpoint holds {wide[target]} so precisely"]
    if narrow:
        return None, [f"weights saved as {', '.join(sorted(narrow))} are widened to the model's dtype"]
    return None, []


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _listed(items: Sequence[str], what: str) -> str:
    """``3 of 10 keys missing (a, b, c)``, the first few; nothing for none."""
    if not items:
        return ""
    more = f", and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return f"{len(items)} {what} ({', '.join(items[:_SHOWN])}{more})"
