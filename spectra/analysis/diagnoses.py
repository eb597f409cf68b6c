"""Diagnosis: what a check found, with its remedy; and the diagnoses made from measured facts."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from spectra.analysis.held_out import run_lengths
from spectra.analysis.observed import Observed
from spectra.analysis.predicted import Plan
from spectra.checkpoints.fitting import Fit
from spectra.operators.curvature import CurvatureOperator
from spectra.operators.function import LossFunction
from spectra.operators.graph import dtype_name
from spectra.operators.modes import batch_norm_layers
from spectra.operators.recalibration import recalibrate
from spectra.results.exact_trace import ExactTrace
from spectra.runtime.memory import in_words
from spectra.task.task import Task

OK, WARNING, PROBLEM = "ok", "warning", "problem"

# Running statistics are stale if the means are off by this many standard deviations of the data, or the variances by
# this factor (root mean squares over the channels). Momentum 0.1 and a late change of the weights move them by less.
_MEAN_OFF, _VARIANCE_OFF = 0.5, 2.0
# Float32 products with a larger error than this, relative to the spectral norm, hide eigenvalues that are often wanted.
_NOISY = 1e-4
_SHOWN = 3


@dataclass(frozen=True)
class Diagnosis:
    """What a check found."""

    check: str
    level: str  # "ok", "warning", or "problem": the analysis is refused or its numbers would be useless
    reason: str
    remedy: str = ""  # empty where nothing is to be done, or where the reason contains it
    checkpoints: tuple[str, ...] = ()  # where it was found, in the order of training

    def joined(self, other: Diagnosis) -> Diagnosis | None:
        """One finding in place of two of the same; None if they are not.

        The same reason is the same finding, whatever the check. Within one check, reasons from two checkpoints may
        differ in measured numbers; those of the first are kept.
        """
        elsewhere = not set(self.checkpoints) & set(other.checkpoints)
        alike = elsewhere and (self.check, self.level) == (other.check, other.level)
        if self.reason != other.reason and not (
            alike and _measured_apart(self.reason) == _measured_apart(other.reason)
        ):
            return None
        return replace(self, checkpoints=tuple(dict.fromkeys(self.checkpoints + other.checkpoints)))


def _measured_apart(reason: str) -> str:
    """A reason without its decimal fractions.

    >>> _measured_apart("eval: loss 1.25 in 0.weight, noise 1.3e-07")
    'eval: loss # in 0.weight, noise #'
    """
    return re.sub(r"(?<![\w.])-?\d+(\.\d+(e[-+]?\d+)?|e[-+]?\d+)(?!\.?\w)", "#", reason)


def few(names: Sequence[str]) -> str:
    """The first names, and how many more there are.

    >>> few(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def of_fit(fit: Fit) -> Iterator[Diagnosis]:
    """Whether all weights are those of the checkpoint."""
    trained = [key for key in fit.own if not key.endswith("num_batches_tracked")]
    if trained:
        remedy = "make sure that the task gives these weights their values"
        yield Diagnosis("checkpoint", WARNING, f"{fit.shares}: {few(trained)}", remedy)
    for note in fit.notes:
        if note != fit.shares:
            yield Diagnosis("checkpoint", OK, note)
    if not trained:
        yield Diagnosis("checkpoint", OK, f"all {len(fit.state_dict)} tensors fit the model")


def of_data(task: Task, name: str) -> Iterator[Diagnosis]:
    """The loss, what its batches weigh, and how they are ordered."""
    survey = task.survey()
    sizes = ", ".join(f"{count} x {size}" for size, count in run_lengths(survey.rows)[:4])
    total = f"{survey.total_weight:g} in all"
    yield Diagnosis(name, OK, f"{survey.num_batches} batches ({sizes} rows), {survey.order} order, {total}")
    empty = sum(weight == 0 for weight in survey.weights)
    if empty:
        words = f"{empty} of {survey.num_batches} batches have no weight: all their targets are ignored or weigh 0"
        yield Diagnosis(name, WARNING, words, "check the targets, ignore_index and the class weights")
    yield Diagnosis(name, OK, f"loss: {task.describe()}")


def of_products(operator: CurvatureOperator, name: str) -> Iterator[Diagnosis]:
    """The self-test: its notes, and whether float64 is advisable. ``name`` is that of the check."""
    test = operator.self_test
    for note in test.notes:
        yield Diagnosis(name, WARNING, note, "--snapshot-data fixes the order" if "shuffled" in note else "")
    words = f"{dtype_name(operator.torch_dtype)} products repeat; noise {test.noise:.1e} of the spectral norm"
    if test.noise > _NOISY and not operator.function.casts and operator.torch_dtype == torch.float32:
        yield Diagnosis(name, WARNING, words, "--dtype float64 resolves smaller eigenvalues")
    else:
        yield Diagnosis(name, OK, words)


def of_observed(seen: Observed) -> Iterator[Diagnosis]:
    """Unused and dead parameters, and units that do not switch."""
    for names, words, remedy in (
        (seen.unused, "the loss does not use", "their rows of the matrix are 0: --params leaves them out"),
        (seen.zero, "the gradient is exactly 0 in every batch for", "the layers behind them may be dead or saturated"),
    ):
        if names:
            yield Diagnosis("parameters", WARNING, f"{words} {len(names)} tensors: {few(names)}", remedy)
    if not seen.unused and not seen.zero:
        yield Diagnosis("parameters", OK, "every tensor has a gradient")
    relus = {name: units for name, units in seen.units.items() if units.relu}
    total = sum(len(units.active) for units in relus.values())
    remedies = {
        "never": "their weights have no curvature, which adds to the degeneracy",
        "always": "these units are linear on these data",
    }
    for what, remedy in remedies.items():
        counts = {name: getattr(units, what) for name, units in relus.items() if getattr(units, what)}
        if counts:
            where = few([f"{count} of {len(relus[name].active)} in module {name}" for name, count in counts.items()])
            level = WARNING if what == "never" or sum(counts.values()) == total else OK
            yield Diagnosis("units", level, f"ReLU units {what} active on these data: {where}", remedy)
        elif relus and what == "never":
            yield Diagnosis("units", OK, f"each of {total} ReLU units is active for some input")


def of_batch_norm(function: LossFunction) -> Iterator[Diagnosis]:
    """Whether the running statistics are those of the data, where batch norm uses them."""
    task, used = function.task, function.model_buffers()
    layers = [(name, layer) for name, layer in task.model.named_modules() if layer in batch_norm_layers(task.model)]
    running = [(name, layer) for name, layer in layers if layer.running_mean is not None]
    if function.bn_mode == "train" or not layers:
        return
    remedy = "--bn recalibrated estimates them over the data"
    untrained = [
        name for name, layer in running if layer.num_batches_tracked is not None and not used_steps(used, name)
    ]
    still = [name for name, layer in running if layer.momentum in (0, 1)]
    if function.bn_mode == "eval" and untrained:
        words = f"the running statistics of {len(untrained)} layers have never been updated: {few(untrained)}"
        yield Diagnosis("batch norm", WARNING, words, remedy)
    if function.bn_mode == "eval" and still:
        words = f"momentum 0 or 1: the running statistics of {few(still)} are those of no or of the last batch"
        yield Diagnosis("batch norm", WARNING, words, remedy)
    if function.bn_mode != "eval":
        yield Diagnosis("batch norm", OK, "statistics are estimated over the data")
        return
    fresh = LossFunction(task, "recalibrated", function.dtype, function.params)
    recalibrate(fresh)
    now, stale = fresh.model_buffers(), []
    for name, _ in running:
        means, variances = f"{name}.running_mean".lstrip("."), f"{name}.running_var".lstrip(".")
        spread = now[variances].clamp(min=1e-12)
        off = float(((used[means] - now[means]).square() / spread).mean().sqrt())
        factor = math.exp(float((used[variances].clamp(min=1e-12) / spread).log().square().mean().sqrt()))
        if off > _MEAN_OFF or factor > _VARIANCE_OFF:
            stale.append(f"{name} (mean off by {off:.2g} deviations, variance by a factor of {factor:.2g})")
    if stale:
        words = f"the running statistics are not those of the data in {len(stale)} of {len(running)} layers: "
        yield Diagnosis("batch norm", WARNING, words + few(stale), remedy)
    elif running and not untrained and not still:
        yield Diagnosis("batch norm", OK, f"the running statistics of {len(running)} layers are those of the data")


def used_steps(buffers: dict[str, torch.Tensor], layer: str) -> int:
    """How many batches a batch-norm layer has seen in training."""
    return int(buffers[f"{layer}.num_batches_tracked".lstrip(".")])


def of_exact_trace(exact: ExactTrace) -> Diagnosis:
    """Whether the trace is known without probes, and of which matrix."""
    if exact.total is None:
        return Diagnosis("exact trace", OK, f"does not exist: {exact.reasons[0]}")
    if exact.applies:
        return Diagnosis("exact trace", OK, "applies to the Hessian and the Gauss-Newton matrix: the run is checked")
    return Diagnosis("exact trace", OK, f"applies to the Gauss-Newton matrix alone: {exact.reasons[0]}")


def of_plan(plan: Plan, available: int) -> Diagnosis:
    """Time and memory in short; `spectra plan` has them in full.

    Args:
        plan: of the analysis.
        available: bytes of memory that the process may use in all.
    """
    seconds = float(plan.time()[0])
    time = (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
    count = "1 checkpoint" if plan.checkpoints == 1 else f"{plan.checkpoints} checkpoints"
    words = f"about {time} and {in_words(plan.memory)} of memory ({count})"
    if plan.memory > available:
        remedy = "spectra plan with the same options prints what costs less"
        return Diagnosis("cost", WARNING, f"{words}, of which {in_words(available)} are there", remedy)
    return Diagnosis("cost", OK, f"{words}; spectra plan has the details")


def of_kinks(seen: Observed, missing: bool, jumps: bool) -> Diagnosis:
    """Whether the Hessian by autograd is the derivative of the gradient, and which kinks there are.

    Args:
        seen: of the pass over the data.
        missing: the two differ also at points far from the parameters.
        jumps: the two differ at the parameters.
    """
    if missing:
        words = "the Hessian by autograd is not the change of the gradient between two points (finite differences)"
        remedy = (
            "no derivative flows through a part of the loss (detach, rounding, a padding_idx): check that it is meant"
        )
        return Diagnosis("derivatives", WARNING, words, remedy)
    kinked = [name for name, units in seen.units.items() if units.at_kink]
    if jumps:
        where = f": inputs that are exactly 0 in module {few(kinked)}" if kinked else ""
        words = f"the gradient jumps at these very weights{where}; the Hessian by autograd leaves the jumps out"
        return Diagnosis("derivatives", WARNING, words, "move the weights off the kink, or name it with the numbers")
    words = "the Hessian is the change of the gradient (finite differences in float64)"
    if seen.units:
        words += f"; between the kinks of module {few(list(seen.units))}, whose curvature no derivative has"
    return Diagnosis("derivatives", OK, words)
