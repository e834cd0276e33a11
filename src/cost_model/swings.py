"""Which key the saving hangs on."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from src.cost_model.inputs import SHARES, Inputs, Way
from src.cost_model.months import saving_usd
from src.cost_model.worlds import World

ONE_IN_A_THOUSAND = 0.001  # what people's share of none is held against, where nothing says how sure that is
SWUNG = ("volume", "escalation_rate", "human_rate", "llm_usd_per_item", "gate_usd_per_item", "hosting_usd_per_month",
         "labels", "label_share", "label_usd", "gold_items", "gold_minutes", "training_usd", "relabel_months",
         "relabel_share", "human_minutes", "wage_usd_per_hour", "mistake_usd", "llm_human_rate")


@dataclass(frozen=True)
class Swing:
    """How the saving of a month moves as one key goes from `low` to `high`; `counted` where these are the ends of its
    95% interval, and not simply half and double."""

    key: str
    low: float
    high: float
    at_low: float
    at_high: float
    counted: bool

    @property
    def width(self) -> float:
        return abs(self.at_high - self.at_low)


def sensitivity(inputs: Inputs, world: World) -> list[Swing]:
    """The saving's swing by each key, widest first; keys that move nothing are left out. Where people's share was
    counted for the cascade and for the LLM alone, both move together, as they do in the draws."""
    inputs = replace(inputs, llm_usd_per_item=inputs.llm_usd)  # whatever it comes from, it swings as one
    drawn = {"escalation_rate": (world.escalation_rate, inputs.escalation_n),
             "human_rate": (world.people[Way.CASCADE], inputs.human_n),
             "llm_human_rate": (world.people[Way.LLM], inputs.llm_human_n)}
    both = inputs.human_n is not None and inputs.llm_human_n is not None
    found = []
    for key in SWUNG:
        if getattr(inputs, key) is None or (both and key == "llm_human_rate"):
            continue
        ends = _ends(inputs, key, *drawn.get(key, (None, None)))
        moved: list[dict[str, Any]] = [{key: end} for end in ends]
        if both and key == "human_rate":
            for one, end in zip(moved, _ends(inputs, "llm_human_rate", *drawn["llm_human_rate"]), strict=True):
                one["llm_human_rate"] = end
        at_low, at_high = (saving_usd(replace(inputs, **one)) for one in moved)
        found.append(Swing(key, *ends, at_low, at_high, bool(drawn.get(key, (None, None))[1])))
    return sorted((swing for swing in found if swing.width > 1e-9), key=lambda swing: -swing.width)


def _ends(inputs: Inputs, key: str, drawn: Any, n: int | None) -> tuple[float, float]:
    value = getattr(inputs, key)
    low, high = value / 2, value * 2
    if n:
        low, high = map(float, np.quantile(drawn, (0.025, 0.975)))
        low, high = min(low, value), max(high, value)
    elif key == "human_rate" and not value:
        low, high = 0.0, ONE_IN_A_THOUSAND
    if key in SHARES:
        high = min(1.0, high)
    if key == "human_rate":
        high = min(high, inputs.escalation_rate)
    if key == "escalation_rate":
        low = max(low, inputs.human_rate)
    if key in ("labels", "gold_items"):
        low, high = math.floor(low), math.ceil(high)
    return low, high
