"""Data of tasks from files: texts with labels, arrays and images, and what is refused in one line."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from spectra.errors import ArgumentError, DataError
from spectra.frameworks.data import (
    as_pixels,
    class_labels,
    existing,
    in_batches,
    normalised,
    read_arrays,
    read_images,
    read_labelled_texts,
    whole_number,
)
from spectra.frameworks.tokens import IGNORED, blocks_of, check_columns, token_columns

HERE = Path("file")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'label,text\r\n0,"one, two\nand three"\r\n1,\u2028four\r\n'),
        ("a.csv", '\ufefftext,label,more\n"one, two\nand three",0,x\n\u2028four,1,y\n'),
        ("a.jsonl", '{"text": "one, two\\nand three", "label": "0"}\n\n{"label": "1", "text": "\u2028four"}\n'),
    ],
)
def test_texts_are_read_whole_with_their_labels(tmp_path, name, content):
    (tmp_path / name).write_bytes(content.encode())
    assert read_labelled_texts(tmp_path / name) == (["one, two\nand three", "\u2028four"], ["0", "1"])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"text,label\na\n", "line 2"),
        ("a.csv", b"", "no rows"),
        ("a.csv", b"text,label\n\xff,1\n", "UTF-8"),
        ("a.jsonl", b'{"text": "a", "label": 0}\nnothing\n', "line 2: not JSON"),
        ("a.jsonl", b'{"text": 3, "label": 0}\n', "line 1"),
        ("a.jsonl", b"[1]\n", "a list"),
    ],
)
def test_a_row_that_is_no_text_with_a_label_is_named_by_its_line(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        read_labelled_texts(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_arrays_are_read_from_every_form_and_nothing_is_unpickled(tmp_path):
    ids = np.arange(6).reshape(2, 3)
    np.save(tmp_path / "a.npy", ids)
    np.savez(tmp_path / "a.npz", input_ids=ids)
    torch.save(torch.from_numpy(ids), tmp_path / "a.pt")
    torch.save({"input_ids": torch.from_numpy(ids)}, tmp_path / "b.pt")
    for name, key in (("a.npy", ""), ("a.npz", "input_ids"), ("a.pt", ""), ("b.pt", "input_ids")):
        assert read_arrays(tmp_path / name)[key].tolist() == ids.tolist()
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object))
    torch.save({"a": Path("x")}, tmp_path / "object.pt")
    torch.save({"a": "text"}, tmp_path / "text.pt")
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps([1]))
    (tmp_path / "empty.npy").write_bytes(b"")
    for name in ("object.npy", "object.pt", "text.pt", "pickle.npz", "empty.npy"):
        with pytest.raises(DataError, match=name) as caught:
            read_arrays(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="there is no such file"):
        existing(tmp_path / "none.npy")


def test_images_take_the_channels_of_the_model_in_either_order(tmp_path):
    images = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5)
    assert torch.equal(as_pixels(images, 3, HERE), images)
    assert torch.equal(as_pixels(images.permute(0, 2, 3, 1), 3, HERE), images)
    assert torch.equal(as_pixels(images[:, 0], 1, HERE), images[:, :1])
    with pytest.raises(DataError, match="takes 4 channels"):
        as_pixels(images, 4, HERE)
    for arrays, words in (
        ({"images": images, "labels": torch.zeros(3)}, "are needed"),
        ({"images": images}, "no labels"),
        ({"images": images[0, 0], "labels": torch.zeros(4)}, "are needed"),
    ):
        np.savez(tmp_path / "a.npz", **{name: array.numpy() for name, array in arrays.items()})
        with pytest.raises(DataError, match=words):
            read_images(tmp_path / "a.npz")


def test_pixels_are_normalised_per_channel():
    pixels = torch.full((1, 2, 1, 1), 100, dtype=torch.uint8)
    found = normalised(pixels, 0.01, [0.5, 0.25], [2.0, 0.5])
    assert found.flatten().tolist() == [0.25, 1.5]
    for mean, std in (([0.5] * 3, [1.0] * 3), ([0.5] * 2, [1.0, 0.0])):
        with pytest.raises(DataError, match="do not belong"):
            normalised(pixels, 1.0, mean, std)


def test_labels_and_numbers_outside_their_range_are_refused():
    assert class_labels(torch.tensor([0, 2], dtype=torch.uint8), 3, HERE).dtype == torch.int64
    for labels in (torch.tensor([0, 3]), torch.tensor([-1, 0]), torch.tensor([0.0])):
        with pytest.raises(DataError, match="labels"):
            class_labels(labels, 3, HERE)
    for value in (0, 1.0, True, "2", None):
        with pytest.raises(ArgumentError, match="length="):
            whole_number("length", value, 1)


@pytest.mark.parametrize(("count", "rows"), [(12, 3), (13, 3), (14, 4), (3, 1), (5, 1)])
def test_a_sequence_is_cut_into_blocks_of_which_every_token_that_predicts_counts_once(count, rows):
    """A single token in the last block would predict nothing, and is left out."""
    tokens = torch.arange(1, count + 1)
    columns = blocks_of(tokens, 4, HERE)
    assert len(columns["input_ids"]) == rows
    counted = columns["labels"] != IGNORED
    assert torch.equal(counted, columns["attention_mask"].bool())
    assert torch.equal(columns["labels"][counted], tokens[: int(counted.sum())])
    assert count - int(counted.sum()) == (count % 4 == 1)
    assert sum(len(batch["labels"]) for batch in in_batches(columns, 2)) == rows


def test_padding_is_no_label_unless_the_labels_are_given():
    ids, mask = torch.tensor([[5, 6, 0]]), torch.tensor([[1, 1, 0]])
    assert token_columns({"input_ids": ids, "attention_mask": mask}, 8, HERE)["labels"].tolist() == [[5, 6, IGNORED]]
    given = {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([[IGNORED, 6, IGNORED]])}
    assert token_columns(given, 8, HERE)["labels"].tolist() == [[IGNORED, 6, IGNORED]]
    for arrays in (
        {"ids": ids},
        {"input_ids": ids, "labels": mask[:, :2]},
        {"input_ids": ids.float()},
        {"": ids[:, :1]},
    ):
        with pytest.raises(DataError):
            token_columns(arrays, 8, HERE)


def test_ids_outside_the_vocabulary_are_named_with_both_ranges():
    columns = blocks_of(torch.tensor([3, 7, 20]), 4, HERE)
    check_columns(columns, 21, 3, HERE)
    with pytest.raises(DataError, match="from 3 to 20, but the model's vocabulary has 0 to 19"):
        check_columns(columns, 20, None, HERE)
    with pytest.raises(DataError, match="rows of 3 tokens, and the model takes 2"):
        check_columns(columns, 21, 2, HERE)
