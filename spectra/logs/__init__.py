"""Records in the tools where people watch a training: TensorBoard and Weights & Biases."""
