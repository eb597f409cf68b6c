"""Attributes of another type than spectra writes, under checksums that fit, are refused by name."""

from __future__ import annotations

import io
import json

import h5py
import numpy as np
import pytest
from run_files import SETTINGS, make_record, sealed_anew

from spectra.errors import StorageError
from spectra.results.storage.checksum import sealed, unsealed
from spectra.results.storage.runfile import RunFile, load_trajectory

RECORD = "records/000000"


def with_attribute(path, place, name, value):
    RunFile.open(path, SETTINGS).append(make_record(0))
    buffer = io.BytesIO(unsealed(path.read_bytes(), ""))
    with h5py.File(buffer, "r+", libver=("v108", "v108")) as file:
        file[place].attrs[name] = value
        sealed_anew(file[place])
    path.write_bytes(sealed(buffer.getvalue()))


@pytest.mark.parametrize("place", ["/", RECORD])
@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("dtype", {"": {}}, "settings/dtype is .*: a text is needed"),
        ("task", ["x"], "settings/task is"),
        ("lanczos_steps", "100", "settings/lanczos_steps is '100': a whole number is needed"),
        ("seed", 0.5, "settings/seed is '0.5'"),
        ("batch_sizes", [64, 2], "settings/batch_sizes is .* a list of pairs"),
        ("batch_sizes", [[64, "2"]], "settings/batch_sizes is"),
        ("params", [1], "settings/params is"),
        ("l2", True, "settings/l2 is"),
        (None, 3.5, "attribute settings is not a JSON object"),
        (None, None, "attribute settings is not a JSON object"),
        (None, [1], "attribute settings is not a JSON object"),
    ],
)
def test_settings_of_another_type_are_refused(tmp_path, place, name, value, words):
    path = tmp_path / "run.h5"
    with_attribute(path, place, "settings", json.dumps(value if name is None else SETTINGS | {name: value}))
    with pytest.raises(StorageError, match=words) as said:
        load_trajectory(path)
    assert str(said.value).startswith(str(path))
    assert "\n" not in str(said.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("epoch", value) for value in ("3", np.inf, np.nan)),
        *(("step", value) for value in ("3", np.inf, 2.5)),
        *(("operator", 3), ("checkpoint", 0.5), ("own_tensors", "x"), ("reason", 2)),
    ],
)
def test_what_a_record_is_ordered_and_called_by_is_refused_where_it_is_of_another_type(tmp_path, name, value):
    path = tmp_path / "run.h5"
    with_attribute(path, RECORD, name, value)
    with pytest.raises(StorageError, match=f"record 000000 is damaged: attribute {name} is"):
        load_trajectory(path)


@pytest.mark.parametrize(("name", "value"), [("notes", '"x"'), ("notes", "[1]"), ("notes", "{}"), ("provenance", "[]")])
def test_notes_and_provenance_of_another_type_are_refused(tmp_path, name, value):
    path = tmp_path / "run.h5"
    with_attribute(path, RECORD, name, value)
    record = load_trajectory(path)[0]
    with pytest.raises(StorageError, match=f"record 000000 is damaged: attribute {name} is not a"):
        record.facts  # noqa: B018
