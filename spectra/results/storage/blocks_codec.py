"""The spectra of diagonal blocks as an HDF5 group, and back: a spectrum for each name."""

from __future__ import annotations

import h5py

from spectra.jsonable import dumps
from spectra.results.storage.attributes import get_attribute, read_texts, seal, set_attribute, verify, write_texts
from spectra.results.storage.branch import Branch
from spectra.results.storage.dataclass_codec import read_named_rows, write_rows
from spectra.results.storage.shapes import check_shapes, unique
from spectra.results.storage.spectrum_codec import read_spectrum, write_spectrum
from spectra.results.storage.texts import texts_in
from spectra.spectrum.block_spectra import NAMES, BlockSpectra
from spectra.spectrum.estimates import Estimate
from spectra.spectrum.spectrum import ESTIMATES_EDITION


def write_blocks(group: h5py.Group, blocks: BlockSpectra) -> None:
    """Write the names, and for each a group with its spectrum and the estimates that tables show."""
    set_attribute(group, "how", blocks.how)
    set_attribute(group, "left_out", dumps(blocks.left_out))
    write_texts(group, "names", blocks)
    for index, (name, spectrum) in enumerate(blocks.items()):
        part = group.create_group(_key(index))
        write_spectrum(part.create_group("spectrum"), spectrum)
        cache = part.create_group("estimates")
        set_attribute(cache, "edition", ESTIMATES_EDITION)
        write_rows(cache, Estimate, blocks.estimates[name].values(), names=NAMES)
        seal(part)
    seal(group)


def read_blocks(group: Branch) -> BlockSpectra:
    """The blocks that `write_blocks` has written.

    Raises:
        ValueError: a name is there twice or has no spectrum, or a checksum does not match.
    """
    check_shapes(group, "blocks")
    verify(group)
    names = unique(read_texts(group["names"]), "blocks/names")
    if not names or any(f"{_key(index)}/spectrum" not in group for index in range(len(names))):
        raise ValueError(f"blocks has {len(names)} names, and not a spectrum for each")
    spectra = {
        name: read_spectrum(group[f"{_key(index)}/spectrum"], f"blocks/{_key(index)}/spectrum")
        for index, name in enumerate(names)
    }
    left_out = texts_in(group.attrs["left_out"], "blocks/left_out")
    cached = {name: _cached(group[_key(index)]) for index, name in enumerate(names)}
    known = {name: estimates for name, estimates in cached.items() if estimates is not None}
    how = str(get_attribute(group, "how"))
    return BlockSpectra(how, spectra, tuple(left_out), known if len(known) == len(names) else None)


def _cached(group: Branch) -> dict[str, Estimate] | None:
    """The stored estimates of a block; None where they are absent, of another edition or damaged: computed again."""
    if "estimates" not in group or get_attribute(group["estimates"], "edition") != ESTIMATES_EDITION:
        return None
    try:
        check_shapes(group["estimates"], "estimates")
        verify(group["estimates"])
        found = read_named_rows(group["estimates"], Estimate, "estimates/name")
    except ValueError:
        return None
    return found if tuple(found) == NAMES else None


def _key(index: int) -> str:
    return f"{index:05d}"
