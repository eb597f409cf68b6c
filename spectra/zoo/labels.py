"""Label noise: labels of a part of the training images are changed, by the definition of either of two papers.

References:
    Ibayashi, Hamaguchi and Imaizumi, "Minimum sharpness: scale-invariant parameter-robustness of neural networks", 2021
    ("partially shuffled").
    Tsuzuku, Sato and Sugiyama, "Normalized flat minima", 2020 ("random labels").
"""

from __future__ import annotations

import torch

from spectra.errors import ArgumentError

KINDS = ("shuffled", "random")


def noisy_labels(
    labels: torch.Tensor, classes: int, ratio: float, kind: str = "shuffled", seed: int = 0
) -> torch.Tensor:
    """The labels with noise on ``round(ratio * N)`` of them, which are drawn without replacement.

    Args:
        labels: (N,) int64.
        classes: number of classes.
        ratio: of the labels with noise, 0 to 1.
        kind: "shuffled": these labels are permuted among themselves, so that the number of images of each class stays;
            "random": each is replaced by a class drawn uniformly. Either leaves some of them right by chance.
        seed: of the choice and the noise.

    Returns:
        A new tensor (N,) int64.

    Raises:
        ArgumentError: a ratio outside 0 to 1, another kind, or a seed that is none.

    Example:
        >>> noisy_labels(torch.arange(6) % 3, 3, 0.5, "random").tolist()
        [0, 1, 0, 1, 1, 1]
    """
    if not 0 <= ratio <= 1:
        raise ArgumentError(f"label_noise={ratio}: a fraction of the labels is needed, 0 to 1")
    if kind not in KINDS:
        raise ArgumentError(f"label_noise_kind={kind!r}: one of {', '.join(KINDS)} is needed")
    if not 0 <= seed < 2**64:
        raise ArgumentError(f"label_noise_seed={seed}: 0 to 2**64 - 1 is needed")
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(labels), generator=generator)[: round(ratio * len(labels))]
    if kind == "shuffled":
        new = labels[rows[torch.randperm(len(rows), generator=generator)]]
    else:
        new = torch.randint(classes, (len(rows),), generator=generator)
    noisy = labels.clone()
    noisy[rows] = new
    return noisy
