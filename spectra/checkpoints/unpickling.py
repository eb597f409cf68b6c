"""The restricted unpickler of checkpoints: a fixed table of allowed calls, and bounds on what they may request.

``torch.load(weights_only=True)`` uses this unpickler instead of its own. Torch's unpickler allows calls of the
constructors of tensors and storages, which return uninitialized memory, and of codecs that expand their input. Here
each callable is a function of this package that checks its arguments first.
"""

from __future__ import annotations

import argparse
import contextlib
import pickle
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import torch

from spectra.checkpoints.numpy_values import PickledArray, PickledDtype
from spectra.checkpoints.rebuilding import Limits, Named, allowed, plain_key
from spectra.errors import CheckpointError
from spectra.runtime.exclusive import one_at_a_time

#: The opcodes that torch.save writes; every other opcode is refused.
_OPCODES = (
    *("MARK", "STOP", "PROTO", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "NONE", "NEWFALSE", "NEWTRUE"),
    *("EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1"),
    *("BINUNICODE", "SHORT_BINSTRING", "BINPERSID", "BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT", "GLOBAL"),
)


@contextlib.contextmanager
def restricted(limits: Limits) -> Iterator[None]:
    """Make ``torch.load(weights_only=True)`` use this module's unpickler within the block."""
    module = torch._weights_only_unpickler

    class Bounded(Unpickler):
        def __init__(self, file: Any, *, encoding: str = "bytes") -> None:
            super().__init__(file, encoding, limits)

    with one_at_a_time:
        theirs = module.Unpickler
        module.Unpickler = Bounded  # type: ignore[misc]
        try:
            yield
        finally:
            module.Unpickler = theirs  # type: ignore[misc]


_Base: Any = pickle._Unpickler  # in Python, so that each opcode can be replaced


class Unpickler(_Base):  # type: ignore[misc]
    """Builds containers, numbers, texts and tensors; refuses every other opcode, name and call."""

    def __init__(self, file: Any, encoding: str, limits: Limits) -> None:
        super().__init__(_Metered(file, limits), encoding=encoding)
        self._limits = limits
        self._table = allowed(limits)
        self._users: Mapping[str, Any] = getattr(
            torch._weights_only_unpickler, "_get_user_allowed_globals", dict[str, Any]
        )()
        self._given: Callable[[Any], Any] | None = None

    def load(self) -> Any:
        try:
            return super().load()
        except KeyError as error:
            raise pickle.UnpicklingError(f"{error} is no opcode or memo entry of a checkpoint") from error

    def find_class(self, module: str, name: str) -> Any:
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"
        for table in (self._table, self._users):
            if full in table:
                return table[full]
        raise pickle.UnpicklingError(f"Unsupported global: GLOBAL {full} was not an allowed global by default.")

    @property
    def persistent_load(self) -> Callable[[Any], Any]:
        return self._storage

    @persistent_load.setter
    def persistent_load(self, given: Callable[[Any], Any]) -> None:
        self._given = given

    def _storage(self, pid: Any) -> Any:
        """A storage, if its declared size equals the bytes in the file."""
        if self._given is None:
            raise CheckpointError("damaged: a storage outside of an archive")
        if type(pid) is not tuple or not 5 <= len(pid) <= 6 or pid[0] not in ("storage", b"storage"):
            raise CheckpointError("damaged: a storage has no description of a known form")
        _, kind, key, _, number = pid[:5]
        kind = kind.of if isinstance(kind, Named) else kind
        dtype = torch.uint8 if kind is torch.UntypedStorage else getattr(kind, "dtype", None)
        if not isinstance(dtype, torch.dtype) or type(number) is not int or number < 0 or type(key) not in (str, int):
            raise CheckpointError("damaged: a storage has no description of a known form")
        declared = number * dtype.itemsize
        available = self._limits.file if self._limits.storages is None else self._limits.storages.get(str(key))
        if available is None:
            raise CheckpointError(f"damaged: the numbers of storage {key!r:.40} are not in the file")
        if declared > available or (self._limits.storages is not None and declared != available):
            raise CheckpointError(f"damaged: storage {key!r:.40} declares {declared} bytes, and {available} are there")
        return self._given((pid[0], kind, *pid[2:]))

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        called = self.stack[-1]
        known = any(called is one for table in (self._table, self._users) for one in table.values())
        if not known or not callable(called) or type(arguments) is not tuple:
            raise CheckpointError(f"damaged: a call of what cannot be called, a {type(called).__name__}")
        self.stack[-1] = called(*arguments)

    def load_newobj(self) -> None:
        arguments = self.stack.pop()
        kind = self.stack.pop()
        known = kind is argparse.Namespace or any(kind is one for one in self._users.values())
        if not known or type(arguments) is not tuple:
            raise CheckpointError("damaged: an object of no class")
        self.append(kind.__new__(kind, *arguments))

    def load_build(self) -> None:
        state = self.stack.pop()
        built = self.stack[-1]
        if type(built) in (PickledArray, PickledDtype):
            built.__setstate__(state)
        elif type(built) in (OrderedDict, argparse.Namespace):
            if type(state) is not dict or not all(type(key) is str for key in state):
                raise CheckpointError("damaged: the attributes of an object in its pickle have no names")
            built.__dict__.update(state)
        elif any(type(built) is one for one in self._users.values()):
            self.stack.append(state)
            super().load_build()
        else:
            raise CheckpointError(f"damaged: a {type(built).__name__} is given a state")

    def load_setitem(self) -> None:
        self._put([*self.stack[-2:]], self.stack[-3])
        del self.stack[-2:]

    def load_setitems(self) -> None:
        items = self.pop_mark()
        self._put(items, self.stack[-1])

    def _put(self, items: list[Any], into: Any) -> None:
        if type(into) not in (dict, OrderedDict, Counter) or len(items) % 2:
            raise CheckpointError(f"damaged: a {type(into).__name__} is given keys")
        for key, value in zip(items[::2], items[1::2]):
            into[plain_key(key)] = value

    def load_appends(self) -> None:
        items = self.pop_mark()
        self._list().extend(items)

    def load_append(self) -> None:
        item = self.stack.pop()
        self._list().append(item)

    def _list(self) -> list[Any]:
        if type(self.stack[-1]) is not list:
            raise CheckpointError(f"damaged: a {type(self.stack[-1]).__name__} is given items")
        items: list[Any] = self.stack[-1]
        return items

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **{getattr(pickle, name)[0]: _Base.dispatch[getattr(pickle, name)[0]] for name in _OPCODES},
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.BUILD[0]: load_build,
        pickle.APPEND[0]: load_append,
        pickle.APPENDS[0]: load_appends,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
    }


class _Metered:
    """A file with a limited number of reads, about one or two for each opcode of a pickle."""

    def __init__(self, file: Any, limits: Limits) -> None:
        self._file = file
        self._left = 2 * limits.operations
        self._limits = limits

    def read(self, size: int) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise CheckpointError(
                f"its pickle has more than {self._limits.operations} operations; --max-size SIZE allows more"
            )
        data: bytes = self._file.read(min(size, self._limits.file) if self._limits.storages is None else size)
        if len(data) < size:
            raise EOFError("EOF in the pickle")
        return data

    def readline(self) -> bytes:
        line: bytes = self._file.readline(1000)
        return line
