"""penalised_sharpness: the penalised parameter-wise sum NS'(lambda'), with one scale per parameter at a price.

References:
    Tsuzuku, Sato and Sugiyama, "Normalized flat minima", ICML 2020, equation (17).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from spectra.errors import ArgumentError
from spectra.exact.trace import exact_diagonal
from spectra.operators.modes import check_bn_mode
from spectra.results.measure import Measure, not_measured
from spectra.runtime.exclusive import exclusively
from spectra.sharpness.normalized import parameter_wise, penalised_parameter_wise
from spectra.sharpness.per_layer import clipped_share
from spectra.task.task import Task

FORM = "penalised"
LOG_SCALES = tuple(range(-10, 11))  # B, unless another is given


@exclusively
def penalised_sharpness(
    task: Task, bn_mode: str = "eval", *, lam: float = 1.0, log_scales: Sequence[float] = LOG_SCALES
) -> Measure:
    """``NS'(lambda') = sum_i min_{sigma, beta in B} H_ii e^(2 sigma) + w_i^2 e^(-2 sigma) + (sigma - beta)^2/lambda'``.

    Over all trainable parameters, biases included; negative entries of the diagonal are taken for 0, and ``clipped``
    says how much that is. ``B`` is a finite set of log-scales, because the bound that this is a part of counts its
    points (:func:`spectra.pac_bayes_bounds`). It is never below ``2 sum_i sqrt(H_ii) |w_i|``
    (``details["twice_parameter_wise"]``), what ``B`` as the whole line or ``lambda' -> inf`` would give, and which
    rescaled units leave alone; this they move, up to how finely ``B`` lies and how far it reaches.

    Cost: that of the exact diagonal.

    Args:
        task: the task; its ``l2`` has no part.
        bn_mode: ``"eval"`` or ``"recalibrated"``.
        lam: ``lambda'``: a large one makes distance from the set cheap.
        log_scales: ``B``. Two values compare only at one ``lam`` and one ``B``.

    Returns:
        The measure, ``certificate`` the largest relative derivative in a ``sigma``; NaN with the reason where there is
        no exact diagonal.

    Raises:
        ArgumentError: an argument outside its range.
        DataError: the data cannot be used.

    Example:
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.constant_(model.weight, 2.0)
        >>> task = Task(model, torch.nn.MSELoss(), [(torch.full((1, 1), 2**0.5), torch.zeros(1, 1))])
        >>> found = penalised_sharpness(task, log_scales=[0.0])  # H = 4 and w^2 = 4: sigma = 0 is best
        >>> round(found.value, 5)
        8.0
    """
    if not (math.isfinite(lam) and lam > 0):
        raise ArgumentError(f"lam={lam}: a finite number above 0 is needed; 1 is the default")
    points = np.asarray(log_scales, dtype=np.float64).ravel()
    if not points.size or not np.isfinite(points).all():
        raise ArgumentError(f"log_scales={log_scales!r}: finite numbers, at least one, are needed")
    diagonal = exact_diagonal(replace(task, l2=0.0), check_bn_mode(bn_mode), method="exact")
    if diagonal.kind is None:
        return not_measured("; ".join(diagonal.reasons), form=FORM, bn_mode=bn_mode)
    weights = dict(task.model.named_parameters())
    by_tensor: dict[str, float] = {}
    certificate, twice = 0.0, 0.0
    for name, entries in diagonal.items():
        h = entries.detach().to("cpu", torch.float64).clamp(min=0).numpy()
        u = weights[name].detach().to("cpu", torch.float64).square().numpy()
        minimum = penalised_parameter_wise(h, u, lam, points)
        by_tensor[name], certificate = minimum.value, max(certificate, minimum.certificate)
        twice += 2 * parameter_wise(h, u)
    return Measure(
        value=sum(by_tensor.values()),
        form=FORM,
        bn_mode=bn_mode,
        curvature=diagonal.kind,
        attained=True,
        certificate=certificate,
        clipped=clipped_share(diagonal.values()),
        reason="; ".join(diagonal.reasons) or None,
        details={
            "lambda": lam,
            "log_scales": points.tolist(),
            "twice_parameter_wise": twice,
            "by_tensor": by_tensor,
        },
    )
