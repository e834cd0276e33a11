"""The study of promises: its worlds are what it says, and a small one already shows what it is for."""

import numpy as np
import pytest
from scipy.special import softmax

from src.benchmarks import guarantee
from src.benchmarks.guarantee import DELTA, DRAWS, HAIR, SHIPPED, SIZES, TARGETS, WAYS, most_broken, study


def test_the_limit_is_the_agreed_one() -> None:
    assert most_broken(1000, 0.05) == 67


def test_the_worst_case_is_as_imprecise_everywhere_and_a_hair_below_the_target() -> None:
    logits, truth = guarantee.uninformative(0.9, seed=0)
    probabilities = softmax(logits, axis=1)
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    surest = correct[np.argsort(-confidence)]
    precision = np.cumsum(surest) / np.arange(1, len(surest) + 1)
    assert precision[-1] == pytest.approx(0.9 - HAIR)
    assert np.abs(precision[200:] - precision[-1]).max() < 0.005


def test_one_temperature_mends_the_informative_student() -> None:
    from src.calibration.calibrators import Temperature, fit

    world = guarantee.informative(seed=0)
    found = fit("temperature", *world)
    # Of normal noise, the class's probability is a softmax of signal / noise² times the logits.
    expected = guarantee.TOO_SURE * guarantee.NOISE**2 / guarantee.SIGNAL
    assert isinstance(found, Temperature) and found.temperature == pytest.approx(expected, rel=0.05)


def test_the_usual_threshold_breaks_its_promise_and_ours_does_not() -> None:
    world = guarantee.informative(seed=0)
    found = study(world, 300, (0.9,), DELTA, draws=60, seed=1)
    assert found.keys() == {(0.9, way) for way in WAYS}
    assert found[0.9, SHIPPED].broken <= most_broken(60, DELTA) and found[0.9, SHIPPED].found > 40
    assert found[0.9, "usual threshold"].broken > 15
    assert 0.6 < found[0.9, SHIPPED].coverage < found[0.9, "usual threshold"].coverage


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("size", SIZES)
def test_the_promise_holds_in_a_thousand_draws(size: int) -> None:
    worlds = [(guarantee.informative(0), TARGETS), *((guarantee.uninformative(t, 0), (t,)) for t in TARGETS)]
    for world, targets in worlds:
        found = study(world, size, targets, DELTA, draws=DRAWS, seed=0, ways=[SHIPPED])
        assert found.keys() == {(target, SHIPPED) for target in targets}
        assert all(outcome.draws == DRAWS and outcome.broken <= 67 for outcome in found.values())
