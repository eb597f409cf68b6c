"""The interval for the expectation of a variable in [0, 1] by Hoeffding's inequality, and the draws that it needs.

References:
    W. Hoeffding, "Probability inequalities for sums of bounded random variables", 1963, theorem 1.
"""

from __future__ import annotations

import math


def draws_for(width: float, delta: float) -> int:
    """How many draws bring both ends of :func:`hoeffding_interval` within ``width`` of the mean, whatever it is.

    Example:
        >>> draws_for(0.05, 0.05)
        738
    """
    return math.ceil(math.log(2 / delta) / (2 * width**2))


def hoeffding_interval(mean: float, draws: int, delta: float) -> tuple[float, float]:
    """The interval for the expectation of a variable in [0, 1] from the mean of independent draws.

    The ``p`` with ``draws kl(mean, p) <= ln(2 / delta)``, ``kl`` the divergence of two coins: Hoeffding's theorem 1 on
    either side. It contains the expectation with probability ``1 - delta``, and each end lies within
    ``sqrt(ln(2 / delta) / (2 draws))`` of the mean.

    Example:
        >>> [round(end, 4) for end in hoeffding_interval(0.0, 185, 0.05)]
        [0.0, 0.0197]
    """
    most = math.log(2 / delta) / draws

    def divergence(p: float) -> float:
        parts = ((mean, p), (1 - mean, 1 - p))
        return sum(a * math.log(a / b) if b > 0 else math.inf for a, b in parts if a > 0)

    def end(outside: float) -> float:
        inside = mean
        if divergence(outside) <= most:
            return outside
        for _ in range(100):  # `outside` is never inside of the interval, so that rounding makes it wider
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if divergence(middle) <= most else (inside, middle)
        return outside

    return end(0.0), end(1.0)
