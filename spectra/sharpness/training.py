"""BNSharpnessOptimizer: training with BN-sharpness as a regulariser, around any torch optimizer.

References:
    Yi et al., "BN-invariant sharpness regularizes the training model to better generalization", IJCAI 2019,
    algorithm 1 ("SGDS-K1-decay"). It differs from the paper where the paper is wrong or noisy, and each difference has
    an option: the sign in equation 15, the radial part of the gradient, and the batches of the displaced gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from spectra.errors import ArgumentError, NumericsError
from spectra.runtime.exclusive import exclusively
from spectra.runtime.rng_state import random_state
from spectra.sharpness.blocks import Blocks
from spectra.sharpness.bn_neurons import find_neurons
from spectra.sharpness.interval import FORMS, check_delta_and_p, direction_slope, theta_slope

Closure = Callable[[], torch.Tensor]


class BNSharpnessOptimizer:
    """Any torch optimizer, stepping along ``g + h``: the gradient of the loss and that of the BN-sharpness.

    Each step, with ``v`` the direction of the gradient at the radius of each block (``|theta_i|`` on each BN neuron, 1
    on all other parameters together), improved by ``ascent_steps`` steps::

        h = clip( strength * growth^epoch * grad_theta V^p ),    |h| <= max_norm

    with the two-gradient approximation of ``grad_theta V^p`` (``spectra.sharpness.interval.theta_slope``). The BN
    neurons are found from the network at the first step. The displaced passes see the batch and the dropout masks of
    the step, and leave running statistics, all other buffers and the random states as the step itself does.

    A step costs ``3 + 2 ascent_steps`` gradients, of which the first is the step's own. Gradients are taken by
    ``torch.autograd.grad``: not for ``DistributedDataParallel``, gradient scalers, or models whose parameters lie on
    several devices.

    Args:
        optimizer: of the parameters of ``model``; learning rate, momentum and decay are its own. Its schedulers work as
            always, given ``optimizer`` itself.
        model: the network.
        strength: ``lambda`` in epoch 0; 0 leaves the plain optimizer. 1e-4 in the paper.
        growth: of ``lambda`` per epoch, 1.02 in the paper; see :meth:`set_epoch`.
        delta: half the length of the interval: 1e-3 in the paper, 5e-4 for VGG-11 on CIFAR-10.
        p: an integer of at least 1.
        ascent_steps: ``K1``, 0 or 5 in the paper.
        max_norm: what ``h`` is clipped to, 0.1 in the paper.
        project_radial: remove the part of ``h`` along the weights of each BN neuron. With it, ``h`` is the gradient of
            the sharpness (its supremum). Without it, as in the paper, ``h`` is the gradient along a fixed ``v``, which
            shrinks or grows weights whose norm the loss does not depend on.
        form: "corrected", or "printed": the paper's equation 15 as it stands,
            for comparison. It is a third derivative times ``delta`` where the loss is smooth.

    Raises:
        ArgumentError: an argument outside its range, or an optimizer without parameters of the model.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=5e-4)
        >>> optimizer = BNSharpnessOptimizer(sgd, model)
        >>> x, y = torch.randn(8, 3), torch.randint(2, (8,))
        >>> for epoch in range(2):
        ...     optimizer.set_epoch(epoch)
        ...     loss = optimizer.step(lambda: nn.functional.cross_entropy(model(x), y))
        >>> optimizer.neurons
        {'0.weight': 4}
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        *,
        strength: float = 1e-4,
        growth: float = 1.02,
        delta: float = 1e-3,
        p: float = 2,
        ascent_steps: int = 0,
        max_norm: float = 0.1,
        project_radial: bool = True,
        form: str = "corrected",
    ) -> None:
        check_delta_and_p(delta, p, finite=True)
        if form not in FORMS:
            raise ArgumentError(f"form={form!r}: one of {', '.join(map(repr, FORMS))} is needed")
        if ascent_steps < 0:
            raise ArgumentError(f"ascent_steps={ascent_steps}: at least 0 is needed")
        for name, number in (("strength", strength), ("max_norm", max_norm)):
            if not (math.isfinite(number) and number >= 0):
                raise ArgumentError(f"{name}={number}: a finite number of at least 0 is needed")
        if not (math.isfinite(growth) and growth > 0):
            raise ArgumentError(f"growth={growth}: a positive number is needed; 1.02 is the default")
        self.optimizer = optimizer
        self.model = model
        self.strength, self.growth, self.max_norm = strength, growth, max_norm
        self.delta, self.p, self.ascent_steps = delta, p, ascent_steps
        self.project_radial, self.form = project_radial, form
        self.epoch = 0
        self.sharpness_norm: float | None = None  # |h| of the last step, before it was clipped
        stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
        chosen = {name: p for name, p in model.named_parameters() if p.requires_grad and id(p) in stepped}
        if not chosen:
            raise ArgumentError("the optimizer has no parameter of the model that requires a gradient")
        if len(chosen) < len(stepped):
            raise ArgumentError("the optimizer has parameters that are not the model's, or are frozen: leave them out")
        self._names, self._theta = list(chosen), list(chosen.values())
        self._blocks: Blocks | None = None
        self.neurons: dict[
            str, int
        ] = {}  # of each weight that batch norm follows; filled by the first step with strength

    @property
    def scheduled_strength(self) -> float:
        """``lambda`` of this epoch, ``strength * growth^epoch``."""
        return self.strength * self.growth**self.epoch

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of the wrapped optimizer."""
        return self.optimizer.param_groups

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next steps belong to, from 0."""
        if epoch < 0:
            raise ArgumentError(f"epoch={epoch}: at least 0 is needed")
        self.epoch = epoch

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Call ``zero_grad`` of the wrapped optimizer. Not needed: a step replaces the gradients."""
        self.optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The epoch, and the state of the wrapped optimizer."""
        return {"epoch": self.epoch, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch = int(state["epoch"])

    @exclusively
    def step(self, closure: Closure, other: Closure | None = None) -> torch.Tensor:
        """One step; the gradients that it used are in ``.grad`` afterwards.

        Args:
            closure: computes the loss of a batch by ``model``, and does nothing else: no ``backward``, no
                ``zero_grad``. Called ``3 + 2 ascent_steps`` times, and three times more at the first step.
            other: the loss of another batch. The displaced gradient at ``theta - c delta v`` is then that of this
                batch, as in the paper: with a small ``delta`` the difference of two batches is noise over ``delta``,
                which the clipping makes a random step.

        Returns:
            The loss of the batch before the step.

        Raises:
            ArgumentError: the closure calls ``backward`` itself, or its loss does not depend on the parameters.
            NumericsError: the gradient of the sharpness is NaN or infinite.
        """
        before = random_state()
        loss, raw = self._raw_gradient(closure)
        gradient = self._flat(raw)
        pieces = gradient
        if self.scheduled_strength > 0:
            after = random_state()
            try:
                with self._kept():
                    blocks = self._found(closure, before)
                    slope = self._sharpness_slope(blocks, closure, other or closure, gradient, before)
            finally:
                after()
            h = self.scheduled_strength * slope
            norm = float(h.norm())
            if not math.isfinite(norm):
                raise NumericsError(f"the gradient of the BN-sharpness has the norm {norm}: lower delta or p")
            self.sharpness_norm = norm
            pieces = gradient + h * min(1.0, self.max_norm / norm if norm > 0 else 1.0)
        for p, own, piece in zip(self._theta, raw, self._split(pieces)):
            p.grad = None if own is None else piece.clone()  # None: the optimizer passes over it, decay included
        self.optimizer.step()
        return loss

    def _sharpness_slope(
        self, blocks: Blocks, closure: Closure, other: Closure, gradient: torch.Tensor, before: Callable[[], None]
    ) -> torch.Tensor:
        """The gradient of ``V^p`` in the parameters, ``(n,)``."""
        theta = self._flat([p.detach() for p in self._theta])
        radii = blocks.radii(theta)
        v = blocks.on_spheres(gradient, radii)

        def displaced(which: Closure) -> Callable[[float], torch.Tensor]:
            def at(t: float) -> torch.Tensor:
                before()
                self._place(theta + t * v)
                return self._flat(self._raw_gradient(which)[1])

            return at

        for _ in range(self.ascent_steps):
            slope = direction_slope(displaced(closure), float(gradient @ v), self.delta, self.p)
            v = blocks.on_spheres(slope, radii)
        here, there = displaced(closure), displaced(other)
        slope = theta_slope(
            lambda t: here(t) if t > 0 else there(t),
            float(gradient @ v),
            self.delta,
            self.p,
            form=self.form,
            centre=gradient,
        )
        return blocks.without_radial(slope, theta) if self.project_radial else slope

    def _found(self, closure: Closure, before: Callable[[], None]) -> Blocks:
        if self._blocks is None:
            before()
            neurons = find_neurons(closure, dict(zip(self._names, self._theta)), verify=True)
            self.neurons = {name: int(owner.max()) + 1 for name, owner in neurons.channels.items()}
            self._blocks = Blocks(self._names, self._theta, neurons.channels)
        return self._blocks

    def _raw_gradient(self, closure: Closure) -> tuple[torch.Tensor, Sequence[torch.Tensor | None]]:
        with torch.enable_grad():
            loss = closure()
        if not (isinstance(loss, torch.Tensor) and loss.numel() == 1 and loss.requires_grad):
            raise ArgumentError("the closure returns no loss that depends on the parameters: return it as a tensor")
        try:
            pieces = torch.autograd.grad(loss, self._theta, allow_unused=True)
        except RuntimeError as error:
            if "second time" in str(error):
                raise ArgumentError(
                    "the closure calls backward itself: let it return the loss and do no more"
                ) from error
            raise
        return loss.detach(), pieces

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Restore parameters and buffers bit for bit on exit."""
        parameters = [(p, p.detach().clone()) for p in self._theta]
        buffers = [
            (module, name, buffer, buffer.detach().clone())
            for module in self.model.modules()
            for name, buffer in module.named_buffers(recurse=False)
        ]
        try:
            yield
        finally:
            with torch.no_grad():
                for p, value in parameters:
                    p.copy_(value)
                for module, name, buffer, value in buffers:
                    module._buffers[name] = buffer
                    buffer.copy_(value)

    def _place(self, vector: torch.Tensor) -> None:
        with torch.no_grad():
            for p, piece in zip(self._theta, self._split(vector)):
                p.copy_(piece)

    def _flat(self, pieces: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """One vector of tensors shaped like the parameters, None for zero."""
        return torch.cat([(torch.zeros_like(p) if t is None else t).reshape(-1) for t, p in zip(pieces, self._theta)])

    def _split(self, vector: torch.Tensor) -> list[torch.Tensor]:
        pieces = torch.split(vector, [p.numel() for p in self._theta])
        return [piece.view_as(p).to(p.dtype) for piece, p in zip(pieces, self._theta)]
