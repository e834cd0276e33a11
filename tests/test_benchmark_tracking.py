"""`python -m src.benchmark suite=tracking`: what its table says of known times."""

import pytest

from src.benchmarks.defaults import demo_student
from src.benchmarks.tracking import TRAIN, WAYS, Took, rows


def test_shares_are_of_pairs_and_not_of_medians() -> None:
    """The machine is three times slower in the second pair: by medians, logging would have cost nothing of that."""
    seconds = {WAYS[0]: [Took(10, 20), Took(30, 20), Took(10, 20)], WAYS[1]: [Took(11, 21), Took(33, 21), Took(10, 21)],
               WAYS[2]: [Took(20, 30), Took(90, 30), Took(20, 40)]}
    none, ours, naive = rows(seconds, steps=100)
    assert none == ("no logging", "10.00", "100.0", "", "", "")
    assert ours == ("the defaults", "11.00", "110.0", "+10.0%", "+0.0% to +10.0%", "+5.0%")
    assert naive[3:] == ("+100.0%", "+100.0% to +200.0%", "+50.0%")


def test_it_is_the_demos_student() -> None:
    spec = demo_student()
    assert (spec.input_size, spec.batch_size, spec.learning_rate, spec.drop_rate) == (96, 32, 2e-3, 0.3)
    assert TRAIN % spec.batch_size == 0 and spec.augment.crop_scale == pytest.approx(0.9)
