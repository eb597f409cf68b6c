"""Augmentation of images of CIFAR while training: random crops of padded images, and flips."""

from __future__ import annotations

import torch
from torch.nn import functional as F

PADDING = 4  # pixels of zeros on each side


def augmented(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image cut at random out of itself with four pixels of zeros around it, and flipped with probability 1/2.

    Args:
        pixels: (N, C, side, side), of any type.
        generator: on the CPU; all numbers are drawn from it.

    Returns:
        A new tensor of the same shape and type.
    """
    n, _, height, width = pixels.shape
    down, right = torch.randint(2 * PADDING + 1, (2, n), generator=generator)
    flipped = torch.rand(n, generator=generator) < 0.5
    rows = down[:, None] + torch.arange(height)
    columns = right[:, None] + torch.where(flipped[:, None], torch.arange(width).flip(0), torch.arange(width))
    padded = F.pad(pixels, (PADDING,) * 4)
    # Indices of the image, the row and the column; the channels come last, so that they are put in their place.
    picked = padded[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2).contiguous()
