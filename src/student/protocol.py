"""What every student offers, whatever it runs on. Imports no torch, so that a server can do without it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from src.data.images import square

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

Pixels: TypeAlias = "NDArray[np.uint8] | Tensor"  # N×3×S×S bytes
RUNTIMES = ("torch", "onnxruntime", "openvino")
DTYPES = ("fp32", "bf16", "int8")


class Student(Protocol):
    """Images in, probabilities out, with all that the answers depend on.

    `classes` gives the order of the probabilities, `input_size` S in pixels; `sharpen` says whether images that had to
    be enlarged are sharpened. `dtype` is what most of the arithmetic is done in, `device` where.
    """

    @property
    def name(self) -> str: ...
    @property
    def classes(self) -> list[str]: ...
    @property
    def input_size(self) -> int: ...
    @property
    def sharpen(self) -> bool: ...
    @property
    def task(self) -> str: ...
    @property
    def task_version(self) -> int: ...
    @property
    def runtime(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def device(self) -> str: ...

    def predict(self, images: Pixels) -> NDArray[np.float64]:
        """N×C probabilities of N×3×S×S bytes."""


def as_seen(student: Student, images: Sequence[Image.Image]) -> NDArray[np.uint8]:
    """PIL images of any size and mode as the student sees them: N×3×S×S bytes."""
    size = student.input_size
    seen = np.empty((len(images), 3, size, size), np.uint8)
    for n, image in enumerate(images):
        seen[n] = square(image.convert("RGB"), size, sharpen=student.sharpen).transpose(2, 0, 1)
    return seen
