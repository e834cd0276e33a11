"""Calibrators against known parameters and by hand; what cannot be fitted is refused in words."""

import json
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from scipy.special import softmax

from src.calibration.calibrators import Isotonic, Temperature, Vector, _floored, fit, from_dict, to_dict, to_logits
from src.calibration.reliability import crossed, reliability
from src.calibration.spec import METHODS, CalibrationSpec
from src.errors import ConfigError, DataError
from src.metrics import ece

DEFAULT = Path(__file__).parents[1] / "conf" / "calibration" / "default.yaml"


def drawn(n: int = 400, size: int = 4, seed: int = 0, *, too_sure: float = 2.5) -> tuple[np.ndarray, np.ndarray]:
    """Logits `too_sure` times too large, and truth drawn from what they would say at their proper size."""
    rng = np.random.default_rng(seed)
    proper = rng.normal(scale=1.5, size=(n, size))
    truth = np.array([rng.choice(size, p=row) for row in softmax(proper, axis=1)])
    return too_sure * proper, truth


def log_loss(probabilities: np.ndarray, truth: np.ndarray) -> float:
    return float(-np.log(probabilities[np.arange(len(truth)), truth]).mean())


@pytest.mark.parametrize("too_sure", [0.4, 1.0, 2.5])
def test_the_temperature_is_the_one_that_the_scores_were_made_with(too_sure: float) -> None:
    found = fit("temperature", *drawn(20_000, too_sure=too_sure))
    assert isinstance(found, Temperature) and found.temperature == pytest.approx(too_sure, rel=0.03)


def test_no_other_temperature_has_less_log_loss() -> None:
    """A share of one in N spread evenly over the classes."""
    logits, truth = drawn(150)

    def loss(probabilities: np.ndarray) -> float:
        return log_loss(probabilities * (149 / 150) + 1 / 600, truth)

    best = loss(fit("temperature", logits, truth)(logits))
    assert best <= min(loss(softmax(logits / t, axis=1)) for t in np.geomspace(0.06, 19, 400)) + 1e-7


@pytest.mark.parametrize("method", ["temperature", "vector"])
def test_one_odd_item_does_not_decide(method: str) -> None:
    logits, truth = drawn(150)
    usual = fit(method, logits, truth)(logits)
    logits[0] = 1000.0 * (np.arange(4) == (truth[0] + 1) % 4)
    odd = fit(method, logits, truth)(logits)
    assert np.abs(odd[1:] - usual[1:]).max() < 0.05


def test_the_slope_is_that_of_the_loss() -> None:
    logits, truth = drawn(20)
    losses, slope = _floored(logits, truth)
    for row, column in ((0, 0), (3, 2), (7, int(truth[7]))):
        nudged = logits.copy()
        nudged[row, column] += 1e-6
        change = (_floored(nudged, truth)[0] - losses).sum() / 1e-6
        assert change == pytest.approx(slope[row, column], abs=1e-4)


def test_probabilities_serve_as_well_as_logits() -> None:
    """What a softmax has flattened to probabilities is found again by their logarithm."""
    logits, truth = drawn(200)
    again = to_logits(softmax(logits, axis=1))
    np.testing.assert_allclose(fit("temperature", again, truth)(again), fit("temperature", logits, truth)(logits),
                               atol=1e-6)


def test_a_probability_of_nought_is_borne() -> None:
    assert np.isfinite(to_logits(np.array([[1.0, 0.0]]))).all()


def test_the_vector_finds_weights_and_biases_of_its_own_for_each_class() -> None:
    logits, truth = drawn(20_000, too_sure=1.0)
    weights, biases = np.array([0.5, 1.0, 2.0, 1.5]), np.array([0.0, 1.0, -1.0, 0.5])
    found = fit("vector", (logits - biases) / weights, truth)
    assert isinstance(found, Vector)
    np.testing.assert_allclose(found.weights, weights, rtol=0.08)
    centred = np.array(found.biases) - np.mean(found.biases)  # softmax does not see a bias that all classes share
    np.testing.assert_allclose(centred, biases - biases.mean(), atol=0.08)


def test_the_vector_stays_near_the_temperature_where_gold_is_small() -> None:
    """Separable data have no least log loss: without something to hold them, weights would grow without end."""
    logits, truth = drawn(12)
    found = fit("vector", logits, truth)
    assert isinstance(found, Vector) and max(map(abs, (*found.weights, *found.biases))) < 10


def test_isotonic_pools_adjacent_violators_for_each_class() -> None:
    logits, truth = drawn(300, size=3)
    said = softmax(logits, axis=1)
    curves = np.column_stack([pool(said[:, c], truth == c) for c in range(3)])
    expected = curves / curves.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(fit("isotonic", logits, truth)(logits), expected, atol=1e-9)


def pool(said: np.ndarray, is_class: np.ndarray) -> list[float]:
    """The rising curve nearest to the outcomes, at each item."""
    order = np.argsort(said, kind="stable")
    blocks: list[list[float]] = []  # mean, size
    for outcome in is_class[order].astype(float):
        blocks.append([outcome, 1])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            (mean, size), (last, more) = blocks[-2:]
            blocks[-2:] = [[(mean * size + last * more) / (size + more), size + more]]
    found = np.empty(len(said))
    found[order] = [mean for mean, size in blocks for _ in range(int(size))]
    return found.tolist()


def test_isotonic_takes_a_class_without_gold_at_its_word() -> None:
    logits, truth = drawn(200)
    keep = truth != 3
    found = fit("isotonic", logits[keep], truth[keep])
    assert isinstance(found, Isotonic) and found.said[3] == found.found[3] == (0.0, 1.0)


def test_isotonic_falls_back_where_all_classes_are_ruled_out() -> None:
    ruled_out = Isotonic(said=((0.0, 0.9, 1.0),) * 2, found=((0.0, 0.0, 1.0),) * 2)
    np.testing.assert_allclose(ruled_out(np.log([[0.6, 0.4]])), [[0.6, 0.4]])


@pytest.mark.parametrize("method", METHODS)
def test_what_is_stored_answers_alike(method: str) -> None:
    logits, truth = drawn(200)
    made = fit(method, logits, truth)
    again = from_dict(json.loads(json.dumps(to_dict(made))))
    np.testing.assert_array_equal(again(logits), made(logits))
    np.testing.assert_allclose(made(logits).sum(axis=1), 1)


@pytest.mark.parametrize("stored", [{}, {"method": "platt"}, {"method": "temperature"},
                                    {"method": "temperature", "temperature": "hot"},
                                    {"method": "temperature", "temperature": -1.0},
                                    {"method": "temperature", "temperature": float("nan")},
                                    {"method": "vector", "weights": [1.0], "biases": [None]}])
def test_what_is_no_calibration_is_refused(stored: dict) -> None:
    with pytest.raises(DataError, match="calibration cannot be read"):
        from_dict(stored)


ONE_CLASS = (np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), np.array([0, 0, 0]))


@pytest.mark.parametrize(("logits", "truth", "message"), [
    (np.eye(3)[:2], np.array([1, 0]), "2 gold items for 3 classes are too few to calibrate on"),
    (*ONE_CLASS, "All 3 gold items to calibrate on are of one class"),
    (np.eye(2)[[0, 1, 0]], np.array([0, 1, 0]), "answers all 3 gold items to calibrate on rightly"),
    (np.array([[1.0, 0.0], [np.nan, 0.0], [0.0, 1.0]]), np.array([0, 1, 0]), "item 1 hold nan or infinity"),
    (np.array([[1.0, 0.0], [np.inf, 0.0], [0.0, 1.0]]), np.array([0, 1, 0]), "item 1 hold nan or infinity"),
    (np.eye(2), np.array([1]), "one row for each is needed"),
])
def test_gold_that_cannot_tell_is_refused_with_a_way_out(logits: np.ndarray, truth: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        fit("temperature", logits, truth)
    assert "calibration.method=none" in str(error.value) or "rain" in str(error.value) or "row" in str(error.value)


def test_without_calibration_nothing_is_needed_of_gold() -> None:
    logits, truth = ONE_CLASS
    np.testing.assert_allclose(fit("none", logits, truth)(logits), softmax(logits, axis=1))


@pytest.mark.parametrize(("rows", "message"), [
    ([[0.5, 0.5], [0.9, 0.4]], "item 1 sum to 1.3"),
    ([[1.2, -0.2]], "the least is -0.2"),
    ([[np.nan, 1.0]], "item 0 hold nan"),
    ([[1.0], [1.0]], r"shape \(2, 1\)"),
])
def test_scores_that_are_no_probabilities_are_refused(rows: list, message: str) -> None:
    with pytest.raises(DataError, match=message):
        to_logits(np.array(rows))


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(ConfigError, match=r"calibration\.method='platt' is not allowed: one of temperature, vector"):
        fit("platt", *drawn(20))


def test_reliability_by_hand() -> None:
    """Two bins of two: 0.6 said and 1 of 2 right, 0.9 said and 2 of 2 right."""
    probabilities = np.array([[0.6, 0.4], [0.4, 0.6], [0.9, 0.1], [0.1, 0.9]])
    found = reliability(probabilities, np.array([0, 0, 0, 1]), bins=2)
    assert [(round(b.confidence, 9), b.accuracy.value) for b in found.bins] == [(0.6, 0.5), (0.9, 1.0)]
    assert found.ece_equal_mass == pytest.approx((0.1 + 0.1) / 2)
    assert found.brier == pytest.approx((2 * 0.4**2 + 2 * 0.6**2 + 2 * 0.1**2 + 2 * 0.1**2) / 4)
    assert found.ece == ece(probabilities.max(axis=1), np.array([True, False, True, True]))
    assert found.accuracy.value == 0.75 and found.confidence == pytest.approx(0.75)


def test_calibration_mends_what_is_too_sure_also_for_items_that_it_has_not_seen() -> None:
    logits, truth = drawn(300)
    before = reliability(softmax(logits, axis=1), truth)
    after = reliability(crossed("temperature", logits, truth), truth)
    assert after.ece < before.ece / 2 and after.ece_equal_mass < before.ece_equal_mass / 2
    assert after.brier < before.brier and before.confidence > after.confidence


def test_crossed_items_do_not_answer_for_themselves() -> None:
    """Isotonic learns luck by heart, so that its own items flatter it; a stranger's eye sees it."""
    rng = np.random.default_rng(0)
    logits, truth = rng.normal(size=(100, 3)), rng.integers(3, size=100)
    own = fit("isotonic", logits, truth)(logits)
    others = crossed("isotonic", logits, truth)
    assert reliability(own, truth).brier < 2 / 3 < reliability(others, truth).brier  # that of equal shares for all


def test_crossing_two_items_leaves_each_an_other() -> None:
    found = crossed("temperature", np.array([[2.0, 0.0], [2.0, 0.0]]), np.array([0, 1]))
    assert np.isfinite(found).all()


def spec(**changes: object) -> CalibrationSpec:
    return CalibrationSpec(**{**OmegaConf.to_container(OmegaConf.load(DEFAULT)), **changes})


def test_the_defaults_are_allowed() -> None:
    assert spec().method == "temperature"


@pytest.mark.parametrize(("key", "value"), [
    ("method", "platt"), ("target_precision", 1.0), ("target_precision", 0.0), ("target_precision", float("nan")),
    ("delta", 0.0), ("delta", 0.5), ("spend", 0.0), ("spend", 1.5), ("coverages", []), ("coverages", [0.5, 0.5]),
    ("coverages", [0.0, 1.0]), ("coverages", [0.5, 1.1]),
])
def test_a_value_out_of_range_is_named(key: str, value: object) -> None:
    with pytest.raises(ConfigError) as error:
        spec(**{key: value})
    assert f"calibration.{key}={value!r} is not allowed: " in str(error.value)
