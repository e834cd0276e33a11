"""Calibration as training uses it: simulated students who are known to be too sure of themselves."""

import numpy as np
import pytest

from src.calibration.calibrate import advice, before_and_after, calibrate, calibrate_if_gold_allows
from src.calibration.calibrators import from_dict
from src.calibration.reliability import reliability
from src.errors import DataError

CLASSES = 4


def overconfident(n: int, seed: int, heat: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """[N, C] probabilities and [N] truth; the true ones are those with the logits divided by `heat`."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=1.5, size=(n, CLASSES))
    honest = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = np.array([rng.choice(CLASSES, p=row) for row in honest])
    said = np.exp(heat * logits)
    return said / said.sum(axis=1, keepdims=True), truth


def test_a_student_that_is_too_sure_is_brought_back() -> None:
    found = calibrate("temperature", *overconfident(2000, 0), target=0.8)
    assert found.calibrator.temperature == pytest.approx(3.0, rel=0.1)  # type: ignore[attr-defined]
    assert found.before.ece > 0.15 > 0.05 > found.after.ece
    assert found.figures()["calibration/ece_before"] == found.before.ece
    assert found.figures()["calibration/brier_after"] < found.figures()["calibration/brier_before"]


def test_it_holds_on_items_it_was_not_fitted_on() -> None:
    fitted = calibrate("temperature", *overconfident(2000, 0), target=0.8)
    probabilities, truth = overconfident(3000, 1)
    before, after = before_and_after(fitted.calibrator, probabilities, truth)
    assert before == reliability(probabilities, truth)
    assert before.ece > 0.15 > 0.05 > after.ece


def test_the_provisional_threshold_reaches_the_target_where_it_was_picked() -> None:
    found = calibrate("temperature", *overconfident(500, 0), target=0.8)
    assert found.provisional_threshold is not None
    taken = found.confidence >= found.provisional_threshold
    assert found.correct[taken].mean() >= 0.8
    assert found.figures()["calibration/provisional_coverage"] == taken.mean()
    lower = np.sort(found.confidence[~taken])[::-1]
    assert all(found.correct[found.confidence >= value].mean() < 0.8 for value in lower)


def test_what_is_written_down_gives_the_same_calibrator() -> None:
    probabilities, truth = overconfident(300, 2)
    for method in ("temperature", "vector", "isotonic", "none"):
        found = calibrate(method, probabilities, truth, target=0.8)
        again = from_dict(found.to_dict()["calibrator"])
        logits = np.log(probabilities)
        assert np.allclose(again(logits), found.calibrator(logits))
        assert found.to_dict()["fitted_on"] == 300 and found.to_dict()["after"]["n"] == 300


def test_gold_that_cannot_tell_leaves_the_scores_as_they_are_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    probabilities, truth = overconfident(3, 0)
    found = calibrate_if_gold_allows("temperature", probabilities, truth, target=0.8)
    assert found.calibrator.method == "none"
    assert np.allclose(found.confidence, probabilities.max(axis=1))
    assert "Not calibrated: 3 gold items for 4 classes" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(DataError, match="3 gold items for 4 classes"):
        calibrate("temperature", probabilities, truth, target=0.8)


def test_scores_that_are_no_probabilities_stop_training_too() -> None:
    probabilities, truth = overconfident(50, 0)
    probabilities[7] = np.nan
    with pytest.raises(DataError, match="item 7 hold nan"):
        calibrate_if_gold_allows("temperature", probabilities, truth, target=0.8)


def test_isotonic_on_little_gold_is_advised_against() -> None:
    assert advice("temperature", 100) is None and advice("isotonic", 1000) is None
    assert "isotonic on 100 gold items follows luck" in (advice("isotonic", 100) or "")
