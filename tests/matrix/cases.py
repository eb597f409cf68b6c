"""The rows of the matrix: name on the page -> the function that makes its problem."""

from __future__ import annotations

from collections.abc import Callable

from matrix import batches, layers, training
from matrix.problem import Problem

ARCHITECTURES: dict[str, Callable[[], Problem]] = {
    "MLP, ReLU": layers.mlp,
    "MLP, GELU": layers.smooth_mlp,
    "convolutions, batch norm": layers.conv_batch_norm,
    "SyncBatchNorm": layers.sync_batch_norm,
    "group norm": layers.group_norm,
    "instance norm": layers.instance_norm,
    "instance norm, running statistics": layers.instance_norm_tracked,
    "layer norm": layers.layer_norm,
    "RMSNorm": layers.rms_norm,
    "RNN": layers.rnn,
    "LSTM, two layers": layers.lstm,
    "GRU, both directions": layers.gru,
    "GRU, packed sequences": layers.packed_sequences,
    "TransformerEncoderLayer": layers.transformer,
    "scaled dot-product attention": layers.attention,
    "grouped-query attention": layers.grouped_queries,
    "rotary positions (complex numbers)": layers.rotary,
    "tied embedding": layers.tied_embedding,
    "U-Net": layers.unet,
    "graph network (`index_add`)": layers.graph_scatter,
    "mixture of experts, one inactive": layers.mixture_of_experts,
    "ensemble, dropout in train mode": layers.ensemble,
    "spatial transformer (`grid_sample`)": training.grid_sampling,
    "`nn.Embedding(sparse=True)`": training.sparse_embedding,
}

TRAINING: dict[str, Callable[[], Problem]] = {
    "activation checkpointing": training.checkpointing,
    "activation checkpointing, reentrant": training.reentrant_checkpointing,
    "weight norm (parametrization)": training.weight_norm,
    "weight norm (hook)": training.weight_norm_by_hook,
    "spectral norm (parametrization)": training.spectral_norm,
    "spectral norm (hook)": training.spectral_norm_by_hook,
    "parametrization of one's own": training.parametrized,
    "orthogonal (Cayley)": training.orthogonal,
    "LoRA, adapters only": training.lora,
    "frozen backbone with batch norm": layers.frozen_backbone,
    "buffers updated in forward": training.buffers_updated,
    "custom function": training.custom_function,
    "custom function, once differentiable": training.custom_function_once,
    "autocast in forward, bfloat16": training.autocast,
    "bfloat16 parameters, `dtype=float64`": training.bfloat16_parameters,
    "complex parameters": training.complex_parameters,
    "quantised": training.quantised,
    "`DataParallel`": training.data_parallel,
    "`torch.compile`": training.compiled,
    "TorchScript": training.scripted,
    "parameter without entries": training.empty_parameter,
}

BATCHES: dict[str, Callable[[], Problem]] = {
    "tuple": batches.pair,
    "list": batches.list_of_two,
    "dict": batches.mapping,
    "mapping like `BatchEncoding`": batches.encoding,
    "named tuple": batches.named_tuple,
    "dataclass": batches.data_class,
    "frozen dataclass": batches.frozen_data_class,
    "tensor alone": batches.tensor_alone,
    "several inputs": batches.several_inputs,
    "list of sequences of several lengths": batches.variable_lengths,
}

SECTIONS = {"Architectures": ARCHITECTURES, "Training": TRAINING, "Batches": BATCHES}
