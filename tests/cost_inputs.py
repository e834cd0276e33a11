"""Plain inputs of the cost model, whose figures can be worked out by hand."""

import math
from typing import Any

from src.cost_model import (
    Inputs,
    Way,
    as_expected,
    month_usd,
    pays_from,
)

# By the item: the LLM $200 a million, and a quarter of them escalated; by the month: $40 for hosting. $60 are built.
PLAIN: dict[str, Any] = {
    "volume": 1_000_000.0, "escalation_rate": 0.25, "escalation_n": None, "human_rate": 0.0, "human_n": None,
    "gate_usd_per_item": 1e-6, "hosting_usd_per_month": 40.0, "items_per_second": None, "load": 0.5,
    "tokens_in": 500.0, "tokens_out": 50.0, "token_error": 0.0, "llm_input_usd": 0.3, "llm_output_usd": 1.0,
    "llm_usd_per_item": None, "llm_human_rate": 0.0, "llm_human_n": None, "cheap_input_usd": 0.1,
    "cheap_output_usd": 0.4, "cheap_usd_per_item": None, "cheap_human_rate": 0.0, "cheap_human_n": None,
    "labels": 2000, "label_share": None, "label_usd": 0.001, "gold_items": 200, "gold_minutes": 0.5,
    "training_usd": 8.0, "relabel_months": None, "relabel_share": 0.5,
    "human_minutes": 1.0, "wage_usd_per_hour": 30.0, "mistake_usd": 0.0, "llm_accuracy": None, "llm_accuracy_n": None,
    "cheap_accuracy": None, "cheap_accuracy_n": None, "student_accuracy": None, "student_accuracy_n": None,
    "cascade_accuracy": None, "cascade_accuracy_n": None, "horizon_months": 12.0, "latency_budget_ms": None,
    "llm_latency_ms": None, "student_latency_ms": None,
}
BUILT = 2000 * 0.001 + 200 * 0.5 / 60 * 30 + 8  # 60


def inputs(**others: Any) -> Inputs:
    return Inputs(**{**PLAIN, **others})


def month(given: Inputs, way: Way) -> float:
    return float(month_usd(given, as_expected(given), given.volume, way)[0])


def first(given: Inputs) -> float:
    """The fewest items a month with which it pays; infinite where none would do."""
    found = pays_from(given)
    return found.first if found else math.inf
