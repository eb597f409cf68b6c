"""The side-by-side benchmark: spectra, other libraries, and a reference in plain torch (`make bench`)."""
