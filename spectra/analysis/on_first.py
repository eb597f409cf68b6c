"""OnFirst: an object of the first process, such as the results file, that all processes call together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType, TracebackType
from typing import Any, TypeVar, cast

from spectra.runtime.ranks import first_alone, is_first, ranks

_T = TypeVar("_T")


class OnFirst:
    """Stands for an object that only the first process has: every process makes the call, and gets the first's result.

    Args:
        kind: the class of the object.
        make: makes it, in the first process.
        parts: attributes of the object that only the first process has either, with their classes.
    """

    def __init__(self, kind: type, make: Callable[[], Any], parts: Mapping[str, type] = MappingProxyType({})) -> None:
        vars(self).update(_kind=kind, _object=None, _parts=parts)
        first_alone(lambda: vars(self).update(_object=make()))

    def __getattr__(self, name: str) -> Any:
        kind, held = vars(self)["_kind"], vars(self)["_object"]
        if name in vars(self)["_parts"]:
            return OnFirst(vars(self)["_parts"][name], lambda: getattr(held, name))
        if not callable(getattr(kind, name, None)):
            return first_alone(lambda: getattr(held, name))
        return lambda *arguments, **options: first_alone(lambda: getattr(held, name)(*arguments, **options))

    def __setattr__(self, name: str, value: Any) -> None:
        first_alone(lambda: setattr(vars(self)["_object"], name, value))

    def __enter__(self) -> OnFirst:
        first_alone(lambda: vars(self)["_object"].__enter__() and None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if is_first():  # without the others, which may have ended
            vars(self)["_object"].__exit__(kind, error, trace)


def on_first(kind: type[_T], make: Callable[[], _T], **parts: type) -> _T:
    """The object itself where this process computes alone; else one that stands for that of the first process."""
    return make() if ranks() is None else cast(_T, OnFirst(kind, make, parts))


def items_of_first(items: Iterable[_T]) -> Iterator[_T]:
    """The items that the first process iterates over, in all processes."""
    iterator = iter(items) if is_first() else iter(())
    while (found := first_alone(lambda: next(((item,) for item in iterator), None))) is not None:
        yield found[0]
