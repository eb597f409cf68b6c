"""What a run keeps in memory of the records in its file, and finding them without going through all of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from spectra.results.identity import Identity
from spectra.results.record import Record

K = TypeVar("K")  # of names
_ANY = object()  # in a key: whatever the epoch or the step is


@dataclass(frozen=True)
class Known:
    """What is kept in memory of a record in the file, so that a long run needs no more than a short one."""

    identity: Identity
    complete: bool
    numbers: bool  # complete or unverified
    hashed: bool
    of_file: bool

    @classmethod
    def of(cls, record: Record) -> Known:
        hashed, of_file = record.checkpoint_sha256 is not None, record.checkpoint is not None
        return cls(record.identity, record.status == "complete", record.status != "failed", hashed, of_file)


class Index(Generic[K]):
    """Records by name, and names by identity, place and weights. Each step takes the same time for any number of them.

    Example:
        >>> from spectra.results.identity import Place
        >>> one = Record(operator="ggn", bn_mode="eval", place=Place(epoch=1.0), status="failed", reason="none")
        >>> index = Index({"000000": Known.of(one)}.items())
        >>> index.same(one.identity), index.twins(one.identity)
        (['000000'], [])
    """

    def __init__(self, known: Iterable[tuple[K, Known]] = ()) -> None:
        self._known: dict[K, Known] = {}
        self._names: dict[tuple[Any, ...], dict[K, None]] = {}
        for name, one in known:
            self.add(name, one)

    def __len__(self) -> int:
        return len(self._known)

    def __getitem__(self, name: K) -> Known:
        return self._known[name]

    def add(self, name: K, known: Known) -> None:
        """Add a record, in place of the one of this name if there is one."""
        if name in self._known:
            self.remove(name)
        self._known[name] = known
        for key in _keys(known.identity):
            self._names.setdefault(key, {})[name] = None

    def remove(self, name: K) -> None:
        for key in _keys(self._known.pop(name).identity):
            names = self._names[key]
            del names[name]
            if not names:
                del self._names[key]

    def same(self, identity: Identity) -> list[K]:
        """The names of the records of an identity."""
        return self._found([("same", identity)])

    def of_file(self, identity: Identity) -> list[K]:
        """The names of the records for which ``is_of_file(identity)`` holds."""
        return [] if identity.weights is not None else self._found([("file", identity.subject, identity.question)])

    def at_place(self, identity: Identity) -> list[K]:
        """The names of the records for which ``same_place(identity)`` holds."""
        return self._found([("place", identity.checkpoint, identity.question)])

    def twins(self, identity: Identity) -> list[K]:
        """The names of the records for which ``twin_of(identity)`` holds."""
        times = [(_ANY,) if at is None else (at, None) for at in identity.time]
        return self._found(("twin", identity.weights, identity.question, *time) for time in itertools.product(*times))

    def _found(self, keys: Iterable[tuple[Any, ...]]) -> list[K]:
        return list(dict.fromkeys(name for key in keys for name in self._names.get(key, ())))


def _keys(identity: Identity) -> Iterator[tuple[Any, ...]]:
    """What a record is found by."""
    yield "same", identity
    if identity.checkpoint is not None:
        yield "place", identity.checkpoint, identity.question
    if identity.subject.endswith(f" {identity.weights}"):
        yield "file", identity.subject.removesuffix(f" {identity.weights}"), identity.question
    if identity.weights is not None:
        for time in itertools.product(*((at, _ANY) for at in identity.time)):
            yield "twin", identity.weights, identity.question, *time
