"""Calls in the form of other libraries, computed by spectra."""
