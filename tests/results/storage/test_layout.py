"""Every kind of finding is stored as it was before one codec wrote them all: names, types, shapes, missing values."""

from __future__ import annotations

import dataclasses
import io
import math

import h5py
import numpy as np
import pytest
from every_finding import HERE, records, write

from spectra.results.storage.checksum import unsealed
from spectra.results.storage.runfile import RunFile, load_trajectory


def tree(path):
    """Path of every attribute and dataset of the records -> its type, shape, filters and content."""
    found = {}

    def visit(name, node):
        for key, value in node.attrs.items():
            stored = node.attrs.get_id(key)
            found[f"{name}@{key}"] = (stored.dtype, h5py.check_string_dtype(stored.dtype), stored.shape, repr(value))
        if isinstance(node, h5py.Dataset):
            filters = (node.chunks, node.compression, node.compression_opts, node.shuffle, node.maxshape)
            content = node[()].tolist() if node.dtype.kind == "O" else node[()].tobytes()
            found[name] = (node.dtype, h5py.check_string_dtype(node.dtype), node.shape, filters, content)
        else:
            found[name] = "group"

    with h5py.File(io.BytesIO(unsealed(path.read_bytes(), "")), "r") as file:
        file["records"].visititems(visit)
    return found


def plain(value):
    """A value with everything in it, as it compares: types count, arrays are bytes, and NaN equals itself."""
    if dataclasses.is_dataclass(value):
        return type(value), {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tobytes()
    if isinstance(value, dict):
        return [(key, plain(entry)) for key, entry in value.items()]
    if isinstance(value, list | tuple):
        return type(value), [plain(entry) for entry in value]
    return type(value), "nan" if isinstance(value, float) and math.isnan(value) else value


FINDINGS = ("exact", "remainder", "exact_spectrum", "checks", "overlap", "sharpness", "estimates", "test_estimates")
IN_SPECTRA = ("eigenpairs", "overlaps", "start_overlaps", "batch_forms", "batch_weights", "deflated_tensor_forms")


def as_read(record):
    """The findings of a record as they come back: columns are float64, NaN is None, and each tensor has its entry."""
    found = {name: getattr(record, name) for name in FINDINGS}
    for name in ("estimates", "test_estimates"):
        found[name] = {key: as_column(row, "value", "stderr", "lower", "upper") for key, row in found[name].items()}
    found["checks"] = tuple(as_column(check, "estimate", "exact") for check in record.checks)
    found["sharpness"] = {key: as_column(row, "value") for key, row in record.sharpness.items()}
    if (exact := record.exact) is not None:
        errors = exact.stderr_by_layer
        found["exact"] = dataclasses.replace(
            exact,
            by_layer={name: float(trace) for name, trace in exact.by_layer.items()},
            certified={name: exact.certified.get(name, False) for name in exact.by_layer},
            stderr_by_layer=None if errors is None else {name: errors[name] for name in exact.by_layer},
        )
    return found


def as_column(row, *names):
    cells = {name: getattr(row, name) for name in names}
    given = {name: None if cell is None else float(cell) for name, cell in cells.items()}
    missing = {name: None for name, cell in given.items() if name == "stderr" and cell is not None and math.isnan(cell)}
    return dataclasses.replace(row, **given | missing)


@pytest.fixture(autouse=True)
def edition(monkeypatch):
    """That of the stored estimates in the file: it may rise without a change of the layout."""
    with h5py.File(io.BytesIO(unsealed((HERE / "findings.h5").read_bytes(), "")), "r") as file:
        stored = int(file["records/000000/estimates"].attrs["edition"])
    monkeypatch.setattr("spectra.results.storage.record_codec.ESTIMATES_EDITION", stored)


def test_every_finding_is_stored_as_before(tmp_path):
    write(tmp_path / "findings.h5")
    before, after = tree(HERE / "findings.h5"), tree(tmp_path / "findings.h5")
    assert len(before) > 150
    assert after == before


@pytest.mark.parametrize("new", [False, True])
def test_every_finding_is_read_as_it_was_put_in(tmp_path, new):
    path = tmp_path / "findings.h5" if new else HERE / "findings.h5"
    if new:
        write(path)
    for put_in, back in zip(records(), load_trajectory(path), strict=True):
        for name, value in as_read(put_in).items():
            assert plain(getattr(back, name)) == plain(value), name
        for name in ("spectrum", "test_spectrum"):
            for part in IN_SPECTRA:
                put, got = (getattr(getattr(record, name), part, None) for record in (put_in, back))
                if part == "eigenpairs" and put is not None and put.vectors is not None:
                    put = dataclasses.replace(put, vectors=np.asfortranarray(put.vectors.astype(np.float32)))
                assert plain(got) == plain(put), part


def test_records_of_real_runs_are_stored_again_as_they_are(tmp_path):
    for source in sorted(HERE.glob("training*.h5")):
        target = tmp_path / source.name
        trajectory = load_trajectory(source)
        with RunFile.open(target, trajectory.settings) as run:
            for record in trajectory:
                run.append(record)
        before, after = tree(source), tree(target)
        assert before.keys() == after.keys()
        changed = {path for path in before if before[path] != after[path]}
        assert not changed, (source.name, sorted(changed)[:9])
