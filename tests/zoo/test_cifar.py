"""The Python version of CIFAR: pickles as Python 2 and Python 3 wrote them are read, and no code in them is run."""

from __future__ import annotations

import io
import os
import pickle
import struct

import numpy as np
import pytest
import torch

from spectra.errors import DataError
from spectra.zoo.cifar import read_cifar_pickle
from spectra.zoo.data import load_cifar10, load_cifar100

RNG = np.random.default_rng(0)


class Python2(pickle._Pickler):
    """Writes texts and bytes as Python 2 did, and NumPy's module under its old name."""

    dispatch = pickle._Pickler.dispatch.copy()

    def __init__(self, file):
        super().__init__(file, 2)

    def save_text(self, text):
        data = text.encode("latin1") if isinstance(text, str) else text
        self.write(b"U" + bytes([len(data)]) if len(data) < 256 else b"T" + struct.pack("<i", len(data)))
        self.write(data)
        self.memoize(text)

    dispatch[str] = dispatch[bytes] = save_text

    def save_global(self, obj, name=None):
        name = getattr(obj, "__qualname__", name)
        module = obj.__module__.replace("numpy._core", "numpy.core")
        self.write(b"c" + module.encode() + b"\n" + name.encode() + b"\n")
        self.memoize(obj)

    dispatch[type] = dispatch[type(len)] = dispatch[type(lambda: 0)] = save_global


def written(content, version):
    if version == 3:
        return pickle.dumps(content, 4)
    file = io.BytesIO()
    Python2(file).dump(content)
    return file.getvalue()


def batch(n, **labels):
    return {
        "data": RNG.integers(0, 256, (n, 3072), dtype=np.uint8),
        "filenames": ["a.png"] * n,
        "batch_label": "x",
        **labels,
    }


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("below", ["", "cifar-100-python"])
def test_cifar100_is_read_with_its_fine_labels(tmp_path, version, below):
    folder = tmp_path / below
    folder.mkdir(exist_ok=True)
    sets = {name: batch(3, fine_labels=[0, 99, 42], coarse_labels=[1, 2, 3]) for name in ("train", "test")}
    for name, content in sets.items():
        (folder / name).write_bytes(written(content, version))
        images = load_cifar100(tmp_path, name)
        assert np.array_equal(images.pixels.numpy(), content["data"].reshape(3, 3, 32, 32))
        assert images.labels.tolist() == [0, 99, 42]


@pytest.mark.parametrize("version", [2, 3])
def test_the_batches_of_cifar10_are_read_in_order_and_the_binary_version_goes_before_them(tmp_path, version):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    contents = [batch(2, labels=[i, 9]) for i in range(5)]
    for i, content in enumerate(contents, 1):
        (folder / f"data_batch_{i}").write_bytes(written(content, version))
    images = load_cifar10(tmp_path, "train")
    assert images.labels.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]
    assert torch.equal(images.pixels[4], torch.from_numpy(contents[2]["data"][0].reshape(3, 32, 32)))
    with pytest.raises(DataError, match=r"no CIFAR-10 here: test_batch\.bin is expected in it"):
        load_cifar10(tmp_path, "test")
    (folder / "data_batch_4").unlink()
    with pytest.raises(DataError, match="data_batch_4 is expected in it"):
        load_cifar10(tmp_path, "train")
    for i in range(1, 6):
        np.full((1, 3073), i, np.uint8).tofile(tmp_path / f"data_batch_{i}.bin")
    assert load_cifar10(tmp_path, "train").labels.tolist() == [1, 2, 3, 4, 5]


def test_bytes_as_keys_are_names_too(tmp_path):
    content = {key.encode(): value for key, value in batch(1, fine_labels=[7]).items()}
    (tmp_path / "train").write_bytes(pickle.dumps(content, 4))
    assert load_cifar100(tmp_path, "train").labels.tolist() == [7]


class Trap:
    """Code in a pickle: what it would do leaves a folder behind."""

    def __init__(self, call=os.mkdir, arguments=("ran",)):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize(
    "trap",
    [Trap(), Trap(eval, ("1",)), Trap(getattr, (1, "real")), Trap(np.frombuffer, (b"a",)), Trap(np.dtype, ("O",))],
    ids=["mkdir", "eval", "getattr", "frombuffer", "objects"],
)
def test_code_in_a_pickle_is_not_run(tmp_path, monkeypatch, trap):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "train"
    path.write_bytes(pickle.dumps(batch(1, fine_labels=[1], more=trap), 2))
    with pytest.raises(DataError) as caught:
        load_cifar100(tmp_path, "train")
    assert not (tmp_path / "ran").exists()
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


# Opcodes that give a state to a class or a function of the table, in place of an object that it has made.
STATES = [
    b"\x80\x02cnumpy\nndarray\n}(U\x05valueK\x01ub.",
    b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nN}(U\x08__call__K\x01u\x86b.",
    b"\x80\x02cnumpy\ndtype\nN}(U\x08__init__K\x01u\x86b.",
]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b"\x80\x02}.",
        pickle.dumps([1, 2]),
        pickle.dumps({"data": 3, "fine_labels": [1]}),
        pickle.dumps({**batch(1), "fine_labels": ["a"]}),
        pickle.dumps({**batch(1), "fine_labels": [1000]}),
        pickle.dumps({**batch(1), "fine_labels": [True]}),
        pickle.dumps({"data": np.zeros((1, 3071), np.uint8), "fine_labels": [1]}),
        pickle.dumps({"data": np.zeros((1, 3072), np.float32), "fine_labels": [1]}),
        written(batch(2, fine_labels=[1, 2]), 2)[:3000],
        *STATES,
    ],
)
def test_other_contents_are_refused_in_one_line(tmp_path, content):
    path = tmp_path / "train"
    path.write_bytes(content)
    with pytest.raises(DataError, match="train: ") as caught:
        read_cifar_pickle(path, "fine_labels")
    assert "\n" not in str(caught.value)
    path.write_bytes(written(batch(1, fine_labels=[1]), 2))
    assert read_cifar_pickle(path, "fine_labels")[1].tolist() == [1]  # the table is as it was


def test_a_damaged_pickle_is_refused_or_read_but_never_more(tmp_path):
    whole, path = written(batch(1, fine_labels=[1]), 2), tmp_path / "train"
    heads = [i for i in range(len(whole)) if i < 60 or i > len(whole) - 60]
    for i in heads:
        for value in (0, 0x63, 0x52, 0x62, 0xFF):
            path.write_bytes(whole[:i] + bytes([value]) + whole[i + 1 :])
            try:
                images, labels = read_cifar_pickle(path, "fine_labels")
            except DataError:
                continue
            assert images.shape[1:] == (3, 32, 32)
            assert labels.dtype == np.int64
