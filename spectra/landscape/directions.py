"""The directions of slices: eigenvectors, the negative gradient, random ones, and towards another checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from spectra.errors import ArgumentError, CheckpointError, NumericsError
from spectra.krylov.eigsh import eigsh
from spectra.krylov.probes import draw_start
from spectra.operators.base import SymmetricOperator
from spectra.operators.function import LossFunction

#: The directions that have a name, and the meaning of t = 1 along each.
NAMED = {
    "top": "distance",
    "bottom": "distance",
    "gradient": "distance",
    "random": "distance",
    "filter": "the norm of each filter",
}
_SEARCH = 1e-5  # residual of an eigenvector relative to |H|_2
_ENDS = {"top": "LA", "bottom": "SA"}


@dataclass(frozen=True)
class OtherWeights:
    """The weights of another checkpoint of the same network; the slice goes from the model's weights to these.

    Attributes:
        name: for the result.
        weights: parameter name -> tensor of the parameter's shape; other entries are ignored.
        note: about the target, for the result.
    """

    name: str
    weights: Mapping[str, torch.Tensor]
    note: str = ""


@dataclass(frozen=True)
class Direction:
    """A direction with the meaning of t = 1 along it."""

    name: str
    vector: torch.Tensor  # (n,) float64, on the device of the loss
    unit: str
    product: torch.Tensor  # (n,) float64: the Hessian times the vector
    products: int  # with the Hessian
    notes: tuple[str, ...] = ()


def check_along(along: str | OtherWeights) -> None:
    """Raise ArgumentError unless the direction is known."""
    if isinstance(along, str) and along not in NAMED:
        raise ArgumentError(f"along={along!r}: {', '.join(NAMED)} or another checkpoint is needed")


def find_direction(
    along: str | OtherWeights, operator: SymmetricOperator, function: LossFunction, gradient: torch.Tensor, seed: int
) -> Direction:
    """The direction, with its product with the Hessian.

    Args:
        along: a name of `NAMED`, or another checkpoint.
        operator: the Hessian.
        function: the loss, at the parameters of the operator.
        gradient: of the loss, ``(n,)`` float64.
        seed: of a random direction, and of the search for an eigenvector.

    Returns:
        Unit vectors for ``"top"`` and ``"bottom"``, the eigenvectors of the largest and smallest eigenvalue, with the
        sign along which the loss falls; ``"gradient"``, the negative gradient; and ``"random"``, uniform on the sphere.
        ``"filter"`` is Gaussian with each filter scaled to the norm of the network's own; tensors of one dimension
        (biases, normalisation) do not move (Li et al., Visualizing the loss landscape of neural nets, 2018).

    Raises:
        ArgumentError: the direction is not known.
        CheckpointError: the other weights lack a parameter or have another shape, or are the same weights.
        NumericsError: the gradient is 0 where its direction is asked for.
    """
    check_along(along)
    products, notes = 0, list[str]()
    if isinstance(along, OtherWeights):
        vector, unit, name = towards(along, function), "the other checkpoint", along.name
        notes += [along.note] if along.note else []
    else:
        name, unit = along, NAMED[along]
        if along in _ENDS:
            pairs = eigsh(operator, 1, _ENDS[along], tol=_SEARCH, seed=seed, complete=False)
            assert pairs.vectors is not None
            vector, products = torch.from_numpy(pairs.vectors[:, 0]).to(gradient), pairs.products
            if not pairs.converged[0]:
                notes.append("the search for the eigenvector ended before its residual was small")
            vector = -vector if float(vector @ gradient) > 0 else vector
        elif along == "gradient":
            vector = -gradient
        else:
            vector = torch.from_numpy(draw_start(function.n, seed=seed, index=0)).to(gradient)
        vector = _filter_normalised(vector, function) if along == "filter" else _unit(vector)
    product = operator.apply(vector.to(operator.torch_dtype)[None])[0].to(torch.float64)
    return Direction(name, vector, unit, product, products + 1, tuple(notes))


def _unit(vector: torch.Tensor) -> torch.Tensor:
    length = float(vector.norm())
    if not length > 0:
        raise NumericsError("the gradient is 0, which is no direction: choose another one")
    return vector / length


def _filter_normalised(vector: torch.Tensor, function: LossFunction) -> torch.Tensor:
    pieces = []
    for piece, parameter in zip(function.unflatten(vector), function.theta):
        if parameter.ndim < 2:
            pieces.append(torch.zeros_like(piece))
            continue
        own, drawn = parameter.detach().to(torch.float64).flatten(1), piece.flatten(1)
        pieces.append((drawn * (own.norm(dim=1) / drawn.norm(dim=1))[:, None]).view_as(piece))
    scaled = function.flatten(pieces)
    if not bool(scaled.any()):
        raise ArgumentError("along='filter': no parameter has filters that are not 0; 'random' needs none")
    return scaled


def towards(target: OtherWeights, function: LossFunction) -> torch.Tensor:
    """From the parameters of the function to those of the target, ``(n,)``; errors as of :func:`find_direction`."""
    pieces = []
    for name, parameter in zip(function.names, function.theta):
        other = target.weights.get(name)
        if other is None:
            raise CheckpointError(f"{target.name}: lacks {name}, which the network has")
        if other.shape != parameter.shape:
            raise CheckpointError(
                f"{target.name}: {name} has the shape {tuple(other.shape)}, and {tuple(parameter.shape)} in the network"
            )
        pieces.append((other.detach().to(parameter.device, torch.float64) - parameter.detach()).reshape(-1))
    vector = torch.cat(pieces)
    if not bool(torch.isfinite(vector).all()):
        raise NumericsError(f"{target.name}: its weights hold NaN or infinity")
    if not bool(vector.any()):
        raise CheckpointError(f"{target.name}: has the same weights, so there is no direction towards it")
    return vector
