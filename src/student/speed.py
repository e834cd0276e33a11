"""How fast a student answers on this device: images already decoded, probabilities out."""

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from src.student.protocol import Student

WARM_UP = 3


@dataclass(frozen=True)
class Speed:
    """Images a second at the batch size given (median over `repeats` batches), and milliseconds for one image."""

    items_per_second: float
    batch_size: int
    p50_ms: float
    p95_ms: float
    device: str


def measure(student: Student, *, batch_size: int = 32, repeats: int = 15, singles: int = 50) -> Speed:
    """Random pixels: what they show does not change how long they take."""
    size = student.input_size
    images = np.random.default_rng(0).integers(0, 256, (batch_size, 3, size, size), dtype=np.uint8)
    batches = _times(student, images, repeats)
    one = _times(student, images[:1], singles) * 1000
    return Speed(batch_size / float(np.median(batches)), batch_size, float(np.percentile(one, 50)),
                 float(np.percentile(one, 95)), student.device)


def _times(student: Student, images: NDArray[np.uint8], repeats: int) -> NDArray[np.float64]:
    """Seconds of each call; `predict` ends with a copy to the CPU, so a GPU's work is over by then."""
    for _ in range(WARM_UP):
        student.predict(images)
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        student.predict(images)
        found.append(time.perf_counter() - started)
    return np.array(found)
