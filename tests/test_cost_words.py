"""The cost model in words and pictures."""

import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from cost_inputs import PLAIN, first, inputs
from omegaconf import OmegaConf
from test_figures import NOTE, check_legible

from src.cost_model import (
    Inputs,
    Way,
    curve,
    dollars,
    draw,
    economics,
    sensitivity,
)
from src.reporting import costs


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


def test_every_input_is_explained_where_it_stands() -> None:
    stated = OmegaConf.load(ROOT / "conf/cost.yaml")
    assert set(PLAIN) <= set(stated)
