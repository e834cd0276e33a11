"""The published recipe's figures about money, each worked out again from the recipe's own inputs.

Where a figure can be made again, its own mistake is made again to show that it is the one. Knows nothing about where
the inputs come from: `conf/cost/published.yaml` holds them, and `python -m src.cost +cost=published` prints this.
"""

import math
from dataclasses import dataclass, replace

from src.cost_model.inputs import MILLION, Inputs, Way
from src.cost_model.months import by_item_usd, month_usd, pays_from, room_of, saving_usd
from src.cost_model.words import dollars
from src.cost_model.worlds import as_expected
from src.metrics import proportion

PASSES, MAX_TOKENS = 2, 100
# Of its table: the confidence from which on an answer is kept, how many of 200 are, and the share of these that is
# right.
KEPT = {0.50: (179, 0.939), 0.85: (117, 0.991)}
TABLED = 200


@dataclass(frozen=True)
class Claim:
    """What was `published` of `what`, empty where nothing was, what is `right` instead, and why."""

    what: str
    published: str
    right: str
    why: str


def claims(inputs: Inputs) -> list[Claim]:
    """From the recipe's inputs, of which `escalation_rate` is its table's at confidence 0.85."""
    return [_labelling(inputs), _a_million(inputs), _hosting(inputs), _escalated(inputs), _calls(inputs),
            _with_tokens_price(inputs), _without_hosting(inputs), _right(inputs)]


def running_share(inputs: Inputs) -> float:
    """Share of the LLM's bill that a month saves, building not counted, as all of the published figures are."""
    llm, cascade = (float(month_usd(inputs, as_expected(inputs), inputs.volume, way)[0])
                    for way in (Way.LLM, Way.CASCADE))
    return 1 - cascade / llm


def _listed(inputs: Inputs) -> float:
    """US dollars for a question at the list price of its tokens."""
    return replace(inputs, llm_usd_per_item=None).llm_usd


def _percent(share: float, digits: int = 1) -> str:
    return f"{share:,.{digits}%}".replace("-", "−")


def _labelling(inputs: Inputs) -> Claim:
    asked = PASSES * inputs.labels
    least, most = asked * _listed(inputs), asked * _listed(replace(inputs, tokens_out=MAX_TOKENS))
    needed = (3 / asked * MILLION - inputs.tokens_out * inputs.llm_output_usd) / inputs.llm_input_usd
    return Claim(
        f"labelling, {PASSES} × {inputs.labels:,} calls", "~$3, and $0.60", dollars(asked * inputs.label_usd / PASSES),
        f"$0.60 is {dollars(0.60 / asked * MILLION)} a million calls, and agrees with the LLM's price below. At the "
        f"list price it is {dollars(least)} ({inputs.tokens_in:g} tokens in, {inputs.tokens_out:g} out, as our "
        f"stand-in counts them), and at the most {dollars(most)}, if each answer took all {MAX_TOKENS} tokens it may. "
        f"$3 would take {needed:,.0f} tokens in for each image.")


def _a_million(inputs: Inputs) -> Claim:
    return Claim(
        "LLM everywhere, a million items", "$210, and $0.30", dollars(inputs.llm_usd * MILLION),
        f"$0.30 is the price of a million input tokens, and a million items take {inputs.tokens_in:g} million of them: "
        f"{dollars(_listed(inputs) * MILLION)} with what comes out. $210 fits the $0.60.")


def _hosting(inputs: Inputs) -> Claim:
    each = inputs.hosting_usd_per_month / inputs.volume * MILLION
    bill = inputs.llm_usd * inputs.volume
    return Claim(
        "hosting", "$50 a month", f"$50 a month, {dollars(each)} a million",
        f"At its {inputs.volume:,.0f} items a month it is more than the LLM's whole bill of {dollars(bill)}. The "
        f"machine, at {inputs.items_per_second:g} images a second, has room for {room_of(inputs) / MILLION:,.0f} "
        "million, so that it need not grow.")


def _escalated(inputs: Inputs) -> Claim:
    kept, right = KEPT[0.85]
    share = proportion(TABLED - kept, TABLED)
    loose, loosely = KEPT[0.50]
    return Claim(
        "escalated", "5%, or 10%", f"{share.value:.1%} [{share.low:.1%}, {share.high:.1%}]",
        f"Its own table keeps {kept} of {TABLED} at confidence 0.85, where {right:.1%} of the kept answers are right. "
        f"10% would be confidence 0.50 ({loose} kept), where {loosely:.1%} are; 5% is not in the table.")


def _calls(inputs: Inputs) -> Claim:
    fewer = 1 - inputs.escalation_rate
    months = inputs.horizon_months
    labels = PASSES * inputs.labels / (inputs.volume * months)
    return Claim(
        "fewer calls", "90%", f"{fewer:.1%}",
        f"That is what is not escalated. The labels' own {PASSES * inputs.labels:,} calls take {labels:.2%} off it in "
        f"{months:g} months.")


def _with_tokens_price(inputs: Inputs) -> Claim:
    theirs = replace(inputs, escalation_rate=0.05, llm_usd_per_item=0.30 / MILLION)
    mended = running_share(replace(theirs, llm_usd_per_item=inputs.llm_usd_per_item))
    return Claim(
        "saved", "−166,572%", _percent(mended),
        f"It is 1 − (50 + 0.05 × 0.03) / 0.03 = {_percent(running_share(theirs), 0)}: 5% escalated, $50, and a bill of "
        f"$0.03 for {inputs.volume:,.0f} items at the $0.30 of a million tokens. An item costs "
        f"{inputs.llm_usd / theirs.llm_usd:,.0f} times as much.")


def _without_hosting(inputs: Inputs) -> Claim:
    theirs = replace(inputs, escalation_rate=0.10, hosting_usd_per_month=0.0, gate_usd_per_item=0.21 / MILLION)
    hosted = replace(inputs, escalation_rate=0.10)
    start = pays_from(replace(hosted, labels=0))
    assert start is not None
    return Claim(
        "saved", "89.9%", _percent(running_share(hosted)),
        f"It is what 10% escalated leave, less a gate of some $0.1 to $0.3 a million: with $0.21, "
        f"{_percent(running_share(theirs))}. Hosting is left out. With it, {inputs.volume:,.0f} items a month lose "
        f"{dollars(-running_share(hosted) * inputs.llm_usd * inputs.volume)}; they save from "
        f"{math.ceil(start.first):,} on.")


def _right(inputs: Inputs) -> Claim:
    saving, bill = saving_usd(inputs), inputs.llm_usd * inputs.volume
    million = replace(inputs, volume=float(MILLION))
    most = 1 - float(by_item_usd(inputs, as_expected(inputs), Way.CASCADE)[0]) / inputs.llm_usd
    start = pays_from(inputs)
    assert start is not None
    return Claim(
        "saved, all of it put right", "", _percent(saving / bill),
        f"{inputs.escalation_rate:.1%} escalated, {dollars(inputs.llm_usd * MILLION)} a million, hosting, and labels "
        f"over {inputs.horizon_months:g} months: {dollars(bill - saving)} against {dollars(bill)}. It pays from "
        f"{math.ceil(start.first):,} items a month on; a million save "
        f"{saving_usd(million) / (inputs.llm_usd * MILLION):.1%}, and no volume more than {most:.1%}. What people cost "
        "(gold, a human lane) stands nowhere in it.")
