"""How far confidence can be taken at its word, before and after calibration.

Of the two calibration errors, the one of equal width is `metrics.ece`, by which runs are compared; that of equal mass
stands beside it: its bins hold as many items each, so that none is a matter of three items, and few items make it look
worse than it is.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from src.calibration.calibrators import fit_unchecked
from src.metrics import Floats, Interval, Ints, ece, proportion

BINS = 10
FOLDS = 5


class Bin(NamedTuple):
    """As many items as in the other bins, in order of confidence: what was said of them, what was found."""

    low: float
    high: float
    confidence: float
    accuracy: Interval


@dataclass(frozen=True)
class Reliability:
    """`confidence` is the mean, which should be the `accuracy`. Lower is better for the rest: `ece` (equal width, 15
    bins), `ece_equal_mass` (10 bins), and `brier`, the mean squared distance of all classes' probabilities from the
    truth, in [0, 2]."""

    accuracy: Interval
    confidence: float
    ece: float
    ece_equal_mass: float
    brier: float
    bins: tuple[Bin, ...]

    def flat(self, prefix: str, when: str) -> dict[str, float]:
        figures = {name: getattr(self, name) for name in ("confidence", "ece", "ece_equal_mass", "brier")}
        return {f"{prefix}/{name}_{when}": value for name, value in figures.items()}


def reliability(probabilities: Floats, truth: Ints, bins: int = BINS) -> Reliability:
    """Of [N, C] probabilities and [N] true class indices, N > 0."""
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    order = np.argsort(confidence, kind="stable")
    rows = []
    for part in np.array_split(order, min(bins, len(order))):
        said = confidence[part]
        rows.append(Bin(float(said[0]), float(said[-1]), float(said.mean()),
                        proportion(int(correct[part].sum()), len(part))))
    gaps = sum(row.accuracy.n * abs(row.accuracy.value - row.confidence) for row in rows)
    squares = ((probabilities - np.eye(probabilities.shape[1])[truth]) ** 2).sum(axis=1)
    return Reliability(proportion(int(correct.sum()), len(truth)), float(confidence.mean()), ece(confidence, correct),
                       gaps / len(truth), float(squares.mean()), tuple(rows))


def crossed(method: str, logits: Floats, truth: Ints, folds: int = FOLDS) -> Floats:
    """[N, C] probabilities by calibrators that were fitted without the item they judge: what the fit is worth on items
    that it has not seen. Right and wrong answers are dealt to the folds in turn."""
    correct = logits.argmax(axis=1) == truth
    fold = np.empty(len(truth), dtype=np.int64)
    fold[correct] = np.arange(correct.sum()) % folds
    fold[~correct] = folds - 1 - np.arange((~correct).sum()) % folds  # from the other end: no fold is everything
    found = np.empty(logits.shape)
    for n in np.unique(fold):
        own = fold == n
        found[own] = fit_unchecked(method, logits[~own], truth[~own])(logits[own])
    return found
