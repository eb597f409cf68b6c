"""The report page of runs: one HTML file with the numbers, their errors and interactive figures."""
