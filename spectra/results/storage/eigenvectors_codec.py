"""The analysis of the eigenvectors as an HDF5 group, and back."""

from __future__ import annotations

import h5py

from spectra.results.storage.attributes import read_texts, write_texts
from spectra.results.storage.branch import Branch
from spectra.results.storage.dataclass_codec import read_object, write_object
from spectra.results.storage.shapes import unique
from spectra.spectrum.eigenvector_analysis import EigenvectorAnalysis


def write_eigenvectors(group: h5py.Group, found: EigenvectorAnalysis) -> None:
    """Write the names of the tensors as a dataset, and all other fields by the codec of dataclasses."""
    write_texts(group, "tensors", found.tensors)
    write_object(group, found, without=("tensors",))


def read_eigenvectors(group: Branch) -> EigenvectorAnalysis:
    """The analysis that `write_eigenvectors` has written.

    Raises:
        ValueError: an array is missing, or a name is there twice.
    """
    names = unique(read_texts(group["tensors"]), "eigenvectors/tensors")
    return read_object(group, EigenvectorAnalysis, tensors=tuple(names))
