"""What becomes of a student's scores on gold's *choose* part: calibrated, judged before and after, and a provisional
threshold read off. Knows nothing about students, labels or files."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from src.calibration.calibrators import Calibrator, fit, to_dict, to_logits
from src.calibration.certificate import usual_threshold
from src.calibration.reliability import Reliability, crossed, reliability
from src.console import warn
from src.errors import DataError
from src.metrics import Bools, Floats, Ints

ISOTONIC_WANTS = 1000  # gold items; with fewer it follows luck


@dataclass(frozen=True)
class Calibrated:
    """`before` is of the student's own probabilities, `after` of calibrated ones that were fitted without the item
    they judge. `provisional_threshold` reached the target on the very items that it was picked on, and promises
    nothing; None where none reached it. `confidence` and `correct` are [N], calibrated, of the items fitted on."""

    calibrator: Calibrator
    before: Reliability
    after: Reliability
    confidence: Floats
    correct: Bools
    provisional_threshold: float | None

    def figures(self) -> dict[str, float]:
        """Under the names that runs are compared by."""
        found = {**self.before.flat("calibration", "before"), **self.after.flat("calibration", "after")}
        if self.provisional_threshold is not None:
            found["calibration/provisional_threshold"] = self.provisional_threshold
            taken = self.confidence >= self.provisional_threshold
            found["calibration/provisional_coverage"] = float(taken.mean())
        return found

    def to_dict(self) -> dict[str, Any]:
        return {"calibrator": to_dict(self.calibrator), "fitted_on": len(self.correct),
                "provisional_threshold": self.provisional_threshold,
                "before": _plain(self.before), "after": _plain(self.after)}


def calibrate(method: str, probabilities: Floats, truth: Ints, target: float) -> Calibrated:
    """From [N, C] probabilities of the *choose* part and its [N] true class indices. Raises DataError for scores that
    are no probabilities, and where gold cannot tell (see `calibrators.fit`)."""
    logits = to_logits(probabilities)
    calibrator = fit(method, logits, truth)
    calibrated = calibrator(logits)
    confidence, correct = calibrated.max(axis=1), calibrated.argmax(axis=1) == truth
    return Calibrated(calibrator, reliability(fit("none", logits, truth)(logits), truth),
                      reliability(crossed(method, logits, truth), truth), confidence, correct,
                      usual_threshold(confidence, correct, target))


def calibrate_if_gold_allows(method: str, probabilities: Floats, truth: Ints, target: float) -> Calibrated:
    """As `calibrate`; where gold is too small or too easy, the probabilities stay as they are, with a warning: labels
    that were paid for are worth a student all the same. Raises DataError for scores that are no probabilities."""
    to_logits(probabilities)
    if told := advice(method, len(truth)):
        warn(told)
    try:
        return calibrate(method, probabilities, truth, target)
    except DataError as error:
        warn(f"Not calibrated: {error}")
        return calibrate("none", probabilities, truth, target)


def before_and_after(calibrator: Calibrator, probabilities: Floats, truth: Ints) -> tuple[Reliability, Reliability]:
    """What calibration is worth on [N, C] probabilities that it was not fitted on."""
    return reliability(probabilities, truth), reliability(calibrator(to_logits(probabilities)), truth)


def advice(method: str, n: int) -> str | None:
    """What a user should know before relying on `n` gold items; None where there is nothing to say."""
    if method == "isotonic" and n < ISOTONIC_WANTS:
        return (f"calibration.method=isotonic on {n} gold items follows luck: it wants far more than {ISOTONIC_WANTS}. "
                "A certified promise holds all the same; temperature will promise more.")
    return None


def _plain(found: Reliability) -> Mapping[str, Any]:
    bins = [{"low": row.low, "high": row.high, "confidence": row.confidence, "accuracy": vars(row.accuracy)}
            for row in found.bins]
    return {"n": found.accuracy.n, "accuracy": found.accuracy.value, "confidence": found.confidence,
            "ece_equal_width": found.ece, "ece_equal_mass": found.ece_equal_mass, "brier": found.brier, "bins": bins}
