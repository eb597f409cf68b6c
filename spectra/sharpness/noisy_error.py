"""noisy_error_bounds: the 0-1 error of the network with noise on its parameters, and the bound that it gives.

For ``m`` independent samples, the posterior ``Q = N(w, diag(s))`` and the prior ``P = N(0, diag(s))``, with probability
``1 - delta`` over the samples and the draws together::

    E_Q error_true <= upper + (KL(Q|P) + Xi) / lambda + lambda / (2 m),   KL = sum_i w_i^2 / (2 s_i)

``upper`` is the upper end of an interval for the mean error of the noisy network on the samples, by Hoeffding's
inequality over independent draws. No quadratic model is involved. The Hessian serves to choose ``s`` alone: any choice
out of the finite set that ``Xi`` counts gives a bound.

References:
    [NA] Tsuzuku, Sato and Sugiyama, "Normalized flat minima", arXiv:1901.04653 (2019), (1) to (7) and (24).
    [NI] the same authors and title, ICML 2020, (1) to (4), (28), theorem 6.1 with (32) to (34). The constants are
    derived here by the same steps, over the finite sets below.
    W. Hoeffding, "Probability inequalities for sums of bounded random variables", 1963, theorem 1.
    G. E. Hinton and D. van Camp, "Keeping the neural networks simple by minimizing the description length of the
    weights", 1993.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from spectra.errors import ArgumentError, NumericsError, TaskError
from spectra.exact.trace import exact_diagonal
from spectra.operators.modes import batch_norm_layers, check_bn_mode
from spectra.results.measure import Measure, not_measured
from spectra.runtime.exclusive import exclusively
from spectra.runtime.faults import refusal_in
from spectra.sharpness.bounds import LAMBDAS
from spectra.sharpness.draws import moments_of
from spectra.sharpness.hoeffding import draws_for, hoeffding_interval
from spectra.sharpness.noisy_network import Look, NoisyNetwork, log_variances
from spectra.sharpness.per_layer import clipped_share
from spectra.sharpness.refusals import curvature_of
from spectra.task.averaging import kind_of, settings_of
from spectra.task.task import Task

NAMES = (
    *("bound_error_units", "bound_error_matrices"),
    *("noisy_error", "noise_remainder", "divergence", "description_length"),
)
FORM = "noise"
_PILOT = 16  # draws for each strength of the noise that is tried
_VACUOUS_DRAWS = 16  # where the bound is vacuous whatever the error is


@exclusively
def noisy_error_bounds(
    task: Task,
    bn_mode: str = "eval",
    *,
    samples: int | None = None,
    delta: float = 0.05,
    width: float = 0.1,
    radius: float = 20.0,
    points: int = 81,
    seed: int = 0,
) -> dict[str, Measure]:
    """The bounds on the 0-1 error of the noisy network, and what they are made of.

    The variance of the noise on parameter ``i`` is ``e^t_i / sqrt(kappa)``: ``t`` of ``B`` as in
    :func:`spectra.pac_bayes_bounds`, and ``kappa`` of ``Lambda = {2^(j/2), j = 0..60}``, the best of 16 by a few draws
    that are not used again; ``m`` up to rounding, without these draws, where the bound is vacuous whatever the error
    is. With ``Xi = ln(2/delta) + (scales) ln|B| + 2 ln|Lambda|``:

    - ``bound_error_units``: ``upper + (KL + Xi) / lambda + lambda / (2 m)``, a scale for each row and column of a
      matrix and one for each other parameter.
    - ``bound_error_matrices``: the same with a scale for each matrix.

    The others are of the noise of ``bound_error_units``:

    - ``noisy_error``: the mean 0-1 error on the samples under the noise.
    - ``noise_remainder``: ``E(L, Q) = E_Q L - L - sum H_ii s_i / 2``, [NI] (28): what the quadratic model of the loss
      leaves out, with a standard error.
    - ``divergence``: ``KL(Q|P) = sum w_i^2 / (2 s_i)`` in nats, [NA] (6) and (7).
    - ``description_length``: bits for the labels given the inputs, by bits-back coding ([NA] (24)): ``(m E_Q L + KL +
      (scales) ln|B| + ln|Lambda|) / ln 2``, for cross-entropy.

    Cost: the exact diagonal, a gradient, and for each of the two noises up to 256 losses for ``kappa`` and
    ``ln(2/delta) / (2 width^2)`` (185 by default); 16 in all where a bound is vacuous whatever the error is.

    Args:
        task: a classification task, averaged over its samples: outputs ``(N, C)`` and one class for each; its ``l2``
            has no part.
        bn_mode: ``"eval"`` or ``"recalibrated"``.
        samples: ``m``; those of the task's data with None. With more the bound is no guarantee: it says what it would
            be, had the noisy network the same error on so many.
        delta: the probability that a bound, or an interval for the error, does not hold.
        width: the largest distance of the ends of that interval from the mean; it sets the number of draws.
        radius: ``R`` of ``B``, ``points`` numbers evenly spaced in ``[-R, R]``.
        points: of ``B``.
        seed: of the draws.

    Returns:
        Name -> measure; ``details`` has the interval (``lower``, ``upper``), ``draws`` and all terms. NaN with the
        reason for other tasks and where there is no exact diagonal.

    Raises:
        ArgumentError: an argument outside its range.
        DataError: the data cannot be used.

    Example:
        >>> model = torch.nn.Linear(1, 2, bias=False)
        >>> _ = torch.nn.init.constant_(model.weight[0], 1.0), torch.nn.init.constant_(model.weight[1], -1.0)
        >>> x = torch.linspace(0.5, 1.5, 8)[:, None]
        >>> task = Task(model, torch.nn.CrossEntropyLoss(), [(x, torch.zeros(8, dtype=torch.int64))])
        >>> found = noisy_error_bounds(task, samples=10**4, width=0.2)
        >>> found["noisy_error"].details["draws"], found["bound_error_matrices"].value < 0.2
        (47, True)
    """
    if samples is not None and samples < 1:
        raise ArgumentError(f"samples={samples}: at least 1 is needed; None takes those of the data")
    for name, value, usual in (("delta", delta, 0.05), ("width", width, 0.1)):
        if not 0 < value < 1:
            raise ArgumentError(f"{name}={value}: a number between 0 and 1 is needed; {usual} is the default")
    if not 0 <= radius <= 100:
        raise ArgumentError(f"radius={radius}: a number from 0 to 100 is needed; 20 is the default")
    if points < 1 or (points == 1) != (radius == 0):
        raise ArgumentError(f"points={points}: at least 2 are needed, and 1 for radius=0; 81 is the default")
    conditions: dict[str, Any] = {"form": FORM, "bn_mode": check_bn_mode(bn_mode)}
    try:
        plain = replace(task, l2=0.0)
        if plain.reduces_to != "mean":
            raise TaskError("the bounds are for a mean over samples: the loss of this task is a sum")
        diagonal = exact_diagonal(plain, bn_mode, method="exact")
        conditions |= {"curvature": curvature_of(diagonal), "clipped": clipped_share(diagonal.values())}
        network = NoisyNetwork(plain, bn_mode)
        with network.loss.prepared():
            at_rest = network.look(None)
            count = samples if samples is not None else at_rest.counted
            asked = _Asked(count, delta, width, np.linspace(-radius, radius, points), seed)
            return _measured(network, diagonal, at_rest, asked, conditions)
    except (TaskError, NumericsError) as error:
        return {name: not_measured(refusal_in(error), **conditions) for name in NAMES}


@dataclass(frozen=True)
class _Asked:
    samples: int
    delta: float
    width: float
    log_scales: np.ndarray[Any, Any]
    seed: int


@dataclass(frozen=True)
class _Posterior:
    """Noise on the network, how much it costs, and what the draws found."""

    variances: torch.Tensor  # (n,)
    scales: int
    kappa: float
    divergence: float
    constant: float  # Xi
    best_lambda: float
    excess: float

    @property
    def vacuous(self) -> bool:
        """Whether the bound says nothing whatever the error is."""
        return self.excess >= 1


def _chosen(network: NoisyNetwork, t: torch.Tensor, scales: int, asked: _Asked, seed: int) -> _Posterior:
    """The strength of the noise with the least bound, by a few draws for each of 16 that are tried.

    Where the bound is vacuous at all of them, ``kappa = m`` up to rounding: what makes the description length least
    were the loss quadratic.
    """
    constant = math.log(2 / asked.delta) + scales * math.log(len(asked.log_scales)) + 2 * math.log(len(LAMBDAS))
    squares = network.loss.theta.square()

    def at(kappa: float) -> _Posterior:
        variances = t.exp() / math.sqrt(kappa)
        divergence = float((squares / variances).sum()) / 2
        excesses = (divergence + constant) / LAMBDAS + LAMBDAS / (2 * asked.samples)
        least = int(excesses.argmin())
        return _Posterior(variances, scales, kappa, divergence, constant, float(LAMBDAS[least]), float(excesses[least]))

    if at(float(LAMBDAS[0])).vacuous:
        return at(float(LAMBDAS[np.abs(np.log(LAMBDAS / asked.samples)).argmin()]))
    best: tuple[float, _Posterior] | None = None
    for kappa in LAMBDAS[::4].tolist():  # from the strongest noise, so that the divergence rises
        found = at(kappa)
        if best is not None and found.excess >= best[0]:
            break
        looks = network.under_noise(found.variances.sqrt(), _PILOT, seed)
        total = found.excess + sum(look.error for _, look in looks) / _PILOT
        if best is None or total < best[0]:
            best = (total, found)
    assert best is not None
    return best[1]


def _measured(
    network: NoisyNetwork,
    diagonal: Mapping[str, torch.Tensor],
    at_rest: Look,
    asked: _Asked,
    conditions: Mapping[str, Any],
) -> dict[str, Measure]:
    seeds = [int(word) for word in np.random.SeedSequence(asked.seed).generate_state(4)]
    slope = network.loss.gradient()[1]
    entries = torch.cat([diagonal[name].detach().reshape(-1) for name in network.loss.function.names])
    curvature = entries.to(network.loss.theta)
    measures: dict[str, Measure] = {}
    for single in (False, True):
        t, scales = log_variances(network, diagonal, asked.log_scales, single)
        noise = _chosen(network, t, scales, asked, seeds[2 * single])
        needed = draws_for(asked.width, asked.delta)
        draws = min(needed, _VACUOUS_DRAWS) if noise.vacuous else needed
        errors, rises = [], []
        for shift, look in network.under_noise(noise.variances.sqrt(), max(2, draws), seeds[2 * single + 1]):
            errors.append(look.error)
            rises.append(look.loss - at_rest.loss - float(slope @ shift))  # the linear term is 0 in the mean
        mean, stderr = moments_of(errors)
        lower, upper = hoeffding_interval(mean, len(errors), asked.delta)
        interval = {"lower": lower, "upper": upper, "draws": len(errors), "confidence": 1 - asked.delta}
        terms = {
            "noisy_error": mean,
            **interval,
            "error": at_rest.error,
            "samples": asked.samples,
            "delta": asked.delta,
            "scales": scales,
            "kappa": noise.kappa,
            "divergence": noise.divergence,
            "constant": noise.constant,
            "lambda": noise.best_lambda,
            "excess": noise.excess,
            "seed": asked.seed,
        }
        value = upper + noise.excess
        name = "bound_error_matrices" if single else "bound_error_units"
        reason = _in_words(network, asked, noise, value, at_rest.counted)
        details = {**terms, "vacuous": value >= 1}
        measures[name] = Measure(value=value, reason=reason, details=details, **conditions)
        if single:
            continue
        words = f"{lower:.4g} to {upper:.4g} with probability {1 - asked.delta:g}, by {len(errors)} draws"
        measures["noisy_error"] = Measure(value=mean, stderr=stderr, reason=words, details=interval, **conditions)
        measures |= _of_noise(network, noise, (at_rest, rises, curvature), asked, conditions)
    return {name: measures[name] for name in NAMES}


def _of_noise(
    network: NoisyNetwork,
    noise: _Posterior,
    found: tuple[Look, list[float], torch.Tensor],
    asked: _Asked,
    conditions: Mapping[str, Any],
) -> dict[str, Measure]:
    """The remainder of the quadratic model, the divergence and the description length of one noise."""
    at_rest, rises, curvature = found
    rise, error = moments_of(rises)
    quadratic = float(curvature @ noise.variances) / 2
    terms = {"rise": rise, "quadratic": quadratic, "loss": at_rest.loss, "draws": len(rises), "kappa": noise.kappa}
    if not math.isfinite(rise):
        missing = not_measured("the loss is not finite under the noise", **conditions)
        remainder = length = missing
    else:
        remainder = Measure(value=rise - quadratic, stderr=error, details=terms, **conditions)
        length = _length(network.task, noise, (at_rest.loss + rise, error), asked, conditions)
    divergence = Measure(value=noise.divergence, details={"unit": "nats", "kappa": noise.kappa}, **conditions)
    return {"noise_remainder": remainder, "divergence": divergence, "description_length": length}


def _length(
    task: Task, noise: _Posterior, loss: tuple[float, float], asked: _Asked, conditions: Mapping[str, Any]
) -> Measure:
    settings = settings_of(task.criterion)
    plain = kind_of(task.criterion) is nn.CrossEntropyLoss and not settings.get("label_smoothing")
    if not plain or settings.get("weight") is not None:
        words = "the loss is no code length: plain cross-entropy, without class weights or label smoothing, is needed"
        return not_measured(words, **conditions)
    choice = noise.scales * math.log(len(asked.log_scales)) + math.log(len(LAMBDAS))
    nats = {"labels": asked.samples * loss[0], "divergence": noise.divergence, "choice": choice}
    bits = {f"{name}_bits": value / math.log(2) for name, value in nats.items()}
    error = asked.samples * loss[1] / math.log(2)
    return Measure(value=sum(bits.values()), stderr=error, details={**bits, "samples": asked.samples}, **conditions)


def _in_words(network: NoisyNetwork, asked: _Asked, noise: _Posterior, value: float, counted: int) -> str:
    model = network.task.model
    words = [f"holds with probability {1 - asked.delta:g} for {asked.samples} independent samples"]
    if batch_norm_layers(model):
        words = ["not a guarantee: the running statistics of batch norm depend on the samples"]
    elif asked.samples > counted:
        words = [
            f"not a guarantee: the error is of {counted} samples, not of the {asked.samples} that it is counted for"
        ]
    if any(not parameter.requires_grad for parameter in model.parameters()):
        words.append("frozen parameters must not depend on them")
    if value >= 1:
        words.insert(0, "vacuous: not below 1" + (", whatever the noisy error is" if noise.vacuous else ""))
    return "; ".join(words)
