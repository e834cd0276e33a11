"""Usage and prices in; cost curve, savings and breakeven out. Pure: no files, no runs, no pictures.

Four ways to answer a stream of items are compared: the LLM for each of them, a cheaper LLM alone, the student alone,
and the cascade. Money is in US dollars, a month is a twelfth of 365.25 days. Building (labels, gold, training) is paid
once; hosting and relabelling by the month; the gate, the LLM, people and, where they have a price, mistakes by the
item. `horizon_months` is how long building may take to come back, and what its cost is spread over.

Relabelling is spread evenly over its months. The interval of a figure carries what is uncertain: shares as Beta under
Jeffreys' prior from their n, the LLM's tokens as Gamma from their relative standard error. What has no n is taken as
exact. Draws are independent of each other, also where shares were counted on the same items, so that differences look
less certain than they are. Luck in training and prices that change are in no interval.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np

from src.errors import ConfigError
from src.metrics import Floats

MILLION = 1_000_000
DAYS = 365.25 / 12  # of a month
MONTH_S = DAYS * 86_400
SURE = 0.95  # the chance from which on it is said without reserve
MARGIN = 0.01  # of accuracy, that a cheaper way may lose and still be as good
ONE_IN_A_HUNDRED = 0.01  # what a share of none is held against, where nothing says how sure that is
LEAST, MOST = 1.0, 1e12  # items a month, between which breakeven is looked for
CURVE = (1e-3, 1e3)  # of the volume


class Way(StrEnum):
    """What answers."""

    LLM = "LLM everywhere"
    CHEAP = "best cheap LLM alone"
    STUDENT = "student alone"
    CASCADE = "cascade"


class Verdict(StrEnum):
    """Whether building comes back in time and nothing else speaks against it; unsure where it is expected to, and the
    counts allow too well that it does not."""

    PAYS = "pays"
    UNSURE = "unsure"
    DOES_NOT = "does not pay"


ACCURACY = {Way.LLM: "llm", Way.CHEAP: "cheap", Way.STUDENT: "student", Way.CASCADE: "cascade"}
SHARES = ("escalation_rate", "human_rate", "llm_human_rate", "cheap_human_rate", "label_share", "relabel_share",
          *(f"{name}_accuracy" for name in ACCURACY.values()))
POSITIVE = ("volume", "items_per_second", "load", "horizon_months", "relabel_months", "latency_budget_ms")


@dataclass
class Inputs:
    """What the money depends on; `conf/cost.yaml` says unit and source of each. Of a pair `x` and `x_n`, n is how many
    items the share was counted on, None where it is taken as exact."""

    volume: float
    # What the student and its cascade need.
    escalation_rate: float
    escalation_n: int | None
    human_rate: float
    human_n: int | None
    gate_usd_per_item: float
    hosting_usd_per_month: float
    items_per_second: float | None
    load: float
    # What an LLM costs.
    tokens_in: float
    tokens_out: float
    token_error: float
    llm_input_usd: float
    llm_output_usd: float
    llm_usd_per_item: float | None
    llm_human_rate: float
    cheap_input_usd: float
    cheap_output_usd: float
    cheap_usd_per_item: float | None
    cheap_human_rate: float
    # What building costs, and doing it again.
    labels: int
    label_share: float | None
    label_usd: float
    gold_items: int
    gold_minutes: float
    training_usd: float
    relabel_months: float | None
    relabel_share: float
    # People, and what is wrong.
    human_minutes: float
    wage_usd_per_hour: float
    mistake_usd: float
    llm_accuracy: float | None
    llm_accuracy_n: int | None
    cheap_accuracy: float | None
    cheap_accuracy_n: int | None
    student_accuracy: float | None
    student_accuracy_n: int | None
    cascade_accuracy: float | None
    cascade_accuracy_n: int | None
    # What is asked for.
    horizon_months: float
    latency_budget_ms: float | None
    llm_latency_ms: float | None
    student_latency_ms: float | None

    def __post_init__(self) -> None:
        for key in (field.name for field in fields(Inputs)):
            value = getattr(self, key)
            if value is None:
                continue
            if not math.isfinite(value):
                raise ConfigError(key, value, "a finite number")
            if key in SHARES and not 0 <= value <= 1:
                raise ConfigError(key, value, "a share in [0, 1]")
            if key in POSITIVE and not value > 0:
                raise ConfigError(key, value, "more than 0")
            if key.endswith("_n") and value < 1:
                raise ConfigError(key, value, "1 or more items, or null where the share is taken as exact")
            if value < 0:
                raise ConfigError(key, value, "0 or more")
        if self.load > 1:
            raise ConfigError("load", self.load, "at most 1: the share of a machine's speed that is used on average")

    def check_together(self) -> None:
        """What a run's figures may still mend, and so no single value's construction refuses. Raises ConfigError."""
        if self.human_rate > self.escalation_rate:
            raise ConfigError("human_rate", self.human_rate, "at most escalation_rate="
                              f"{self.escalation_rate:g}: it is a share of all items, and people get what is escalated")
        for key in ("llm_accuracy", "cascade_accuracy"):
            if self.mistake_usd and getattr(self, key) is None:
                raise ConfigError("mistake_usd", self.mistake_usd, f"0 while {key} is unknown: give it, or run=<id>")

    @property
    def llm_usd(self) -> float:
        """Of one item."""
        if self.llm_usd_per_item is not None:
            return self.llm_usd_per_item
        return (self.tokens_in * self.llm_input_usd + self.tokens_out * self.llm_output_usd) / MILLION

    @property
    def cheap_usd(self) -> float:
        """Of one item."""
        if self.cheap_usd_per_item is not None:
            return self.cheap_usd_per_item
        return (self.tokens_in * self.cheap_input_usd + self.tokens_out * self.cheap_output_usd) / MILLION

    @property
    def look_usd(self) -> float:
        """Of one person's look at one item."""
        return self.human_minutes / 60 * self.wage_usd_per_hour

    @property
    def gold_usd(self) -> float:
        return self.gold_items * self.gold_minutes / 60 * self.wage_usd_per_hour

    def accuracy(self, way: Way) -> float | None:
        found: float | None = getattr(self, f"{ACCURACY[way]}_accuracy")
        return found

    def accuracy_n(self, way: Way) -> int | None:
        found: int | None = getattr(self, f"{ACCURACY[way]}_accuracy_n")
        return found


@dataclass(frozen=True)
class World:
    """What is uncertain, [D] each: shares, the LLM's tokens relative to what is expected, and each way's accuracy, nan
    where it is unknown."""

    escalation_rate: Floats
    human_rate: Floats
    tokens: Floats
    accuracy: Mapping[Way, Floats]


class Range(NamedTuple):
    """A figure, and the 95% interval around it; infinite where something never happens."""

    value: float
    low: float
    high: float


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


@dataclass(frozen=True)
class Economics:
    """All that is told. `build_usd` is paid once. The saving is the cascade's against the LLM everywhere, with building
    spread over the horizon; `breakeven_*` count from the first item on, infinite for never. `pays_from` is the fewest
    items a month with which it pays, None where no number of them would do. `chance` is the share of `draws` in which
    building comes back within the horizon. `against` says why the cascade does not pay, and `beware` what else to
    know."""

    options: tuple[Option, ...]
    build_usd: Range
    saving_usd_per_month: Range
    saving_share: Range
    breakeven_items: Range
    breakeven_days: Range
    pays_from: float | None
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
        ranges |= {name: getattr(self, name) for name in ("build_usd", "saving_usd_per_month", "saving_share",
                                                          "breakeven_items", "breakeven_days")}
        found = {f"{name}{end}": value for name, given in ranges.items()
                 for end, value in zip(("", "_low", "_high"), given, strict=True)}
        found |= {"chance": self.chance, "pays": float(self.verdict == Verdict.PAYS),
                  "pays_from": math.nan if self.pays_from is None else self.pays_from}
        return {f"cost/{name}": float(value) for name, value in found.items() if math.isfinite(value)}


@dataclass(frozen=True)
class Curve:
    """US dollars for a million items, building spread over the horizon, by [K] volumes: [K] each, with both ends of the
    95% interval."""

    volumes: Floats
    usd_per_million: Mapping[Way, tuple[Floats, Floats, Floats]]


def as_expected(inputs: Inputs) -> World:
    """D = 1: everything as it is given."""
    return World(np.array([inputs.escalation_rate]), np.array([inputs.human_rate]), np.ones(1),
                 {way: np.array([math.nan if (found := inputs.accuracy(way)) is None else found]) for way in Way})


def draw(inputs: Inputs, draws: int, seed: int) -> World:
    """D = `draws` worlds that agree with what was counted."""
    rng = np.random.default_rng(seed)
    escalation = _share(rng, inputs.escalation_rate, inputs.escalation_n, draws)
    human = np.minimum(_share(rng, inputs.human_rate, inputs.human_n, draws), escalation)
    error = inputs.token_error
    tokens = rng.gamma(error**-2, error**2, draws) if error > 0 else np.ones(draws)
    return World(escalation, human, tokens,
                 {way: _share(rng, inputs.accuracy(way), inputs.accuracy_n(way), draws) for way in Way})


def build_usd(inputs: Inputs, volume: Floats | float) -> Floats:
    """Labels, gold and training, once; labels may be a share of a month's volume."""
    return _labels_usd(inputs, volume) + inputs.gold_usd + inputs.training_usd


def month_usd(inputs: Inputs, world: World, volume: Floats | float, way: Way) -> Floats:
    """What a month of `volume` items costs to run; [D], or [K, D] for [K, 1] volumes."""
    per_item: Floats | float
    fixed: Floats | float = 0.0
    look = inputs.look_usd
    if way == Way.LLM:
        per_item = inputs.llm_usd * world.tokens + inputs.llm_human_rate * look
    elif way == Way.CHEAP:
        per_item = inputs.cheap_usd * world.tokens + inputs.cheap_human_rate * look
    else:
        per_item = inputs.gate_usd_per_item + np.zeros_like(world.tokens)
        fixed = inputs.hosting_usd_per_month * machines(inputs, volume) + relabel_usd(inputs, volume)
        if way == Way.CASCADE:
            per_item = per_item + world.escalation_rate * inputs.llm_usd * world.tokens + world.human_rate * look
    if inputs.mistake_usd:
        per_item = per_item + inputs.mistake_usd * (1 - world.accuracy[way])
    found: Floats = volume * per_item + fixed
    return found


def machines(inputs: Inputs, volume: Floats | float) -> Floats | float:
    """How many are rented, for the share of their speed that may be used on average."""
    if inputs.items_per_second is None:
        return 1.0
    found: Floats = np.maximum(1.0, np.ceil(volume / (inputs.items_per_second * MONTH_S * inputs.load)))
    return found


def relabel_usd(inputs: Inputs, volume: Floats | float) -> Floats | float:
    """What labelling and training again cost in a month."""
    if inputs.relabel_months is None:
        return 0.0
    again = inputs.relabel_share * (_labels_usd(inputs, volume) + inputs.gold_usd) + inputs.training_usd
    found: Floats = again / inputs.relabel_months
    return found


def all_in_usd(inputs: Inputs, world: World, volume: Floats | float, way: Way) -> Floats:
    """A month with building spread over the horizon."""
    built = build_usd(inputs, volume) / inputs.horizon_months if way in (Way.STUDENT, Way.CASCADE) else 0.0
    return month_usd(inputs, world, volume, way) + built


def breakeven_months(inputs: Inputs, world: World) -> Floats:
    """[D] months until the cascade has saved what building cost; infinite where it saves nothing."""
    saved = (month_usd(inputs, world, inputs.volume, Way.LLM)
             - month_usd(inputs, world, inputs.volume, Way.CASCADE))
    with np.errstate(divide="ignore"):
        months: Floats = np.where(saved > 0, build_usd(inputs, inputs.volume) / np.maximum(saved, 1e-300), np.inf)
    return months


def pays_from(inputs: Inputs) -> float | None:
    """The fewest items a month with which the cascade comes back within the horizon, None where no number up to 1e12
    does. Another machine can push it under water once more: this is the first crossing."""
    expected = as_expected(inputs)

    def gain(volume: Floats | float) -> Floats:
        return (all_in_usd(inputs, expected, volume, Way.LLM) - all_in_usd(inputs, expected, volume, Way.CASCADE))

    grid = np.geomspace(LEAST, MOST, 2401)
    good = np.flatnonzero(gain(grid[:, None])[:, 0] >= 0)
    if not len(good):
        return None
    if good[0] == 0:
        return LEAST
    low, high = float(grid[good[0] - 1]), float(grid[good[0]])
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if gain(middle)[0] >= 0 else (middle, high)
    return high


def curve(inputs: Inputs, world: World, points: int = 121) -> Curve:
    """From a thousandth of the volume to a thousand times as much."""
    expected = as_expected(inputs)
    volumes = np.geomspace(CURVE[0] * inputs.volume, CURVE[1] * inputs.volume, points)
    found = {}
    for way in Way:
        column = volumes[:, None]
        middle = all_in_usd(inputs, expected, column, way)[:, 0] / volumes * MILLION
        spread = all_in_usd(inputs, world, column, way) / column * MILLION
        low, high = np.nanquantile(spread, (0.025, 0.975), axis=1) if not np.isnan(middle).any() else (middle, middle)
        found[way] = (middle, np.minimum(low, middle), np.maximum(high, middle))
    return Curve(volumes, found)


def saving_usd(inputs: Inputs) -> float:
    """Of a month, as expected, with building spread over the horizon."""
    expected = as_expected(inputs)
    llm, cascade = (all_in_usd(inputs, expected, inputs.volume, way)[0] for way in (Way.LLM, Way.CASCADE))
    return float(llm - cascade)


SWUNG = ("volume", "escalation_rate", "human_rate", "llm_usd_per_item", "gate_usd_per_item", "hosting_usd_per_month",
         "labels", "label_share", "label_usd", "gold_items", "gold_minutes", "training_usd", "relabel_months",
         "relabel_share", "human_minutes", "wage_usd_per_hour", "mistake_usd", "llm_human_rate")


def sensitivity(inputs: Inputs, world: World) -> list[Swing]:
    """The saving's swing by each key, widest first; keys that move nothing are left out."""
    inputs = replace(inputs, llm_usd_per_item=inputs.llm_usd)  # whatever it comes from, it swings as one
    found = []
    for key in SWUNG:
        value: Any = getattr(inputs, key)
        if value is None:
            continue
        low: Any
        high: Any
        n = {"escalation_rate": inputs.escalation_n, "human_rate": inputs.human_n}.get(key)
        if n:
            low, high = map(float, np.quantile(getattr(world, key), (0.025, 0.975)))
            low, high = min(low, value), max(high, value)
        elif key == "human_rate" and not value:
            low, high = 0.0, min(ONE_IN_A_HUNDRED, inputs.escalation_rate)
        else:
            low, high = value / 2, value * 2
        if key == "relabel_share":
            high = min(1.0, high)
        if key == "human_rate":
            high = min(high, inputs.escalation_rate)
        if key == "escalation_rate":
            low, high = max(low, inputs.human_rate), min(1.0, high)
        if key in ("labels", "gold_items"):
            low, high = math.floor(low), math.ceil(high)
        at_low, at_high = (saving_usd(replace(inputs, **moved)) for moved in ({key: low}, {key: high}))
        found.append(Swing(key, low, high, at_low, at_high, bool(n)))
    return sorted((swing for swing in found if swing.width > 1e-9), key=lambda swing: -swing.width)


def economics(inputs: Inputs, *, draws: int, seed: int) -> Economics:
    """Everything at once. Raises ConfigError for values that do not go together."""
    inputs.check_together()
    world, expected, volume = draw(inputs, draws, seed), as_expected(inputs), inputs.volume
    options = tuple(_option(inputs, expected, world, way) for way in Way)
    saving = [all_in_usd(inputs, some, volume, Way.LLM) - all_in_usd(inputs, some, volume, Way.CASCADE)
              for some in (expected, world)]
    llm = [all_in_usd(inputs, some, volume, Way.LLM) for some in (expected, world)]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = [np.where(spent > 0, gained / spent, -np.inf) for gained, spent in zip(saving, llm, strict=True)]
    months = [breakeven_months(inputs, some) for some in (expected, world)]
    built = float(build_usd(inputs, volume))
    chance = float((months[1] <= inputs.horizon_months).mean())
    return Economics(
        options=options, build_usd=Range(built, built, built), saving_usd_per_month=_range(*saving),
        saving_share=_range(*share), breakeven_items=_range(*(some * volume for some in months)),
        breakeven_days=_range(*(some * DAYS for some in months)), pays_from=pays_from(inputs), chance=chance,
        draws=draws, against=tuple(against(inputs)), beware=tuple(beware(inputs, world, chance)),
    )


def against(inputs: Inputs) -> list[str]:
    """Why the cascade does not pay, in whole sentences; nothing where it does."""
    expected, volume = as_expected(inputs), inputs.volume
    month = {way: float(month_usd(inputs, expected, volume, way)[0]) for way in Way}
    again = float(relabel_usd(inputs, volume))
    fixed = float(inputs.hosting_usd_per_month * machines(inputs, volume))
    # By the item alone: what is left when nothing is paid by the month.
    by_item = (month[Way.LLM] - month[Way.CASCADE] + again + fixed) / volume
    months, found = float(breakeven_months(inputs, expected)[0]), []
    if by_item <= 0:
        found.append(_dearer_by_the_item(inputs, by_item))
    elif months > inputs.horizon_months:
        if _without_relabelling(inputs) <= inputs.horizon_months:
            found.append(_unstable(inputs, again, by_item * volume - fixed))
        else:
            found.append(_too_few(inputs, by_item, fixed + again, months))
    if (slow := _too_slow(inputs)) is not None:
        found.append(slow)
    if (enough := _cheap_is_enough(inputs, expected)) is not None:
        found.append(enough)
    return found


def beware(inputs: Inputs, world: World, chance: float) -> list[str]:
    """What else to know before deciding."""
    expected, volume, found = as_expected(inputs), inputs.volume, []
    if (doubt := _doubt(inputs, world, chance)) is not None:
        found.append(doubt)
    llm, cascade, cheap, student = (inputs.accuracy(way) for way in (Way.LLM, Way.CASCADE, Way.CHEAP, Way.STUDENT))
    if llm is not None and cascade is not None and cascade < llm - MARGIN:
        found.append(f"The cascade is right less often than the LLM ({cascade:.3f} against {llm:.3f}): what it saves "
                     "is partly paid in mistakes. mistake_usd=… gives these a price.")
    if student is not None and cascade is not None and student >= cascade - MARGIN:
        alone, ours = (float(all_in_usd(inputs, expected, volume, way)[0]) for way in (Way.STUDENT, Way.CASCADE))
        found.append(f"The student alone is as good: right on {student:.3f} (the cascade on {cascade:.3f}), at "
                     f"{dollars(alone)} a month against {dollars(ours)}. What it is unsure of would go unseen.")
    if cheap is None:
        ours, theirs = (float(all_in_usd(inputs, expected, volume, way)[0]) for way in (Way.CASCADE, Way.CHEAP))
        if inputs.cheap_usd < inputs.llm_usd and theirs < ours and not inputs.mistake_usd:
            found.append(f"A cheap LLM alone costs less than the cascade ({dollars(theirs)} against {dollars(ours)} a "
                         "month), and nobody has said how right it is: label gold with it before anything is built "
                         "(cheap_accuracy=…).")
    if inputs.human_rate == 0 and inputs.human_n is None and inputs.look_usd:
        found.append(f"No item is taken to need a person. One in a thousand would cost "
                     f"{dollars(inputs.look_usd * MILLION / 1000)} a million items.")
    return found


def _doubt(inputs: Inputs, world: World, chance: float) -> str | None:
    """Why the counts do not settle it, where they do not."""
    if not 1 - SURE < chance < SURE:
        return None
    told = f"Not certain: building comes back within {_months(inputs.horizon_months)} in {chance:.0%} of the draws."
    by_hand = replace(world, human_rate=np.full_like(world.human_rate, inputs.human_rate))
    settled = float((breakeven_months(inputs, by_hand) <= inputs.horizon_months).mean())
    if inputs.human_n is None or 1 - SURE < settled < SURE:
        return f"{told} More items in the evaluation would tell."
    most = float(np.quantile(world.human_rate, 0.975))
    counted = f"{inputs.human_rate * inputs.human_n:.0f} of {inputs.human_n:,} items needed one"
    return (f"{told} It hangs on people: {counted}, and up to {most:.2%} may, at {dollars(inputs.look_usd)} each, "
            f"beside {dollars(inputs.llm_usd)} for the LLM. Without that doubt it would be {settled:.0%}: evaluate on "
            "more items, or human_n=null where no item ever goes to a person.")


def _dearer_by_the_item(inputs: Inputs, by_item: float) -> str:
    if inputs.escalation_rate == 1:
        return ("Everything is escalated: the student is trusted with nothing, so it saves nothing at any volume. See "
                "python -m src.certify plan=true for what that takes.")
    told = (f"At any volume: a million items cost {dollars(-by_item * MILLION)} more through the cascade than the LLM "
            f"takes, hosting and labels not counted; {inputs.escalation_rate:.1%} are escalated and "
            f"{inputs.human_rate:.2%} go to people.")
    people = inputs.human_rate * inputs.look_usd
    if inputs.llm_usd <= 0:
        return told + " The LLM is free, so there is nothing to save."
    most = (inputs.llm_usd + inputs.llm_human_rate * inputs.look_usd - inputs.gate_usd_per_item - people) \
        / inputs.llm_usd
    if most <= 0:
        what = "People" if people > inputs.gate_usd_per_item else "The gate"
        return told + f" {what} alone cost more than the LLM, whatever the escalation rate."
    return told if inputs.mistake_usd else told + f" Below an escalation rate of {min(most, 1.0):.1%} it would save."


def _too_few(inputs: Inputs, by_item: float, fixed: float, months: float) -> str:
    saved = by_item * inputs.volume
    when = "never comes back" if math.isinf(months) else f"comes back after {_months(months)}, past the horizon of " \
        f"{_months(inputs.horizon_months)}"
    start = pays_from(inputs)
    way_out = "No volume up to 1e12 items a month would change that." if start is None else \
        f"From {round_up(start):,.0f} items a month on it pays."
    return (f"Too few items: {inputs.volume:,.0f} a month save {dollars(saved)} and cost {dollars(fixed)} in hosting "
            f"and relabelling, so that building ({dollars(float(build_usd(inputs, inputs.volume)))}) {when}. {way_out}")


def _without_relabelling(inputs: Inputs) -> float:
    return float(breakeven_months(never := replace(inputs, relabel_months=None), as_expected(never))[0])


def _unstable(inputs: Inputs, again: float, left: float) -> str:
    """`left` is what a month saves before relabelling, which without it would be enough."""
    assert inputs.relabel_months is not None
    # What is left when building has come back in time may be spent on labels.
    spare = left - float(build_usd(inputs, inputs.volume)) / inputs.horizon_months
    start = pays_from(inputs)
    ways = [f"done every {_months(again * inputs.relabel_months / spare)} or less often"] if spare > 0 else []
    ways += [f"from {round_up(start):,.0f} items a month on"] if start is not None else []
    return (f"The schema is not stable: relabelling every {_months(inputs.relabel_months)} costs {dollars(again)} a "
            f"month, and all else saves {dollars(left)}. It would pay {' or '.join(ways) or 'without it alone'}.")


def _too_slow(inputs: Inputs) -> str | None:
    budget, llm, student = inputs.latency_budget_ms, inputs.llm_latency_ms, inputs.student_latency_ms
    if budget is None or llm is None or not inputs.escalation_rate:
        return None
    whole = llm + (student or 0.0)
    if whole <= budget:
        return None
    alone = ""
    if student is not None and student <= budget:
        accuracy = inputs.accuracy(Way.STUDENT)
        alone = f" Only the student alone is in time ({student:g} ms)" + \
            ("." if accuracy is None else f", and is right on {accuracy:.3f}.")
    elif student is not None:
        alone = f" Nor is the student, with {student:g} ms."
    return (f"Too slow: {inputs.escalation_rate:.1%} of the items wait {whole:,.0f} ms for the LLM, and "
            f"latency_budget_ms={budget:g}.{alone}")


def _cheap_is_enough(inputs: Inputs, expected: World) -> str | None:
    cheap, cascade = inputs.accuracy(Way.CHEAP), inputs.accuracy(Way.CASCADE)
    if cheap is None or cascade is None or cheap < cascade - MARGIN:
        return None
    ours, theirs = (float(all_in_usd(inputs, expected, inputs.volume, way)[0]) for way in (Way.CASCADE, Way.CHEAP))
    if theirs > ours:
        return None
    return (f"A cheap LLM alone is good enough: right on {cheap:.3f} (the cascade on {cascade:.3f}), at "
            f"{dollars(theirs)} a month against {dollars(ours)}, and nothing to build.")


def _option(inputs: Inputs, expected: World, world: World, way: Way) -> Option:
    volume, known = inputs.volume, inputs.accuracy(way)
    a_million = [all_in_usd(inputs, some, volume, way) / volume * MILLION for some in (expected, world)]
    a_month = [month_usd(inputs, some, volume, way) for some in (expected, world)]
    right = None
    if known:
        right = _range(*(spent / np.maximum(some.accuracy[way], 1e-12)
                         for spent, some in zip(a_million, (expected, world), strict=True)))
    accuracy = None if known is None else _range(expected.accuracy[way], world.accuracy[way])
    return Option(way, _range(*a_million), _range(*a_month), right, accuracy, inputs.accuracy_n(way))


def _range(expected: Floats, drawn: Floats) -> Range:
    """Widened where needed to hold the value itself: a count of none lies at the end of what it allows. nan where that
    is unknown."""
    value = float(expected[0])
    if math.isnan(value):
        return Range(value, value, value)
    # Of infinite draws no middle can be interpolated.
    low, high = map(float, np.quantile(drawn, (0.025, 0.975), method="inverted_cdf"))
    return Range(value, min(low, value), max(high, value))


def _labels_usd(inputs: Inputs, volume: Floats | float) -> Floats:
    count: Any = inputs.labels if inputs.label_share is None else inputs.label_share * volume
    return np.asarray(count * inputs.label_usd, dtype=np.float64)


def _share(rng: np.random.Generator, value: float | None, n: int | None, draws: int) -> Floats:
    """[D] shares that agree with `value` of `n`; always as many random numbers, so that one key more or less known
    leaves the other draws as they are."""
    spread = rng.beta((value or 0.0) * (n or 1) + 0.5, (1 - (value or 0.0)) * (n or 1) + 0.5, draws)
    if value is None:
        return np.full(draws, math.nan)
    return spread if n else np.full(draws, float(value))


def dollars(usd: float) -> str:
    """As people write it: cents below a thousand, four digits below a cent's worth of them."""
    if not math.isfinite(usd):
        return "–"
    sign, size = "-" if usd < 0 else "", abs(usd)
    return f"{sign}${size:,.0f}" if size >= 1000 else f"{sign}${size:,.2f}" if size >= 0.1 or not size else \
        f"{sign}${size:.2g}"


def round_up(volume: float) -> float:
    """To three digits, so that what is told is enough."""
    step = 10.0 ** max(0, math.floor(math.log10(volume)) - 2)
    return math.ceil(volume / step - 1e-6) * step


def _months(months: float) -> str:
    if months < 2:
        return f"{months * DAYS:.3g} days"
    return f"{months:.3g} months" if months < 36 else f"{months / 12:,.3g} years"
