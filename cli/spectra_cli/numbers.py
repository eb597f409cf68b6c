"""Numbers as text: the functions of `spectra.results.number_text`, which the report page uses too."""

from spectra.results.number_text import as_range, bounds, in_short, interval, number, plain, rounded, with_error

__all__ = ["as_range", "bounds", "in_short", "interval", "number", "plain", "rounded", "with_error"]
