"""What is uncertain about the inputs, as draws of worlds that agree with what was counted.

Shares are Beta under Jeffreys' prior from their n, the LLM's tokens Gamma from their relative standard error. What has
no n is taken as exact; so is what building costs. An item that the LLM cannot settle goes to a person whichever way
asked it: the shares that people get are at the same place in their distributions in each world, so that a doubt about
people which all ways share does not become one about their difference. All other draws are independent, also where
shares were counted on the same items, so that differences look less certain than they are. Luck in training and prices
that change are in no interval.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import betaincinv

from src.cost_model.inputs import Inputs, Way
from src.metrics import Floats


@dataclass(frozen=True)
class World:
    """What is uncertain, [D] each: the escalated share, the LLM's tokens relative to what is expected, and by way the
    share of all items that go to people, and the accuracy, nan where it is unknown."""

    escalation_rate: Floats
    tokens: Floats
    people: Mapping[Way, Floats]
    accuracy: Mapping[Way, Floats]


class Range(NamedTuple):
    """A figure, and the 95% interval around it; infinite where something never happens."""

    value: float
    low: float
    high: float


def as_expected(inputs: Inputs) -> World:
    """D = 1: everything as it is given."""
    people = {Way.LLM: inputs.llm_human_rate, Way.CHEAP: inputs.cheap_human_rate, Way.STUDENT: 0.0,
              Way.CASCADE: inputs.human_rate}
    return World(np.array([inputs.escalation_rate]), np.ones(1), {way: np.array([people[way]]) for way in Way},
                 {way: np.array([math.nan if (found := inputs.accuracy(way)) is None else found]) for way in Way})


def draw(inputs: Inputs, draws: int, seed: int) -> World:
    """D = `draws` worlds. Each key has a stream of its own, so that one more or less known leaves the others as they
    are."""
    places = [np.random.default_rng([seed, stream]).uniform(size=draws) for stream in range(2 + len(Way))]
    escalation = _share(places[0], inputs.escalation_rate, inputs.escalation_n)
    people = {Way.LLM: _share(places[1], inputs.llm_human_rate, inputs.llm_human_n),
              Way.CHEAP: _share(places[1], inputs.cheap_human_rate, inputs.cheap_human_n),
              Way.STUDENT: np.zeros(draws),
              Way.CASCADE: np.minimum(_share(places[1], inputs.human_rate, inputs.human_n), escalation)}
    accuracy = {way: _share(place, inputs.accuracy(way), inputs.accuracy_n(way))
                for way, place in zip(Way, places[2:], strict=True)}
    error = inputs.token_error
    rng = np.random.default_rng([seed, len(places)])
    tokens = rng.gamma(error**-2, error**2, draws) if error > 0 else np.ones(draws)
    return World(escalation, tokens, people, accuracy)


def interval(expected: Floats, drawn: Floats) -> Range:
    """Widened where needed to hold the value itself: a count of none lies at the end of what it allows. nan where that
    is unknown."""
    value = float(expected[0])
    if math.isnan(value):
        return Range(value, value, value)
    # Of infinite draws no middle can be interpolated.
    low, high = map(float, np.quantile(drawn, (0.025, 0.975), method="inverted_cdf"))
    return Range(value, min(low, value), max(high, value))


def _share(place: Floats, value: float | None, n: int | None) -> Floats:
    """[D] shares that agree with `value` of `n`, at `place` of their distribution; nan where nothing is known."""
    if value is None or not n:
        return np.full(len(place), math.nan if value is None else value)
    found: Floats = betaincinv(value * n + 0.5, (1 - value) * n + 0.5, place)
    return found
