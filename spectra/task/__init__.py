"""The loss that is analysed: model, criterion, data, and how they are averaged."""
