"""From checkpoints to records: settings, one analysis, a run of many, resuming, and tracking while training."""
