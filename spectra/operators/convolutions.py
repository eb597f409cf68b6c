"""Convolutions whose second derivative is three convolutions of the size of the first, and no more.

A convolution is bilinear in its input ``x`` and kernel ``W``. So every derivative of any order is a convolution of the
same geometry with other arguments. Autograd's own second derivative rearranges one of them into a grouped convolution
over the samples, which most kernels compute slowly. The functions here call the ordinary kernels for all of them: a
Hessian product of a LeNet takes less than half of the time. Numbers differ by rounding only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from spectra.operators.twice import computed

_aten = torch.ops.aten
# Function -> (dimensions of space, whether transposed, the names of its arguments in order).
_PLAIN = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_CONVOLUTIONS: dict[Any, tuple[int, bool, tuple[str, ...]]] = {
    torch.conv1d: (1, False, _PLAIN),
    torch.conv2d: (2, False, _PLAIN),
    torch.conv3d: (3, False, _PLAIN),
    torch.conv_transpose1d: (1, True, _TRANSPOSED),
    torch.conv_transpose2d: (2, True, _TRANSPOSED),
    torch.conv_transpose3d: (3, True, _TRANSPOSED),
}
# stride, padding, dilation, transposed, output padding, groups: what every kernel takes after its tensors
Geometry = tuple[list[int], list[int], list[int], bool, list[int], int]


class EfficientConvolutions(TorchFunctionMode):
    """While active, convolutions have an efficient second derivative, and the functions of `twice` have a right one.

    Left to torch: unbatched inputs, padding given as a word, tensor subclasses, and calls within a transformation of
    ``torch.func`` or forward-mode differentiation.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _CONVOLUTIONS:
            space, transposed, names = _CONVOLUTIONS[func]
            arguments = {**dict(zip(names, args)), **kwargs}
            x, weight, bias = arguments["input"], arguments["weight"], arguments.get("bias")
            tensors = [tensor for tensor in (x, weight, bias) if tensor is not None]
            padding = arguments.get("padding", 0)
            if x.ndim == space + 2 and not isinstance(padding, str) and all(map(_is_plain, tensors)):
                geometry: Geometry = (
                    _per_dimension(arguments.get("stride", 1), space),
                    _per_dimension(padding, space),
                    _per_dimension(arguments.get("dilation", 1), space),
                    transposed,
                    _per_dimension(arguments.get("output_padding", 0), space),
                    arguments.get("groups", 1),
                )
                return _Convolution.apply(x, weight, bias, geometry)  # type: ignore[no-untyped-call]
        return computed(func, args, kwargs)


@contextmanager
def constant_factors() -> Iterator[None]:
    """While active, a backward pass with a graph is differentiable in the incoming gradients only.

    The product with a Jacobian needs no more: ``J'u`` is linear in ``u``. Without this, a custom function of autograd
    computes derivatives in its input and kernel too, which are then discarded.
    """
    before, _Convolution.constant = _Convolution.constant, True
    try:
        yield
    finally:
        _Convolution.constant = before


@contextmanager
def derivatives_within(theta: Sequence[torch.Tensor], within: Sequence[int] | None) -> Iterator[None]:
    """While active, a backward pass computes no derivatives in the kernels among ``theta`` that are not ``within``.

    Autograd tells a custom function only which arguments have a derivative, and not which ones are asked for.

    Args:
        theta: the parameters.
        within: the numbers of those that derivatives are asked for; None: all.
    """
    before = _Convolution.left_out
    wanted = range(len(theta)) if within is None else set(within)
    _Convolution.left_out = frozenset(id(tensor) for index, tensor in enumerate(theta) if index not in wanted)
    try:
        yield
    finally:
        _Convolution.left_out = before


class _Convolution(torch.autograd.Function):
    """``y = conv(x, W) + b``."""

    # A plain attribute, because the threads in which autograd runs a device's backward pass see no context variable.
    # Operators compute one at a time, under the global lock.
    constant: ClassVar[bool] = False
    left_out: ClassVar[frozenset[int]] = frozenset()  # the identities of leaves that no derivative is asked for

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, geometry: Geometry) -> Any:
        ctx.save_for_backward(x, weight)
        ctx.geometry, ctx.bias_sizes = geometry, None if bias is None else list(bias.shape)
        return _aten.convolution(x, weight, bias, *geometry)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, weight = ctx.saved_tensors
        if _Convolution.constant:
            x, weight = x.detach(), weight.detach()
        wanted = list(ctx.needs_input_grad[:3])
        wanted[1] = wanted[1] and _is_wanted(ctx.next_functions[1][0])
        arguments = (gradients[0], x, weight, ctx.geometry, ctx.bias_sizes, wanted)
        return *_Gradients.apply(*arguments), None  # type: ignore[no-untyped-call]


class _Gradients(torch.autograd.Function):
    """The gradients of a convolution in input, kernel and bias, from the gradient ``g`` in its output."""

    @staticmethod
    def forward(
        ctx: Any, g: Any, x: Any, weight: Any, geometry: Geometry, bias_sizes: list[int] | None, wanted: list[bool]
    ) -> Any:
        ctx.save_for_backward(g, x, weight)
        ctx.geometry = geometry
        ctx.set_materialize_grads(False)
        return _aten.convolution_backward(g, x, weight, bias_sizes, *geometry, wanted)

    @staticmethod
    def backward(ctx: Any, *directions: Any) -> Any:
        """For directions ``(a, B, c)`` in input, kernel and bias: the derivatives in ``g``, ``x`` and ``W``.

        ``conv(a, W) + conv(x, B) + c``, the input gradient of ``conv(., B)`` at ``g``, and the kernel gradient of
        ``conv(a, .)`` at ``g``.
        """
        (g, x, weight), geometry = ctx.saved_tensors, ctx.geometry
        along_x, along_weight, along_bias = directions
        in_g, in_x, in_weight = ctx.needs_input_grad[:3]
        of_g = of_x = of_weight = None
        if in_g:
            terms = [
                _aten.convolution(*pair, None, *geometry)
                for pair in ((along_x, weight), (x, along_weight))
                if pair[0] is not None and pair[1] is not None
            ]
            if along_bias is not None:
                terms.append(along_bias.view(1, -1, *[1] * (g.ndim - 2)).expand_as(g))
            of_g = sum(terms[1:], terms[0]) if terms else None
        if in_x and along_weight is not None:
            of_x = _aten.convolution_backward(g, x, along_weight, None, *geometry, [True, False, False])[0]
        if in_weight and along_x is not None and _is_wanted(ctx.next_functions[2][0]):
            of_weight = _aten.convolution_backward(g, along_x, weight, None, *geometry, [False, True, False])[1]
        return of_g, of_x, of_weight, None, None, None


def _is_wanted(node: Any) -> bool:
    """Whether the derivative that flows into a node of the graph may be asked for; it is not for some leaves."""
    return id(getattr(node, "variable", None)) not in _Convolution.left_out


def _per_dimension(value: Any, space: int) -> list[int]:
    """One number, or one per dimension, as a list of ``space`` numbers."""
    numbers = [value] if isinstance(value, int) else list(value)
    return numbers * space if len(numbers) == 1 else numbers


def _is_plain(tensor: Any) -> bool:
    """Whether a tensor is no subclass, no wrapper of ``torch.func``, and carries no forward-mode tangent."""
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return False
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return not wrapped and forward_ad.unpack_dual(tensor).tangent is None  # type: ignore[no-untyped-call]
