"""What the money depends on, and what of it is refused. Knows nothing about where a value comes from."""

import math
from dataclasses import dataclass, fields
from enum import StrEnum

from src.errors import ConfigError

MILLION = 1_000_000


class Way(StrEnum):
    """What answers."""

    LLM = "LLM everywhere"
    CHEAP = "best cheap LLM alone"
    STUDENT = "student alone"
    CASCADE = "cascade"


ACCURACY = {Way.LLM: "llm", Way.CHEAP: "cheap", Way.STUDENT: "student", Way.CASCADE: "cascade"}
SHARES = ("escalation_rate", "human_rate", "llm_human_rate", "cheap_human_rate", "label_share", "relabel_share",
          *(f"{name}_accuracy" for name in ACCURACY.values()))
POSITIVE = ("volume", "items_per_second", "load", "horizon_months", "relabel_months", "latency_budget_ms")
# By share, the key that says on how many items it was counted.
COUNTED = {"escalation_rate": "escalation_n", "human_rate": "human_n", "llm_human_rate": "llm_human_n",
           "cheap_human_rate": "cheap_human_n",
           **{f"{name}_accuracy": f"{name}_accuracy_n" for name in ACCURACY.values()}}


@dataclass
class Inputs:
    """What the money depends on; `conf/cost.yaml` says unit and source of each. `COUNTED` pairs a share with its n, the
    number of items that it was counted on: None where it is taken as exact."""

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
    llm_human_n: int | None
    cheap_input_usd: float
    cheap_output_usd: float
    cheap_usd_per_item: float | None
    cheap_human_rate: float
    cheap_human_n: int | None
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
                raise ConfigError("mistake_usd", self.mistake_usd, f"0 while {key} is unknown: give it, or take "
                                  "it from run=<id>, which knows it at its own escalation_rate")

    @property
    def idle(self) -> set[str]:
        """Keys that move no figure while others are as they are, and need not be shown."""
        found = {"llm_input_usd", "llm_output_usd"} if self.llm_usd_per_item is not None else set()
        found |= {"cheap_input_usd", "cheap_output_usd"} if self.cheap_usd_per_item is not None else set()
        found |= {"tokens_in", "tokens_out"} if len(found) == 4 else set()
        found |= {"labels"} if self.label_share is not None else set()
        found |= {"relabel_share"} if self.relabel_months is None else set()
        found |= {"gold_minutes"} if not self.gold_items else set()
        found |= {"llm_latency_ms", "student_latency_ms"} if self.latency_budget_ms is None else set()
        return found | ({"load"} if self.items_per_second is None else set())

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
