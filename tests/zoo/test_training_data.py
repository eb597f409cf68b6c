"""Label noise, validation images and augmentation do what they say, and nothing else."""

from __future__ import annotations

import pytest
import torch

from spectra.zoo.augmentation import augmented
from spectra.zoo.data_sets import read_images
from spectra.zoo.labels import noisy_labels
from spectra.zoo.tasks import build_task

LABELS = torch.arange(5000) % 10


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.37, 1.0])
@pytest.mark.parametrize("kind", ["shuffled", "random"])
def test_noise_is_on_the_fraction_of_the_labels(ratio, kind):
    noisy = noisy_labels(LABELS, 10, ratio, kind, seed=3)
    changed = int((noisy != LABELS).sum())
    drawn = round(ratio * 5000)
    assert changed <= drawn
    assert abs(changed - 0.9 * drawn) <= 5 * (0.09 * drawn) ** 0.5  # a tenth of them is right by chance
    assert torch.equal(noisy, noisy_labels(LABELS, 10, ratio, kind, seed=3))
    assert torch.equal(LABELS, torch.arange(5000) % 10)
    if ratio:
        assert not torch.equal(noisy, noisy_labels(LABELS, 10, ratio, kind, seed=4))


def test_shuffled_labels_keep_the_size_of_each_class_and_random_ones_do_not():
    for ratio in (0.3, 1.0):
        assert torch.bincount(noisy_labels(LABELS, 10, ratio)).tolist() == [500] * 10
    counts = torch.bincount(noisy_labels(LABELS, 10, 1.0, "random"))
    assert counts.tolist() != [500] * 10
    assert float(((counts - 500) ** 2 / 500).sum()) < 27.9  # chi-square, nine degrees of freedom, 0.1 %


def test_every_class_takes_the_place_of_every_other():
    noisy = noisy_labels(LABELS, 10, 1.0, "random")
    table = torch.bincount(10 * LABELS + noisy, minlength=100)
    assert int(table.min()) > 20


def test_noise_is_on_the_training_images_alone():
    pytest.importorskip("sklearn")
    options = {"label_noise": 0.5, "validation": 138, "label_noise_seed": 2}
    clean = {
        split: read_images("digits", {"split": split, "validation": 138}) for split in ("train", "validation", "test")
    }
    noisy = {split: read_images("digits", {"split": split, **options}) for split in clean}
    assert [len(images) for images in noisy.values()] == [1300, 138, 359]
    for split in clean:
        assert torch.equal(clean[split].pixels, noisy[split].pixels)
        assert torch.equal(clean[split].labels, noisy[split].labels) == (split != "train")
    whole = read_images("digits", {"split": "train"})
    assert torch.equal(torch.cat([clean["train"].pixels, clean["validation"].pixels]), whole.pixels)
    task = build_task("digits-mlp", **options)
    assert torch.equal(torch.cat([y for _, y in task.data]), noisy["train"].labels)
    assert torch.equal(torch.cat([y for _, y in task.test_data]), noisy["test"].labels)


def by_hand(image, down, right, flip):
    """One image moved within zeros, and flipped, pixel by pixel."""
    side = image.shape[-1]
    new = torch.zeros_like(image)
    for i in range(side):
        for j in range(side):
            a, b = i + down - 4, (side - 1 - j if flip else j) + right - 4
            if 0 <= a < side and 0 <= b < side:
                new[:, i, j] = image[:, a, b]
    return new


def test_augmentation_crops_and_flips_each_image_for_itself():
    images = torch.randint(1, 256, (40, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    new = augmented(images, torch.Generator().manual_seed(1))
    assert (new.shape, new.dtype) == (images.shape, torch.uint8)
    found = []
    for before, after in zip(images, new):
        fits = [
            (down, right, flip)
            for down in range(9)
            for right in range(9)
            for flip in (False, True)
            if torch.equal(by_hand(before, down, right, flip), after)
        ]
        assert fits
        found.append(fits[0])
    assert len(set(found)) > 25
    assert 10 <= sum(flip for *_, flip in found) <= 30
    assert {down for down, _, _ in found} == set(range(9))


def test_augmentation_is_decided_by_its_generator():
    images = torch.randint(256, (8, 1, 5, 5), dtype=torch.uint8)
    first, again, other = (augmented(images, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
