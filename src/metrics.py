"""Probabilities and truth in, figures with their intervals out.

Knows nothing about tasks, students or where the truth comes from, and imports neither torch nor anything of ours, so
that a labelling process can use it. Items are taken to be independent: where they come in groups, the intervals are
too narrow.

Precision, recall and F1 are read off the confusion matrix rather than asked of scikit-learn: the bootstrap needs them
a thousand times, and the tests hold them against scikit-learn and torchmetrics.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv, stdtrit  # scipy.stats takes 60 MB

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.integer]
Bools = npt.NDArray[np.bool_]

ECE_BINS = 15


@dataclass(frozen=True)
class Interval:
    """A figure, the interval around it, and the number of items behind both."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}], n={self.n}"


class ClassRow(NamedTuple):
    """How one class fared, each figure in [0, 1] and higher is better.

    `support` counts the items that truly are of the class; where it is 0, recall and F1 are nan. Precision is nan
    where the class was never answered.
    """

    name: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, eq=False)
class Scores:
    """What a set of predictions is worth. Higher is better, except for `ece` and `aurc`.

    `f1_macro` averages over the classes that occur in the truth; `auroc`, one class against the rest and averaged, is
    nan unless all of them do. `confusion` is [C, C] counts, rows truth, columns answers, in the order of `per_class`.
    """

    accuracy: Interval
    f1_macro: Interval
    auroc: float
    ece: float
    aurc: float
    coverage_at_precision_95: float
    confusion: npt.NDArray[np.int64]
    per_class: list[ClassRow]

    def flat(self, prefix: str) -> dict[str, float]:
        """The figures under the names that runs are compared by, as in `test/accuracy_low`; what is nan is left out."""
        figures: dict[str, float] = {"n": self.accuracy.n}
        for name, interval in (("accuracy", self.accuracy), ("f1_macro", self.f1_macro)):
            figures |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
        for name in ("auroc", "ece", "aurc", "coverage_at_precision_95"):
            figures[name] = getattr(self, name)
        return {f"{prefix}/{name}": float(value) for name, value in figures.items() if not math.isnan(value)}


def score(probabilities: Floats, truth: Ints, names: Sequence[str], *, seed: int = 0) -> Scores:
    """All figures for [N, C] `probabilities` and [N] class indices `truth`; `seed` drives the bootstrap of F1 alone.

    The answer is the most probable class (of several, the first) and its probability the confidence. Raises ValueError
    for empty, misshapen, nan or unnormalised input, naming what is wrong.
    """
    probabilities, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(truth)
    _check(probabilities, truth, names)
    answers, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    correct = answers == truth
    n, size = probabilities.shape
    matrix = _confusion(truth, answers, size)
    return Scores(
        accuracy=proportion(int(correct.sum()), n),
        f1_macro=bootstrap(lambda index: _f1_macro(_confusion(truth[index], answers[index], size)), n, seed=seed),
        auroc=auroc(probabilities, truth),
        ece=ece(confidence, correct),
        aurc=aurc(confidence, correct),
        coverage_at_precision_95=coverage_at_precision(confidence, correct, 0.95),
        confusion=matrix,
        per_class=_per_class(matrix, names),
    )


def proportion(successes: int, n: int, level: float = 0.95) -> Interval:
    """A share with its exact two-sided interval (Clopper and Pearson, 1934), which covers at least `level` of the time.

    Raises ValueError unless 0 <= successes <= n, n > 0 and 0 < level < 1.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"successes={successes} of n={n}: a share needs 0 <= successes <= n and n > 0")
    if not 0 < level < 1:
        raise ValueError(f"level={level}: must lie between 0 and 1")
    failures, tail = n - successes, (1 - level) / 2
    low = betaincinv(successes, failures + 1, tail) if successes else 0.0
    high = betaincinv(successes + 1, failures, 1 - tail) if failures else 1.0
    return Interval(successes / n, float(low), float(high), n)


def bootstrap(statistic: Callable[[npt.NDArray[np.int64]], float], n: int, *, seed: int, draws: int = 1000) -> Interval:
    """The 95% percentile interval of a statistic of item indices, `draws` times resampled with replacement.

    Only as good as the sample is rich: without a single mistake in it, resampling finds none and the interval has no
    width, where `proportion` would still show doubt. It is widened where needed to hold the value itself, which for
    macro-F1 lies above most of its resamples when items are few. Raises ValueError without items.
    """
    if n < 1:
        raise ValueError(f"n={n}: the bootstrap needs at least one item")
    rng = np.random.default_rng(seed)
    value = float(statistic(np.arange(n)))
    low, high = np.percentile([statistic(rng.integers(n, size=n)) for _ in range(draws)], [2.5, 97.5])
    return Interval(value, min(value, float(low)), max(value, float(high)), n)


def over_seeds(values: Sequence[float] | Floats) -> Interval:
    """The mean of what was measured once a training, with Student's 95% interval for fresh trainings; n is how many
    there were. One alone tells nothing of others: its interval is without bounds, nan. Raises ValueError for none."""
    given = np.asarray(values, dtype=np.float64)
    if not len(given):
        raise ValueError("one value or more")
    mean, n = float(given.mean()), len(given)
    reach = float(stdtrit(n - 1, 0.975) * given.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan
    return Interval(mean, mean - reach, mean + reach, n)


def paired_difference(ours: Floats | Bools, theirs: Floats | Bools) -> Interval:
    """How much more often `ours` is right than `theirs`, with a 95% interval for fresh items and fresh trainings.

    Both are [S, N]: S trainings, paired by their seed, on the same N items, 1 where the answer is right; above 0 is in
    favour of `ours`. To the variance of the mean over items is added what that over seeds has beyond it, as for readers
    and cases (Obuchowski and Rockette, 1995), with the degrees of freedom of Welch and Satterthwaite: trainings that
    disagree widen the interval by as much as so few can tell. In simulation at S = 3 it covers 0.92 to 0.98, where one
    over items alone, which speaks of these very trainings, falls to 0.72. With S = 1 there is no other, and luck in
    training is not in it. Half an answer is added to each of right and wrong, ours and theirs (Agresti and Min, 2005),
    or no disagreement would mean no doubt. Raises ValueError unless both are [S, N], S > 0, N > 1, and lie in [0, 1].
    """
    ours, theirs = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    if ours.ndim != 2 or ours.shape != theirs.shape or not len(ours) or ours.shape[1] < 2:
        raise ValueError(f"ours {ours.shape} and theirs {theirs.shape} must both be [S, N], S > 0, N > 1")
    if not all((side >= 0).all() and (side <= 1).all() for side in (ours, theirs)):
        raise ValueError("ours and theirs must lie in [0, 1]: 1 is right, 0 wrong")
    difference = ours - theirs
    value, by_item, by_seed = float(difference.mean()), difference.mean(axis=0), difference.mean(axis=1)
    seeds, n = difference.shape
    counted = n + 2
    variance = ((by_item**2).sum() + 1 - by_item.sum() ** 2 / counted) / counted**2
    freedom = float(n - 1)
    if seeds > 1:
        between = by_seed.var(ddof=1) / seeds
        # What an item and a seed do together is in both variances, and is to be counted once.
        rest = difference - by_item - by_seed[:, None] + value
        together = (rest**2).sum() / ((seeds - 1) * (n - 1)) / (seeds * n)
        if between > together:
            items, variance = variance, variance + between - together
            freedom = variance**2 / (items**2 / (n - 1) + between**2 / (seeds - 1))
    reach = float(stdtrit(freedom, 0.975) * math.sqrt(variance))
    return Interval(value, max(-1.0, value - reach), min(1.0, value + reach), n)


def auroc(probabilities: Floats, truth: Ints) -> float:
    """Area under the ROC curve, each class against the rest, averaged; nan unless every class occurs in the truth."""
    from sklearn.metrics import roc_auc_score  # takes memory while a million items are asked about

    size = probabilities.shape[1]
    if len(np.unique(truth)) < size:
        return math.nan
    return float(np.mean([roc_auc_score(truth == c, probabilities[:, c]) for c in range(size)]))


def ece(confidence: Floats, correct: Bools, bins: int = ECE_BINS) -> float:
    """Expected calibration error: |accuracy - confidence| per bin, averaged by the items in it; 0 is best.

    Top-label and of equal width (Guo et al., 2017). A confidence on an edge belongs to the bin above it, so exactly 1
    has a bin of its own, as in torchmetrics' multiclass `l1`.
    """
    which = np.digitize(confidence, np.linspace(0, 1, bins + 1))
    gaps = np.bincount(which, weights=correct - confidence)
    return float(np.abs(gaps).sum() / len(confidence))


def aurc(confidence: Floats, correct: Bools) -> float:
    """Area under the risk-coverage curve: the share of mistakes among the k most confident, averaged over k = 1..N.

    0 is best; a confidence that says nothing gives the error rate. Equal confidences stand in random order, and the
    expectation over it is returned (Geifman, Uziel and El-Yaniv, 2019, define the curve).
    """
    accepted, right = accepted_and_correct(confidence, correct)
    k = np.arange(1, len(confidence) + 1)
    mistakes = np.interp(k, [0, *accepted], [0, *(accepted - right)])
    return float(np.mean(mistakes / k))


def coverage_at_precision(confidence: Floats, correct: Bools, target: float) -> float:
    """The largest share of items that can be accepted, most confident first, with at least `target` of them correct.

    Equal confidences are accepted together; 0 where no share will do. Describes these items and guarantees nothing
    about others, since the threshold was picked on them.
    """
    accepted, right = accepted_and_correct(confidence, correct)
    return float(np.max(accepted, initial=0, where=right / accepted >= target) / len(confidence))


def accepted_and_correct(confidence: Floats, correct: Bools) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """How many items each possible threshold accepts and how many of these are correct, strictest threshold first.

    Both are [T], one entry for each of the T distinct confidences. Raises ValueError unless both inputs are [N], N > 0.
    """
    confidence, correct = np.asarray(confidence), np.asarray(correct, dtype=bool)
    if confidence.ndim != 1 or confidence.shape != correct.shape or not len(confidence):
        raise ValueError(f"confidence {confidence.shape} and correct {correct.shape} must both be [N], N > 0")
    _, group = np.unique(-confidence, return_inverse=True)
    return np.cumsum(np.bincount(group)), np.cumsum(np.bincount(group, weights=correct)).astype(np.int64)


def _check(probabilities: Floats, truth: npt.NDArray[np.generic], names: Sequence[str]) -> None:
    if probabilities.ndim != 2 or probabilities.shape[1] != len(names) or len(names) < 2:
        raise ValueError(f"probabilities have shape {probabilities.shape}: must be [N, C], C = {len(names)} names >= 2")
    if truth.shape != probabilities.shape[:1]:
        raise ValueError(f"truth has shape {truth.shape}: must be [N], N = {len(probabilities)} rows of probabilities")
    if not len(truth):
        raise ValueError("no items to score: N = 0")
    if not np.issubdtype(truth.dtype, np.integer):
        raise ValueError(f"truth is of type {truth.dtype}: must hold class indices")
    outside = (truth < 0) | (truth >= len(names))  # type: ignore[operator]
    if outside.any():
        raise ValueError(f"truth holds {truth[outside][0]}: must lie in 0..{len(names) - 1}")
    if not np.isfinite(probabilities).all():
        row = int(np.argmin(np.isfinite(probabilities).all(axis=1)))
        raise ValueError(f"probabilities hold nan or infinity, first in row {row}")
    sums = probabilities.sum(axis=1)
    wrong = (np.abs(sums - 1) > 1e-3) | (probabilities < 0).any(axis=1)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(
            f"probabilities in row {row} sum to {sums[row]:.4g}, least {probabilities[row].min():.4g}: "
            "must be non-negative and sum to one"
        )


def _confusion(truth: Ints, answers: Ints, size: int) -> npt.NDArray[np.int64]:
    return np.bincount(truth * size + answers, minlength=size * size).reshape(size, size)


def _f1(matrix: npt.NDArray[np.int64]) -> Floats:
    """[C] F1 scores; nan for a class without support, which may have been answered all the same."""
    support, answered = matrix.sum(axis=1), matrix.sum(axis=0)
    return _share(np.where(support > 0, 2 * matrix.diagonal(), 0), np.where(support > 0, support + answered, 0))


def _f1_macro(matrix: npt.NDArray[np.int64]) -> float:
    return float(np.nanmean(_f1(matrix)))


def _per_class(matrix: npt.NDArray[np.int64], names: Sequence[str]) -> list[ClassRow]:
    support, hits = matrix.sum(axis=1), matrix.diagonal()
    columns = (_share(hits, matrix.sum(axis=0)), _share(hits, support), _f1(matrix), support)
    return [ClassRow(name, *row) for name, *row in zip(names, *(c.tolist() for c in columns), strict=True)]


def _share(part: Ints, whole: Ints) -> Floats:
    shares = np.full(len(part), np.nan)
    np.divide(part, whole, out=shares, where=whole > 0)
    return shares
