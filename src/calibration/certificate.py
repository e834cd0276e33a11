"""A threshold above which answers are right as often as promised, and the proof.

Fixed-sequence testing: thresholds are declared beforehand, strictest first, and each is tested at level delta with the
exact binomial bound on the precision of what it accepts; the first that fails ends the test, and the last that passed
is certified. Proof: a promise can only be broken if the first threshold in the sequence whose precision is below the
target passes its test, since the test never gets beyond it unless it does. Which threshold that is was settled before
*certify* was looked at, and given how many items it accepts, its errors are binomial, so that it passes with a chance
of at most delta: the promise of the whole sequence costs no more than that of one threshold.

So the sequence must depend on gold's *choose* part alone. Takes *certify* for a random sample of what the student will
see, item by item: where items come in groups that go wrong together, the promise is weaker than it says, and where the
world changes, it is about the world as it was. Knows nothing about how confidence came to be.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import betaincinv

from src.calibration.gold_needed import chance, needed_gold
from src.errors import DataError
from src.metrics import Bools, Floats, Interval, accepted_and_correct, proportion


@dataclass(frozen=True)
class Step:
    """One test: what the threshold accepts, how much of it is wrong, the bound on its precision."""

    threshold: float
    accepted: int
    errors: int
    lower_bound: float
    passed: bool


@dataclass(frozen=True)
class Certificate:
    """What was tested on the `n` items of gold's *certify* part, in order; what it certifies, or that it cannot.

    With a chance of 1 - `delta` or more, it does not certify a threshold whose precision is below `target`.
    """

    target: float
    delta: float
    n: int
    steps: tuple[Step, ...]

    @property
    def certified(self) -> Step | None:
        passed = [step for step in self.steps if step.passed]
        return passed[-1] if passed else None

    @property
    def threshold(self) -> float | None:
        """Confidence from which on answers are certified; None where none is."""
        return self.certified.threshold if self.certified else None

    @property
    def coverage(self) -> Interval:
        """The share of items that the student may answer, with its 95% interval; what was tested first if none."""
        return proportion((self.certified or self.steps[0]).accepted, self.n)

    @property
    def gold_needed(self) -> int | None:
        """Where nothing is certified: how many gold items would be, at the error rate and coverage of the first test;
        None if no number would. One half error is added to the errors, since few items show too few."""
        if self.certified:
            return None
        error_rate, coverage = self.shown
        if coverage == 0 or error_rate >= 1 - self.target:
            return None
        try:
            return needed_gold(self.target, error_rate, coverage, self.delta)
        except ValueError:
            return None

    @property
    def shown(self) -> tuple[float, float]:
        """Error rate (the mean under Jeffreys' prior) and coverage of what is certified, or else of the first test."""
        step = self.certified or self.steps[0]
        return (step.errors + 0.5) / (step.accepted + 1), step.accepted / self.n

    def to_dict(self) -> dict[str, Any]:
        step = self.certified
        return {
            "target_precision": self.target, "delta": self.delta, "certified": step is not None, "n": self.n,
            "threshold": self.threshold, "accepted": step.accepted if step else 0, "errors": step.errors if step else 0,
            "precision_lower_bound": step.lower_bound if step else None,
            "coverage": self.coverage.value if step else 0.0,
            "coverage_interval": [self.coverage.low, self.coverage.high] if step else [0.0, 0.0],
            "gold_needed": self.gold_needed, "tests": [vars(tested) for tested in self.steps],
        }


def declare(confidence: Floats, correct: Bools, coverages: Sequence[float], *, target: float, delta: float,
            certify_size: int) -> list[float]:
    """The thresholds to test, strictest first, from [N] confidences of the *choose* part and whether these are right.

    They are *choose*'s quantiles at `coverages`, from the most promising one downwards: the one most likely to pass its
    test on `certify_size` items. A sequence that began with the few surest items would never pass its first test (even
    28 without an error certify nothing at 0.90 and delta 0.05), and certify nothing however good the student. How often
    a threshold errs is taken to be what is seen here or what its confidences say, whichever is more: the first is a
    matter of luck where few are accepted, the second of calibration. Full coverage is threshold 0. Raises DataError
    without items.
    """
    confidence, correct = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=bool)
    n = len(confidence)
    if not n:
        raise DataError("Gold's choose part is empty, so no thresholds can be drawn from it: add gold items "
                        "(data.gold_csv, data.gold_size).")
    order = np.argsort(-confidence, kind="stable")
    ordered = confidence[order]
    wrong, doubt = np.cumsum(~correct[order]), np.cumsum(1 - ordered)
    drawn = {min(n, max(1, round(share * n))) for share in coverages}
    thresholds = sorted({0.0 if place == n else float(ordered[place - 1]) for place in drawn}, reverse=True)
    accepted = np.searchsorted(-ordered, -np.array(thresholds), side="right")  # ties are accepted together
    rates = np.maximum(wrong, doubt)[accepted - 1] / accepted
    chances = [chance(certify_size, taken / n, rate, target, delta)
               for taken, rate in zip(accepted.tolist(), rates.tolist(), strict=True)]
    start = max(range(len(thresholds)), key=lambda place: (chances[place], place))
    return thresholds[start:]


def certify(confidence: Floats, correct: Bools, thresholds: Sequence[float], *, target: float,
            delta: float) -> Certificate:
    """Test `thresholds`, which fall, on [N] confidences of the *certify* part and whether these answers are right.

    Raises DataError without items and ValueError for thresholds that do not fall.
    """
    confidence, correct = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=bool)
    if not len(confidence):
        raise DataError("Gold's certify part is empty, so nothing can be certified: add gold items (data.gold_csv, "
                        "data.gold_size).")
    if not len(thresholds) or (np.diff(thresholds) >= 0).any():
        raise ValueError(f"thresholds={list(thresholds)}: one or more are needed, strictest first")
    steps: list[Step] = []
    for threshold in thresholds:
        taken = confidence >= threshold
        accepted, right = int(taken.sum()), int((taken & correct).sum())
        bound = lower_bound(right, accepted, delta)
        steps.append(Step(threshold, accepted, accepted - right, bound, bound >= target))
        if not steps[-1].passed:
            break
    return Certificate(target, delta, len(confidence), tuple(steps))


def lower_bound(right: int, n: int, delta: float) -> float:
    """The exact one-sided lower bound of a share (Clopper and Pearson, 1934), too high with a chance of `delta` at
    most."""
    return float(betaincinv(right, n - right + 1, delta)) if right else 0.0


def usual_threshold(confidence: Floats, correct: Bools, target: float) -> float | None:
    """The lowest threshold whose answers reach `target` on these very items; None where none does.

    The usual way to pick one, and a provisional one at best: it is picked for having been lucky, and promises nothing.
    """
    accepted, right = accepted_and_correct(confidence, correct)
    enough = np.flatnonzero(right / accepted >= target)
    return float(np.unique(confidence)[::-1][enough[-1]]) if len(enough) else None
