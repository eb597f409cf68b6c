"""Readers: tiny files of each format are read exactly, damaged ones are refused, real ones have their statistics."""

from __future__ import annotations

import gzip
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from spectra.errors import ArgumentError, DataError, MissingDependency
from spectra.zoo.cifar import read_cifar_batch
from spectra.zoo.data import (
    ImageBatches,
    ImageSet,
    load_cifar10,
    load_cifar100,
    load_digits,
    load_fashion_mnist,
    load_mnist,
)
from spectra.zoo.files import read_idx

HERE = Path(__file__).resolve()
REAL = Path(os.environ.get("SPECTRA_TEST_DATA", HERE.parents[3] / "shared" / "data"))
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (7, 28, 28), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 3, 4, 5, 9], np.uint8)


def idx(array: np.ndarray, code: int = 0x08) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, code, array.ndim]) + sizes + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write_mnist(folder: Path, packed: bool, dots: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stem in ("train", "t10k"):
        for kind, array in (("images-idx3-ubyte", IMAGES), ("labels-idx1-ubyte", LABELS)):
            name = f"{stem}-{kind.replace('-idx', '.idx') if dots else kind}"
            content = idx(array)
            (folder / (name + ".gz" * packed)).write_bytes(gzip.compress(content) if packed else content)


@pytest.mark.parametrize("array", [IMAGES, LABELS, RNG.normal(size=(2, 3)).astype(np.float32), np.arange(-3, 3)])
def test_idx_files_are_read_exactly(tmp_path, array):
    code = {"uint8": 0x08, "float32": 0x0D, "int64": 0x0C}[str(array.dtype)]
    array = array.astype(np.int32) if code == 0x0C else array
    path = tmp_path / "a"
    path.write_bytes(idx(array, code))
    assert np.array_equal(read_idx(path), array)
    path.write_bytes(gzip.compress(idx(array, code)))
    assert np.array_equal(read_idx(path), array)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not an IDX file"),
        (b"hello world", "not an IDX file"),
        (b"\0\0\x07\x01\0\0\0\1a", "not an IDX file"),
        (idx(IMAGES)[:-1], "truncated"),
        (idx(IMAGES)[:9], "truncated"),
        (idx(IMAGES) + b"x", "truncated"),
        (gzip.compress(idx(IMAGES))[:-20], "gzip"),
    ],
)
def test_damaged_idx_files_are_refused(tmp_path, content, words):
    path = tmp_path / "a"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words):
        read_idx(path)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("load", "below"),
    [
        *((load_mnist, below) for below in ("", "raw", "MNIST/raw")),
        *((load_fashion_mnist, below) for below in ("", "raw", "FashionMNIST/raw")),
    ],
)
def test_sets_in_idx_files_are_found_in_the_usual_folders(tmp_path, packed, load, below):
    write_mnist(tmp_path / below, packed, dots=packed)
    for split in ("train", "test"):
        images = load(tmp_path, split)
        assert np.array_equal(images.pixels[:, 0].numpy(), IMAGES)
        assert images.labels.tolist() == LABELS.tolist()


def test_batches_are_normalised_in_order_and_the_same_on_each_pass(tmp_path):
    write_mnist(tmp_path, packed=False)
    batches = ImageBatches(load_mnist(tmp_path, "train"), 3)
    assert len(batches) == 3
    assert [len(y) for _, y in batches] == [3, 3, 1]
    x = torch.cat([x for x, _ in batches])
    assert x.dtype == torch.float32
    wanted = (IMAGES[:, None] / 255 - 0.1307) / 0.3081
    assert np.allclose(x.numpy(), wanted, rtol=1e-5, atol=1e-6)
    assert torch.equal(x, torch.cat([x for x, _ in batches]))
    assert torch.cat([y for _, y in batches]).tolist() == LABELS.tolist()


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\[\.gz\] is expected"):
        load_mnist(tmp_path, "train")
    with pytest.raises(DataError, match=r"t10k-images.* \(there is no such path\)"):
        load_mnist(tmp_path / "no", "test")
    with pytest.raises(DataError, match=r"data_batch_1\.bin is expected"):
        load_cifar10(tmp_path, "train")
    with pytest.raises(DataError, match=r"no FashionMNIST here: train-images.* or fashion_mnist\.npz"):
        load_fashion_mnist(tmp_path, "train")
    with pytest.raises(DataError, match=r"no CIFAR-100 here: test\.bin is expected in it, or cifar100\.npz$"):
        load_cifar100(tmp_path, "test")


def test_sets_of_one_layout_do_not_take_each_others_folders(tmp_path):
    """The files of MNIST and Fashion-MNIST have the same names: below a common folder each finds its own alone."""
    write_mnist(tmp_path / "MNIST" / "raw", packed=False)
    with pytest.raises(DataError, match="no FashionMNIST here"):
        load_fashion_mnist(tmp_path, "train")


@pytest.mark.parametrize("below", ["", "cifar-10-batches-bin"])
def test_cifar_batches_are_read_in_order(tmp_path, below):
    rows = RNG.integers(0, 256, (12, 3073), dtype=np.uint8)
    rows[:, 0] = np.arange(12) % 10
    folder = tmp_path / below
    folder.mkdir(exist_ok=True)
    for i in range(5):
        rows[2 * i : 2 * i + 2].tofile(folder / f"data_batch_{i + 1}.bin")
    rows[10:].tofile(folder / "test_batch.bin")
    train, test = load_cifar10(tmp_path, "train"), load_cifar10(tmp_path, "test")
    assert np.array_equal(train.pixels.numpy(), rows[:10, 1:].reshape(10, 3, 32, 32))
    assert train.labels.tolist() == list(range(10))
    assert np.array_equal(test.pixels.numpy(), rows[10:, 1:].reshape(2, 3, 32, 32))
    (folder / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_3\.bin"):
        load_cifar10(tmp_path, "train")


@pytest.mark.parametrize("below", ["", "cifar-100-binary"])
def test_cifar100_is_read_with_its_fine_labels(tmp_path, below):
    """A row is the coarse label, the fine label and the image: 3074 bytes."""
    rows = RNG.integers(0, 256, (5, 3074), dtype=np.uint8)
    rows[:, 0], rows[:, 1] = (3, 1, 4, 1, 5), (0, 99, 42, 7, 10)
    folder = tmp_path / below
    folder.mkdir(exist_ok=True)
    rows[:3].tofile(folder / "train.bin")
    rows[3:].tofile(folder / "test.bin")
    for split, chosen in (("train", rows[:3]), ("test", rows[3:])):
        images = load_cifar100(tmp_path, split)
        assert np.array_equal(images.pixels.numpy(), chosen[:, 2:].reshape(-1, 3, 32, 32))
        assert images.labels.tolist() == chosen[:, 1].tolist()
        assert images.num_classes == 100
    x, _ = images.batch(slice(None))
    mean, std = (0.50708, 0.48655, 0.44092), (0.26733, 0.25644, 0.27615)
    for c in range(3):
        wanted = (rows[3:, 2:].reshape(-1, 3, 32, 32)[:, c] / 255 - mean[c]) / std[c]
        assert np.allclose(x[:, c].numpy(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("load", "classes"), [(load_cifar10, 10), (load_cifar100, 100)])
def test_labels_are_held_to_the_classes_of_their_set(tmp_path, load, classes):
    path = tmp_path / "a.npz"
    pixels = np.zeros((2, 3, 32, 32), np.uint8)
    np.savez(path, x_train=pixels, y_train=np.array([0, classes - 1]), x_test=pixels, y_test=np.array([0, classes]))
    assert load(path, "train").labels.tolist() == [0, classes - 1]
    with pytest.raises(DataError, match=f"labels run from 0 to {classes}: they must lie in 0 to {classes - 1}"):
        load(path, "test")


@pytest.mark.parametrize(("load", "name"), [(load_fashion_mnist, "fashion_mnist.npz"), (load_cifar100, "cifar100.npz")])
def test_npz_files_are_found_by_name(tmp_path, load, name):
    pixels = IMAGES if load is load_fashion_mnist else RNG.integers(0, 256, (7, 3, 32, 32), dtype=np.uint8)
    np.savez(tmp_path / name, x_test=pixels, y_test=LABELS)
    for given in (tmp_path, tmp_path / name):
        assert np.array_equal(load(given, "test").pixels.numpy().reshape(pixels.shape), pixels)


@pytest.mark.parametrize(("labels", "size"), [(1, 0), (1, 3072), (1, 3074), (2, 0), (2, 3073), (2, 3072)])
def test_cifar_batches_of_another_length_are_refused(tmp_path, labels, size):
    path = tmp_path / "a.bin"
    path.write_bytes(b"\0" * size)
    with pytest.raises(DataError, match=f"{size} bytes: a positive multiple of {3072 + labels}"):
        read_cifar_batch(path, labels)


@pytest.mark.parametrize("layout", [(0, 1, 2, 3), (0, 2, 3, 1)])
def test_npz_files_are_read_in_either_layout(tmp_path, layout):
    pixels = RNG.integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)
    path = tmp_path / "cifar10.npz"
    np.savez(path, x_train=pixels.transpose(layout), y_train=np.array([[1], [2], [3]]))
    for given in (path, tmp_path):
        images = load_cifar10(given, "train")
        assert np.array_equal(images.pixels.numpy(), pixels)
        assert images.labels.tolist() == [1, 2, 3]
    with pytest.raises(DataError, match=r"no x_test and no y_test in it; it holds x_train, y_train"):
        load_cifar10(path, "test")


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (np.zeros((2, 28, 27), np.uint8), np.zeros(2, int), "shape"),
        (np.zeros((2, 28, 28), np.float32), np.zeros(2, int), "uint8"),
        (np.zeros((2, 28, 28), np.uint8), np.zeros(2), "integers"),
        (np.zeros((2, 28, 28), np.uint8), np.zeros(3, int), "2 images but 3 labels"),
        (np.zeros((2, 28, 28), np.uint8), np.array([0, 10]), "0 to 10: they must lie in 0 to 9"),
        (np.zeros((2, 28, 28), np.uint8), np.array([-1, 3]), "-1 to 3"),
        (np.zeros((0, 28, 28), np.uint8), np.zeros(0, int), "no images"),
        (np.zeros((2, 28, 28), np.uint8), np.array([None, 1], object), "plain arrays"),
    ],
)
def test_npz_files_with_other_contents_are_refused(tmp_path, x, y, words):
    path = tmp_path / "mnist.npz"
    np.savez(path, x_train=x, y_train=y)
    with pytest.raises(DataError, match=words):
        load_mnist(path, "train")


def test_what_is_not_npz_is_refused(tmp_path):
    path = tmp_path / "mnist.npz"
    for content in (b"", b"hello", b"PK\x03\x04junk"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"mnist\.npz"):
            load_mnist(path, "train")
    with pytest.raises(DataError, match="No such file"):
        load_mnist(tmp_path / "no.npz", "train")


def test_digits_are_split_without_overlap():
    pytest.importorskip("sklearn")
    train, test = load_digits("train"), load_digits("test")
    assert (len(train), len(test)) == (1438, 359)
    assert train.pixels.shape[1:] == (1, 8, 8)
    assert int(train.pixels.max()) == 16
    assert torch.bincount(test.labels).min() > 20
    x = torch.cat([train.batch(slice(None))[0], test.batch(slice(None))[0]])
    assert abs(float(x.mean())) < 1e-3  # the constants are those of these images
    assert abs(float(x.std()) - 1) < 1e-3
    with pytest.raises(ArgumentError, match="split='val'"):
        load_digits("val")


def test_digits_without_scikit_learn_say_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingDependency, match=r"pip install 'hessian-spectra\[demo\]'"):
        load_digits("train")


def test_batch_sizes_below_one_are_refused():
    images = ImageSet(
        torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), 1.0, (0.0,), (1.0,)
    )
    with pytest.raises(ArgumentError, match="batch_size=0"):
        ImageBatches(images, 0)


@pytest.mark.skipif(not (REAL / "MNIST" / "raw").is_dir(), reason="MNIST is not in SPECTRA_TEST_DATA")
def test_the_real_mnist_is_what_it_should_be():
    images = load_mnist(REAL, "test")
    assert images.pixels.shape == (10000, 1, 28, 28)
    assert images.labels[:5].tolist() == [7, 2, 1, 0, 4]


@pytest.mark.skipif(not (REAL / "cifar10.npz").is_file(), reason="CIFAR-10 is not in SPECTRA_TEST_DATA")
def test_the_real_cifar10_has_the_published_statistics():
    x, y = load_cifar10(REAL, "test").batch(slice(None))
    assert x.shape[1:] == (3, 32, 32)
    assert float(x.mean((0, 2, 3)).abs().max()) < 0.05
    assert float((x.std((0, 2, 3)) - 1).abs().max()) < 0.05
    assert torch.bincount(y).numel() == 10
