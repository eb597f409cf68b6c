"""A spectrum as an HDF5 group, and back: the tridiagonals of its probes, forms, overlaps and eigenpairs."""

from __future__ import annotations

import h5py
import numpy as np

from spectra.results.storage.attributes import (
    get_array,
    get_attribute,
    padded,
    read_texts,
    seal,
    set_attribute,
    verify,
    write_texts,
)
from spectra.results.storage.branch import Branch
from spectra.results.storage.dataclass_codec import read_object, write_object
from spectra.results.storage.shapes import check_numbers, check_shapes, unique
from spectra.spectrum.eigenpairs import Eigenpairs
from spectra.spectrum.spectrum import Spectrum
from spectra.spectrum.tridiagonal import Tridiagonal


def write_spectrum(group: h5py.Group, spectrum: Spectrum) -> None:
    """Without the codec of dataclasses: the arrays of the probes share tables, and optional parts have groups."""
    set_attribute(group, "n", spectrum.n)
    set_attribute(group, "noise", float(spectrum.noise))
    set_attribute(group, "seed", spectrum.seed)
    set_attribute(group, "distribution", spectrum.distribution)
    parts = spectrum.tridiagonals
    group["alphas"] = padded([part.alphas for part in parts])
    group["betas"] = padded([part.betas for part in parts])
    group["lengths"] = np.array([part.steps for part in parts], dtype=np.int64)
    group["exhausted"] = np.array([part.exhausted for part in parts], dtype=np.uint8)
    group["orthogonality"] = np.array([part.orthogonality for part in parts], dtype=np.float64)
    if spectrum.start_overlaps is not None:
        group["start_overlaps"] = spectrum.start_overlaps
    set_attribute(group, "semidefinite", int(spectrum.semidefinite))
    if spectrum.batch_forms is not None and spectrum.batch_weights is not None:
        batches = group.create_group("batches")
        batches["forms"] = spectrum.batch_forms
        batches["weights"] = spectrum.batch_weights
        seal(batches)
    if spectrum.tensor_sizes:
        tensors = group.create_group("tensors")
        write_texts(tensors, "names", spectrum.tensor_sizes)
        tensors["sizes"] = np.array(list(spectrum.tensor_sizes.values()), dtype=np.int64)
        if spectrum.tensor_forms is not None:
            tensors["forms"] = spectrum.tensor_forms
        if spectrum.deflated_tensor_forms is not None:
            tensors["deflated_forms"], tensors["deflated_traces"] = spectrum.deflated_tensor_forms
        seal(tensors)
    if spectrum.eigenpairs is not None and spectrum.overlaps is not None:
        _write_eigenpairs(group.create_group("eigenpairs"), spectrum.eigenpairs, spectrum.overlaps)
    seal(group)


def read_spectrum(group: Branch, path: str) -> Spectrum:
    """The spectrum in a group.

    Args:
        group: with everything in it.
        path: of the group within its record.

    Raises:
        ValueError: its numbers do not belong together, or a checksum does not match what is there.
    """
    check_shapes(group, path)
    verify(group)
    check_numbers(group)
    alphas, betas = group["alphas"][()], group["betas"][()]
    tridiagonals = [
        Tridiagonal(alphas[i, :steps], betas[i, :steps], exhausted=bool(exhausted), orthogonality=float(orthogonality))
        for i, (steps, exhausted, orthogonality) in enumerate(
            zip(group["lengths"][()], group["exhausted"][()], group["orthogonality"][()], strict=True)
        )
    ]
    sizes = None
    if "tensors" in group:
        names = unique(read_texts(group["tensors/names"]), "spectrum/tensors/names")
        sizes = dict(zip(names, group["tensors/sizes"][()].tolist()))
    deflated = get_array(group, "tensors/deflated_forms")
    pairs = _read_eigenpairs(group["eigenpairs"]) if "eigenpairs" in group else None
    return Spectrum(
        tridiagonals,
        int(group.attrs["n"]),
        noise=float(group.attrs["noise"]),
        seed=get_attribute(group, "seed"),
        distribution=str(group.attrs["distribution"]),
        tensor_sizes=sizes,
        tensor_forms=get_array(group, "tensors/forms"),
        deflated_tensor_forms=None if deflated is None else (deflated, group["tensors/deflated_traces"][()]),
        batch_forms=group["batches/forms"][()] if "batches" in group else None,
        batch_weights=group["batches/weights"][()] if "batches" in group else None,
        semidefinite=bool(get_attribute(group, "semidefinite")),
        eigenpairs=pairs,
        overlaps=None if pairs is None else group["eigenpairs/overlaps"][()],
        start_overlaps=get_array(group, "start_overlaps"),
    )


def _write_eigenpairs(group: h5py.Group, pairs: Eigenpairs, overlaps: np.ndarray) -> None:
    group["converged"] = pairs.converged.astype(np.uint8)
    group["overlaps"] = overlaps
    if pairs.vectors is not None:
        # Pieces of a vector of some 256 KiB: a single vector is read without the others.
        n, count = pairs.vectors.shape
        group.create_dataset(
            "vectors",
            data=pairs.vectors.T.astype(np.float32),
            chunks=(1, min(n, 2**16)) if count else None,
            compression="gzip",
            compression_opts=1,
            shuffle=True,
        )
    write_object(group, pairs, without=("converged", "vectors"))


def _read_eigenpairs(group: Branch) -> Eigenpairs:
    vectors = group["vectors"][()].T if "vectors" in group else None
    return read_object(group, Eigenpairs, converged=group["converged"][()].astype(bool), vectors=vectors)
