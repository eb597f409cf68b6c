"""LossFunction: the loss of a batch as a function of chosen parameters; the user's model is not modified.

The model is called through ``torch.func.functional_call`` with detached parameters and copied buffers. So its own
tensors are never written to, hooks on its parameters do not run, and another dtype needs no second model.
"""

from __future__ import annotations

import copy
import fnmatch
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.parameter import is_lazy

from spectra.errors import ArgumentError, NumericsError, TaskError
from spectra.operators.convolutions import EfficientConvolutions
from spectra.operators.modes import check_bn_mode, exact_arithmetic, layer_modes
from spectra.operators.written_out import WrittenOut
from spectra.runtime.exclusive import exclusively
from spectra.task.batches import map_tensors
from spectra.task.task import Task

_REAL = (torch.float32, torch.float64)


class _Whole(nn.Module):
    """The model, and the criterion if it is a module, in one module, so that one call swaps the tensors of both."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model = task.model
        self.criterion = task.criterion if isinstance(task.criterion, nn.Module) else None

    def forward(self, function: Callable[[Any], Any], argument: Any) -> Any:
        return function(argument)


class LossFunction:
    """The loss of a batch as a function of the chosen parameters of a task's model.

    Args:
        task: the task.
        bn_mode: ``"eval"``, ``"recalibrated"`` or ``"train"``.
        dtype: the torch dtype to compute in; by default the parameters' own.
        params: which trainable parameters: a glob, else a regular expression, or a list of these; all by default.
    """

    @exclusively
    def __init__(
        self,
        task: Task,
        bn_mode: str = "eval",
        dtype: torch.dtype | None = None,
        params: str | Sequence[str] | None = None,
    ) -> None:
        self.task = task
        self.bn_mode = check_bn_mode(bn_mode)
        self.params = params
        self._whole = _Whole(task)
        chosen = choose_parameters(task.model, params)
        self.dtype = _common_dtype(chosen, dtype)
        # Set by `check_loss`: the precision of the loss (lower if a layer casts), and whether the loss differentiates
        # layers whose higher derivatives are wrong unless they are written in elementary operations.
        self.carried = self.dtype
        self.written_out = False
        self.checked = False  # whether `check_loss` has looked for derivatives within the loss
        self.inseparable: str | None = None  # why the loss depends on more than the output
        self.no_hessian: str | None = (
            None  # why second derivatives of the network by autograd are not those of the loss
        )
        self.device = next(iter(chosen.values())).device
        with torch.inference_mode(False):
            self.theta = [self._cast(p.detach()).clone().requires_grad_() for p in chosen.values()]
        self.names = list(chosen)
        self.sizes = [tensor.numel() for tensor in self.theta]
        self.n = sum(self.sizes)
        taken = {id(p) for p in chosen.values()}
        self._fixed = {
            name: self._cast(tensor.detach())
            for name, tensor in self._whole.named_parameters()
            if id(tensor) not in taken
        }
        self._buffers = {name: self._cast(tensor.detach()).clone() for name, tensor in self._whole.named_buffers()}

    @property
    def casts(self) -> bool:
        """Whether the loss is known to be less precise than the dtype that it is computed in."""
        return torch.finfo(self.carried).eps > torch.finfo(self.dtype).eps

    def adopt(self, other: LossFunction) -> None:
        """Take the parameters and buffers of another function of the same task, in this one's own dtype."""
        with torch.no_grad():
            for mine, theirs in zip(self.theta, other.theta):
                mine.copy_(theirs)
        self.written_out, self.checked = other.written_out, other.checked
        self._fixed = {name: self._cast(tensor) for name, tensor in other._fixed.items()}
        self._buffers = {name: self._cast(tensor) for name, tensor in other._buffers.items()}

    def restricted(self, chosen: Sequence[int]) -> LossFunction:
        """The same function of the parameters of these numbers; the others are constants. Tensors are shared."""
        other, wanted = copy.copy(self), set(chosen)
        other.theta = [self.theta[index] for index in chosen]
        other.names = [self.names[index] for index in chosen]
        other.sizes = [self.sizes[index] for index in chosen]
        other.n = sum(other.sizes)
        rest = {f"model.{n}": p.detach() for i, (n, p) in enumerate(zip(self.names, self.theta)) if i not in wanted}
        other._fixed = self._fixed | rest
        return other

    def update_statistics(self, batch: Any, names: Sequence[str]) -> None:
        """Call the model and keep the values that it writes to the named buffers (names within ``model.``)."""
        kept = {name: self._buffers[f"model.{name}"].clone() for name in names}
        self._call(self.task.output_of if self.task.splits else self.task.loss_of, _own(batch), kept)
        self._buffers |= {f"model.{name}": tensor.detach() for name, tensor in kept.items()}

    def model_buffers(self) -> dict[str, torch.Tensor]:
        """Copies of the buffers that this function uses, by their names in the model."""
        own = {name.removeprefix("model."): t for name, t in self._buffers.items() if name.startswith("model.")}
        return {name: tensor.clone() for name, tensor in own.items()}

    def check_finite(self) -> None:
        """Raise NumericsError, with the tensor's name, if a parameter or buffer is NaN or infinite."""
        fixed = {name.removeprefix("model."): t for name, t in {**self._fixed, **self._buffers}.items()}
        for name, tensor in [*zip(self.names, self.theta), *fixed.items()]:
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                bad = int((~torch.isfinite(tensor)).sum())
                raise NumericsError(f"{name} holds {bad} values of {tensor.numel()} that are NaN or infinite")

    @contextmanager
    def evaluation(self, bn_mode: str | None = None, *, twice: bool = True) -> Iterator[None]:
        """Set the modes for evaluating the function (or another BN mode) and restore everything on exit.

        ``twice=False`` is faster where only first derivatives of the model are taken.
        """
        # A loss that takes derivatives itself may do so in ways that the efficient convolutions do not know. They are
        # used in backward passes too, where checkpointed layers are computed a second time. Torch's own convolutions
        # compute only the gradients that are asked for, which is faster in the first derivative.
        efficient = twice and self.checked and not self.written_out
        convolutions = EfficientConvolutions() if efficient else nullcontext()
        with exact_arithmetic(self.task.model), layer_modes(self.task.model, bn_mode or self.bn_mode), convolutions:
            yield

    def loss(self, batch: Any) -> torch.Tensor:
        """The criterion's value for a batch, connected to ``theta``. Call it within :meth:`evaluation`."""
        return self._call(self.task.loss_of, _own(batch))  # type: ignore[no-any-return]

    def value(self, batch: Any) -> float:
        """The criterion's value for a batch. Gradients stay enabled: a loss may take derivatives of its own."""
        return float(self.loss(batch).detach())

    def evaluate(self, batch: Any, look: Callable[[Any], None] = lambda _: None) -> tuple[torch.Tensor, Any]:
        """The criterion's value and the model's output for a batch, from one pass; the output is None for a loss_fn.

        ``look`` is called with the output before the criterion is.
        """
        task = self.task

        def both(batch: Any) -> tuple[Any, Any]:
            if task.criterion is None:
                return task.loss_of(batch), None
            output = task.output_of(batch)
            look(output)
            return task.criterion_of(output, task.target_of(batch)), output

        return self._call(both, _own(batch))  # type: ignore[no-any-return]

    def output(self, batch: Any) -> Any:
        """The model's output for a batch, connected to ``theta``. Call it within :meth:`evaluation`."""
        return self._call(self.task.output_of, _own(batch))

    def criterion(self, output: Any, target: Any) -> torch.Tensor:
        """The criterion of an output and a target; tensors of the criterion are cast like those of the model."""
        return self._call(lambda pair: self.task.criterion_of(*pair), (output, target))  # type: ignore[no-any-return]

    def place(self, batch: Any) -> Any:
        """The batch on the function's device, its floating-point tensors in the function's dtype."""
        return map_tensors(batch, self._cast)

    def move_to(self, vector: torch.Tensor) -> None:
        """Set the values of ``theta`` from a vector ``(n,)`` of any dtype."""
        with torch.no_grad():
            for parameter, piece in zip(self.theta, self.unflatten(vector)):
                parameter.copy_(piece)

    def scale(self) -> torch.Tensor:
        """The root mean square of the tensor that each parameter belongs to, ``(n,)``.

        A tensor of zeros gets the root mean square of all parameters.
        """
        scales = torch.cat([p.detach().square().mean().sqrt().expand(p.numel()) for p in self.theta])
        return torch.where(scales == 0, scales.square().mean().sqrt(), scales)

    def flatten(self, pieces: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """Tensors shaped like the parameters, None for zero, as one vector ``(n,)``."""
        return torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in zip(pieces, self.theta)])

    def unflatten(self, vector: torch.Tensor) -> list[torch.Tensor]:
        """One vector ``(n,)`` as tensors shaped like the parameters.

        Each is a separate copy. Kernels round differently at other memory alignments, and a product must not depend on
        the position of its vector in a block.
        """
        return [piece.clone().view_as(p) for piece, p in zip(torch.split(vector, self.sizes), self.theta)]

    def gradient(self, batch: Any, create_graph: bool = False) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
        """The criterion's value for a batch and its gradient; None for parameters that the value does not depend on."""
        loss = self.loss(batch)
        return loss, self.gradient_of(loss, create_graph)

    def gradient_of(self, loss: torch.Tensor, create_graph: bool = False) -> list[torch.Tensor | None]:
        """The gradient of a loss in ``theta``; None for a parameter that the loss does not depend on."""
        if not loss.requires_grad:
            return [None] * len(self.theta)
        return list(torch.autograd.grad(loss, self.theta, create_graph=create_graph, allow_unused=True))

    def _cast(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_floating_point():
            return tensor.to(self.device, self.dtype, non_blocking=True)
        return tensor.to(self.device, non_blocking=True)

    def _call(
        self, function: Callable[[Any], Any], argument: Any, written: dict[str, torch.Tensor] | None = None
    ) -> Any:
        # Buffers are passed as copies, so that in-place updates by a layer do not persist.
        tensors = {f"model.{name}": p for name, p in zip(self.names, self.theta)}
        tensors |= self._fixed
        tensors |= {name: tensor.clone() for name, tensor in self._buffers.items()}
        tensors |= {f"model.{name}": tensor for name, tensor in (written or {}).items()}
        with WrittenOut() if self.written_out else nullcontext():
            return functional_call(self._whole, tensors, (function, argument))


def _own(batch: Any) -> Any:
    """The batch with new tensor objects over the same memory, so that ``x.requires_grad_()`` lasts for one call."""

    def fresh(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().requires_grad_() if tensor.requires_grad else tensor.detach()

    return map_tensors(batch, fresh)


@exclusively
def choose_parameters(model: nn.Module, params: str | Sequence[str] | None) -> dict[str, nn.Parameter]:
    """The trainable parameters that ``params`` selects, in the model's order, tied ones once, without empty ones.

    A pattern is read as a shell glob over the names. If it matches none, it is read as a regular expression for whole
    names.

    Raises:
        ArgumentError: a pattern matches no parameter.
        TaskError: the model has no trainable parameters.
    """
    with_gradient = {name: p for name, p in model.named_parameters() if p.requires_grad}
    lazy = [name for name, p in with_gradient.items() if is_lazy(p)]
    if lazy:
        raise TaskError(f"{lazy[0]} has no shape yet: pass one batch through the model before making the task")
    trainable = {name: p for name, p in with_gradient.items() if p.numel()}
    if not trainable:
        which = "parameter with requires_grad=True" + (" that has entries" if with_gradient else "")
        raise TaskError(f"the model has no {which}: there is nothing to differentiate")
    complex_ones = [name for name, p in trainable.items() if p.is_complex()]
    if complex_ones:
        raise TaskError(
            f"{complex_ones[0]} is complex: curvature is computed in real parameters; keep torch.view_as_real of it as "
            "the parameter, and use torch.view_as_complex in the forward pass"
        )
    if params is None:
        return trainable
    matched: set[str] = set()
    for pattern in [params] if isinstance(params, str) else params:
        names = fnmatch.filter(trainable, pattern)
        if not names:
            try:
                names = [name for name in trainable if re.fullmatch(pattern, name)]
            except re.error as error:
                raise ArgumentError(
                    f"params={pattern!r}: neither a glob that meets a name nor a pattern ({error})"
                ) from error
        if not names:
            some = ", ".join(list(trainable)[:4])
            raise ArgumentError(f"params={pattern!r}: no trainable parameter has such a name; there are {some}, ...")
        matched.update(names)
    return {name: p for name, p in trainable.items() if name in matched}


def _common_dtype(chosen: dict[str, nn.Parameter], asked: torch.dtype | None) -> torch.dtype:
    dtypes = {p.dtype for p in chosen.values()}
    if asked is None and len(dtypes) > 1:
        raise ArgumentError(
            f"the parameters have dtypes {sorted(map(str, dtypes))}: say which to compute in, with dtype="
        )
    dtype = dtypes.pop() if asked is None else asked
    if dtype not in _REAL:
        raise ArgumentError(f"dtype={dtype}: curvature needs float32 or float64; pass dtype='float32' to compute in it")
    return dtype
