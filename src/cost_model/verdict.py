"""Whether the flywheel pays: what speaks against it, and what else to know, in whole sentences."""

from collections.abc import Iterator
from dataclasses import replace
from enum import StrEnum

import numpy as np

from src.cost_model.inputs import MILLION, Inputs, Way
from src.cost_model.months import (
    Pays,
    all_in_usd,
    breakeven_months,
    build_usd,
    machines,
    month_usd,
    pays_from,
    relabel_usd,
    room_of,
)
from src.cost_model.words import dollars, duration, round_up
from src.cost_model.worlds import World, as_expected

SURE = 0.95  # the chance from which on it is said without reserve
MARGIN = 0.01  # of accuracy, that a cheaper way may lose and still be as good


class Verdict(StrEnum):
    """Whether building comes back in time and nothing else speaks against it; unsure where it is expected to, and the
    counts allow too well that it does not."""

    PAYS = "pays"
    UNSURE = "unsure"
    DOES_NOT = "does not pay"


def against(inputs: Inputs) -> list[str]:
    """Why the cascade does not pay; nothing where it does."""
    return [told for told in (_money(inputs), _too_slow(inputs), _cheap_is_enough(inputs)) if told]


def beware(inputs: Inputs, world: World, chance: float) -> list[str]:
    """What else to know before deciding; `chance` is that of building's coming back within the horizon."""
    doubt = _doubt(inputs, world, chance)
    return [*([doubt] if doubt else []), *_less_right(inputs), *_other_ways(inputs), *_people(inputs, world)]


def _money(inputs: Inputs) -> str | None:
    expected, volume = as_expected(inputs), inputs.volume
    months = float(breakeven_months(inputs, expected)[0])
    llm, cascade = (float(month_usd(inputs, expected, volume, way)[0]) for way in (Way.LLM, Way.CASCADE))
    again, hosting = float(relabel_usd(inputs, volume)), float(inputs.hosting_usd_per_month * machines(inputs, volume))
    # What is left when nothing is paid by the month.
    by_item = llm - cascade + again + hosting
    if by_item <= 1e-12 * llm:
        return _dearer_by_the_item(inputs, by_item / volume)
    if months <= inputs.horizon_months:
        return None
    stable = replace(inputs, relabel_months=None)
    if float(breakeven_months(stable, expected)[0]) <= inputs.horizon_months:
        return _unstable(inputs, again, by_item - hosting)
    return _too_few(inputs, by_item, hosting, again, months)


def _dearer_by_the_item(inputs: Inputs, by_item: float) -> str:
    if inputs.escalation_rate == 1:
        return ("Everything is escalated: the student is trusted with nothing, so it saves nothing at any volume. See "
                "python -m src.certify plan=true for what that takes.")
    more = f"cost {dollars(-by_item * MILLION)} more through" if by_item < 0 else "cost no less through"
    told = (f"At any volume: a million items {more} the cascade than the LLM takes, hosting and labels not counted; "
            f"{inputs.escalation_rate:.1%} are escalated and {inputs.human_rate:.2%} go to people.")
    people = inputs.human_rate * inputs.look_usd
    if inputs.llm_usd <= 0:
        return told + " The LLM is free, so there is nothing to save."
    if inputs.mistake_usd:
        return told
    most = (inputs.llm_usd + inputs.llm_human_rate * inputs.look_usd - inputs.gate_usd_per_item - people) \
        / inputs.llm_usd
    if most <= 0:
        what = "People" if people > inputs.gate_usd_per_item else "The gate"
        return told + f" {what} alone cost more than the LLM, whatever the escalation rate."
    return told + f" Below an escalation rate of {min(most, 1.0):.1%} it would save."


def _too_few(inputs: Inputs, saved: float, hosting: float, again: float, months: float) -> str:
    """`saved` is what a month's items leave before `hosting` and relabelling `again` are paid."""
    when = f"comes back after {duration(months)}, past the horizon of {duration(inputs.horizon_months)}" \
        if np.isfinite(months) else "never comes back"
    rented, start = float(machines(inputs, inputs.volume)), pays_from(inputs)
    many = f" for {rented:,.0f} machines" if rented > 1 else ""
    return (f"Too few items{many}: {inputs.volume:,.0f} a month save {dollars(saved)} and cost "
            f"{dollars(hosting + again)} in hosting and relabelling, so that building "
            f"({dollars(float(build_usd(inputs, inputs.volume)))}) {when}. {_way_out(inputs, start)}")


def _way_out(inputs: Inputs, start: Pays | None) -> str:
    if start is not None and inputs.volume < start.first:
        return f"From {round_up(start.first):,.0f} items a month on it pays."
    if start is not None:
        return (f"With fewer machines it pays, from {round_up(start.first):,.0f} items a month on, and with any number "
                f"of them from {round_up(start.settled):,.0f} on.")
    told = "No volume would change that"
    if inputs.items_per_second:
        told += f": another machine is needed for each {room_of(inputs):,.0f} items, and costs more than they save"
    return f"{told}."


def _unstable(inputs: Inputs, again: float, left: float) -> str:
    """`left` is what a month saves before relabelling, which without it would be enough."""
    assert inputs.relabel_months is not None
    # What is left when building has come back in time may be spent on labels.
    spare = left - float(build_usd(inputs, inputs.volume)) / inputs.horizon_months
    start = pays_from(inputs)
    ways = [f"if done every {duration(again * inputs.relabel_months / spare)} or less often"] if spare > 0 else []
    ways += [f"from {round_up(start.settled):,.0f} items a month on"] if start is not None else []
    return (f"The schema is not stable: relabelling every {duration(inputs.relabel_months)} costs {dollars(again)} a "
            f"month, and all else saves {dollars(left)}. It would pay {', or '.join(ways) or 'without it alone'}.")


def _too_slow(inputs: Inputs) -> str | None:
    budget, llm, student = inputs.latency_budget_ms, inputs.llm_latency_ms, inputs.student_latency_ms
    if budget is None or llm is None or not inputs.escalation_rate:
        return None
    whole = llm + (student or 0.0)
    if whole <= budget:
        return None
    everywhere = f", everywhere all of them {llm:,.0f} ms" if llm > budget else ""
    alone = ""
    if student is not None and student <= budget:
        accuracy = inputs.accuracy(Way.STUDENT)
        alone = f" Only the student alone is in time ({student:g} ms)" + \
            ("." if accuracy is None else f", and is right on {accuracy:.3f}.")
    elif student is not None:
        alone = f" Nor is the student, with {student:g} ms."
    return (f"Too slow: {inputs.escalation_rate:.1%} of the items wait {whole:,.0f} ms for the LLM{everywhere}, and "
            f"latency_budget_ms={budget:g}.{alone}")


def _cheap_is_enough(inputs: Inputs) -> str | None:
    """Held against the cascade, or where nobody knows how right that is, against the LLM that it asks."""
    cheap, held, what = inputs.accuracy(Way.CHEAP), inputs.accuracy(Way.CASCADE), "the cascade"
    if held is None:
        held, what = inputs.accuracy(Way.LLM), "the LLM everywhere"
    if cheap is None or held is None or cheap < held - MARGIN:
        return None
    ours, theirs = _all_in(inputs, Way.CASCADE), _all_in(inputs, Way.CHEAP)
    if theirs > ours:
        return None
    return (f"A cheap LLM alone is good enough: right on {cheap:.3f} ({what} on {held:.3f}), at {dollars(theirs)} a "
            f"month against {dollars(ours)}, and nothing to build.")


def _doubt(inputs: Inputs, world: World, chance: float) -> str | None:
    """Why the counts do not settle it, where they do not."""
    if not 1 - SURE < chance < SURE:
        return None
    told = f"Not certain: building comes back within {duration(inputs.horizon_months)} in {chance:.0%} of the draws."
    by_hand = replace(world, people=as_expected(inputs).people)
    settled = float((breakeven_months(inputs, by_hand) <= inputs.horizon_months).mean())
    if inputs.human_n is None or 1 - SURE < settled < SURE:
        return f"{told} More items in the evaluation would tell."
    most = float(np.quantile(world.people[Way.CASCADE], 0.975))
    counted = f"{inputs.human_rate * inputs.human_n:.0f} of {inputs.human_n:,} items needed one"
    lopsided = ", llm_human_n=… where it was counted for the LLM alone too," if inputs.llm_human_n is None else ""
    return (f"{told} It hangs on people: {counted}, and up to {most:.2%} may, at {dollars(inputs.look_usd)} each, "
            f"beside {dollars(inputs.llm_usd)} for the LLM. Without that doubt it would be {settled:.0%}: evaluate on "
            f"more items{lopsided} or human_n=null where no item ever goes to a person.")


def _less_right(inputs: Inputs) -> Iterator[str]:
    llm, cascade = inputs.accuracy(Way.LLM), inputs.accuracy(Way.CASCADE)
    if llm is not None and cascade is not None and cascade < llm - MARGIN and not inputs.mistake_usd:
        yield (f"The cascade is right less often than the LLM ({cascade:.3f} against {llm:.3f}): what it saves is "
               "partly paid in mistakes. mistake_usd=… gives these a price.")


def _other_ways(inputs: Inputs) -> Iterator[str]:
    cascade, cheap, student = (inputs.accuracy(way) for way in (Way.CASCADE, Way.CHEAP, Way.STUDENT))
    ours = _all_in(inputs, Way.CASCADE)
    if student is not None and cascade is not None and student >= cascade - MARGIN:
        yield (f"The student alone is as good: right on {student:.3f} (the cascade on {cascade:.3f}), at "
               f"{dollars(_all_in(inputs, Way.STUDENT))} a month against {dollars(ours)}. What it is unsure of would "
               "go unseen.")
    if cheap is None and inputs.cheap_usd < inputs.llm_usd and not inputs.mistake_usd:
        theirs = _all_in(inputs, Way.CHEAP)
        if theirs < ours:
            yield (f"A cheap LLM alone costs less than the cascade ({dollars(theirs)} against {dollars(ours)} a "
                   "month), and nobody has said how right it is: label gold with it before anything is built "
                   "(cheap_accuracy=…).")


def _people(inputs: Inputs, world: World) -> Iterator[str]:
    if not inputs.look_usd:
        return
    if inputs.human_rate:
        if not inputs.llm_human_rate and inputs.llm_human_n is None:
            yield (f"People get {inputs.human_rate:.2%} of the cascade's items and none of the LLM's: what an LLM "
                   "cannot settle would go to people without a cascade too (llm_human_rate=…).")
    elif inputs.human_n is None:
        yield (f"No item is taken to need a person. One in a thousand would cost "
               f"{dollars(inputs.look_usd * MILLION / 1000)} a million items.")
    elif inputs.llm_human_n is not None:  # with the cascade's count alone, the verdict's doubt says it
        most = float(np.quantile(world.people[Way.CASCADE], 0.975))
        yield (f"None of {inputs.human_n:,} items needed a person, and up to {most:.2%} may, whichever way: at "
               f"{dollars(inputs.look_usd)} each, {dollars(most * inputs.look_usd * MILLION)} a million items. The "
               "upper ends of the costs are that.")


def _all_in(inputs: Inputs, way: Way) -> float:
    return float(all_in_usd(inputs, as_expected(inputs), inputs.volume, way)[0])
