"""When the flywheel does not pay, and why; and what nonsense is refused."""

import math
from dataclasses import replace
from typing import Any

import pytest
from cost_inputs import BUILT, inputs

from src.cost_model import (
    DAYS,
    against,
    beware,
    draw,
    economics,
    saving_usd,
)
from src.errors import ConfigError


def test_too_few_items_are_told_with_how_many_it_takes() -> None:
    [why] = against(inputs(volume=100_000.0))
    assert why.startswith("Too few items: 100,000 a month save $14.90 and cost $40.00 in hosting and relabelling")
    assert "never comes back" in why and "From 303,000 items a month on it pays." in why
    [late] = against(inputs(volume=280_000.0))  # saves 1.72 a month, of 60
    assert "comes back after 34.9 months, past the horizon of 12 months" in late


def test_a_cascade_that_is_dearer_by_the_item_is_told_and_not_refused() -> None:
    [why] = against(inputs(human_rate=0.001))  # $500 a million for people alone
    assert why.startswith("At any volume: a million items cost $351.00 more through the cascade")
    assert why.endswith("People alone cost more than the LLM, whatever the escalation rate.")
    [above] = against(inputs(escalation_rate=0.9, gate_usd_per_item=50e-6))
    assert above.endswith("Below an escalation rate of 75.0% it would save.")
    [all_of_it] = against(inputs(escalation_rate=1.0))
    assert all_of_it.startswith("Everything is escalated: the student is trusted with nothing")
    [free] = against(inputs(llm_usd_per_item=0.0))
    assert free.endswith("The LLM is free, so there is nothing to save.")
    assert economics(inputs(llm_usd_per_item=0.0), draws=100, seed=0).pays_from is None


def test_a_schema_that_changes_too_often_is_told() -> None:
    [why] = against(inputs(relabel_months=0.25, relabel_share=1.0))  # 60 each week, 240 a month, and 109 are saved
    assert why.startswith("The schema is not stable: relabelling every 7.61 days costs $240.00 a month, and all else "
                          "saves $109.00.")
    # Once the twelfth of what was built is off, 104 are left for 60 each time.
    told = 60 / (109 - BUILT / 12)
    assert f"if done every {told * DAYS:.3g} days or less often" in why
    assert not against(inputs(relabel_months=told * 1.01, relabel_share=1.0))
    assert against(inputs(relabel_months=told * 0.99, relabel_share=1.0))


def test_an_llm_that_is_too_slow_is_told() -> None:
    slow: dict[str, Any] = {"llm_latency_ms": 1468.0, "student_latency_ms": 8.5, "latency_budget_ms": 50.0}
    [why] = against(inputs(**slow, student_accuracy=0.874))
    assert why == ("Too slow: 25.0% of the items wait 1,476 ms for the LLM, everywhere all of them 1,468 ms, and "
                   "latency_budget_ms=50. Only the student alone is in time (8.5 ms), and is right on 0.874.")
    assert "everywhere" not in against(inputs(**slow | {"latency_budget_ms": 1470.0}))[0]
    assert "Nor is the student, with 8.5 ms." in against(inputs(**slow | {"latency_budget_ms": 5.0}))[0]
    assert not against(inputs(**slow | {"latency_budget_ms": 2000.0}))
    assert not against(inputs(**slow, escalation_rate=0.0))


def test_a_cheap_llm_that_is_good_enough_is_told() -> None:
    right = {"llm_accuracy": 0.96, "cascade_accuracy": 0.95, "cheap_accuracy": 0.945}
    [why] = against(inputs(**right))
    assert why.startswith("A cheap LLM alone is good enough: right on 0.945 (the cascade on 0.950), at $70.00 a month")
    assert not against(inputs(**right | {"cheap_accuracy": 0.93}))  # cheap and wrong is not cheap
    assert not against(inputs(**right, cheap_usd_per_item=120e-6))  # nor is what costs more
    unknown = inputs(**right | {"cheap_accuracy": None})
    assert not against(unknown)
    assert any("nobody has said how right it is" in told for told in beware(unknown, draw(unknown, 100, 0), 1.0))
    [held] = against(inputs(**right | {"cascade_accuracy": None, "cheap_accuracy": 0.955}))
    assert "right on 0.955 (the LLM everywhere on 0.960)" in held


def test_fewer_right_answers_than_the_llms_are_told() -> None:
    worse = inputs(llm_accuracy=0.95, cascade_accuracy=0.92)
    told = " ".join(beware(worse, draw(worse, 9, 0), 1.0))
    assert "less often than the LLM (0.920 against 0.950)" in told
    # With a price on mistakes the saving is gone: 3% of a million at a cent are $300.
    assert saving_usd(worse) > 0 > saving_usd(replace(worse, mistake_usd=0.01))


def test_a_student_that_needs_no_help_is_told() -> None:
    good = inputs(student_accuracy=0.95, cascade_accuracy=0.955)
    assert any("The student alone is as good: right on 0.950" in told for told in beware(good, draw(good, 9, 0), 1.0))
    helped = replace(good, student_accuracy=0.9)
    assert not any("student alone" in told for told in beware(helped, draw(helped, 9, 0), 1.0))


@pytest.mark.parametrize(("key", "value", "told"), [
    ("volume", 0.0, "volume=0.0 is not allowed: more than 0"),
    ("volume", -5.0, "volume=-5.0 is not allowed: more than 0"),
    ("volume", math.nan, "volume=nan is not allowed: a finite number"),
    ("volume", math.inf, "volume=inf is not allowed: a finite number"),
    ("escalation_rate", 1.5, "escalation_rate=1.5 is not allowed: a share in [0, 1]"),
    ("escalation_rate", -0.1, "escalation_rate=-0.1 is not allowed: a share in [0, 1]"),
    ("escalation_rate", math.nan, "escalation_rate=nan is not allowed"),
    ("human_rate", 0.3, "human_rate=0.3 is not allowed: at most escalation_rate=0.25"),
    ("label_share", 1.01, "label_share=1.01 is not allowed: a share in [0, 1]"),
    ("relabel_share", 2.0, "relabel_share=2.0 is not allowed: a share in [0, 1]"),
    ("cheap_accuracy", 90.0, "cheap_accuracy=90.0 is not allowed: a share in [0, 1]"),
    ("llm_human_n", 0, "llm_human_n=0 is not allowed: 1 or more items"),
    ("escalation_n", 0, "escalation_n=0 is not allowed: 1 or more items"),
    ("hosting_usd_per_month", -1.0, "hosting_usd_per_month=-1.0 is not allowed: 0 or more"),
    ("labels", -1, "labels=-1 is not allowed: 0 or more"),
    ("relabel_months", 0.0, "relabel_months=0.0 is not allowed: more than 0"),
    ("horizon_months", 0.0, "horizon_months=0.0 is not allowed: more than 0"),
    ("load", 1.1, "load=1.1 is not allowed: at most 1"),
    ("items_per_second", 0.0, "items_per_second=0.0 is not allowed: more than 0"),
    ("mistake_usd", 1.0, "mistake_usd=1.0 is not allowed: 0 while llm_accuracy is unknown"),
])
def test_nonsense_is_refused_by_name(key: str, value: Any, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        economics(inputs(**{key: value}), draws=100, seed=0)
    assert told in str(error.value)
