"""Evaluation modes: the modes of the layers and torch's global settings, set for a block and then restored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.utils.checkpoint
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from spectra.errors import ArgumentError
from spectra.runtime.exclusive import one_at_a_time
from spectra.runtime.rng_state import random_state_kept

BN_MODES = ("eval", "recalibrated", "train")


def check_bn_mode(bn_mode: str) -> str:
    """The mode, if it is one.

    Raises:
        ArgumentError: it is not.
    """
    if bn_mode not in BN_MODES:
        raise ArgumentError(f"bn_mode={bn_mode!r}: one of {', '.join(map(repr, BN_MODES))} is needed")
    return bn_mode


def batch_norm_layers(model: nn.Module) -> list[_BatchNorm]:
    """Every batch-norm layer of the network."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def couples_samples(model: nn.Module, bn_mode: str) -> bool:
    """Whether the outputs of a batch depend on each other, so that the partition into batches is part of the loss."""
    return any(bn_mode == "train" or layer.running_mean is None for layer in batch_norm_layers(model))


@contextmanager
def layer_modes(model: nn.Module, bn_mode: str) -> Iterator[None]:
    """Put every layer in eval mode; with ``bn_mode="train"`` only the batch-norm layers in train mode.

    In train mode batch norm normalises by the statistics of the batch. Its running statistics and its counter are not
    updated: ``track_running_stats=False`` gives the same output without the update. ``"recalibrated"`` is eval mode
    with other running statistics.
    """
    with one_at_a_time:
        flags = [(module, module.training) for module in model.modules()]
        tracking: list[tuple[_BatchNorm, bool]] = []
        try:
            for module, _ in flags:
                module.training = False
            if bn_mode == "train":
                for layer in batch_norm_layers(model):
                    tracking.append((layer, layer.track_running_stats))
                    layer.training, layer.track_running_stats = True, False
            yield
        finally:
            for layer, tracked in tracking:
                layer.track_running_stats = tracked
            for module, training in flags:
                module.training = training


@contextmanager
def exact_arithmetic(model: nn.Module) -> Iterator[None]:
    """Disable TF32 and autocast, use a twice differentiable attention kernel, and keep the random states.

    cuDNN is disabled for recurrent networks, because its recurrent kernels have no second derivative. Embeddings have
    dense gradients, and reentrant checkpoints become such that can be differentiated twice.
    """
    sparse = [m for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag)) and m.sparse]
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    with one_at_a_time, ExitStack() as stack:
        stack.enter_context(random_state_kept())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast("cpu", enabled=False))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(_full_float32())
        stack.enter_context(_set(torch.utils.checkpoint, "CheckpointFunction", _CheckpointedAgain))
        for layer in sparse:  # sparse gradients have no derivative
            stack.enter_context(_set(layer, "sparse", False))
        if torch.cuda.is_available():
            stack.enter_context(torch.autocast("cuda", enabled=False))
            cudnn = torch.backends.cudnn
            stack.enter_context(_set(cudnn, "enabled", cudnn.enabled and not recurrent))
            stack.enter_context(_set(cudnn, "benchmark", False))
            stack.enter_context(_set(cudnn, "deterministic", True))
        fast = torch.backends.mha.get_fastpath_enabled()
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        yield


class _CheckpointedAgain:
    """Takes the place of torch's reentrant checkpoint, whose gradient can only be computed by ``backward()``."""

    @staticmethod
    def apply(function: Any, preserve_random_state: bool, *args: Any) -> Any:
        return torch.utils.checkpoint.checkpoint(
            function, *args, use_reentrant=False, preserve_rng_state=preserve_random_state
        )


@contextmanager
def _full_float32() -> Iterator[None]:
    """Compute float32 products in full float32 precision, with the interface of the installed torch.

    Since torch 2.9 each backend has its own setting. These can always be read and restored. The older global setting
    raises an error once the newer ones were used.
    """
    backends = torch.backends
    backends_with_setting: list[Any] = [backends, backends.cuda.matmul, backends.cudnn, backends.mkldnn]
    backends_with_setting += [
        getattr(holder, name, None)
        for holder in (backends.cudnn, backends.mkldnn)
        for name in ("matmul", "conv", "rnn")
    ]
    backends_with_setting = [
        holder for holder in backends_with_setting if holder is not None and hasattr(holder, "fp32_precision")
    ]
    with ExitStack() as stack:
        if not backends_with_setting:
            stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("highest")
            if torch.cuda.is_available():
                stack.enter_context(_set(backends.cudnn, "allow_tf32", False))
        # All settings are read before any is changed, because the general one is a default for the others.
        before = [holder.fp32_precision for holder in backends_with_setting]
        for holder, value in zip(backends_with_setting, before):
            stack.callback(setattr, holder, "fp32_precision", value)
        for holder in backends_with_setting:
            holder.fp32_precision = "ieee"
        yield


@contextmanager
def _set(holder: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(holder, name)
    setattr(holder, name, value)
    try:
        yield
    finally:
        setattr(holder, name, before)
