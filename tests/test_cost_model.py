"""What the flywheel costs and saves, held against arithmetic by hand, the published run's among it."""

import math
from dataclasses import replace
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
    Verdict,
    Way,
    against,
    all_in_usd,
    as_expected,
    beware,
    breakeven_months,
    build_usd,
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

# By the item: the LLM $200 a million, and a third of them escalated; by the month: $40 for hosting, $1 for labels.
PLAIN: dict[str, Any] = {
    "volume": 1_000_000.0, "escalation_rate": 0.25, "escalation_n": None, "human_rate": 0.0, "human_n": None,
    "gate_usd_per_item": 1e-6, "hosting_usd_per_month": 40.0, "items_per_second": None, "load": 0.5,
    "tokens_in": 500.0, "tokens_out": 50.0, "token_error": 0.0, "llm_input_usd": 0.3, "llm_output_usd": 1.0,
    "llm_usd_per_item": None, "llm_human_rate": 0.0, "cheap_input_usd": 0.1, "cheap_output_usd": 0.4,
    "cheap_usd_per_item": None, "cheap_human_rate": 0.0, "labels": 2000, "label_share": None, "label_usd": 0.001,
    "gold_items": 200, "gold_minutes": 0.5, "training_usd": 8.0, "relabel_months": None, "relabel_share": 0.5,
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
    assert start == pytest.approx((40 + BUILT / 12) / 149e-6)
    assert saving_usd(inputs(volume=start * 1.001)) > 0 > saving_usd(inputs(volume=start * 0.999))
    assert pays_from(inputs(escalation_rate=1.0)) is None
    assert pays_from(inputs(hosting_usd_per_month=0.0, labels=0, gold_items=0, training_usd=0.0)) == 1


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
    found = economics(inputs(human_rate=0.0, human_n=500), draws=4000, seed=0)
    value, low, high = found.option(Way.CASCADE).usd_per_month
    assert value == low == pytest.approx(91)  # the value itself stays in its interval
    assert high == pytest.approx(91 + beta.ppf(0.975, 0.5, 500.5) * 1e6 * 0.5, rel=0.05)
    assert found.verdict == Verdict.UNSURE and not found.against
    [doubt] = [told for told in found.beware if told.startswith("Not certain")]
    assert "0 of 500 items needed one" in doubt and "Without that doubt it would be 100%" in doubt
    assert math.isinf(found.breakeven_days.high) and found.breakeven_days.value == pytest.approx(BUILT / 109 * DAYS)


def test_people_are_never_more_than_what_is_escalated() -> None:
    world = draw(inputs(escalation_rate=0.01, escalation_n=50, human_rate=0.01, human_n=50), 5000, 0)
    assert (world.human_rate <= world.escalation_rate).all()


def test_the_same_seed_gives_the_same_figures() -> None:
    given = inputs(escalation_n=100, token_error=0.1)
    first, again, other = (economics(given, draws=500, seed=seed).flat() for seed in (0, 0, 1))
    assert first == again != other
    assert {"cost/llm_usd_per_million", "cost/flywheel_usd_per_million", "cost/breakeven_items", "cost/breakeven_days",
            "cost/breakeven_days_low", "cost/student_usd_per_million", "cost/cheap_llm_usd_per_million"} <= set(first)
    assert all(math.isfinite(value) for value in first.values())
    never = economics(inputs(escalation_rate=1.0), draws=100, seed=0).flat()
    assert "cost/breakeven_days" not in never and never["cost/pays"] == 0


def test_the_curve_goes_through_what_is_told() -> None:
    given = inputs(escalation_n=100)
    found = curve(given, draw(given, 500, 0), points=121)
    at = 60
    assert found.volumes[at] == pytest.approx(given.volume)
    for way in Way:
        middle, low, high = found.usd_per_million[way]
        expected = all_in_usd(given, as_expected(given), given.volume, way)[0] / given.volume * 1e6
        assert middle[at] == pytest.approx(expected)
        assert (low <= middle).all() and (middle <= high).all()
    cascade = found.usd_per_million[Way.CASCADE][0]
    assert (np.diff(cascade) < 0).all() and cascade[-1] == pytest.approx(51, rel=0.01)


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
    assert next(swing for swing in none if swing.key == "human_rate").high == 0.01


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
    assert f"done every {told * DAYS:.3g} days or less often" in why
    assert not against(inputs(relabel_months=told * 1.01, relabel_share=1.0))
    assert against(inputs(relabel_months=told * 0.99, relabel_share=1.0))


def test_an_llm_that_is_too_slow_is_told() -> None:
    slow: dict[str, Any] = {"llm_latency_ms": 1468.0, "student_latency_ms": 8.5, "latency_budget_ms": 50.0}
    [why] = against(inputs(**slow, student_accuracy=0.874))
    assert why == ("Too slow: 25.0% of the items wait 1,476 ms for the LLM, and latency_budget_ms=50. Only the student "
                   "alone is in time (8.5 ms), and is right on 0.874.")
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
    assert pays_from(replace(hosted, labels=0)) == pytest.approx(264_550.3, abs=1)
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
    assert found.pays_from == pytest.approx(407_407.4, abs=1)
    million = economics(replace(given, volume=1e6), draws=2000, seed=0)
    assert million.option(Way.CASCADE).usd_per_million.value == pytest.approx(137.20)
    assert million.saving_share.value == pytest.approx(0.347, abs=5e-4) and million.verdict == Verdict.PAYS
    assert million.saving_share.low < 0.31 and million.saving_share.high < 0.42  # 89.9% is far outside


def test_the_published_config_says_what_is_found() -> None:
    text = (ROOT / "conf/cost/published.yaml").read_text()
    for told in ("$58.77", "407,408", "264,551", "$137.20", "34.7%", "−148%", "−166,572%", "41.5%"):
        assert told in text
    given = published()
    assert math.ceil(pays_from(given) or 0) == 407_408
    assert math.ceil(pays_from(replace(given, escalation_rate=0.1, labels=0)) or 0) == 264_551


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
    pays = costs.statement(economics(inputs(), draws=100, seed=0), inputs())
    assert pays.startswith("The flywheel pays at 1,000,000 items a month, against the LLM everywhere. All in, it saves "
                           "$104.00 a month (+52.0% of the LLM's bill saved")
    assert "Building costs $60.00, and is back after 17 days" in pays
    assert "It pays from 303,000 items a month on" in pays
    given = inputs(volume=1000.0)
    told = costs.statement(economics(given, draws=100, seed=0), given)
    assert told.startswith("The flywheel does not pay at 1,000 items a month. Too few items")
    assert "it costs $44.85 a month more than the LLM everywhere" in told and "never comes back." in told


@pytest.mark.parametrize("others", [
    {"volume": 500.0}, {"human_n": 500}, {"escalation_rate": 1.0}, {"llm_usd_per_item": 0.0},
    {"hosting_usd_per_month": 0.0, "labels": 0, "gold_items": 0, "training_usd": 0.0, "gate_usd_per_item": 0.0},
    {"volume": 3e9, "items_per_second": 100.0, "label_share": 0.02, "relabel_months": 1.0},
], ids=["few", "people", "uncertified", "free", "nothing by the month", "many"])
def test_both_pictures_can_be_read(others: dict[str, Any]) -> None:
    given = inputs(escalation_n=100, **others)
    found, world = economics(given, draws=300, seed=0), draw(given, 300, 0)
    title = "cifar5 mobilenetv3_small_100 s2: what a million items cost, with 95% bands"
    drawn = costs.cost_curve(curve(given, world), found, given, title=title, note=NOTE)
    check_legible(drawn, NOTE, "items a month")
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
    mark = lines["it saves from 303,000 on"]
    assert float(np.asarray(mark.get_xdata())[0]) == pytest.approx(found.pays_from)
    assert float(np.asarray(mark.get_ydata())[0]) == pytest.approx(200)


@pytest.mark.parametrize(("usd", "told"), [(1234.5, "$1,234"), (12.345, "$12.35"), (0.0, "$0.00"), (2.1e-4, "$0.00021"),
                                           (-31.1, "-$31.10"), (math.inf, "–")])
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
