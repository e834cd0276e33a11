"""What the flywheel costs and saves, held against arithmetic by hand, the published run's among it."""

import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, composed
from omegaconf import OmegaConf
from scipy.stats import beta
from test_figures import NOTE, check_legible

from src.config import Cost, read
from src.cost_model import (
    DAYS,
    MONTH_S,
    Inputs,
    Pays,
    Verdict,
    Way,
    against,
    all_in_usd,
    as_expected,
    beware,
    breakeven_months,
    build_usd,
    claims,
    curve,
    dollars,
    draw,
    economics,
    machines,
    month_usd,
    pays_from,
    relabel_usd,
    saving_usd,
    sensitivity,
)
from src.errors import ConfigError
from src.reporting import costs

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


def test_a_month_is_what_its_parts_cost() -> None:
    given = inputs()
    assert given.llm_usd == pytest.approx(200e-6) and given.cheap_usd == pytest.approx(70e-6)
    assert month(given, Way.LLM) == pytest.approx(200)
    assert month(given, Way.CHEAP) == pytest.approx(70)
    assert month(given, Way.STUDENT) == pytest.approx(1 + 40)
    assert month(given, Way.CASCADE) == pytest.approx(1 + 40 + 0.25 * 200)
    assert build_usd(given, given.volume) == pytest.approx(BUILT)
    found = economics(given, draws=100, seed=0)
    assert found.option(Way.CASCADE).usd_per_million.value == pytest.approx(91 + BUILT / 12)
    assert found.option(Way.STUDENT).usd_per_million.value == pytest.approx(41 + BUILT / 12)
    assert found.option(Way.LLM).usd_per_million.value == pytest.approx(200)
    assert found.saving_usd_per_month.value == pytest.approx(109 - BUILT / 12)
    assert found.saving_share.value == pytest.approx((109 - BUILT / 12) / 200)


def test_people_and_mistakes_are_paid_by_the_item() -> None:
    given = inputs(human_rate=0.002, llm_human_rate=0.001, mistake_usd=0.01, llm_accuracy=0.9, cascade_accuracy=0.95,
                   student_accuracy=0.8)
    assert month(given, Way.CASCADE) == pytest.approx(91 + 2000 * 0.5 + 50_000 * 0.01)
    assert month(given, Way.LLM) == pytest.approx(200 + 1000 * 0.5 + 100_000 * 0.01)
    assert month(given, Way.STUDENT) == pytest.approx(41 + 200_000 * 0.01)
    assert math.isnan(month(given, Way.CHEAP))
    assert economics(given, draws=100, seed=0).option(Way.CASCADE).usd_per_million_right is not None


def test_right_answers_cost_more_where_fewer_are_right() -> None:
    found = economics(inputs(llm_accuracy=0.8, llm_accuracy_n=100), draws=4000, seed=0).option(Way.LLM)
    assert found.usd_per_million == pytest.approx((200, 200, 200))
    right, low, high = found.usd_per_million_right or (0, 0, 0)
    assert right == pytest.approx(250)
    # The money is certain and the accuracy is not.
    assert [low, high] == pytest.approx(200 / beta.ppf([0.975, 0.025], 80.5, 20.5), rel=0.01)


def test_breakeven_is_what_was_built_by_what_a_month_saves() -> None:
    found = economics(inputs(), draws=100, seed=0)
    months = BUILT / (200 - 91)
    assert found.breakeven_days.value == pytest.approx(months * DAYS)
    assert found.breakeven_items.value == pytest.approx(months * 1e6)
    assert found.verdict == Verdict.PAYS and found.chance == 1 and not found.against


def test_the_fewest_items_with_which_it_pays() -> None:
    # By the item 149 of a million are left; a month costs 40 and a twelfth of what is built.
    start = pays_from(inputs())
    assert start == Pays(start.first, start.first) if start else False
    assert first(inputs()) == pytest.approx((40 + BUILT / 12) / 149e-6)
    assert saving_usd(inputs(volume=first(inputs()) * 1.001)) > 0 > saving_usd(inputs(volume=first(inputs()) * 0.999))
    assert pays_from(inputs(escalation_rate=1.0)) is None
    free: dict[str, Any] = {"hosting_usd_per_month": 0.0, "labels": 0, "gold_items": 0, "training_usd": 0.0}
    assert first(inputs(**free)) == 1
    assert pays_from(inputs(**free, escalation_rate=1.0, gate_usd_per_item=0.0)) is None  # saves exactly nothing
    # A share of the items that costs more than these save in a year.
    assert pays_from(inputs(label_share=1.0, label_usd=149e-6 * 12 * 0.999)) is not None
    assert pays_from(inputs(label_share=1.0, label_usd=149e-6 * 12 * 1.001)) is None


def test_a_machine_that_is_too_empty_does_not_pay() -> None:
    """149 of a million are left by the item, so that a machine for a million of them is worth its 140, but just."""
    given = inputs(items_per_second=1e6 / MONTH_S / 0.5, load=0.5, hosting_usd_per_month=140.0, volume=1_100_000.0)
    start = pays_from(given)
    assert start is not None
    fixed = BUILT / 12
    assert start.first == pytest.approx((fixed + 140) / 149e-6)
    # That the 18th is empty no longer matters: 17 full ones leave 17 * 9 - 5 = 148.
    assert start.settled == pytest.approx((fixed + 17 * 140) / 149e-6)
    [why] = against(given)
    assert why.startswith("Too few items for 2 machines: 1,100,000 a month save $163.90 and cost $280.00")
    assert "With fewer machines it pays, from 974,000 items a month on, and with any number of them from" in why
    # Where a full machine leaves 2, it takes three to bring back what was built.
    slim = pays_from(replace(given, hosting_usd_per_month=147.0))
    assert slim is not None and slim.first == pytest.approx((fixed + 3 * 147) / 149e-6)
    paying = replace(given, volume=990_000.0)
    told = " ".join(costs.statement(economics(paying, draws=100, seed=0), paying))
    assert "It pays from 974,000 items a month on, but with a machine that is still too empty not always" in told
    [never] = against(replace(given, hosting_usd_per_month=150.0))
    assert never.endswith("another machine is needed for each 1,000,000 items, and costs more than they save.")


def test_relabelling_is_paid_by_the_month() -> None:
    given = inputs(relabel_months=2.0, relabel_share=0.5)
    assert relabel_usd(given, given.volume) == pytest.approx((0.5 * (2 + 50) + 8) / 2)
    assert month(given, Way.CASCADE) == pytest.approx(91 + 17)
    assert month(given, Way.LLM) == pytest.approx(200)


def test_labels_may_be_a_share_of_the_items() -> None:
    given = inputs(label_share=0.01)
    assert build_usd(given, 1e6) - build_usd(given, 1e5) == pytest.approx(0.01 * 9e5 * 0.001)


def test_another_machine_is_rented_when_one_is_full() -> None:
    given = inputs(items_per_second=10.0, load=0.5)
    full = 5 * MONTH_S
    assert [float(machines(given, full * by)) for by in (0.01, 1.0, 1.01, 2.5)] == [1, 1, 2, 3]
    assert month(replace(given, volume=full * 2.5), Way.STUDENT) == pytest.approx(3 * 40 + full * 2.5 * 1e-6)


def some_inputs(rng: np.random.Generator) -> Inputs:
    """Anything, but with few enough machines to count them."""
    def chance(value: Any) -> Any:
        return value if rng.random() < 0.5 else None

    escalated, hosting = rng.random(), rng.choice([0.0, 50.0, 400.0])
    return inputs(
        volume=float(round(10 ** rng.uniform(2, 7))), escalation_rate=escalated,
        human_rate=escalated * 1e-3 * rng.random(), gate_usd_per_item=rng.choice([0.0, 1e-6]),
        hosting_usd_per_month=hosting, items_per_second=chance(10 ** rng.uniform(-1, 1)), load=rng.uniform(0.1, 1),
        llm_human_rate=1e-3 * rng.random(), llm_usd_per_item=10 ** rng.uniform(-4, -2),
        label_share=chance(rng.uniform(0, 0.02)),
        relabel_months=chance(rng.uniform(0.5, 12)), relabel_share=rng.random(), horizon_months=rng.uniform(1, 36))


def ledger(given: Inputs, months: int) -> tuple[list[float], list[float]]:
    """Each month's bill, LLM and cascade, by booking one thing after another; what is built stands in the first, and
    labels are bought again by the month."""
    look = given.human_minutes * given.wage_usd_per_hour / 60
    labels = given.labels if given.label_share is None else given.label_share * given.volume
    gold = given.gold_items * given.gold_minutes * given.wage_usd_per_hour / 60
    per_machine = math.inf if given.items_per_second is None else \
        given.items_per_second * given.load * 365.25 / 12 * 24 * 3600
    llm, cascade = [], []
    for at in range(months):
        llm.append(given.volume * (given.llm_usd + given.llm_human_rate * look))
        bill = given.volume * given.gate_usd_per_item
        bill += given.volume * given.escalation_rate * given.llm_usd
        bill += given.volume * given.human_rate * look
        rented = 1
        while rented * per_machine < given.volume:
            rented += 1
        bill += rented * given.hosting_usd_per_month
        if given.relabel_months is not None:
            again = given.relabel_share * (labels * given.label_usd + gold) + given.training_usd
            bill += again / given.relabel_months
        if at == 0:
            bill += labels * given.label_usd + gold + given.training_usd
        cascade.append(bill)
    return llm, cascade


def test_the_figures_are_those_of_a_ledger() -> None:
    """Costs, breakeven and where it begins to pay, for inputs of all kinds, against booking and counting."""
    rng, paid, late = np.random.default_rng(0), 0, 0
    for _ in range(120):
        given = some_inputs(rng)
        llm, cascade = ledger(given, 60)
        built = cascade[0] - cascade[1]
        assert month(given, Way.LLM) == pytest.approx(llm[0])
        assert month(given, Way.CASCADE) == pytest.approx(cascade[1])
        assert saving_usd(given) == pytest.approx(llm[1] - cascade[1] - built / given.horizon_months, abs=1e-6)
        back = float(breakeven_months(given, as_expected(given))[0])
        behind = np.cumsum(cascade) - np.cumsum(llm)  # what is still to come back, after each month
        if back > 60:
            assert (behind > 0).all()
        else:
            done = int(np.argmax(behind <= 1e-9))
            assert done <= back <= done + 1 + 1e-9
            late += back > 1
        start = pays_from(given)
        volumes = np.geomspace(1, 1e9 if given.items_per_second is None else 50 * given.items_per_second * MONTH_S, 400)
        llm_usd, cascade_usd = (all_in_usd(given, as_expected(given), volumes[:, None], way)[:, 0]
                                for way in (Way.LLM, Way.CASCADE))
        gains = llm_usd - cascade_usd
        if start is None:
            assert gains.max() <= 1e-9
            continue
        paid += 1
        for volume, gain in zip(volumes, gains, strict=True):
            if volume < start.first * (1 - 1e-9):
                assert gain < 0
            elif volume > start.settled * (1 + 1e-9):
                assert gain >= -1e-6
        assert saving_usd(replace(given, volume=start.first)) >= -1e-6
        if start.settled > start.first:
            assert saving_usd(replace(given, volume=start.settled * (1 - 1e-6))) < 0
    assert paid > 30 and late > 10  # else nothing was held against anything


def test_the_intervals_are_those_of_draws_by_hand() -> None:
    given = inputs(escalation_rate=0.3, escalation_n=150, token_error=0.08, human_rate=0.004, human_n=500,
                   cascade_accuracy=0.92, cascade_accuracy_n=300, llm_accuracy=0.9, llm_accuracy_n=300,
                   mistake_usd=1e-4)
    found, rng, n = economics(given, draws=40_000, seed=3), np.random.default_rng(7), 400_000
    escalated, people = rng.beta(45.5, 105.5, n), rng.beta(2.5, 498.5, n)
    tokens = rng.gamma(1 / 0.08**2, 0.08**2, n)
    wrong = [1 - rng.beta(270.5, 30.5, n), 1 - rng.beta(276.5, 24.5, n)]
    llm = 200 * tokens + 100 * wrong[0]
    cascade = 1 + 40 + escalated * 200 * tokens + people * 1e6 * 0.5 + 100 * wrong[1]
    saved = llm - cascade - BUILT / 12
    spread = saved.std() / 10
    assert found.option(Way.LLM).usd_per_month[1:] == pytest.approx(np.quantile(llm, [0.025, 0.975]), rel=0.01)
    assert found.option(Way.CASCADE).usd_per_month[1:] == pytest.approx(np.quantile(cascade, [0.025, 0.975]), rel=0.02)
    assert found.saving_usd_per_month[1:] == pytest.approx(np.quantile(saved, [0.025, 0.975]), abs=spread)
    assert found.chance == pytest.approx((BUILT / np.maximum(llm - cascade, 1e-9) <= 12).mean(), abs=0.01)


def test_the_interval_of_the_escalation_rate_is_that_of_its_count() -> None:
    found = economics(inputs(escalation_rate=0.3, escalation_n=200), draws=20_000, seed=0)
    ends = beta.ppf([0.025, 0.975], 60.5, 140.5)
    _, low, high = found.option(Way.CASCADE).usd_per_month
    assert [low, high] == pytest.approx([41 + 200 * end for end in ends], abs=0.3)
    assert found.option(Way.LLM).usd_per_month == pytest.approx((200, 200, 200))
    # Four times the items, half the width.
    _, few, many = economics(inputs(escalation_rate=0.3, escalation_n=800), draws=20_000, seed=0).option(
        Way.CASCADE).usd_per_month
    assert (many - few) / (high - low) == pytest.approx(0.5, abs=0.03)


def test_tokens_move_the_llm_and_the_cascade_alike() -> None:
    found = economics(inputs(token_error=0.1), draws=20_000, seed=0)
    _, low, high = found.option(Way.LLM).usd_per_month
    assert [low, high] == pytest.approx([200 * (1 - 0.188), 200 * (1 + 0.204)], rel=0.01)  # Gamma's ends, by scipy
    _, less, more = found.option(Way.CASCADE).usd_per_month
    assert [less - 41, more - 41] == pytest.approx([low / 4, high / 4], rel=1e-6)


def test_none_of_500_is_not_never() -> None:
    found = economics(inputs(human_rate=0.0, human_n=500), draws=20_000, seed=0)
    value, low, high = found.option(Way.CASCADE).usd_per_month
    assert value == low == pytest.approx(91)  # the value itself stays in its interval
    assert high == pytest.approx(91 + beta.ppf(0.975, 0.5, 500.5) * 1e6 * 0.5, rel=0.05)
    assert found.verdict == Verdict.UNSURE and not found.against
    [doubt] = [told for told in found.beware if told.startswith("Not certain")]
    assert "0 of 500 items needed one" in doubt and "Without that doubt it would be 100%" in doubt
    assert math.isinf(found.breakeven_days.high) and found.breakeven_days.value == pytest.approx(BUILT / 109 * DAYS)


def test_people_are_never_more_than_what_is_escalated() -> None:
    world = draw(inputs(escalation_rate=0.01, escalation_n=50, human_rate=0.01, human_n=50), 5000, 0)
    assert (world.people[Way.CASCADE] <= world.escalation_rate).all()


def test_a_doubt_about_people_that_both_ways_share_is_none_about_their_difference() -> None:
    """Of what the LLM cannot settle, no more goes to people through the cascade than from the LLM alone."""
    alone = economics(inputs(human_n=500), draws=4000, seed=0)
    both = economics(inputs(human_n=500, llm_human_n=500), draws=4000, seed=0)
    assert alone.verdict == Verdict.UNSURE and alone.saving_usd_per_month.low < -2000
    assert both.verdict == Verdict.PAYS and both.chance == 1
    assert both.saving_usd_per_month == pytest.approx((104, 104, 104))
    # Each bill carries it all the same.
    for way in (Way.LLM, Way.CASCADE):
        assert both.option(way).usd_per_month.high > both.option(way).usd_per_month.value + 2000
    assert any(told.startswith("None of 500 items needed a person, and up to 0.") for told in both.beware)
    # More of them through the cascade, as audits bring, still count.
    audited = economics(inputs(human_rate=0.002, human_n=500, llm_human_n=500), draws=4000, seed=0)
    assert audited.verdict == Verdict.DOES_NOT
    given = inputs(human_n=500, llm_human_n=500)
    world = draw(given, 500, 0)
    _, _, high = curve(given, world).usd_per_million[Way.LLM]
    assert high.max() == pytest.approx(200) and not curve(given, world).people_drawn
    assert not {"human_rate", "llm_human_rate"} & {swing.key for swing in sensitivity(given, world)}


def test_the_same_seed_gives_the_same_figures() -> None:
    given = inputs(escalation_n=100, token_error=0.1)
    one, again, other = (economics(given, draws=500, seed=seed).flat() for seed in (0, 0, 1))
    assert one == again != other
    assert {"cost/llm_usd_per_million", "cost/flywheel_usd_per_million", "cost/breakeven_items", "cost/breakeven_days",
            "cost/breakeven_days_low", "cost/student_usd_per_million", "cost/cheap_llm_usd_per_million"} <= set(one)
    assert all(math.isfinite(value) for value in one.values())
    never = economics(inputs(escalation_rate=1.0), draws=100, seed=0).flat()
    assert "cost/breakeven_days" not in never and never["cost/pays"] == 0


def test_the_curve_goes_through_what_is_told() -> None:
    given = inputs(escalation_n=100)
    found = curve(given, draw(given, 500, 0))
    at = int(np.searchsorted(found.volumes, given.volume))
    assert found.volumes[at] == pytest.approx(given.volume)
    for way in Way:
        middle, low, high = found.usd_per_million[way]
        expected = all_in_usd(given, as_expected(given), given.volume, way)[0] / given.volume * 1e6
        assert middle[at] == pytest.approx(expected)
        assert (low <= middle).all() and (middle <= high).all()
    cascade = found.usd_per_million[Way.CASCADE][0]
    assert (np.diff(cascade) < 0).all() and cascade[-1] == pytest.approx(51, rel=0.01) and found.people_drawn
    far = curve(inputs(volume=1000.0), as_expected(inputs()))  # where it pays is shown, up to a thousand times away
    assert far.volumes[-1] == pytest.approx(3 * first(inputs()))


def test_the_widest_swing_stands_first() -> None:
    given = inputs(escalation_n=400, human_rate=0.0001)
    swings = sensitivity(given, draw(given, 2000, 0))
    by_key = {swing.key: swing for swing in swings}
    assert [swing.width for swing in swings] == sorted((swing.width for swing in swings), reverse=True)
    llm = by_key["llm_usd_per_item"]
    assert (llm.at_low, llm.at_high) == pytest.approx((saving_usd(given) - 75, saving_usd(given) + 150))
    assert by_key["escalation_rate"].counted and not llm.counted
    assert by_key["escalation_rate"].at_high < saving_usd(given) < by_key["escalation_rate"].at_low
    assert "relabel_months" not in by_key and "mistake_usd" not in by_key  # what moves nothing
    none = sensitivity(inputs(), draw(inputs(), 100, 0))
    assert next(swing for swing in none if swing.key == "human_rate").high == 0.001


@pytest.mark.parametrize("others", [{"llm_human_rate": 0.6}, {"label_share": 0.7}, {"escalation_rate": 0.9},
                                    {"relabel_share": 1.0, "relabel_months": 1.0}])
def test_no_share_swings_above_all_of_them(others: dict[str, Any]) -> None:
    given = inputs(**others)
    assert all(swing.high <= 1 for swing in sensitivity(given, draw(given, 100, 0)) if swing.key in others
               and swing.key != "relabel_months")


@pytest.mark.parametrize("others", [
    {"volume": 1.0}, {"volume": 1e12}, {"volume": 1e12, "items_per_second": 0.1}, {"hosting_usd_per_month": 0.0},
    {"escalation_rate": 0.0}, {"escalation_rate": 1.0, "gate_usd_per_item": 0.0}, {"llm_usd_per_item": 0.0},
    {"llm_usd_per_item": 0.0, "gate_usd_per_item": 0.0}, {"relabel_months": 1e-6}, {"horizon_months": 1e-6},
    {"human_minutes": 0.0}, {"cascade_accuracy": 0.0, "llm_accuracy": 1.0, "mistake_usd": 1.0},
])
def test_the_ends_of_what_is_allowed_are_told_in_words(others: dict[str, Any]) -> None:
    given = inputs(escalation_n=100, token_error=0.1, **others)
    found = economics(given, draws=300, seed=0)
    told = " ".join([*costs.statement(found, given), *found.beware])
    assert "nan" not in told and "inf " not in told and "e+" not in told
    assert (found.verdict == Verdict.DOES_NOT) == (saving_usd(given) < 0 or not saving_usd(given))


# When it does not pay, and why.

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


# What is refused.

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


# The published run, from its own inputs (RECIPE.md). `+cost=published` tells the same.

def published(**others: Any) -> Inputs:
    asked = read(composed("cost", "+cost=published"), Cost)
    return replace(Inputs(**{key: getattr(asked, key) for key in PLAIN}), **others)


def running_saving(given: Inputs) -> float:
    """Share of the LLM's bill, labels not counted, as it was published."""
    return 1 - month(given, Way.CASCADE) / month(given, Way.LLM)


def test_its_minus_166572_percent_takes_the_price_of_tokens_for_that_of_items() -> None:
    theirs = published(volume=100_000.0, llm_usd_per_item=0.30e-6, escalation_rate=0.05)
    assert running_saving(theirs) * 100 == pytest.approx(-166_572, abs=0.5)
    # Two passes over 1,500 images: at $210 a million they cost the published $0.60, at $0.30 next to nothing, and $3
    # is another price altogether.
    assert round(3000 * 210e-6, 1) == 0.6 and 3000 * 0.30e-6 < 0.001 and round(3 / 3000 * 1e6) == 1000


def test_its_89_9_percent_leaves_hosting_and_its_own_escalation_out() -> None:
    theirs = published(escalation_rate=0.10, hosting_usd_per_month=0.0, gate_usd_per_item=0.21e-6)
    assert running_saving(theirs) == pytest.approx(0.899)
    hosted = published(escalation_rate=0.10)
    assert running_saving(hosted) == pytest.approx(-1.481, abs=1e-3)  # $31 lost at its own 100,000 items
    assert month(hosted, Way.CASCADE) - month(hosted, Way.LLM) == pytest.approx(31.1)
    assert first(replace(hosted, labels=0)) == pytest.approx(264_550.3, abs=1)
    # Its own table escalates 83 of 200 at confidence 0.85; without hosting 58.5% is the most there is.
    assert published().escalation_rate == pytest.approx(1 - 117 / 200)
    assert running_saving(published(hosting_usd_per_month=0.0)) == pytest.approx(0.585)


def test_the_right_figure_says_that_it_does_not_pay_there() -> None:
    given = published()
    found = economics(given, draws=2000, seed=0)
    assert found.verdict == Verdict.DOES_NOT and found.chance == 0
    assert "Too few items: 100,000 a month save $12.28 and cost $50.00" in found.against[0]
    assert found.option(Way.LLM).usd_per_month.value == pytest.approx(21)
    assert -found.saving_usd_per_month.value + 21 == pytest.approx(58.765)
    assert first(given) == pytest.approx(407_407.4, abs=1)
    million = economics(replace(given, volume=1e6), draws=2000, seed=0)
    assert million.option(Way.CASCADE).usd_per_million.value == pytest.approx(137.20)
    assert million.saving_share.value == pytest.approx(0.347, abs=5e-4) and million.verdict == Verdict.PAYS
    assert million.saving_share.low < 0.31 and million.saving_share.high < 0.42  # 89.9% is far outside


def test_each_published_figure_is_worked_out_again() -> None:
    """By plain arithmetic, none of it the model's."""
    claims_by = {(claim.what, claim.published): claim for claim in claims(published())}
    calls, tokens = 2 * 1500, (329 * 0.30 + 22 * 2.50) / 1e6
    labelling = claims_by["labelling, 2 × 1,500 calls", "~$3, and $0.60"]
    assert labelling.right == f"${calls * 200e-6:.2f}" == "$0.60"
    most = calls * (329 * 0.30 + 100 * 2.50) / 1e6
    assert f"it is ${calls * tokens:.2f} (" in labelling.why and f"at the most ${most:.2f}" in labelling.why
    assert "$3 would take 3,150 tokens in" in labelling.why
    assert calls * (3150 * 0.30 + 22 * 2.50) / 1e6 == pytest.approx(3)
    million = claims_by["LLM everywhere, a million items", "$210, and $0.30"]
    assert million.right == "$210.00" and f"${tokens * 1e6:.2f} with what comes out" in million.why
    hosting = claims_by["hosting", "$50 a month"]
    assert hosting.right.endswith(f"${50 / 0.1:.2f} a million") and "bill of $21.00" in hosting.why
    assert f"room for {85 * 0.3 * 365.25 * 86_400 / 12 / 1e6:.0f} million" in hosting.why
    share = beta.ppf([0.025, 0.975], [83, 84], [118, 117])  # Clopper and Pearson's, of 83 in 200
    assert claims_by["escalated", "5%, or 10%"].right == f"{83 / 200:.1%} [{share[0]:.1%}, {share[1]:.1%}]"
    fewer = claims_by["fewer calls", "90%"]
    assert fewer.right == f"{117 / 200:.1%}" and f"take {calls / 1.2e6:.2%} off" in fewer.why
    tiny = claims_by["saved", "−166,572%"]
    assert f"= {1 - (50 + 0.05 * 0.03) / 0.03:,.0%}:".replace("-", "−") in tiny.why and "700 times" in tiny.why
    assert tiny.right == f"{1 - (50 + 0.05 * 21) / 21:.1%}".replace("-", "−")
    gated = claims_by["saved", "89.9%"]
    assert [f"{1 - 0.10 - gate / 210:.1%}" for gate in (0.11, 0.21, 0.31)] == ["89.9%"] * 3
    assert "with $0.21, 89.9%." in gated.why
    assert gated.right == f"{1 - (50 + 0.10 * 21) / 21:.1%}".replace("-", "−") and "lose $31.10" in gated.why
    assert f"from {math.ceil(50 / (0.9 * 210e-6)):,} on" in gated.why
    ours = claims_by["saved, all of it put right", ""]
    spent = 50 + 0.415 * 21 + 0.60 / 12
    assert ours.right == f"{1 - spent / 21:.1%}".replace("-", "−") and f"${spent:.2f} against $21.00" in ours.why
    assert f"from {math.ceil(50.05 / (0.585 * 210e-6)):,} items" in ours.why
    assert f"save {1 - (50.05 + 0.415 * 210) / 210:.1%}, and no volume more than 58.5%" in ours.why


def test_the_published_config_says_what_is_found() -> None:
    text = (ROOT / "conf/cost/published.yaml").read_text()
    given = published()
    share = economics(replace(given, volume=1e6), draws=4000, seed=0).saving_share
    interval = f"{share.value:.1%} [{share.low:.1%}, {share.high:.1%}]"
    worked_out = [claim.right for claim in claims(given) if claim.what in ("saved", "escalated", "fewer calls")]
    for told in ("$58.77", "407,408", "$137.20", interval, "−166,572%", "89.9%", "$1.05", *worked_out):
        assert told in text, told
    assert math.ceil(first(given)) == 407_408
    assert math.ceil(first(replace(given, escalation_rate=0.1, labels=0))) == 264_551


# Words and pictures.

def test_every_way_is_a_row_with_its_accuracy() -> None:
    given = inputs(escalation_n=100, llm_accuracy=0.9, llm_accuracy_n=200)
    found = economics(given, draws=500, seed=0)
    rows = {row[0]: row for row in costs.option_rows(found)}
    assert list(rows) == ["LLM everywhere", "best cheap LLM alone", "student alone", "cascade"]
    assert rows["LLM everywhere"][3].startswith("90.0% [") and rows["LLM everywhere"][3].endswith("n=200")
    assert rows["cascade"][3:] == ("unknown", "unknown") and rows["cascade"][1].startswith("$96.00 [$")
    frame = costs.option_frame(found)
    assert frame.usd_per_million.tolist()[0] == pytest.approx(200) and frame.isna().accuracy.tolist()[1:] == [True] * 3


def test_the_statement_says_what_was_found() -> None:
    verdict, saved, back, start = costs.statement(economics(inputs(), draws=100, seed=0), inputs())
    assert verdict == "The flywheel pays at 1,000,000 items a month, against the LLM everywhere."
    assert saved == "All in, it saves $104.00 a month: 52.0% [52.0%, 52.0%] of what the LLM costs."
    assert back == ("Building costs $60.00 and is back after 17 days [17, 17], or 550,000 items [550,000, 550,000]. "
                    "In all of 100 draws it is back within 12 months.")
    assert start == "It pays from 303,000 items a month on."
    given = inputs(volume=1000.0)
    verdict, why, saved, back = costs.statement(economics(given, draws=100, seed=0), given)
    assert verdict == "The flywheel does not pay at 1,000 items a month." and why.startswith("Too few items")
    assert saved.startswith("All in, it costs $44.85 a month more than the LLM everywhere, a saving of -22,425.5% [")
    assert back == "Building costs $60.00 and never comes back."


def test_only_what_moves_a_figure_is_shown_and_each_has_its_unit() -> None:
    names = {field.name for field in fields(Inputs)}
    assert {name for name in names if not name.endswith("_n")} == set(costs.UNITS)
    sources = dict.fromkeys(names, "assumed") | {"volume": "given"}
    shown = {row[0]: row for row in costs.source_rows(inputs(escalation_n=200), sources)}
    assert shown["escalation_rate"] == ("escalation_rate", "0.25", "of all items, to the LLM, n=200", "assumed")
    assert not {"relabel_share", "load", "llm_latency_ms", "escalation_n", "mistake_n"} & set(shown)
    priced = {row[0] for row in costs.source_rows(inputs(llm_usd_per_item=2e-4, cheap_usd_per_item=1e-4), sources)}
    assert set(shown) - priced == {"tokens_in", "tokens_out", "llm_input_usd", "llm_output_usd", "cheap_input_usd",
                                   "cheap_output_usd"}
    assert costs.assumed(inputs(), sources, "assumed").startswith(f"{len(shown) - 1} of these {len(shown)} values are")
    # What is left out does move nothing: any other value of it gives the same figures.
    given = inputs(llm_usd_per_item=2e-4, cheap_usd_per_item=1e-4, token_error=0.1, label_share=0.01, gold_items=0)
    assert given.idle >= {"tokens_in", "llm_input_usd", "labels", "relabel_share", "gold_minutes", "load"}
    plain = economics(given, draws=200, seed=0)
    for key in given.idle:
        assert economics(replace(given, **{key: 1.0}), draws=200, seed=0) == plain, key


@pytest.mark.parametrize("others", [
    {"volume": 500.0}, {"human_n": 500}, {"escalation_rate": 1.0}, {"llm_usd_per_item": 0.0},
    {"hosting_usd_per_month": 0.0, "labels": 0, "gold_items": 0, "training_usd": 0.0, "gate_usd_per_item": 0.0},
    {"volume": 3e9, "items_per_second": 100.0, "label_share": 0.02, "relabel_months": 1.0},
    {"volume": 1e12}, {"human_n": 500, "llm_human_n": 500, "volume": 5e5},
], ids=["few", "people", "uncertified", "free", "nothing by the month", "many", "all", "people both ways"])
def test_both_pictures_can_be_read(others: dict[str, Any]) -> None:
    given = inputs(escalation_n=100, **others)
    found, world = economics(given, draws=300, seed=0), draw(given, 300, 0)
    title = "cifar5 mobilenetv3_small_100 s2: what a million items cost, with 95% bands"
    drawn = costs.cost_curve(curve(given, world), found, given, title=title, note=NOTE)
    assert any(text.startswith("items a month") for text in check_legible(drawn, NOTE))
    picture = costs.sensitivity(sensitivity(given, world), found.saving_usd_per_month, title=title, note=NOTE)
    assert any("as expected" in text for text in check_legible(picture, NOTE))


def test_the_curve_shows_what_was_found() -> None:
    given = inputs(escalation_n=100)
    found, world = economics(given, draws=300, seed=0), draw(given, 300, 0)
    points = curve(given, world)
    [axes] = costs.cost_curve(points, found, given, title="t").axes
    lines = {str(line.get_label()).partition(":")[0]: line for line in axes.lines}
    for way in Way:
        assert np.array_equal(np.asarray(lines[way.value].get_ydata()), points.usd_per_million[way][0])
    mark = lines["the cascade saves from 303,000 items a month on"]
    assert float(np.asarray(mark.get_xdata())[0]) == pytest.approx(first(given))
    assert float(np.asarray(mark.get_ydata())[0]) == pytest.approx(200)


@pytest.mark.parametrize(("usd", "told"), [(1234.5, "$1,234"), (12.345, "$12.35"), (0.0, "$0.00"), (2.1e-4, "$0.00021"),
                                           (4.2e-5, "$0.000042"), (-31.1, "-$31.10"), (math.inf, "–")])
def test_dollars_are_written_as_people_do(usd: float, told: str) -> None:
    assert dollars(usd) == told


def test_months_until_breakeven_are_infinite_where_nothing_is_saved() -> None:
    given = inputs(volume=1000.0)
    assert math.isinf(breakeven_months(given, as_expected(given))[0])
    free = inputs(labels=0, gold_items=0, training_usd=0.0)
    assert breakeven_months(free, as_expected(free))[0] == 0


def test_every_input_is_explained_where_it_stands() -> None:
    stated = OmegaConf.load(ROOT / "conf/cost.yaml")
    assert set(PLAIN) <= set(stated)


def test_people_are_counted_for_the_llm_alone_too() -> None:
    given = inputs(human_rate=0.001)
    assert any("People get 0.10% of the cascade's items and none of the LLM's" in told
               for told in beware(given, as_expected(given), 1.0))
    # The same people both ways, and the cascade saves as much as without any.
    fair = replace(given, llm_human_rate=0.001)
    assert saving_usd(fair) == pytest.approx(saving_usd(inputs())) and saving_usd(given) == saving_usd(fair) - 500
    assert not any("none of the LLM's" in told for told in beware(fair, as_expected(fair), 1.0))
