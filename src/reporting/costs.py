"""What the flywheel costs and saves, in words, tables and two pictures.

Each picture takes a `title` and a `note` and returns a matplotlib Figure, as in `figures`. Knows nothing about runs or
files.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from src.cost_model import (
    MILLION,
    Claim,
    Curve,
    Economics,
    Inputs,
    Option,
    Pays,
    Range,
    Swing,
    Verdict,
    Way,
    dollars,
    round_up,
    two_digits,
)
from src.cost_model.inputs import COUNTED
from src.reporting.figures import BLUE, GREEN, GREY, INK, ORANGE, PALE, RED, plain_text, plot_area, sheet

COLUMNS = ("what answers", "$ per million, all in", "$ a month to run", "right answers", "$ per million right ones")
SOURCES = ("key", "value", "of what", "where it comes from")
UNITS = {
    "volume": "items a month", "escalation_rate": "of all items, to the LLM", "human_rate": "of all items, to a person",
    "gate_usd_per_item": "$ for each item the student sees", "hosting_usd_per_month": "$ a month for one machine",
    "items_per_second": "items a second on one machine", "load": "of that speed, used on average",
    "tokens_in": "tokens in for an item", "tokens_out": "tokens out for an item",
    "token_error": "relative standard error of an LLM's price", "llm_input_usd": "$ for a million tokens",
    "llm_output_usd": "$ for a million tokens", "llm_usd_per_item": "$ for an item",
    "llm_human_rate": "of all items, to a person", "cheap_input_usd": "$ for a million tokens",
    "cheap_output_usd": "$ for a million tokens", "cheap_usd_per_item": "$ for an item",
    "cheap_human_rate": "of all items, to a person", "labels": "items labelled once",
    "label_share": "of a month's items, labelled once", "label_usd": "$ for a label, all passes",
    "gold_items": "items checked by hand", "gold_minutes": "minutes for each", "training_usd": "$ for one training",
    "relabel_months": "months until labelled again", "relabel_share": "of labels and gold, each time",
    "human_minutes": "minutes for an item that needs a person", "wage_usd_per_hour": "$ an hour for people",
    "mistake_usd": "$ for a wrong answer", "llm_accuracy": "of answers are right",
    "cheap_accuracy": "of answers are right", "student_accuracy": "of answers are right",
    "cascade_accuracy": "of answers are right", "horizon_months": "months for building to come back",
    "latency_budget_ms": "ms that an answer may take", "llm_latency_ms": "ms, 95th percentile",
    "student_latency_ms": "ms, 95th percentile",
}
COLOURS = {Way.LLM: INK, Way.CHEAP: ORANGE, Way.STUDENT: GREEN, Way.CASCADE: BLUE}
TALL = 30  # times the LLM's cost: a cascade at few items costs more than anybody would look at
NARROW = 2000  # the ratio of an axis' ends below which it shows more than powers of ten
SHOWN = 10  # keys in the sensitivity chart; the table holds all
UNKNOWN = "unknown"


def option_rows(found: Economics) -> list[tuple[str, ...]]:
    """A row of words for each way, under COLUMNS."""
    return [(option.way.value, money(option.usd_per_million), money(option.usd_per_month), accuracy(option),
             money(option.usd_per_million_right) if option.usd_per_million_right else UNKNOWN)
            for option in found.options]


def option_frame(found: Economics) -> pd.DataFrame:
    """All figures of each way, as numbers."""
    rows = []
    for option in found.options:
        row: dict[str, object] = {"what": option.way.value, "accuracy_n": option.accuracy_n}
        for name in ("usd_per_million", "usd_per_month", "usd_per_million_right", "accuracy"):
            given = getattr(option, name)
            row |= {f"{name}{end}": given[place] if given else None
                    for place, end in enumerate(("", "_low", "_high"))}
        rows.append(row)
    return pd.DataFrame(rows)


def source_rows(inputs: Inputs, sources: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Every key that moves a figure, with its n, and where it comes from; under SOURCES."""
    rows: list[tuple[str, ...]] = []
    for key in _shown(inputs):
        value, n = getattr(inputs, key), getattr(inputs, COUNTED.get(key, ""), None)
        told = f"{value:,.0f}" if float(value).is_integer() else f"{value:,.6g}"
        rows.append((key, told, UNITS[key] + (f", n={n:,}" if n else ""), sources[key]))
    return rows


def assumed(inputs: Inputs, sources: Mapping[str, str], source: str) -> str:
    """How much of what moves a figure comes from `source`, and what to do about it."""
    shown = _shown(inputs)
    guessed = sum(sources[key] == source for key in shown)
    return (f"{guessed} of these {len(shown)} values are assumed: give yours as key=value. conf/cost.yaml says what "
            "each is.") if guessed else "None of these is assumed."


def claim_lines(found: Sequence[Claim]) -> list[str]:
    return [f"{claim.what}: " + (f"published {claim.published}; " if claim.published else "")
            + f"worked out {claim.right}. {claim.why}" for claim in found]


def swing_frame(swings: Sequence[Swing]) -> pd.DataFrame:
    return pd.DataFrame([{"key": one.key, "low": one.low, "high": one.high, "saving_at_low": one.at_low,
                          "saving_at_high": one.at_high, "ends": "95% interval" if one.counted else "half and double"}
                         for one in swings], columns=["key", "low", "high", "saving_at_low", "saving_at_high", "ends"])


def statement(found: Economics, inputs: Inputs) -> list[str]:
    """The answer, its reasons and its figures, a sentence or two each; what else to know is `found.beware`."""
    volume = f"{inputs.volume:,.0f} items a month"
    told = {Verdict.PAYS: f"The flywheel pays at {volume}, against the LLM everywhere.",
            Verdict.UNSURE: f"Whether the flywheel pays at {volume} is not certain: it is expected to, and the counts "
                            "do not settle it.",
            Verdict.DOES_NOT: f"The flywheel does not pay at {volume}."}[found.verdict]
    return [told, *found.against, _saved(found), _back(found, inputs),
            *([] if found.pays_from is None or found.against else [_start(found.pays_from)])]


def _saved(found: Economics) -> str:
    saving, share = found.saving_usd_per_month, found.saving_share
    part = f": {share.value:,.1%} [{share.low:,.1%}, {share.high:,.1%}] of what the LLM costs" \
        if math.isfinite(share.value) else ""
    if saving.value >= 0:
        return f"All in, it saves {money(saving)} a month{part}."
    lost = Range(-saving.value, -saving.high, -saving.low)
    return f"All in, it costs {money(lost)} a month more than the LLM everywhere" + \
        (f", a saving of {part[2:]}." if part else ".")


def _back(found: Economics, inputs: Inputs) -> str:
    days, items = found.breakeven_days, found.breakeven_items
    told = f"Building costs {dollars(found.build_usd)} and "
    if math.isinf(days.value):
        told += "never comes back."
    else:
        told += (f"is back after {count(days.value)} days [{count(days.low)}, {count(days.high)}], or "
                 f"{count(items.value)} items [{count(items.low)}, {count(items.high)}].")
    if math.isinf(days.value) and not found.chance:
        return told
    times = {0.0: "none", 1.0: "all"}.get(found.chance, f"{found.chance:.1%}")
    return f"{told} In {times} of {found.draws:,} draws it is back within {inputs.horizon_months:g} months."


def _start(start: Pays) -> str:
    told = f"It pays from {round_up(start.first):,.0f} items a month on"
    if round_up(start.settled) == round_up(start.first):
        return f"{told}."
    return f"{told}, but with a machine that is still too empty not always before {round_up(start.settled):,.0f}."


def cost_curve(found: Curve, economics: Economics, inputs: Inputs, *, title: str, note: str = "") -> Figure:
    """US dollars for a million items against items a month, both in powers of ten, with 95% bands; marked are the
    volume that was asked about ("here") and the one from which on it pays. What costs nothing has no place there."""
    figure = sheet(8.5, 4.9, title, note)
    axes = plot_area(figure)
    axes.set_xscale("log")
    axes.set_yscale("log")
    shown, judged = [], any(option.accuracy for option in economics.options)
    for way, (middle, low, high) in found.usd_per_million.items():
        option = economics.option(way)
        right = f", right on {option.accuracy.value:.1%}" if option.accuracy else ", accuracy unknown" if judged else ""
        label = plain_text(f"{way.value}: {dollars(option.usd_per_million.value)} here{right}")
        if np.isnan(middle).any() or not (middle > 0).all():
            axes.plot([], [], color=COLOURS[way], label=label)
            continue
        style = (0, (5, 3)) if way in (Way.STUDENT, Way.CHEAP) else "-"
        axes.plot(found.volumes, middle, color=COLOURS[way], lw=1.8, ls=style, label=label)
        axes.fill_between(found.volumes, np.maximum(low, 1e-9), high, color=COLOURS[way], alpha=0.2, lw=0)
        # The student's falls without end, and takes no room from the others.
        shown.append(middle if way != Way.STUDENT else middle[found.volumes <= inputs.volume])
    axes.axvline(inputs.volume, color=GREY, lw=1, ls=(0, (4, 3)),
                 label=f"here: {inputs.volume:,.0f} items a month")
    start = None if economics.pays_from is None else economics.pays_from.first
    if start is None:
        axes.plot([], [], "o", color=RED, label="the cascade saves nothing at any volume")
    elif found.volumes[0] <= start <= found.volumes[-1]:
        at = np.interp(math.log(start), np.log(found.volumes), found.usd_per_million[Way.LLM][0])
        label = f"the cascade saves from {round_up(start):,.0f} items a month on"
        axes.plot(start, at, "o", color=RED, ms=7, zorder=4, label=label)
    else:
        axes.plot([], [], "o", color=RED, label=f"the cascade saves from {round_up(start):,.0f} on, off this picture")
    if shown:
        least, most = (float(end(np.concatenate(shown))) for end in (np.min, np.max))
        axes.set_ylim(least / 2, min(2 * most, TALL * economics.option(Way.LLM).usd_per_million.value or math.inf))
    axes.set_xlim(found.volumes[0], found.volumes[-1])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda volume, _: f"{volume:,.0f}" if volume < 1e6 else
                                                 f"{volume / 1e6:,.0f} M"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda usd, _: plain_text(f"${usd:,.6g}")))
    for axis in (axes.xaxis, axes.yaxis):
        ends = axis.get_view_interval()
        axis.set_major_locator(LogLocator(10, subs=(1, 2, 5) if ends[1] / ends[0] < NARROW else (1,), numticks=12))
        axis.set_minor_locator(NullLocator())
    told = "items a month" if found.people_drawn else "items a month\npeople's share as counted: see the table"
    axes.set_xlabel(told, color=GREY)
    months = f"{inputs.horizon_months:g} months"
    axes.set_ylabel(plain_text(f"$ per million items, building spread over {months}"), color=GREY)
    axes.grid(color=PALE, lw=0.6)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=1, frameon=False, fontsize=8.5, borderaxespad=0.4)
    return figure


def sensitivity(swings: Sequence[Swing], saving: Range, *, title: str, note: str = "") -> Figure:
    """What a month saves as one key after the other moves from its low end (blue) to its high end (orange), widest
    first. The line is the saving as expected, and left of nothing the cascade costs more than the LLM."""
    some = list(swings[:SHOWN])
    figure = sheet(8.5, 0.42 * max(1, len(some)) + 1.2, title, note)
    axes = plot_area(figure)
    ends = [end for one in some for end in (one.at_low, one.at_high)]
    left, right = min([0.0, saving.value, *ends]), max([0.0, saving.value, *ends])
    for y, one in enumerate(some):
        for end, colour in ((one.at_low, BLUE), (one.at_high, ORANGE)):
            axes.barh(y, end - saving.value, 0.6, left=saving.value, color=colour)
    names = [f"{one.key}: {_ends(one)}{'*' if one.counted else ''}" for one in some]
    axes.set_yticks(range(len(some)), map(plain_text, names), size=8.5)
    axes.set_ylim(max(1, len(some)) - 0.4, -0.6)
    room = 0.04 * (right - left or 1.0)
    axes.set_xlim(left - room, right + room)
    axes.axvline(saving.value, color=INK, lw=1)
    axes.axvline(0, color=RED, lw=1, ls=(0, (4, 3)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda usd, _: plain_text(_axis_dollars(usd))))
    axes.locator_params(axis="x", nbins=6)
    axes.grid(axis="x", color=PALE, lw=0.6)
    axes.set_xlabel("saved in a month against the LLM everywhere\n* over its 95% interval, others half to double",
                    color=GREY, size=9)
    handles = [Line2D([], [], color=colour, lw=6, label=label) for colour, label in ((BLUE, "low"), (ORANGE, "high"))]
    handles += [Line2D([], [], color=INK, lw=1, label=plain_text(f"as expected: {dollars(saving.value)}")),
                Line2D([], [], color=RED, lw=1, ls=(0, (4, 3)), label="nothing saved")]
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False, fontsize=8.5,
                borderaxespad=0.4)
    return figure


def money(given: Range) -> str:
    if math.isnan(given.value):
        return UNKNOWN
    if given.low == given.high:
        return dollars(given.value)
    return f"{dollars(given.value)} [{dollars(given.low)}, {dollars(given.high)}]"


def accuracy(option: Option) -> str:
    if option.accuracy is None:
        return UNKNOWN
    value, low, high = option.accuracy
    return f"{value:.1%} [{low:.1%}, {high:.1%}], n={option.accuracy_n:,}" if option.accuracy_n else f"{value:.1%}"


def count(number: float) -> str:
    """Days or items, to three digits; of what never happens, never."""
    if math.isinf(number):
        return "never"
    return f"{float(f'{number:.3g}'):,.0f}" if number >= 10 else two_digits(number) if number > 0 else "0"


def _shown(inputs: Inputs) -> list[str]:
    """The keys that are set and move a figure; an n stands with its share."""
    hidden = inputs.idle | set(COUNTED.values())
    names = [field.name for field in fields(Inputs)]
    return [name for name in names if name not in hidden and getattr(inputs, name) is not None]


def _ends(one: Swing) -> str:
    if one.key.endswith("_usd_per_item"):
        return f"{dollars(one.low * MILLION)} to {dollars(one.high * MILLION)} a million"
    return " to ".join(f"{end:,.0f}" if end >= 1000 else f"{end:.3g}" for end in (one.low, one.high))


def _axis_dollars(usd: float) -> str:
    return f"{'-' if usd < 0 else ''}${abs(usd):,.10g}"
