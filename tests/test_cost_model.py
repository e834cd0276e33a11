"""What the flywheel costs and saves, held against arithmetic by hand."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cost_inputs import BUILT, first, inputs, month
from scipy.stats import beta

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
    curve,
    draw,
    economics,
    machines,
    pays_from,
    relabel_usd,
    saving_usd,
    sensitivity,
)
from src.reporting import costs


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


def test_months_until_breakeven_are_infinite_where_nothing_is_saved() -> None:
    given = inputs(volume=1000.0)
    assert math.isinf(breakeven_months(given, as_expected(given))[0])
    free = inputs(labels=0, gold_items=0, training_usd=0.0)
    assert breakeven_months(free, as_expected(free))[0] == 0


def test_people_are_counted_for_the_llm_alone_too() -> None:
    given = inputs(human_rate=0.001)
    assert any("People get 0.10% of the cascade's items and none of the LLM's" in told
               for told in beware(given, as_expected(given), 1.0))
    # The same people both ways, and the cascade saves as much as without any.
    fair = replace(given, llm_human_rate=0.001)
    assert saving_usd(fair) == pytest.approx(saving_usd(inputs())) and saving_usd(given) == saving_usd(fair) - 500
    assert not any("none of the LLM's" in told for told in beware(fair, as_expected(fair), 1.0))
