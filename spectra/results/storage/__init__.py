"""The results file: written record by record, each in one step; read without torch."""
