"""All that is told: each way's cost, the saving, breakeven and the verdict, with intervals, and the curve by volume."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from src.cost_model.inputs import MILLION, Inputs, Way
from src.cost_model.months import DAYS, Pays, all_in_usd, breakeven_months, build_usd, month_usd, pays_from
from src.cost_model.verdict import SURE, Verdict, against, beware
from src.cost_model.worlds import Range, World, as_expected, draw, interval
from src.metrics import Floats

CURVE = 100  # times less and more than the volume that is asked about
FURTHER = 1000  # and up to there, for the volume from which on it pays to be seen


@dataclass(frozen=True)
class Option:
    """What one way costs, in US dollars: a million items with building spread over the horizon; a month's running
    cost alone; and a million right answers, None where the accuracy is unknown, which holds with its n."""

    way: Way
    usd_per_million: Range
    usd_per_month: Range
    usd_per_million_right: Range | None
    accuracy: Range | None
    accuracy_n: int | None


@dataclass(frozen=True)
class Economics:
    """`build_usd` is paid once. The saving is the cascade's against the LLM everywhere, with building spread over the
    horizon; `breakeven_*` count from the first item on, infinite for never. `pays_from` is how many items a month it
    takes, None where no number of them would do. `chance` is the share of `draws` in which building comes back within
    the horizon. `against` says why the cascade does not pay, and `beware` what else to know."""

    options: tuple[Option, ...]
    build_usd: float
    saving_usd_per_month: Range
    saving_share: Range
    breakeven_items: Range
    breakeven_days: Range
    pays_from: Pays | None
    chance: float
    draws: int
    against: tuple[str, ...]
    beware: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        return Verdict.DOES_NOT if self.against else Verdict.PAYS if self.chance >= SURE else Verdict.UNSURE

    def option(self, way: Way) -> Option:
        return next(option for option in self.options if option.way == way)

    def flat(self) -> dict[str, float]:
        """Under the names that runs are compared by; what is infinite or unknown is left out."""
        names = {Way.LLM: "llm", Way.CHEAP: "cheap_llm", Way.STUDENT: "student", Way.CASCADE: "flywheel"}
        ranges = {f"{names[option.way]}_usd_per_million": option.usd_per_million for option in self.options}
        ranges |= {f"{names[option.way]}_accuracy": option.accuracy for option in self.options if option.accuracy}
        ranges |= {name: getattr(self, name) for name in ("saving_usd_per_month", "saving_share", "breakeven_items",
                                                          "breakeven_days")}
        found = {f"{name}{end}": value for name, given in ranges.items()
                 for end, value in zip(("", "_low", "_high"), given, strict=True)}
        found |= {"build_usd": self.build_usd, "chance": self.chance, "pays": float(self.verdict == Verdict.PAYS)}
        found |= {} if self.pays_from is None else {"pays_from": self.pays_from.first}
        return {f"cost/{name}": float(value) for name, value in found.items() if math.isfinite(value)}


@dataclass(frozen=True)
class Curve:
    """US dollars for a million items, building spread over the horizon, by [K] volumes: [K] each, with both ends of the
    95% interval. Where `people_drawn` is false these take people's share as it was counted."""

    volumes: Floats
    usd_per_million: Mapping[Way, tuple[Floats, Floats, Floats]]
    people_drawn: bool


def economics(inputs: Inputs, *, draws: int, seed: int) -> Economics:
    """Everything at once. Raises ConfigError for values that do not go together."""
    inputs.check_together()
    world, expected, volume = draw(inputs, draws, seed), as_expected(inputs), inputs.volume
    options = tuple(_option(inputs, expected, world, way) for way in Way)
    llm = [all_in_usd(inputs, some, volume, Way.LLM) for some in (expected, world)]
    saving = [spent - all_in_usd(inputs, some, volume, Way.CASCADE)
              for spent, some in zip(llm, (expected, world), strict=True)]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = [np.where(spent > 0, gained / spent, -np.inf) for gained, spent in zip(saving, llm, strict=True)]
    months = [breakeven_months(inputs, some) for some in (expected, world)]
    chance = float((months[1] <= inputs.horizon_months).mean())
    return Economics(
        options=options, build_usd=float(build_usd(inputs, volume)), saving_usd_per_month=interval(*saving),
        saving_share=interval(*share), breakeven_items=interval(*(some * volume for some in months)),
        breakeven_days=interval(*(some * DAYS for some in months)), pays_from=pays_from(inputs), chance=chance,
        draws=draws, against=tuple(against(inputs)), beware=tuple(beware(inputs, world, chance)),
    )


def curve(inputs: Inputs, world: World, points: int = 120) -> Curve:
    """Around the volume, which is one of the volumes, and the one from which on it pays."""
    expected, start = as_expected(inputs), pays_from(inputs)
    shared = inputs.human_n is not None and inputs.llm_human_n is not None
    if shared:  # the same doubt on both ways would hide how they differ
        world = replace(world, people=expected.people)
    least, most = inputs.volume / CURVE, inputs.volume * CURVE
    if start and inputs.volume / FURTHER < start.first < inputs.volume * FURTHER:
        least, most = min(least, start.first / 3), max(most, start.first * 3)
    volumes = np.union1d(np.geomspace(least, most, points), [inputs.volume])
    found = {}
    for way in Way:
        column = volumes[:, None]
        middle = all_in_usd(inputs, expected, column, way)[:, 0] / volumes * MILLION
        spread = all_in_usd(inputs, world, column, way) / column * MILLION
        low, high = np.quantile(spread, (0.025, 0.975), axis=1) if not np.isnan(middle).any() else (middle, middle)
        found[way] = (middle, np.minimum(low, middle), np.maximum(high, middle))
    return Curve(volumes, found, not shared)


def _option(inputs: Inputs, expected: World, world: World, way: Way) -> Option:
    volume, known = inputs.volume, inputs.accuracy(way)
    a_million = [all_in_usd(inputs, some, volume, way) / volume * MILLION for some in (expected, world)]
    a_month = [month_usd(inputs, some, volume, way) for some in (expected, world)]
    right = None
    if known:
        right = interval(*(spent / np.maximum(some.accuracy[way], 1e-12)
                           for spent, some in zip(a_million, (expected, world), strict=True)))
    accuracy = None if known is None else interval(expected.accuracy[way], world.accuracy[way])
    return Option(way, interval(*a_million), interval(*a_month), right, accuracy, inputs.accuracy_n(way))
