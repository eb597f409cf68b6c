"""Re-estimates the running statistics of batch norm over the data of a task, on copies of the buffers."""

from __future__ import annotations

from contextlib import ExitStack

from spectra.operators.function import LossFunction
from spectra.operators.modes import batch_norm_layers
from spectra.task.batches import rows_of


def recalibrate(function: LossFunction) -> None:
    """Re-estimate the running statistics of a function's batch-norm layers in one pass over its task's data.

    A task on held-out data uses the data of its ``calibration`` task, the training data.

    Each statistic becomes the mean over the batches, weighted by their rows, of the value that batch norm records in
    train mode (the mean and the unbiased variance of the batch). Earlier layers normalise by the batch as well. This is
    the usual update after averaging weights; dropout is off. The model's own buffers do not change.

    References:
        P. Izmailov et al., Averaging weights leads to wider optima and better generalization (2018), section 3.2.
    """
    source = function.task.calibration or function.task
    model = function.task.model
    layers = [layer for layer in batch_norm_layers(model) if layer.running_mean is not None]
    kinds = {id(layer) for layer in layers}
    names = [
        f"{prefix}.{name}".removeprefix(".")
        for prefix, module in model.named_modules()
        if id(module) in kinds
        for name in ("running_mean", "running_var")
    ]
    rows_so_far = 0.0
    with function.evaluation("eval"), ExitStack() as stack:
        for layer in layers:
            stack.callback(setattr, layer, "momentum", layer.momentum)
            layer.training = True  # restored by the evaluation context
        for batch in source.batches():
            weight = rows_of(batch) or source.weight_of(batch)
            if weight == 0:
                continue
            rows_so_far += weight
            for layer in layers:
                layer.momentum = weight / rows_so_far  # the share of the newest batch in the weighted mean so far
            function.update_statistics(function.place(batch), names)
