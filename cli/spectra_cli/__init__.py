"""The command line of spectra."""
