"""The handwritten digits that come with scikit-learn: real pictures that need no download (8×8, 1,797 of them)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from src.errors import DataError


def bring(into: Path, *, root: Path | None, classes: Sequence[str], download: bool) -> Path:
    """Write `into/<class>/NNNN.png`, dark strokes on light ground; the n-th class of the task is the digit n."""
    from sklearn.datasets import load_digits

    if len(classes) != 10:
        raise DataError(f"data=digits has ten classes, the task has {len(classes)}: use it with task=digits.")
    digits = load_digits()
    for n, (image, target) in enumerate(zip(digits.images, digits.target, strict=True)):
        folder = into / classes[target]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8(255 - image * 255 / 16)).save(folder / f"{n:04d}.png")
    return into
