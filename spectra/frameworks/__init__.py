"""Tasks for the checkpoints of other packages, made from what lies beside the weights: no file has to be written."""
