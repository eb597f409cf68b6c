"""A pickle in a checkpoint calls nothing of NumPy's and no constructor of memory, whatever it says."""

from __future__ import annotations

import argparse
import codecs
import random
import re
from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch
from crafted_checkpoints import READ, Call, edited, in_child, saved

from spectra.checkpoints.checkpoint import load_checkpoint
from spectra.errors import CheckpointError

np_core = np._core if hasattr(np, "_core") else np.core
reconstruct, scalar = np_core.multiarray._reconstruct, np_core.multiarray.scalar

HONEST = {
    "loss": np.float64(0.1),
    "half": np.float16(0.5),
    "steps": np.int64(7),
    "best": np.bool_(True),
    "name": np.str_("resnet"),
    "tag": np.array([b"ab", b"c"]),
    "words": np.array(["one", "three"]),
    "losses": np.linspace(0, 1, 7, dtype=np.float32),
    "grid": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big": np.arange(4, dtype=">i4"),
    "mask": np.array([[True, False]]),
    "complex": np.array([1 + 2j]),
    "rng": np.random.RandomState(0).get_state(),
    "nested": [{"value": np.float32(2)}, (np.uint8(3),)],
    "args": argparse.Namespace(lr=0.1, betas=(np.float64(0.9), 0.99)),
    "empty": np.zeros((0, 3)),
    "raw": bytearray(b"\x00\xff"),
    "count": Counter({"a": 2}),
    "ordered": OrderedDict(a=1),
    "seen": {1, 2},
}


def plain(value):
    if isinstance(value, (np.generic, np.ndarray)):
        return value.item() if value.size == 1 else value.tolist()
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


@pytest.mark.parametrize("core", ["core", "_core"])
@pytest.mark.parametrize("name", [name for name in HONEST if name not in ("raw", "seen")])
def test_values_of_numpy_come_out_as_they_were_saved(tmp_path, name, core):
    path = saved(tmp_path / "a.pt", {name: HONEST[name]})
    edited(path, lambda data: re.sub(rb"numpy\._?core\.", f"numpy.{core}.".encode(), data))
    assert load_checkpoint(path).metadata["cfg"] == {name: plain(HONEST[name])}


@pytest.mark.parametrize("legacy", [False, True])
def test_all_of_them_together_in_either_format(tmp_path, legacy):
    path = tmp_path / "a.pt"
    torch.save({"model": {"w": torch.ones(2)}, "cfg": HONEST}, path, _use_new_zipfile_serialization=not legacy)
    assert load_checkpoint(path).metadata["cfg"] == {
        key: plain(value) for key, value in HONEST.items() if key not in ("raw", "seen")
    }


def dtype(code, state):
    return Call(np.dtype, code, False, True, state=state)


def array(described, shape=(2,), data=b"\x41" * 16, fortran=False):
    return Call(reconstruct, np.ndarray, (0,), b"b", state=(1, shape, described, fortran, data))


OBJECT = np.dtype("O")
F8 = (3, "<", None, None, None, -1, -1, 0)
ATTACKS = {
    "field_of_objects": array(dtype("V8", (3, "|", None, ("a",), {"a": (OBJECT, 0)}, 8, 1, 0))),
    "field_of_objects_in_scalar": Call(
        scalar, dtype("V8", (3, "|", None, ("a",), {"a": (OBJECT, 0)}, 8, 1, 0)), b"A" * 8
    ),
    "sub_array_of_objects": array(dtype("V8", (3, "|", (OBJECT, (1,)), None, None, 8, 1, 0))),
    "field_beyond_the_end": array(dtype("V8", (3, "|", None, ("a",), {"a": (np.dtype("S200"), 0)}, 8, 1, 0))),
    "number_made_a_struct": array(dtype("f8", (3, "<", None, ("a",), {"a": (OBJECT, 0)}, 8, 1, 0))),
    "objects": array(dtype("O8", (3, "|", None, None, None, -1, -1, 63)), data=[1, 2]),
    "objects_from_bytes": array(dtype("O8", (3, "|", None, None, None, 8, 8, 0))),
    "larger_items": array(dtype("S8", (3, "|", None, None, None, 200, 1, 0))),
    "smaller_items": array(dtype("S8", (3, "|", None, None, None, 0, 1, 0))),
    "negative_items": array(dtype("U2", (3, "<", None, None, None, -8, 4, 0))),
    "with_flags": array(dtype("f8", (3, "<", None, None, None, -1, -1, 63))),
    "with_metadata": array(dtype("f8", (4, "<", None, None, None, -1, -1, 0, {"a": 1}))),
    "order_of_two": array(dtype("f8", (3, "<>", None, None, None, -1, -1, 0))),
    "too_few_bytes": array(dtype("f8", F8), (3,)),
    "too_many_bytes": array(dtype("f8", F8), (1,)),
    "negative_shape": array(dtype("f8", F8), (-1, -2)),
    "shape_overflows": array(dtype("f8", F8), (2**62, 4, 2)),
    "empty_and_huge": array(dtype("f8", F8), (0, 2**62, 2**62), b""),
    "shape_of_floats": array(dtype("f8", F8), (2.0,)),
    "many_dimensions": array(dtype("f8", F8), (1,) * 200 + (2,)),
    "no_bytes": array(dtype("f8", F8), (2,), "A" * 16),
    "no_dtype": array("f8"),
    "array_of_shape": Call(np.ndarray, (1000,)),
    "text_outside_of_unicode": array(dtype("U2", (3, "<", None, None, None, 8, 4, 0)), data=b"\xff" * 16),
    "datetime": np.datetime64("2020-01-01"),
    "struct": np.zeros(2, dtype=[("a", "f8")]),
    "dtype_of_dtype": Call(np.dtype, np.dtype("f8")),
    "dtype_of_fields": Call(np.dtype, "f8,O"),
    "of_huge_text": array(dtype("S999999999", (3, "|", None, None, None, 999999999, 1, 0))),
    "fresh_tensor": Call(torch.Tensor, 1000),
    "fresh_typed_tensor": Call(torch.FloatTensor, 1000),
    "fresh_storage": Call(torch.UntypedStorage, 1000),
    "fresh_parameter": Call(torch.nn.Parameter, 1000),
    "bytearray_of_number": Call(bytearray, 2**40),
    "codec_that_doubles": Call(codecs.encode, b"a" * 9, "hex"),
    "codec_of_archives": Call(codecs.encode, b"a" * 9, "bz2"),
    "set_of_text": Call(set, "abc"),
    "wrapped_tensor": Call(torch._tensor._rebuild_from_type_v2, print, torch.Tensor, ("x",), {}),
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What reading each of the files comes to, in one process, which a crash would end."""
    folder = tmp_path_factory.mktemp("attacks")
    paths = [saved(folder / f"{name}.pt", attack) for name, attack in ATTACKS.items()]
    done = in_child(READ, *map(str, paths))
    return dict(line.split("\t", 1) for line in done.stdout.splitlines()), done


@pytest.mark.parametrize("name", list(ATTACKS))
def test_a_forged_description_is_refused_in_one_line(answers, name):
    lines, done = answers
    assert done.returncode == 0, (done.returncode, done.stderr[:300])
    assert lines[name].startswith("refused\t"), lines[name]
    assert "damaged" in lines[name] or "--unsafe-load" in lines[name]


def test_a_key_that_is_nested_deeply_is_refused(tmp_path):
    deep = b")" + b"\x85" * 10**6  # hashing such a tuple overflows the stack of the interpreter
    path = edited(saved(tmp_path / "a.pt", {"k": 1}), lambda data: data.replace(b"X\x01\x00\x00\x00k", deep))
    done = in_child(READ, str(path))
    assert done.returncode == 0, done
    assert "a key of a dictionary in it is a tuple" in done.stdout


@pytest.mark.parametrize(
    ("size", "stride", "offset"), [((13,), (1,), 0), ((3, 4), (5, 1), 0), ((12,), (1,), 1), ((2**40,), (1,), 0)]
)
def test_a_tensor_reads_nothing_outside_of_its_storage(tmp_path, size, stride, offset):
    storage = torch.ones(12).untyped_storage()
    typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)
    tensor = Call(torch._utils._rebuild_tensor_v2, typed, offset, size, stride, False, OrderedDict())
    with pytest.raises(CheckpointError, match="reaches past the end of its storage of 12 numbers"):
        load_checkpoint(saved(tmp_path / "a.pt", tensor))


def test_what_the_application_allows_is_still_allowed(tmp_path):
    path = saved(tmp_path / "a.pt", Call(random.Random, 3))
    with pytest.raises(CheckpointError, match=r"asks to run random\.Random"):
        load_checkpoint(path)
    with torch.serialization.safe_globals([random.Random]):
        assert load_checkpoint(path).metadata == {}


FUZZ = """
import io, random, signal, sys, zipfile
from pathlib import Path
import torch
from crafted_checkpoints import mutated_pickle
from spectra.checkpoints.checkpoint import load_checkpoint
from spectra.errors import SpectraError
folder, count, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
dice = random.Random(seed)
corpus = []
for source in sorted(folder.glob("*.pt")):
    with zipfile.ZipFile(source) as archive:
        corpus.append({part.filename: archive.read(part) for part in archive.infolist()})
def pickle_in(parts):
    return next(name for name in parts if name.endswith("/data.pkl"))
pickles = [parts[pickle_in(parts)] for parts in corpus]
path = folder / "mutant.bin"
loaded = 0
for number in range(count):
    parts = dict(dice.choice(corpus))
    name = pickle_in(parts)
    parts[name] = mutated_pickle(parts[name], pickles, dice)
    with zipfile.ZipFile(path, "w") as archive:
        for part, data in parts.items():
            archive.writestr(part, data)
    signal.alarm(90)
    try:
        found = load_checkpoint(path)
        repr(found.metadata)
        [tensor.double().sum().item() for tensor in found.state_dict.values() if not tensor.is_complex()]
        loaded += 1
    except SpectraError as error:
        if len(str(error).splitlines()) != 1:
            sys.exit(f"mutant {number}: not one line: {error!r}")
    except BaseException as error:
        sys.exit(f"mutant {number}: {error!r}")
print(loaded)
"""


def fuzzed(tmp_path, count, seed):
    for number, name in enumerate(("field_of_objects", "objects", "struct", "codec_that_doubles")):
        saved(tmp_path / f"attack{number}.pt", ATTACKS[name])
    saved(tmp_path / "honest.pt", HONEST, optimizer=torch.optim.Adam([torch.nn.Parameter(torch.ones(2))]).state_dict())
    saved(tmp_path / "few.pt", {"lr": np.float64(0.1)}, epoch=3)
    done = in_child(FUZZ, str(tmp_path), str(count), str(seed), timeout=1200)
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr[-2000:])
    assert 0 < int(done.stdout) < count


def test_mutated_pickles_are_refused_in_one_line_or_loaded(tmp_path):
    fuzzed(tmp_path, 400, seed=0)


@pytest.mark.slow
def test_many_mutated_pickles(tmp_path):
    fuzzed(tmp_path, 5000, seed=1)
