"""The published run, from its own inputs (RECIPE.md). `+cost=published` tells the same."""

import math
from dataclasses import replace
from typing import Any

import pytest
from conftest import ROOT, composed
from cost_inputs import PLAIN, first, month
from scipy.stats import beta

from src.config import Cost, read
from src.cost_model import (
    Inputs,
    Verdict,
    Way,
    claims,
    economics,
)


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
