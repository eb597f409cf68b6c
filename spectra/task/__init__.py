"""The loss that is analysed: a model, a criterion, data, and the averaging over the data."""
