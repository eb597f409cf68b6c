"""measure_all: the requested sharpness measures of one record, at the parameters of its run."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch

from spectra.errors import SpectraError, in_one_line
from spectra.operators.curvature import CurvatureOperator
from spectra.results.measure import Measure, not_measured
from spectra.results.measure_catalogue import CATALOGUE, chosen_measures, named_measures
from spectra.runtime.allowance import OverBudget, cost, limited, spend
from spectra.runtime.exclusive import exclusively
from spectra.runtime.faults import Faults, is_refusal, refusal_in
from spectra.runtime.phases import part
from spectra.sharpness.bounds import NAMES, pac_bayes_bounds
from spectra.sharpness.noisy_error import FORM, noisy_error_bounds
from spectra.sharpness.noisy_error import NAMES as ERROR_NAMES
from spectra.task.task import Task


def measure_all(
    task: Task, names: str | Sequence[str] = "cheap", bn_mode: str = "eval", faults: Faults | None = None
) -> dict[str, Measure]:
    """The measures with the given names; a measure that does not exist for the task is NaN with the reason.

    Within a block that limits the cost (``runtime.allowance``), a measure that was not requested by name is estimated
    from draws if the exact one exceeds the remaining budget. If the draws exceed it too, it is NaN with its cost.

    Args:
        task: the task.
        names: ``"all"``, ``"none"``, ``"cheap"``, or names of :data:`spectra.results.measure_catalogue.CATALOGUE`.
        bn_mode: how batch norm is evaluated. BN-sharpness is defined in train mode, and computed in it always; in that
            mode those that need the loss of single samples, or an exact diagonal, are left out.
        faults: collects unexpected errors; the measure is then NaN. With None they are raised.

    Returns:
        Name -> measure, in the order of the catalogue.

    Raises:
        ArgumentError: a name that is not there.
        Exception: an unforeseen error, without ``faults``.
    """
    measures: dict[str, Measure] = {}
    chosen, named = chosen_measures(names), named_measures(names)
    for index, name in enumerate(chosen):
        entry = CATALOGUE[name]
        if bn_mode == "train" and not entry.train_mode:
            continue
        mode = {} if entry.home.endswith(":squared_norm") else {"bn_mode": "train" if entry.always_train else bn_mode}
        with part("measures", index, len(chosen), name), limited(None) if name in named else nullcontext():
            try:
                measures[name] = _affordable(name, task, mode)
            except Exception as error:
                if not is_refusal(error):
                    if faults is None:
                        raise
                    faults.add(f"measure {name}", error)
                form = str(entry.options.get("form", "default"))
                measures[name] = not_measured(in_one_line(error), form=form, **mode)
    return measures


def _affordable(name: str, task: Task, mode: dict[str, str]) -> Measure:
    """The measure, or its Monte-Carlo form where it costs too much, or the reason why it is left out."""
    entry = CATALOGUE[name]
    module, _, function = entry.home.partition(":")
    measure = getattr(importlib.import_module(module), function)
    reasons = []
    for drawn in ({}, entry.drawn) if entry.drawn else ({},):
        try:
            spend(cost(entry.passes, torch.float64))
            result: Measure = measure(task, **mode, **entry.options, **drawn)
            return result
        except OverBudget as error:
            reasons.append(str(error))
    why = f"left out: {'; '.join(reasons)}; --metrics {name} computes it"
    return not_measured(why, form=str(entry.options.get("form", "default")), **mode)


def bounds_of(task: Task, bn_mode: str = "eval") -> dict[str, Measure]:
    """The PAC-Bayes bounds of a record, of the loss and of the error; NaN with the reason where they are refused."""
    measures: dict[str, Measure] = {}
    for bounds, names, form in ((pac_bayes_bounds, NAMES, "pac-bayes"), (noisy_error_bounds, ERROR_NAMES, FORM)):
        try:
            measures |= bounds(task, bn_mode)
        except SpectraError as error:
            measures |= {name: not_measured(refusal_in(error), form=form, bn_mode=bn_mode) for name in names}
    return measures


@exclusively
def task_of(operator: CurvatureOperator) -> Task:
    """The operator's task at the operator's parameters; with a copy of the model if training has changed it."""
    task, function = operator.task, operator.function
    live = dict(task.model.named_parameters())
    parameters = dict(zip(function.names, function.theta))
    if all(torch.equal(live[name].detach().to(tensor), tensor.detach()) for name, tensor in parameters.items()):
        return task
    model = copy.deepcopy(task.model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in parameters:
                parameter.copy_(parameters[name])
    return replace(task, model=model)
