"""The pixels of images as students get them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from src.console import progress
from src.data.images import load, square
from src.task import Item


def decode(items: Sequence[Item], size: int, *, sharpen: bool, max_pixels: int, what: str = "decoding") -> Tensor:
    """N×3×size×size bytes, in the items' order."""
    images = torch.empty((len(items), 3, size, size), dtype=torch.uint8)
    with progress(what, len(items)) as update:
        for n, item in enumerate(items):
            pixels = square(load(Path(item.payload), max_pixels), size, sharpen=sharpen)
            images[n] = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)
            update(n + 1)
    return images
