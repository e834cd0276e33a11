"""What a month costs each way, by the item and by the month, and when building is back."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from src.cost_model.inputs import Inputs, Way
from src.cost_model.worlds import World, as_expected
from src.metrics import Floats

DAYS = 365.25 / 12  # of a month
MONTH_S = DAYS * 86_400


@dataclass(frozen=True)
class Pays:
    """The fewest items a month with which building is back within the horizon, and from where on that holds for good.
    In between there are volumes at which the latest machine is too empty; where one does it all, both are the same."""

    first: float
    settled: float


def by_item_usd(inputs: Inputs, world: World, way: Way) -> Floats:
    """[D] for one item: gate, LLM, people, mistakes."""
    found: Floats = world.people[way] * inputs.look_usd
    if way == Way.LLM:
        found = found + inputs.llm_usd * world.tokens
    elif way == Way.CHEAP:
        found = found + inputs.cheap_usd * world.tokens
    else:
        found = found + inputs.gate_usd_per_item
    if way == Way.CASCADE:
        found = found + world.escalation_rate * inputs.llm_usd * world.tokens
    if inputs.mistake_usd:
        found = found + inputs.mistake_usd * (1 - world.accuracy[way])
    return found


def machines(inputs: Inputs, volume: Floats | float) -> Floats | float:
    """How many are rented, for the share of their speed that may be used on average."""
    room = room_of(inputs)
    if math.isinf(room):
        return 1.0
    found: Floats = np.maximum(1.0, np.ceil(volume / room))
    return found


def room_of(inputs: Inputs) -> float:
    """Items a month that one machine has room for."""
    return math.inf if inputs.items_per_second is None else inputs.items_per_second * MONTH_S * inputs.load


def build_usd(inputs: Inputs, volume: Floats | float) -> Floats:
    """Labels, gold and training, once; labels may be a share of a month's volume."""
    return _labels_usd(inputs, volume) + inputs.gold_usd + inputs.training_usd


def relabel_usd(inputs: Inputs, volume: Floats | float) -> Floats | float:
    """What labelling and training again cost in a month."""
    if inputs.relabel_months is None:
        return 0.0
    again = inputs.relabel_share * (_labels_usd(inputs, volume) + inputs.gold_usd) + inputs.training_usd
    found: Floats = again / inputs.relabel_months
    return found


def month_usd(inputs: Inputs, world: World, volume: Floats | float, way: Way) -> Floats:
    """What a month of `volume` items costs to run; [D], or [K, D] for [K, 1] volumes."""
    found: Floats = volume * by_item_usd(inputs, world, way)
    if way in (Way.STUDENT, Way.CASCADE):
        found = found + inputs.hosting_usd_per_month * machines(inputs, volume) + relabel_usd(inputs, volume)
    return found


def all_in_usd(inputs: Inputs, world: World, volume: Floats | float, way: Way) -> Floats:
    """A month with building spread over the horizon."""
    built = build_usd(inputs, volume) / inputs.horizon_months if way in (Way.STUDENT, Way.CASCADE) else 0.0
    return month_usd(inputs, world, volume, way) + built


def saving_usd(inputs: Inputs) -> float:
    """Of a month, as expected, with building spread over the horizon."""
    expected = as_expected(inputs)
    llm, cascade = (all_in_usd(inputs, expected, inputs.volume, way)[0] for way in (Way.LLM, Way.CASCADE))
    return float(llm - cascade)


def breakeven_months(inputs: Inputs, world: World) -> Floats:
    """[D] months until the cascade has saved what building cost; infinite where it saves nothing."""
    saved = (month_usd(inputs, world, inputs.volume, Way.LLM)
             - month_usd(inputs, world, inputs.volume, Way.CASCADE))
    with np.errstate(divide="ignore", over="ignore"):
        months: Floats = np.where(saved > 0, build_usd(inputs, inputs.volume) / np.maximum(saved, 1e-300), np.inf)
    return months


def pays_from(inputs: Inputs) -> Pays | None:
    """As expected; None where no number of items would do.

    With k machines a month leaves by_item * volume - by_month - k * hosting, and has room for k * room items.
    """
    expected, hosting, room = as_expected(inputs), inputs.hosting_usd_per_month, room_of(inputs)
    by_month = float(all_in_usd(inputs, expected, 0.0, Way.CASCADE)[0]) - hosting
    by_item = float((by_item_usd(inputs, expected, Way.LLM) - by_item_usd(inputs, expected, Way.CASCADE))[0])
    if inputs.label_share is not None:
        again = 0.0 if inputs.relabel_months is None else inputs.relabel_share / inputs.relabel_months
        by_item -= inputs.label_share * inputs.label_usd * (1 / inputs.horizon_months + again)
    if by_item <= 0:
        return None
    if math.isinf(room):
        first = max(1.0, (by_month + hosting) / by_item)
        return Pays(first, first)
    left = by_item * room - hosting  # by a full machine
    if left <= 1e-12 * hosting:
        return None
    first = max(1.0, (by_month + hosting * max(1, math.ceil(by_month / left))) / by_item)
    # The last machine that is not yet worth its rent when it gets its first item.
    last = math.ceil((by_month + by_item * room) / left) - 1
    return Pays(first, max(first, (by_month + hosting * last) / by_item))


def _labels_usd(inputs: Inputs, volume: Floats | float) -> Floats:
    count: Any = inputs.labels if inputs.label_share is None else inputs.label_share * volume
    return np.asarray(count * inputs.label_usd, dtype=np.float64)
