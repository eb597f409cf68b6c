"""The spectra of diagonal blocks in a results file: what is put in comes back, and what is damaged is refused."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from run_files import SETTINGS, make_record

from spectra.errors import StorageError
from spectra.results.storage.blocks_codec import read_blocks, write_blocks
from spectra.results.storage.branch import Branch
from spectra.results.storage.runfile import RunFile, load_trajectory
from spectra.spectrum.block_spectra import BlockSpectra
from spectra.spectrum.spectrum import Spectrum
from spectra.spectrum.tridiagonal import Tridiagonal


def some_blocks(count=3, left_out=("free",)):
    def spectrum(index):
        probes = [Tridiagonal([1.0, 2.0 + index], [0.5, 0.25]), Tridiagonal([1.5, index], [0.25, 0.0], exhausted=True)]
        options = {"noise": 1e-7, "seed": 3, "semidefinite": index == 1, "start_overlaps": np.full((2, 2), 0.5)}
        return Spectrum(probes, 6, tensor_sizes={f"ü.{index}": 6}, tensor_forms=np.ones((2, 1)), **options)

    return BlockSpectra(r"^(ü\.\d)", {f"ü.{index}": spectrum(index) for index in range(count)}, left_out)


@pytest.fixture
def path(tmp_path):
    with RunFile.open(tmp_path / "run.h5", SETTINGS) as run:
        run.append(make_record(0, blocks=some_blocks()))
        run.append(make_record(1))
    return tmp_path / "run.h5"


def test_what_is_put_in_comes_back(path):
    with_blocks, without = load_trajectory(path)
    assert without.blocks is None
    back, put = with_blocks.blocks, some_blocks()
    assert (back.how, back.left_out, list(back)) == (put.how, put.left_out, list(put))
    for name, spectrum in put.items():
        assert back[name].tensor_sizes == spectrum.tensor_sizes
        assert back[name].semidefinite == spectrum.semidefinite
        assert back[name].noise == spectrum.noise
        np.testing.assert_array_equal(back[name].start_overlaps, spectrum.start_overlaps)
        np.testing.assert_array_equal(back[name].nodes, spectrum.nodes)
    assert back.to_json() == put.to_json()
    assert with_blocks.to_json()["blocks"] == put.to_json()
    assert "blocks" not in without.to_json()


def test_a_file_that_another_tool_has_edited_is_read_with_its_blocks(path):
    with h5py.File(path, "r+") as file:
        file.attrs["remark"] = "mine"
    with pytest.raises(StorageError):  # the checksum of the root
        load_trajectory(path)
    with h5py.File(path, "r+") as file:
        del file.attrs["remark"]
    assert list(load_trajectory(path)[0].blocks) == list(some_blocks())


def damaged(edit):
    with h5py.File("in memory", "w", driver="core", backing_store=False) as file:
        group = file.create_group("blocks")
        write_blocks(group, some_blocks())
        edit(group)
        return read_blocks(Branch.of(group))


@pytest.mark.parametrize(
    "edit",
    [
        lambda g: g["00001/spectrum/alphas"].write_direct(np.ones((2, 2))),
        lambda g: g.attrs.modify("how", "module"),
        lambda g: g.pop("00002"),
    ],
)
def test_damage_is_noticed(edit):
    with pytest.raises(ValueError, match=r"checksum|not a spectrum"):
        damaged(edit)


def test_stored_estimates_that_are_damaged_or_of_another_edition_are_computed_again():
    def spoilt(group):
        group["00001/estimates/value"][0] = 7.0

    def older(group):
        group["00000/estimates"].attrs["edition"] = 0

    put = some_blocks()
    assert damaged(lambda group: None).cached_estimates is not None
    for edit in (spoilt, older, lambda group: group["00002"].pop("estimates")):
        found = damaged(edit)
        assert found.cached_estimates is None
        assert found.to_json() == put.to_json()


def test_names_that_do_not_fit_are_refused():
    from spectra.results.storage.attributes import seal, write_texts

    def renamed(*names):
        def edit(group):
            del group["names"]
            write_texts(group, "names", names)
            seal(group)

        return edit

    with pytest.raises(ValueError, match="'a' twice"):
        damaged(renamed("a", "a", "b"))
    for names in ((), ("a", "b", "c", "d")):
        with pytest.raises(ValueError, match=f"has {len(names)} names"):
            damaged(renamed(*names))
