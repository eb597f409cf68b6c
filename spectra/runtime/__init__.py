"""Resources of a running computation: memory, locks, random states, shared results, progress, budgets and errors."""
