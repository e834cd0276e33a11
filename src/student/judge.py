"""What a trained student is worth, against truth: gold's *choose* part and test, each looked at once, and its speed.

Never touches gold's *certify* part. Knows nothing about labels or tracking.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from src.data.splits import Splits
from src.errors import DataError
from src.metrics import Scores, score
from src.student.images import decode
from src.student.protocol import Student
from src.student.speed import Speed, measure
from src.task import Item

SUM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Judgement:
    """One part's items, the student's N×C probabilities for them, the N true class indices, and the figures."""

    items: list[Item]
    probabilities: NDArray[np.float64]
    truth: NDArray[np.int64]
    scores: Scores


@dataclass(frozen=True)
class Judged:
    """`parts` holds `gold` and, where test items with truth exist, `test`."""

    parts: Mapping[str, Judgement]
    speed: Speed


def judge(student: Student, splits: Splits, *, max_pixels: int, seed: int) -> Judged:
    parts = {name: _judge(student, items, max_pixels, seed, name)
             for name, items in (("gold", splits.choose), ("test", splits.test)) if items}
    return Judged(parts, measure(student))


def _judge(student: Student, items: Sequence[Item], max_pixels: int, seed: int, name: str) -> Judgement:
    known = [item for item in items if item.truth]
    images = decode(known, student.input_size, sharpen=student.sharpen, max_pixels=max_pixels,
                    what=f"decoding {name} images")
    probabilities = student.predict(images)
    if not np.isfinite(probabilities).all() or (np.abs(probabilities.sum(axis=1) - 1) > SUM_TOLERANCE).any():
        raise DataError(f"The student's scores on {name} hold nan, or do not sum to one: its training has come apart, "
                        "or an export has. Train with a smaller student.learning_rate, or export again.")
    truth = np.array([student.classes.index(item.truth or "") for item in known])
    return Judgement(known, probabilities, truth, score(probabilities, truth, student.classes, seed=seed))
