"""The learning rate over the epochs, as a factor of the learning rate at the start.

References:
    Granziol, "Flatness is a false friend", 2020 (equations 12 and 13).
    Yi et al., "BN-invariant sharpness regularizes the training model to better generalization", IJCAI 2019 (the steps).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SCHEDULES = ("constant", "linear", "step")


def rate_factor(done: int, options: Mapping[str, Any]) -> float:
    """The factor of the learning rate in the epoch that follows the first ``done``.

    - ``constant``: 1.
    - ``step``: ``factor`` for each of the ``milestones`` that ``done`` has reached.
    - ``linear``: with ``x = done / T`` and ``r = final_fraction``: 1 for ``x <= 0.5``, ``1 - (1 - r) (x - 0.5) / 0.4``
      for ``0.5 < x <= 0.9``, and ``r`` after that. ``T`` is the number of epochs; with an average of the weights it is
      the epoch where the average begins, so that the rate is constant from 0.9 T on.

    Args:
        done: epochs that have passed.
        options: ``schedule``, ``epochs`` and the options of the schedule, as ``training_options`` completes them.

    Example:
        >>> linear = {"schedule": "linear", "epochs": 300, "final_fraction": 0.01, "average": "none"}
        >>> [round(rate_factor(done, linear), 6) for done in (0, 150, 210, 270, 299)]
        [1.0, 1.0, 0.505, 0.01, 0.01]
    """
    if options["schedule"] == "step":
        passed = sum(done >= milestone for milestone in options["milestones"])
        return float(options["factor"] ** passed)
    span: int = options["epochs"] if options["average"] == "none" else options["average_from"]
    if options["schedule"] == "constant" or 2 * done <= span:
        return 1.0
    last: float = options["final_fraction"]
    if 10 * done > 9 * span:
        return last
    return 1 - (1 - last) * (done / span - 0.5) / 0.4
