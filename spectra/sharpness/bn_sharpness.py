"""bn_sharpness: how fast the loss changes along directions that have the same norm as the weights they move.

It is invariant under a rescaling of the weights before batch norm, which preserves the function.

References:
    Yi et al., "BN-invariant sharpness regularizes the training model to better generalization", IJCAI 2019.
"""

from __future__ import annotations

import math
from dataclasses import replace

from spectra.errors import ArgumentError, TaskError
from spectra.operators.displaced import DisplacedLoss
from spectra.results.measure import Measure
from spectra.runtime.exclusive import exclusively
from spectra.sharpness.bn_neurons import Neurons, find_neurons
from spectra.sharpness.interval import Interval
from spectra.sharpness.search import Search
from spectra.task.task import Task

METHODS = ("power", "riemannian")
GRADIENTS = ("quadrature", "two-point")


@exclusively
def bn_sharpness(
    task: Task,
    bn_mode: str = "train",
    *,
    delta: float = 1e-3,
    p: float = 2,
    method: str = "power",
    gradient: str = "quadrature",
    nodes: int = 8,
    steps: int = 20,
    seed: int = 0,
    dtype: str = "float64",
) -> Measure:
    """``sup_v [ (1/delta) int_{-delta}^{delta} |(L(theta + t v) - L(theta)) / delta|^p dt ]^{1/p}``, from below.

    The supremum is over directions ``v``. On each BN neuron, ``v`` has the norm of the neuron's weights; on all other
    parameters together it has norm 1. BN neurons (:mod:`spectra.sharpness.bn_neurons`) are detected in the network. The
    other parameters are gamma, beta, biases, layers without a following batch norm, and weights computed from other
    parameters (weight norm). For a network without BN neurons the definition gives one sphere of radius 1, and the
    reason says so.

    The value belongs to the best direction found, so it is a **lower bound** of the supremum. The search starts from
    the maximiser for ``delta -> 0``: the gradient scaled to the radius of each block (a random direction for a block
    without gradient). ``certificate`` is the relative Riemannian gradient at the result: 0 at a stationary point.

    ``L`` is the loss over all data without l2 term, in train mode on the task's own partition into batches. Running
    statistics do not change. The network is computed in float64 by default: with ``delta=1e-3`` the differences of
    float32 losses keep three or four digits.

    Cost: ``nodes`` gradients per step, and about ``2 nodes`` losses for the error of the quadrature, which is
    ``details["quadrature_change"]`` (relative, against twice as many nodes). The two-point gradient costs 2 gradients
    and ``nodes`` losses per step. Memory: ``nodes`` float64 vectors as long as the parameters.

    Args:
        task: the task.
        bn_mode: "train", as defined; in "eval" and "recalibrated" mode the same number can be computed, but is not
            invariant.
        delta: half the length of the interval, 1e-3 in the paper.
        p: an integer of at least 1, or ``math.inf``.
        method: "power": each block is set to the direction of its gradient, or a part of the way there where that gains
            nothing; or "riemannian": gradient ascent on the product of spheres with backtracking, which is slower and
            gets further where ``delta`` is large.
        gradient: "quadrature", or "two-point": the paper's equation 16, which is 0 at a stationary point of the loss.
        nodes: of the quadrature, even.
        steps: at most; 0 measures the start.
        seed: of the random directions.
        dtype: "float64" or "float32".

    Raises:
        ArgumentError: an argument outside its range.
        DataError, TaskError, NumericsError: as :class:`spectra.operators.displaced.DisplacedLoss`.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> task = Task.from_loss(model, lambda model, x: model(x).mean(), [torch.tensor([[1.8, 2.4]])])
        >>> round(float(bn_sharpness(task)) ** 2, 6)  # (2/3) |g|^2 with |g| = 3
        6.0
    """
    if method not in METHODS:
        raise ArgumentError(f"method={method!r}: one of {', '.join(map(repr, METHODS))} is needed")
    if gradient not in GRADIENTS:
        raise ArgumentError(f"gradient={gradient!r}: one of {', '.join(map(repr, GRADIENTS))} is needed")
    if steps < 0:
        raise ArgumentError(f"steps={steps}: at least 0 is needed; 20 is the default")
    if seed < 0:
        raise ArgumentError(f"seed={seed}: at least 0 is needed")
    interval = Interval(delta, p, nodes)
    if gradient == "two-point" and p == math.inf:
        raise ArgumentError("gradient='two-point' needs a finite p: use gradient='quadrature' for p=inf")
    loss = DisplacedLoss(task, bn_mode, dtype)
    remark = loss.for_differences()
    with loss.prepared():
        neurons = neurons_of(loss)
        search = Search(loss, neurons, interval, gradient, seed)
        start = search.start()
        best, steps_taken = search.ascend(method, start, steps)
        certificate = search.violation(best)
        value = best.value
        finer = replace(interval, nodes=2 * nodes)
        again = search.value(best.v, finer)
    return Measure(
        value=value,
        form=f"p={p:g}",
        bn_mode=bn_mode,
        certificate=certificate,
        reason=_remarks(loss, neurons, remark),
        details={
            "bound": "lower",
            "delta": delta,
            "method": method,
            "gradient": gradient,
            "steps": steps_taken,
            "start": start.value,
            "quadrature_change": abs(again - value) / again if again > 0 else 0.0,
            "nodes": nodes,
            "bn_neurons": {name: int(owner.max()) + 1 for name, owner in neurons.channels.items()},
            "other_parameters": search.blocks.rest,
            "not_invariant": list(neurons.refused),
            "losses": loss.losses,
            "gradients": loss.gradients,
        },
    )


def neurons_of(loss: DisplacedLoss) -> Neurons:
    """The BN neurons of a task's network, verified in train mode on its first batch."""
    function = loss.function
    if function.written_out:
        raise TaskError(
            "BN neurons are found by watching batch norm, which is computed in plain operations for a loss that takes "
            "derivatives of the network"
        )
    with function.evaluation():
        batch = next(batch for batch, _ in loss.passes.batches())
        weights = dict(zip(function.names, function.theta))
        return find_neurons(lambda: function.loss(batch), weights, verify=loss.bn_mode == "train")


def _remarks(loss: DisplacedLoss, neurons: Neurons, remark: str) -> str:
    notes = ["a lower bound: the best direction found, which nothing proves to be the best there is"]
    if not neurons.channels:
        notes.append("no weights are followed by batch norm, so all parameters are one block of norm 1: not invariant")
    elif loss.bn_mode != "train":
        notes.append(f"with batch norm in {loss.bn_mode} mode it is not invariant under rescaled weights")
    if neurons.refused:
        notes.append(f"rescaling {', '.join(neurons.refused)} changes the loss, so they are not taken as BN neurons")
    return "; ".join([*notes, remark] if remark else notes)
