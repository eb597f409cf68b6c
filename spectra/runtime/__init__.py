"""What a computation uses while it runs: memory, random states, shared results, progress, allowances, faults."""
