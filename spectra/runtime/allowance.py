"""Allowance: a budget for optional work, in gradients, predicted from counts and never from the clock.

The unit is a gradient: one forward and one backward pass over all data, in the precision of the record. The optional
work of a record may cost as much as its spectrum. More expensive work is estimated from random draws, or left out.
Work requested by name has no limit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from spectra.errors import SpectraError

PRODUCT = 2.5  #: cost of a Hessian product in gradients (two to three)
WIDER = 4.0  #: cost of a pass in float64, in passes in float32
#: Work that is always allowed, in parameters times targets: a second or so, such as 300 gradients of a small network.
SMALL = 1e9
#: The minimum number of draws: with fewer, the standard error itself would be uncertain by more than a third.
FEWEST_DRAWS = 8


class OverBudget(SpectraError):
    """Optional work that would cost more than is left; raised before it begins."""


@dataclass
class Allowance:
    """The budget of a record's optional work in gradients, and the amount spent.

    Example:
        >>> allowance = Allowance.of_products(20, parameters=10**6, targets=2000.0)
        >>> with limited(allowance):
        ...     spend(30)
        ...     spend(4000, what="all columns")
        Traceback (most recent call last):
        ...
        spectra.runtime.allowance.OverBudget: all columns: about 4,000 gradients, and 20 of a budget of 50 are left
    """

    total: float
    dtype: str = "float32"  # of the passes that are counted
    spent: float = 0.0

    @classmethod
    def of_products(cls, products: int, *, parameters: int, targets: float, dtype: str = "float32") -> Allowance:
        """A budget equal to the cost of the given number of products, with a minimum that is cheap for any network.

        Args:
            products: of the spectrum.
            parameters: ``n``.
            targets: what the loss averages over: samples, tokens, elements.
            dtype: of the products.
        """
        return cls(max(PRODUCT * products, SMALL / (parameters * max(targets, 1.0))), dtype)

    @property
    def left(self) -> float:
        return max(0.0, self.total - self.spent)


_current: ContextVar[Allowance | None] = ContextVar("spectra_allowance", default=None)


@contextmanager
def limited(allowance: Allowance | None) -> Iterator[None]:
    """Make :func:`spend` charge this allowance within the block; with None there is no limit."""
    token = _current.set(allowance)
    try:
        yield
    finally:
        _current.reset(token)


def cost(passes: float, dtype: object = None) -> float:
    """The cost in gradients (in the record's precision) of passes over the data in a given precision.

    Args:
        passes: of a forward and a backward pass each.
        dtype: in which they are made, as ``torch.float64`` or its name; None for the record's.
    """
    allowance = _current.get()
    wider = allowance is not None and allowance.dtype == "float32" and str(dtype).endswith("float64")
    return passes * WIDER if wider else passes


def affordable(each: float) -> float:
    """The number of times that work of this cost fits in the remaining budget; infinite without a limit."""
    allowance = _current.get()
    return math.inf if allowance is None else allowance.left / each


def spend(gradients: float, *, what: str = "") -> None:
    """Charge the cost of the work that follows to the budget.

    Raises:
        OverBudget: the cost exceeds the remaining budget, which then stays unchanged.
    """
    allowance = _current.get()
    if allowance is None:
        return
    if gradients > allowance.left:
        words = f"about {in_words(gradients)} gradients, and {in_words(allowance.left, floor=True)} of a budget of"
        words = f"{words} {in_words(allowance.total)} are left"
        raise OverBudget(f"{what}: {words}" if what else words)
    allowance.spent += gradients


def in_words(count: float, *, floor: bool = False) -> str:
    """A number of gradients, to two digits; rounded down with ``floor``.

    >>> in_words(4163.0), in_words(4163.0, floor=True), in_words(7.6), in_words(0.3)
    ('4,200', '4,100', '8', '0.3')
    """
    if count < 1:
        return f"{count:.1g}"
    size = 10 ** max(0, math.floor(math.log10(count)) - 1)
    return f"{(math.floor if floor else round)(count / size) * size:,}"
