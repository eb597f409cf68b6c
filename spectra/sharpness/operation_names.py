"""Names of operations of torch, as ``torch.overrides`` passes them, by how their results scale with their arguments.

The rules are in :mod:`spectra.sharpness.degrees`.
"""

from __future__ import annotations

LINEAR = {"linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
PRODUCTS = {"matmul", "__matmul__", "mm", "bmm", "mul", "__mul__", "__rmul__", "multiply", "mul_", "__imul__"}
QUOTIENTS = {"div", "__truediv__", "true_divide", "div_", "__itruediv__", "__div__"}
SUMS = {"add", "__add__", "__radd__", "__iadd__", "add_", "sub", "__sub__", "__rsub__", "__isub__", "sub_", "rsub"}
JOINS = {"cat", "concat", "concatenate", "stack", "hstack", "vstack"}
SUMS |= {"subtract", "maximum", "minimum", *JOINS}
# Of the first argument's degree. Reductions take means, sums and extremes, which scale like their entries.
KEEPING = {"relu", "relu_", "leaky_relu", "leaky_relu_", "rrelu", "max_pool1d", "max_pool2d", "max_pool3d"}
KEEPING |= {"boolean_dispatch", "max_pool1d_with_indices", "max_pool2d_with_indices", "max_pool3d_with_indices"}
KEEPING |= {"avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d"}
KEEPING |= {"adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"}
KEEPING |= {"adaptive_max_pool1d_with_indices", "adaptive_max_pool2d_with_indices"}
KEEPING |= {"adaptive_max_pool3d_with_indices", "flatten", "reshape", "view", "permute", "transpose", "swapaxes"}
KEEPING |= {"swapdims", "t", "T", "mT", "contiguous", "clone", "squeeze", "unsqueeze", "expand", "expand_as"}
KEEPING |= {"repeat", "tile", "mean", "sum", "amax", "amin", "max", "min", "__getitem__", "chunk", "split", "unbind"}
KEEPING |= {"narrow", "select", "index_select", "roll", "flip", "neg", "__neg__", "negative", "abs", "__abs__", "to"}
KEEPING |= {"double", "float", "type", "type_as", "interpolate", "upsample", "pixel_shuffle", "pixel_unshuffle"}
KEEPING |= {"channel_shuffle", "unfold", "fold", "view_as", "reshape_as", "movedim", "moveaxis", "unflatten"}
KEEPING |= {"cumsum", "diagonal", "tril", "triu"}
DROPOUT = {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "dropout_"}
NUMBERS = {"item", "tolist", "numpy", "__float__", "__int__", "__bool__", "__index__", "equal", "allclose"}
