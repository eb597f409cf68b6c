"""Results files and files of finished probes that point elsewhere, never end, or declare what they do not hold.

Each is sealed, and its checksums fit: what is refused is refused for what it is. Readers run in processes of their own
with a limit of time and memory, since HDF5 can crash or wait.
"""

from __future__ import annotations

import io
import os
import re
import threading

import h5py
import numpy as np
import pytest
from limited_process import said_in_a_process
from run_files import SETTINGS, make_record, sealed_anew

from spectra.results.storage.checksum import sealed, unsealed
from spectra.results.storage.contents import Contents
from spectra.results.storage.merge import merge
from spectra.results.storage.partial import Partial, PartialFile
from spectra.results.storage.runfile import RunFile, load_trajectory

pytestmark = pytest.mark.skipif(os.name != "posix", reason="limits of a process")

RECORD = "records/000000"
SPECTRUM = f"{RECORD}/spectrum"
SECRET = "this is a secret of another file\n" * 8


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret.txt"
    path.write_text(SECRET)
    return path


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run.h5"
    run = RunFile.open(path, SETTINGS)
    for epoch in range(2):
        run.append(make_record(epoch))
    return path.read_bytes()


def changed(image, change, secret, libver="latest"):
    buffer = io.BytesIO(unsealed(image, ""))
    with h5py.File(buffer, "r+", libver=libver) as file:
        change(file, str(secret))
    return buffer.getvalue()


def read(path):
    for record in load_trajectory(path):
        record.to_json()
        record.estimates  # noqa: B018


def append(path):
    run = RunFile.open(path, SETTINGS)
    run.records[0].to_json()
    run.append(make_record(7))


USES = {
    "read": read,
    "append": append,
    "merge": lambda path: merge([path], path.with_name("merged.h5")),
    "probes": lambda path: PartialFile(path.with_suffix("")).read(),
}


def said_by(use, path):
    """The message of the error, or an empty text."""

    def call():
        USES[use](path)

    return said_in_a_process(call)


def refused(use, path):
    words = said_by(use, path)
    assert words, "not refused"
    assert "\n" not in words
    assert words.startswith(str(path)), words
    assert "secret of" not in words
    return words


# -- what a file may not be


def external(file, secret, place=f"{SPECTRUM}/alphas"):
    shape, group = file[place].shape, file[place].parent
    del file[place]
    name = place.rpartition("/")[2]
    group.create_dataset(name, shape, "f8", external=[(secret, 0, h5py.h5f.UNLIMITED)])


def virtual(file, secret, place=f"{SPECTRUM}/alphas", source="."):
    shape, group = file[place].shape, file[place].parent
    del file[place]
    layout = h5py.VirtualLayout(shape, dtype="f8")
    layout[:] = h5py.VirtualSource(source, f"{SPECTRUM}/betas", shape=shape)
    group.create_virtual_dataset(place.rpartition("/")[2], layout)


def in_place(place, make):
    def change(file, secret):
        if place in file:
            del file[place]
        group = file.require_group(place.rpartition("/")[0] or "/")
        made = make(file, group, place.rpartition("/")[2], secret)
        if made is not None and place not in file:
            group[place.rpartition("/")[2]] = made

    return change


def of_type(kind, value=None):
    def make(file, group, name, secret):
        group.create_dataset(name, (4, 12), dtype=kind, data=value)

    return make


def unfilled(file, group, name, secret):
    """Declared, and not one byte of it is in the file."""
    group.create_dataset(name, (2**17, 2**20), "f8")


def unfilled_chunks(file, group, name, secret):
    group.create_dataset(name, (2**17, 2**20), "f8", chunks=(1, 2**17), compression="gzip")


def twice_deflated(file, group, name, secret):
    created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    created.set_chunk((4, 12))
    created.set_deflate(9)
    created.set_deflate(9)
    space = h5py.h5s.create_simple((4, 12))
    dataset = h5py.h5d.create(group.id, name.encode(), h5py.h5t.NATIVE_DOUBLE, space, created)
    h5py.Dataset(dataset)[...] = np.zeros((4, 12))


def large_chunk(file, group, name, secret):
    group.create_dataset(
        name, (4, 12), "f8", data=np.zeros((4, 12)), chunks=(2**11, 2**11), maxshape=(None, None), compression="gzip"
    )


def texts_of_one(file, group, name, secret):
    """Many texts that are the same bytes of the file: each costs 16 bytes, and is a megabyte."""
    group.create_dataset(name, (2000,), data=["x" * 2**20] + ["y"] * 1999, dtype=h5py.string_dtype())
    group.file.flush()


def nested(file, group, name, secret):
    for _ in range(60):
        group = group.create_group(name)


def cycle(file, group, name, secret):
    group[name] = file


def cycle_of_two(file, group, name, secret):
    group.create_group(name)["back"] = group


def many_attributes(file, group, name, secret):
    for number in range(5000):
        group.attrs[f"a{number}"] = 1


def attribute(make):
    def change(file, secret):
        file[SPECTRUM].attrs["n"] = make(file)

    return change


def vlen_of_numbers(file, group, name, secret):
    group.create_dataset(name, (1,), dtype=h5py.vlen_dtype("f8"))[0] = np.zeros(3)


def in_a_group_with_attributes(file, secret):
    group = file[RECORD].create_group("more")
    group.attrs["a"] = 1.0
    group.create_dataset("x", (len(SECRET),), "u1", external=[(secret, 0, len(SECRET))])
    group.attrs["b"] = "text"


def make_fifo(secret):
    if not os.path.exists(f"{secret}.fifo"):
        os.mkfifo(f"{secret}.fifo")
    return f"{secret}.fifo"


def link(target):
    return lambda file, group, name, secret: h5py.SoftLink(target)


def external_link(target):
    return lambda file, group, name, secret: h5py.ExternalLink(secret if target is None else target, "/")


HOSTILE = {
    "external storage": (external, "is stored in another file"),
    "external storage of the facts": (lambda f, s: external(f, s, f"{SPECTRUM}/orthogonality"), "in another file"),
    "external storage of estimates": (lambda f, s: external(f, s, f"{RECORD}/estimates/value"), "in another file"),
    "external storage in a group with attributes": (in_a_group_with_attributes, "more/x is stored in another file"),
    "a fifo as storage": (lambda f, s: external(f, make_fifo(s)), "is stored in another file"),
    "virtual": (virtual, "is a virtual dataset"),
    "virtual of another file": (lambda f, s: virtual(f, s, source=s), "is a virtual dataset"),
    "virtual estimates": (lambda f, s: virtual(f, s, f"{RECORD}/estimates/value"), "is a virtual dataset"),
    "a soft link to a dataset": (in_place(f"{SPECTRUM}/alphas", link(f"/{SPECTRUM}/betas")), "alphas is a soft link"),
    "a soft link to another record": (in_place(SPECTRUM, link("/records/000001/spectrum")), "spectrum is a soft link"),
    "a soft link to itself": (in_place(SPECTRUM, link(f"/{SPECTRUM}")), "spectrum is a soft link"),
    "a soft link of a name that is not known": (in_place(f"{RECORD}/more", link("/nowhere")), "more is a soft link"),
    "a record that is a soft link": (in_place(RECORD, link("/records/000001")), "is a soft link"),
    "records that are a soft link": (
        lambda f, s: (f.move("records", "real"), f.__setitem__("records", h5py.SoftLink("/real"))),
        "is a soft link",
    ),
    "a link to another file": (in_place(f"{SPECTRUM}/alphas", external_link(None)), "is a link to another file"),
    "a link to a fifo": (
        in_place(f"{RECORD}/more", lambda f, g, n, s: h5py.ExternalLink(make_fifo(s), "/")),
        "another file",
    ),
    "records of another file": (in_place("records", external_link(None)), "is a link to another file"),
    "a cycle": (in_place(f"{SPECTRUM}/more", cycle), "under another name"),
    "a cycle of two": (in_place(f"{SPECTRUM}/more", cycle_of_two), "under another name"),
    "a cycle at the root": (in_place("more", lambda f, g, n, s: f["records"]), "under another name"),
    "one dataset of two names": (in_place(f"{SPECTRUM}/betas", lambda f, g, n, s: g["alphas"]), "under another name"),
    "a spectrum of two records": (
        in_place(SPECTRUM, lambda f, g, n, s: f["records/000001/spectrum"]),
        "under another name",
    ),
    "groups without end": (in_place(f"{RECORD}/deep", nested), "more than 12 groups around it"),
    "declared alone": (in_place(f"{SPECTRUM}/alphas", unfilled), "declares 1099511627776 bytes"),
    "declared in chunks": (in_place(f"{SPECTRUM}/alphas", unfilled_chunks), "declares 1099511627776 bytes"),
    "declared somewhere else": (in_place(f"{RECORD}/facts/more", unfilled), "declares 1099511627776 bytes"),
    "deflated twice": (in_place(f"{SPECTRUM}/alphas", twice_deflated), "has a filter twice"),
    "a chunk larger than all": (in_place(f"{SPECTRUM}/alphas", large_chunk), "has chunks of 33554432 bytes"),
    "the filter lzf": (
        in_place(
            f"{SPECTRUM}/alphas", lambda f, g, n, s: g.create_dataset(n, data=np.ones((4, 12)), compression="lzf")
        ),
        "needs the filter 32000: gzip, shuffle, fletcher32 are known",
    ),
    "the filter scale-offset": (
        in_place(
            f"{SPECTRUM}/alphas",
            lambda f, g, n, s: g.create_dataset(n, data=np.ones((4, 12), "i8"), chunks=(4, 12), scaleoffset=0),
        ),
        "needs the filter 6",
    ),
    "numbers of variable length": (in_place(f"{SPECTRUM}/alphas", vlen_of_numbers), "neither numbers nor texts"),
    "references": (in_place(f"{SPECTRUM}/alphas", of_type(h5py.ref_dtype)), "neither numbers nor texts"),
    "regions": (in_place(f"{SPECTRUM}/alphas", of_type(h5py.regionref_dtype)), "neither numbers nor texts"),
    "opaque": (in_place(f"{SPECTRUM}/alphas", of_type("V8")), "neither numbers nor texts"),
    "compound": (in_place(f"{SPECTRUM}/alphas", of_type([("a", "f8"), ("b", "i8")])), "neither numbers nor texts"),
    "complex": (in_place(f"{SPECTRUM}/alphas", of_type("c16")), "neither numbers nor texts"),
    "a type with a name": (in_place(f"{RECORD}/more", lambda f, g, n, s: np.dtype("f8")), "neither a group nor"),
    "attribute that is an array": (attribute(lambda f: np.arange(200)), "attribute n of spectrum is not one value"),
    "attribute that is a reference": (attribute(lambda f: f.ref), "attribute n of spectrum holds neither"),
    "empty attribute": (attribute(lambda f: h5py.Empty("f8")), "attribute n of spectrum is not one value"),
    "attribute without end": (in_place(f"{RECORD}/facts/x", many_attributes), "more than 1024 attributes"),
    "a reference to the settings": (lambda f, s: f[RECORD].attrs.__setitem__("settings", f.ref), "settings of"),
}


ALL_WAYS = ("external storage", "virtual", "a fifo as storage", "a soft link to a dataset", "a cycle", "declared alone")
CASES = [(kind, "read") for kind in HOSTILE] + [(kind, use) for kind in ALL_WAYS for use in ("append", "merge")]


@pytest.mark.parametrize(("kind", "use"), CASES)
def test_a_file_that_is_not_of_spectra_is_refused_in_one_line(tmp_path, image, secret, kind, use):
    change, words = HOSTILE[kind]
    path = tmp_path / "run.h5"

    def change_and_sum(file, secret):
        change(file, secret)
        if isinstance(file.get("records", getlink=True), h5py.HardLink):
            for place in (SPECTRUM, RECORD):
                if isinstance(file.get(place, getlink=True), h5py.HardLink) and "fifo" not in kind:
                    sealed_anew_one(file[place], kind)

    path.write_bytes(sealed(changed(image, change_and_sum, secret)))
    before = path.read_bytes()
    said = refused(use, path)
    assert re.search(words, said), said
    assert path.read_bytes() == before


def sealed_anew_one(group, kind):
    if any(word in kind for word in ("cycle", "declared", "virtual", "without end")):
        return  # what a reader would not come to the end of
    sealed_anew(group)


@pytest.mark.parametrize("kind", ["external storage", "virtual", "a fifo as storage", "a cycle", "declared alone"])
def test_it_is_refused_without_a_seal_too(tmp_path, image, secret, kind):
    path = tmp_path / "run.h5"
    path.write_bytes(changed(image, HOSTILE[kind][0], secret))
    refused("read", path)


def put(name, index, value, of=RECORD):
    def change(file):
        cell = file[f"{of}/{name}"]
        if index is None:
            cell.parent.attrs[name.rpartition("/")[2]] = value
        else:
            cell[index] = value

    return change


def set_n(value):
    def change(file):
        file[SPECTRUM].attrs["n"] = value

    return change


def cut(name, slices):
    def change(file):
        values = file[f"{RECORD}/{name}"][slices]
        del file[f"{RECORD}/{name}"]
        file[f"{RECORD}/{name}"] = values

    return change


def vectors_of_another_shape(file):
    pairs = file[SPECTRUM].create_group("eigenpairs")
    for name in ("values", "residuals"):
        pairs[name] = np.ones(2)
    pairs["converged"] = np.ones(2, "u1")
    pairs["overlaps"] = np.ones((4, 2))
    pairs.create_dataset("vectors", (2, 2**22), "f4", data=np.zeros((2, 2**22), "f4"), compression="gzip")


IMPOSSIBLE = {
    "more steps than columns": (put("spectrum/lengths", 2, 13), r"lengths\[2\] is 13: a probe has from 1 to 12 steps"),
    "no steps": (put("spectrum/lengths", 0, 0), r"lengths\[0\] is 0: a probe has"),
    "steps below zero": (put("spectrum/lengths", 0, -(2**62)), r"lengths\[0\] is -4611686018427387904"),
    "fewer lengths than probes": (
        cut("spectrum/lengths", slice(3)),
        r"exhausted has shape \(4,\): 3 in place of 4 is needed, by spectrum/lengths",
    ),
    "fewer betas": (cut("spectrum/betas", np.s_[:, :5]), r"betas has shape \(4, 5\): 12 in place of 5 is needed"),
    "a row": (cut("spectrum/betas", 0), "betas has 1 dimensions, not 2"),
    "an alpha without a square": (put("spectrum/alphas", (0, 0), -1e300), "float64 does not hold its square"),
    "a beta without a square": (put("spectrum/betas", (1, 3), np.inf), r"betas\[1, 3\] is inf: float64 does not hold"),
    "a matrix of no rows": (set_n(0), "12 alphas of a matrix of 0 rows"),
    "a matrix below zero": (set_n(-(2**62)), "of a matrix of -4611686018427387904 rows"),
    "more rows than parameters": (set_n(2**62), "sizes sum to 200, not to the n=4611686018427387904 rows"),
    "a tensor below zero": (put("spectrum/tensors/sizes", 0, -1), "sizes sum to 79, not to the n=200 rows"),
    "a tensor without entries": (put("spectrum/tensors/sizes", 0, 0), "sizes sum to 80, not to"),
    "two tensors of one name": (
        put("spectrum/tensors/names", 1, "conv.weight"),
        "spectrum/tensors/names has 'conv.weight' twice",
    ),
    "forms of other tensors": (cut("spectrum/tensors/forms", np.s_[:, :2]), "forms has shape"),
    "vectors of another matrix": (
        vectors_of_another_shape,
        r"\(2, 4194304\): 200 in place of 4194304 is needed, by attribute n",
    ),
}


@pytest.mark.parametrize(
    "change", [put("estimates/name", 1, "trace"), cut("estimates/value", slice(3)), cut("estimates/tau", np.s_[:0])]
)
def test_estimates_that_do_not_belong_together_are_computed_again(tmp_path, image, secret, change):
    def change_and_seal(file, secret):
        change(file)
        sealed_anew(file[f"{RECORD}/estimates"])

    path = tmp_path / "run.h5"
    path.write_bytes(image)
    right = {name: found.value for name, found in load_trajectory(path)[0].estimates.items()}
    path.write_bytes(sealed(changed(image, change_and_seal, secret, libver=("v108", "v108"))))
    record = load_trajectory(path)[0]
    assert "the stored estimates were damaged: computed again from the tridiagonals" in record.notes
    assert {name: found.value for name, found in record.estimates.items()} == pytest.approx(right, nan_ok=True)


@pytest.mark.parametrize("kind", IMPOSSIBLE)
def test_numbers_that_do_not_belong_together_are_refused_by_name(tmp_path, image, secret, kind):
    change, words = IMPOSSIBLE[kind]

    def change_and_seal(file, secret):
        change(file)
        for place in ("spectrum/tensors", "estimates", "spectrum/eigenpairs", "spectrum"):
            if f"{RECORD}/{place}" in file:
                sealed_anew(file[f"{RECORD}/{place}"])

    path = tmp_path / "run.h5"
    path.write_bytes(sealed(changed(image, change_and_seal, secret, libver=("v108", "v108"))))
    said = refused("read", path)
    assert "record 000000 is damaged" in said
    assert re.search(words, said), said


def texts_at_one_place(image, secret):
    """A file of which many texts are one megabyte of it."""

    def change(file, secret):
        names = ["x" * 2**20] + ["y"] * 1999
        del file[f"{SPECTRUM}/tensors/names"]
        file[f"{SPECTRUM}/tensors"].create_dataset("names", data=names, dtype=h5py.string_dtype())

    content = bytearray(changed(image, change, secret))
    with h5py.File(io.BytesIO(bytes(content)), "r") as file:
        start = file[f"{SPECTRUM}/tensors/names"].id.get_offset()
    content[start : start + 16 * 2000] = bytes(content[start : start + 16]) * 2000
    return sealed(bytes(content))


@pytest.mark.parametrize("use", ["read", "merge"])
def test_texts_that_are_the_same_bytes_are_refused(tmp_path, image, secret, use):
    path = tmp_path / "run.h5"
    path.write_bytes(texts_at_one_place(image, secret))
    assert "more text than the file can hold" in refused(use, path)


def test_all_datasets_together_are_no_larger_than_the_file(image):
    """Many may be the same bytes: to read them would take as long as their number, not as the file is long."""
    content = unsealed(image, "")
    with h5py.File(io.BytesIO(content), "r") as file:
        Contents(file, content).check(file[RECORD])
        spectrum = Contents(file, content[:-1])  # of which each dataset fits in
        spectrum._left = sum(file[SPECTRUM][name].id.get_storage_size() for name in ("alphas", "betas"))
        with pytest.raises(ValueError, match="is larger than the file"):
            spectrum.check(file[SPECTRUM])


@pytest.mark.parametrize("kind", ["external", "virtual", "soft", "link", "cycle", "declared", "opaque", "deep"])
def test_a_file_of_finished_probes_is_walked_too(tmp_path, secret, kind):
    file = PartialFile(tmp_path / "run.h5")
    file.write(Partial({}, {}, [[{"alphas": np.zeros((4, 12)), "betas": np.ones((4, 12))}]]))
    place = "parts/0/000000/alphas"
    change = {
        "external": lambda f, s: external(f, s, place),
        "virtual": lambda f, s: virtual_of_probes(f, place),
        "soft": in_place(place, link("/parts/0/000000/betas")),
        "link": in_place(place, external_link(None)),
        "cycle": in_place(place, cycle),
        "declared": in_place(place, unfilled),
        "opaque": in_place(place, of_type("V8")),
        "deep": in_place(place, nested),
    }[kind]
    path = file.path
    path.write_bytes(sealed(changed(path.read_bytes(), change, secret)))
    refused("probes", path)


def virtual_of_probes(file, place):
    del file[place]
    layout = h5py.VirtualLayout((4, 12), dtype="f8")
    layout[:] = h5py.VirtualSource(".", "/parts/0/000000/betas", shape=(4, 12))
    file["parts/0/000000"].create_virtual_dataset("alphas", layout)


def test_nothing_that_spectra_writes_is_refused(tmp_path, image, secret):
    path = tmp_path / "run.h5"
    path.write_bytes(image)
    for use in ("read", "append", "merge"):
        assert said_by(use, path) == ""

    # and what another tool may have done to it: chunks, gzip, shuffle and checksums
    def packed(file, secret):
        for name in ("alphas", "betas"):
            values = file[f"{SPECTRUM}/{name}"][()]
            del file[f"{SPECTRUM}/{name}"]
            file[SPECTRUM].create_dataset(name, data=values, compression="gzip", shuffle=True, fletcher32=True)

    path.write_bytes(changed(image, packed, secret))
    assert said_by("read", path) == ""


def test_reading_in_two_threads_is_no_second_name(tmp_path, image):
    path = tmp_path / "run.h5"
    path.write_bytes(image)
    records = list(load_trajectory(path))
    threads = [threading.Thread(target=lambda: [record.facts for record in records]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [record.facts["n_parameters"] for record in records] == [200, 200]
