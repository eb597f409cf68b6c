"""Says in words why an exact diagonal is the Gauss-Newton matrix's only: the defects of the certificate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from spectra.operators.function import LossFunction

# Types of layers that are not piecewise linear in their input. They decide nothing: they only word the reason.
_CURVED = (
    nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid, nn.LogSigmoid, nn.Softplus, nn.Softsign, nn.ELU, nn.SELU, nn.CELU,
    nn.Hardswish, nn.Tanhshrink, nn.GLU, nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.LayerNorm, nn.GroupNorm,
    nn.LocalResponseNorm, nn.modules.instancenorm._InstanceNorm, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase,
    nn.Bilinear, nn.CosineSimilarity,
)  # fmt: skip
_CURVED += tuple(getattr(nn, name) for name in ("RMSNorm",) if hasattr(nn, name))


def defects_in_words(function: LossFunction, defects: Sequence[str | None], tied: Mapping[int, int]) -> tuple[str, ...]:
    """The reasons in sentences: which tensors failed, and what in the network explains it.

    Args:
        function: the function that was tested.
        defects: of each parameter tensor, None for one that passed; at least one failed.
        tied: how often a tensor is used in a forward pass, by its index, for those used more than once.
    """
    names = function.names
    failed = [index for index, defect in enumerate(defects) if defect]
    some = "; ".join(f"{names[index]}: {defects[index]}" for index in failed[:3])
    more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
    first = (
        f"The outputs are not affine in {len(failed)} of {len(names)} parameter tensors ({some}{more}), so this is "
        "the Gauss-Newton matrix's and not the Hessian's."
    )
    sentences = [first, *(f"{names[i]} is used {tied[i]} times in the forward pass." for i in failed if i in tied)]
    curved = [
        f"{type(module).__name__} in {name}" if name else type(module).__name__
        for name, module in function.task.model.named_modules()
        if isinstance(module, _CURVED)
    ]
    if curved:
        listed = ", ".join(curved[:4]) + (f" and {len(curved) - 4} more" if len(curved) > 4 else "")
        sentences.append(f"Not piecewise linear: {listed}.")
    if len(sentences) == 1:
        sentences.append(
            "No layer's type explains it: a function called in forward (as torch.sigmoid), or a product of activations "
            "that both depend on the tensor."
        )
    return tuple(sentences)
