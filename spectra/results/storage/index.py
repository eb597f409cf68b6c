"""The identities of the records in a file, kept in memory, and an index to find one without a search of all."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from spectra.results.identity import Identity
from spectra.results.record import Record

K = TypeVar("K")  # type of the names
_ANY = object()  # in a key: any epoch


@dataclass(frozen=True, slots=True)
class Known:
    """What is kept in memory of a record in the file, so that a long run needs little more than a short one."""

    identity: Identity
    complete: bool
    numbers: bool  # complete or unverified
    hashed: bool
    of_file: bool

    @classmethod
    def of(cls, record: Record) -> Known:
        """The entry of a record; texts that several records share are stored once."""
        hashed, of_file = record.checkpoint_sha256 is not None, record.checkpoint is not None
        identity = record.identity
        identity = replace(
            identity,
            subject=sys.intern(identity.subject),
            checkpoint=_shared(identity.checkpoint),
            weights=_shared(identity.weights),
        )
        return cls(identity, record.status == "complete", record.status != "failed", hashed, of_file)


class Index(Generic[K]):
    """Records by name, and names by identity, place and weights. Each step takes the same time for any number of them.

    Names are stored by the hashes of their keys, which take little memory; the identities found are compared in full.

    Example:
        >>> from spectra.results.identity import Place
        >>> one = Record(operator="ggn", bn_mode="eval", place=Place(epoch=1.0), status="failed", reason="none")
        >>> index = Index({"000000": Known.of(one)}.items())
        >>> index.same(one.identity), index.twins(one.identity)
        (['000000'], [])
    """

    def __init__(self, known: Iterable[tuple[K, Known]] = ()) -> None:
        self._known: dict[K, Known] = {}
        self._names: dict[int, K | list[K]] = {}  # a list if there are several
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
            others = self._of(key)
            self._names[key] = [*others, name] if others else name

    def remove(self, name: K) -> None:
        """Remove the record of this name."""
        for key in _keys(self._known.pop(name).identity):
            names = [other for other in self._of(key) if other != name]
            if names:
                self._names[key] = names if len(names) > 1 else names[0]
            else:
                del self._names[key]

    def _of(self, key: int) -> list[K]:
        if key not in self._names:
            return []
        names = self._names[key]
        return names if isinstance(names, list) else [names]

    def same(self, identity: Identity) -> list[K]:
        """The names of the records of an identity."""
        return self._matching([_key("same", identity, identity.subject)], lambda one: one == identity)

    def of_file(self, identity: Identity) -> list[K]:
        """The names of the records for which ``is_of_file(identity)`` holds."""
        return self._matching([_key("file", identity, identity.subject)], lambda one: one.is_of_file(identity))

    def at_place(self, identity: Identity) -> list[K]:
        """The names of the records for which ``same_place(identity)`` holds."""
        return self._matching([_key("place", identity, identity.checkpoint)], lambda one: one.same_place(identity))

    def twins(self, identity: Identity) -> list[K]:
        """The names of the records for which ``twin_of(identity)`` holds."""
        epoch = identity.time[0]
        epochs = (_ANY,) if epoch is None else (epoch, None)
        keys = [_key("twin", identity, identity.weights, at) for at in epochs]
        return self._matching(keys, lambda one: one.twin_of(identity))

    def _matching(self, keys: Iterable[int], holds: Callable[[Identity], bool]) -> list[K]:
        names = dict.fromkeys(name for key in keys for name in self._of(key))
        return [name for name in names if holds(self._known[name].identity)]


def _shared(text: str | None) -> str | None:
    return None if text is None else sys.intern(text)


def _key(what: str, identity: Identity, *parts: object) -> int:
    return hash((what, *parts, identity.question))


def _keys(identity: Identity) -> Iterator[int]:
    """The hashes of the keys of a record, each once."""
    keys = [_key("same", identity, identity.subject)]
    if identity.checkpoint is not None:
        keys.append(_key("place", identity, identity.checkpoint))
    if identity.subject.endswith(f" {identity.weights}"):
        keys.append(_key("file", identity, identity.subject.removesuffix(f" {identity.weights}")))
    if identity.weights is not None:
        keys += [_key("twin", identity, identity.weights, epoch) for epoch in (identity.time[0], _ANY)]
    return iter(dict.fromkeys(keys))
