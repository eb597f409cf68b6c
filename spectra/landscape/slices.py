"""loss_slices: the loss along directions in the space of the parameters, with what its curvature leaves out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from spectra.errors import ArgumentError
from spectra.landscape.agreement import how_far
from spectra.landscape.along import Along, gradient_at
from spectra.landscape.critical_step import critical_step
from spectra.landscape.directions import Direction, OtherWeights, check_along, find_direction
from spectra.operators.curvature import CurvatureOperator
from spectra.operators.differences import HESSIANS, check_product
from spectra.operators.displaced import DisplacedLoss
from spectra.operators.kinks import Switches
from spectra.results.slices import CriticalSharpness, Kinks, Line, Slice
from spectra.runtime.memo import shared_results
from spectra.runtime.phases import phase
from spectra.task.task import Task

_RADII = 2.0 ** -np.arange(9)  # of the report on kinks, in units of the radius


@dataclass(frozen=True)
class SliceSettings:
    """The settings of slices. The defaults are those of the command line.

    Raises:
        ArgumentError: a value outside its range.
    """

    radius: float | None = None  # the largest |t|; None: chosen by the curvature
    points: int = 41  # from -radius to radius, odd
    bn_mode: str = "eval"
    dtype: str = "float64"
    params: str | Sequence[str] | None = None
    seed: int = 0
    product: str = "autograd"  # with the Hessian; "differences": of gradients
    test_data: bool = False  # the loss on the task's held-out data along the same directions too

    def __post_init__(self) -> None:
        if self.radius is not None and not (self.radius > 0 and math.isfinite(self.radius)):
            raise ArgumentError(f"radius={self.radius}: a positive number is needed")
        if self.points < 5 or self.points % 2 == 0:
            raise ArgumentError(f"points={self.points}: an odd number of at least 5 is needed; 41 is the default")
        if self.seed < 0:
            raise ArgumentError(f"seed={self.seed}: at least 0 is needed")
        check_product(self.product)


def loss_slices(task: Task, along: Sequence[str | OtherWeights] = ("top", "gradient"), **options: Any) -> list[Slice]:
    """The loss ``L(theta + t d)`` over all data, along each direction ``d``, with its parabola at ``t = 0``.

    The radius is chosen so that the quadratic model changes the loss by its own size: the positive root of
    ``|g'd| R + R^2/2 |d'Hd| = |L(0)|``, at most the norm of the parameters. Towards another checkpoint it is 1, the
    way to it. Running statistics of batch norm do not move.

    Args:
        task: the task, with the parameters in its model.
        along: ``"top"``, ``"bottom"``, ``"gradient"``, ``"random"``, ``"filter"`` (see
            :func:`~spectra.landscape.directions.find_direction`), or
            :class:`~spectra.landscape.directions.OtherWeights`.
        options: the fields of :class:`SliceSettings`.

    Returns:
        A slice per direction.

    Raises:
        SpectraError: a direction or option is not known, the weights do not fit, or the loss at the parameters has no
            second derivative or is not finite.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> x = torch.eye(3, dtype=torch.float64)
        >>> model = nn.Linear(3, 1, bias=False, dtype=torch.float64)
        >>> task = Task(model, nn.MSELoss(), [(x, torch.zeros(3, 1, dtype=torch.float64))])
        >>> found = loss_slices(task, ["random"])[0]  # a quadratic: the parabola is the loss
        >>> round(found.line.curvature, 6), found.fails, found.kinks.pairs
        (0.666667, None, 0)
    """
    settings = SliceSettings(**options)
    for each in along:
        check_along(each)
    with shared_results(), ExitStack() as stack:
        phase("checking")
        slicer = _Slicer(task, settings, stack)
        return [slicer.slice(each) for each in along]


class _Slicer:
    """What the slices of one checkpoint share: the losses, the Hessian and the gradient."""

    def __init__(self, task: Task, settings: SliceSettings, stack: ExitStack) -> None:
        self.settings = settings
        mode, dtype, params = settings.bn_mode, settings.dtype, settings.params
        self.operator: CurvatureOperator = HESSIANS[settings.product](task, mode, dtype=dtype, params=params)
        _ = self.operator.self_test
        self.displaced = DisplacedLoss(task, mode, dtype, params)
        tasks = [task.held_out()] if settings.test_data else []
        self.held_out = [DisplacedLoss(each, mode, dtype, params) for each in tasks]
        stack.enter_context(self.operator.prepared())
        for displaced in (self.displaced, *self.held_out):
            stack.enter_context(displaced.prepared())
        self.gradient = gradient_at(self.displaced)
        note = self.displaced.for_differences()
        self.notes = tuple(note for note in (note, self.displaced.note, *self.operator.self_test.notes) if note)

    def slice(self, wanted: str | OtherWeights) -> Slice:
        """The slice along one direction."""
        settings, name = self.settings, wanted if isinstance(wanted, str) else wanted.name
        phase("direction", 0, 0, name)
        direction = find_direction(wanted, self.operator, self.displaced.function, self.gradient, settings.seed)
        along = Along(self.displaced, direction.vector)
        line = self._line(direction, along(0.0), eigen=name in ("top", "bottom"))
        radius, rule = self._radius(line)
        steps = np.linspace(-1.0, 1.0, settings.points) * radius
        losses = np.empty(settings.points)
        for index, step in enumerate(steps):
            phase("slice", index, settings.points, name)
            losses[index] = along(float(step))
        rounding = along.rounding(radius)
        phase("parabola", 0, 0, name)
        holds, fails = how_far(along, line, steps[settings.points // 2 + 1 :], rounding)
        phase("kinks", 0, 0, name)
        kinks = self._kinks(along, radius, rounding)
        test = [Along(displaced, direction.vector) for displaced in self.held_out]
        update = self._update(line)
        critical = relative = None
        if update is not None:
            unit, words = update
            critical = _critical(along, line, unit, f"the loss, along {words}")
            for other in test:
                slope = float(gradient_at(other.displaced) @ direction.vector)
                relative = _critical(other, line, unit, f"the loss on the test data, along {words}", slope)
        return Slice(
            line,
            settings.bn_mode,
            steps,
            losses,
            rule,
            holds,
            fails,
            rounding,
            kinks,
            critical,
            test[0].at(steps) if test else None,
            relative,
            (*direction.notes, *self.notes),
        )

    def _line(self, direction: Direction, loss: float, *, eigen: bool) -> Line:
        vector, product = direction.vector, direction.product
        curvature = float(vector @ product)
        return Line(
            direction.name,
            direction.unit,
            float(vector.norm()),
            loss,
            float(self.gradient @ vector),
            curvature,
            float((product - curvature * vector).norm()) if eigen else None,
            direction.products,
        )

    def _radius(self, line: Line) -> tuple[float, str]:
        """The radius, and how it was chosen."""
        if self.settings.radius is not None:
            return self.settings.radius, "as given"
        if line.unit == "the other checkpoint":
            return 1.0, "the way to the other checkpoint"
        most = float(self.displaced.theta.norm()) / line.length or 1.0
        size, slope, bend = abs(line.loss), abs(line.slope), abs(line.curvature)
        root = slope + math.sqrt(slope**2 + 2 * bend * size)
        if size == 0 or 2 * size >= most * root:
            return most, "the norm of the parameters"
        return 2 * size / root, "where the quadratic model has changed the loss by its own size"

    def _kinks(self, along: Along, radius: float, rounding: float) -> Kinks:
        radii = radius * _RADII
        steps = [side * float(r) for r in radii for side in (-1, 1)]
        switches = Switches(self.displaced.function, self.displaced.passes)
        pairs, shares = switches.share(self.displaced.theta, along.direction, steps)
        curvature = (along.at(radii) - 2 * along(0.0) + along.at(-radii)) / radii**2
        curvature[~np.isfinite(curvature)] = np.nan
        return Kinks(pairs, radii, np.reshape(shares, (-1, 2)).mean(axis=1), curvature, 4 * rounding / radii**2)

    def _update(self, line: Line) -> tuple[float, str] | None:
        """The length in t of an update by step 1, and the update in words; None along other directions."""
        if line.name == "gradient":
            return float(self.gradient.norm()), "the negative gradient"
        if line.unit == "the other checkpoint":
            return 1.0, f"the update to {line.name}"
        return None


def _critical(along: Along, line: Line, unit: float, of: str, slope: float | None = None) -> CriticalSharpness:
    """The critical sharpness; the search starts where the parabola of the line crosses its first value.

    Args:
        along: the loss.
        line: the parabola.
        unit: the length in t of an update by step 1.
        of: whose loss, along which update.
        slope: of this loss along the line; None: that of the line.
    """
    crossing = -2 * line.slope / line.curvature if line.curvature > 0 > line.slope else 1.0
    slope = line.slope if slope is None else slope
    return critical_step(lambda step: along(step * unit), guess=crossing / unit, slope=slope, of=of)
