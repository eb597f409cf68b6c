"""The functions that a checkpoint's pickle may call; each checks its arguments before it builds anything."""

from __future__ import annotations

import argparse
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from spectra.checkpoints.numpy_values import STAND_INS, PickledArray
from spectra.errors import CheckpointError

_MAX_DIMENSIONS = 64
_ATOMS = (str, int, float, bool, bytes, type(None), complex, torch.dtype)
_LARGEST_KEY = 2**60


@dataclass(frozen=True)
class Limits:
    """Limits on what a pickle may declare, from the file that contains it."""

    storages: Mapping[str, int] | None  # bytes of each storage by its key; None where the format does not list them
    file: int  # bytes of the file
    tensor: int  # bytes that one tensor may take when every number of it is written out
    operations: int = 50_000_000  # of the pickle


class Named:
    """A class that a pickle may name but not call."""

    def __init__(self, of: Any) -> None:
        self.of = of


class Unusable:
    """Replaces a tensor that is not stored in one dense block of memory."""

    def __init__(self, kind: str) -> None:
        self.kind = kind


def allowed(limits: Limits) -> dict[str, Any]:
    """The objects that a pickle may name, by name."""
    rebuild = Rebuild(limits)
    theirs = torch._weights_only_unpickler._get_allowed_globals()
    kinds = (torch.dtype, torch.qscheme, torch.serialization.StorageType)
    return {
        **{name: value for name, value in theirs.items() if isinstance(value, kinds)},
        **STAND_INS,
        "argparse.Namespace": argparse.Namespace,
        "builtins.bytearray": _bytearray,
        "builtins.bytes": _no_bytes,
        "builtins.complex": complex,
        "builtins.set": _set,
        "_codecs.encode": _encode,
        "collections.Counter": _counter,
        "collections.OrderedDict": _ordered,
        "torch.Size": torch.Size,
        "torch.device": torch.device,
        "torch.serialization._get_layout": torch.serialization._get_layout,
        **{f"torch.{module}UntypedStorage": Named(torch.UntypedStorage) for module in ("", "storage.")},
        "torch.Tensor": Named(torch.Tensor),
        "torch.nn.parameter.Parameter": Named(torch.nn.Parameter),
        "torch._utils._rebuild_tensor": rebuild.tensor,
        "torch._utils._rebuild_tensor_v2": rebuild.tensor,
        "torch._utils._rebuild_tensor_v3": rebuild.tensor_v3,
        "torch._utils._rebuild_qtensor": rebuild.quantized,
        "torch._utils._rebuild_parameter": rebuild.parameter,
        "torch._utils._rebuild_parameter_with_state": rebuild.parameter,
        "torch._utils._rebuild_device_tensor_from_numpy": rebuild.from_numpy,
        "torch._utils._rebuild_device_tensor_from_cpu_tensor": rebuild.from_cpu,
        "torch._tensor._rebuild_from_type_v2": rebuild.of_type,
        **_UNUSABLE_FUNCTIONS,
    }


_UNUSABLE = {
    "sparse_tensor": "a sparse tensor",
    "nested_tensor": "a nested tensor",
    "meta_tensor_no_storage": "a meta tensor, which has no numbers",
    "wrapper_subclass": "a tensor of a class with memory of its own",
}


class Rebuild:
    """Builds tensors from the storages of a file, and checks that each lies within its storage."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    def tensor(
        self, storage: Any, offset: Any, size: Any, stride: Any, grad: Any = False, hooks: Any = None, flags: Any = None
    ) -> torch.Tensor:
        self._check(storage, getattr(storage, "dtype", None), offset, size, stride)
        return torch._utils._rebuild_tensor_v2(  # type: ignore[no-any-return, no-untyped-call]
            storage, offset, size, stride, grad is True, OrderedDict(), _flags(flags)
        )

    def tensor_v3(
        self, storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, flags: Any = None
    ) -> torch.Tensor:
        self._check(storage, dtype, offset, size, stride)
        return torch._utils._rebuild_tensor_v3(  # type: ignore[no-any-return, no-untyped-call]
            storage, offset, size, stride, grad is True, OrderedDict(), dtype, _flags(flags)
        )

    def quantized(
        self, storage: Any, offset: Any, size: Any, stride: Any, parameters: Any, grad: Any = False, hooks: Any = None
    ) -> torch.Tensor:
        self._check(storage, getattr(storage, "dtype", None), offset, size, stride)
        return torch._utils._rebuild_qtensor(  # type: ignore[no-any-return, no-untyped-call]
            storage, offset, size, stride, parameters, grad is True, OrderedDict()
        )

    def parameter(self, data: Any, grad: Any, hooks: Any = None, state: Any = None) -> Any:
        if isinstance(data, Unusable):
            return data
        return torch.nn.Parameter(_tensor(data), requires_grad=grad is True)

    def from_numpy(self, data: Any, dtype: Any, device: Any, grad: Any) -> torch.Tensor:
        if not isinstance(data, PickledArray) or data.value is None or not isinstance(dtype, torch.dtype):
            raise _not_written("a tensor")
        return torch.from_numpy(data.value).to(dtype)

    def from_cpu(self, data: Any, dtype: Any, device: Any, grad: Any) -> torch.Tensor:
        if not isinstance(dtype, torch.dtype):
            raise _not_written("a tensor")
        return _tensor(data).to(dtype)

    def of_type(self, function: Any, kind: Any, arguments: Any, state: Any) -> Any:
        """A tensor with attributes; the attributes are dropped."""
        owner = getattr(function, "__self__", None)
        ours = owner is self or any(function is one for one in _UNUSABLE_FUNCTIONS.values())
        if not ours or not isinstance(kind, Named) or type(arguments) is not tuple:
            raise _not_written("a tensor")
        return function(*arguments)

    def _check(self, storage: Any, dtype: Any, offset: Any, size: Any, stride: Any) -> None:
        if not isinstance(storage, torch.storage.TypedStorage) or not isinstance(dtype, torch.dtype):
            raise _not_written("a tensor")
        lengths = [size, stride, (offset,)]
        if any(not isinstance(one, tuple) or any(type(n) is not int or n < 0 for n in one) for one in lengths):
            raise _not_written("a tensor")
        if len(size) != len(stride) or len(size) > _MAX_DIMENSIONS:
            raise _not_written("a tensor")
        count = storage._untyped_storage.nbytes() // dtype.itemsize
        number = 1
        for length in size:
            number *= length
        last = offset + sum((length - 1) * step for length, step in zip(size, stride)) + 1 if number else 0
        shape = " x ".join(f"{length:.6g}" if length > 10**12 else str(length) for length in size)[:80]
        if last > count:
            raise CheckpointError(
                f"damaged: a tensor of shape {shape} reaches past the end of its storage of {count} numbers"
            )
        if number > count and number * dtype.itemsize > self._limits.tensor:
            raise CheckpointError(
                f"a tensor of shape {shape} repeats the {count} numbers of its storage: written out it takes more than "
                f"{self._limits.tensor / 2**20:.0f} MiB; --max-size SIZE allows more, if you trust the file"
            )


def plain_key(key: Any) -> Any:
    """A key of a dictionary or set, if it is a plain value or a tuple of such: hashing a deep one can crash Python."""
    kinds = [type(one) for one in key] if type(key) in (tuple, torch.Size) else [type(key)]
    large = type(key) is int and abs(key) >= _LARGEST_KEY  # such numbers can all have one hash
    if large or (any(kind not in _ATOMS for kind in kinds) and not isinstance(key, torch.device)):
        raise CheckpointError(f"a key of a dictionary in it is a {type(key).__name__}: a number or text is needed")
    return key


def _unusable(words: str) -> Any:
    def rebuild(*arguments: Any) -> Unusable:
        return Unusable(words)

    return rebuild


# Made once: a function per file would stay in memory.
_UNUSABLE_FUNCTIONS = {f"torch._utils._rebuild_{name}": _unusable(words) for name, words in _UNUSABLE.items()}


def _tensor(data: Any) -> torch.Tensor:
    if not isinstance(data, torch.Tensor):
        raise _not_written("a tensor")
    return data


def _flags(flags: Any) -> dict[str, bool] | None:
    """Whether a tensor is a conjugated or negated view."""
    if flags is None:
        return None
    if type(flags) is not dict or not flags.keys() <= {"conj", "neg"}:
        raise _not_written("a tensor")
    return flags


def _encode(text: Any, codec: Any) -> bytes:
    """Decode bytes as stored by pickles of protocol 2; other codecs are refused, as they can expand their input."""
    if type(text) is not str or codec not in ("latin1", "latin-1"):
        raise _not_written("bytes")
    return text.encode("latin-1")


def _no_bytes() -> bytes:
    return b""


def _bytearray(*arguments: Any) -> bytearray:
    if not arguments:
        return bytearray()
    if type(arguments[0]) is bytes and len(arguments) == 1:
        return bytearray(arguments[0])
    return bytearray(_encode(*arguments))


def _set(items: Any = ()) -> set[Any]:
    if type(items) not in (list, tuple):
        raise _not_written("a set")
    return set(map(plain_key, items))


def _counter(counts: Any = None) -> Counter[Any]:
    if counts is not None and type(counts) is not dict:
        raise _not_written("a Counter")
    return Counter(counts or {})


def _ordered(items: Any = ()) -> OrderedDict[Any, Any]:
    if type(items) not in (list, tuple) or any(type(pair) not in (list, tuple) or len(pair) != 2 for pair in items):
        raise _not_written("an OrderedDict")
    return OrderedDict((plain_key(key), value) for key, value in items)


def _not_written(what: str) -> CheckpointError:
    return CheckpointError(f"damaged: {what} in its pickle is not of a form that torch writes")
