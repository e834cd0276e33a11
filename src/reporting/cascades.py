"""What a cascade is worth in rows and pictures, beside everything else that could answer in its place.

Each picture takes a `title` and a `note` and returns a matplotlib Figure, as in `figures`. Knows nothing about runs or
files.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, PercentFormatter

from src.cascade.policy import UNKNOWN, EscalationReason, HumanReason, Route
from src.cascade.replay import Compared, CostPoint, CoveragePoint, Kind
from src.metrics import Interval
from src.reporting.figures import BLUE, GREEN, GREY, INK, ORANGE, PALE, RED, plain_text, plot_area, share_axis, sheet

COLUMNS = ("what answers", "accuracy of automatic answers", "of the student's", "escalated", "to people",
           "$ per million", "latency, mean / p95")
PURPLE, SKY = "#CC79A7", "#56B4E9"
FILLS = {Route.TEACHER: BLUE, HumanReason.TEACHER_UNSURE: ORANGE, HumanReason.TEACHER_FAILED: RED,
         HumanReason.OVER_BUDGET: PURPLE, HumanReason.DISAGREEMENT: GREEN, UNKNOWN: "#B0B0B0"}
WORDS = {Route.TEACHER: "LLM", HumanReason.TEACHER_UNSURE: "person (LLM unsure)",
         HumanReason.TEACHER_FAILED: "person (LLM failed)", HumanReason.OVER_BUDGET: "person (over budget)",
         HumanReason.DISAGREEMENT: "person (they differ)", UNKNOWN: "nobody knows"}
SIGNS = {Kind.CASCADE: (("o", RED), ("D", ORANGE), ("P", PURPLE), ("X", GREEN)), Kind.STUDENT: (("s", INK),),
         Kind.LLM: (("^", INK),), Kind.OTHER: (("v", SKY),)}
BEST_CHEAP = "best single cheap model"


def comparison_rows(compared: Sequence[Compared]) -> list[tuple[str, ...]]:
    """A row of words for each, under COLUMNS; – where undecided cases leave a figure open."""
    rows: list[tuple[str, ...]] = []
    for one in compared:
        found = one.worth
        # The student's own time is its median, for every item: it has no spread here.
        latency = "–" if found.latency_mean_ms is None else f"{found.latency_mean_ms:,.1f} ms" \
            if one.kind == Kind.STUDENT else f"{found.latency_mean_ms:,.1f} / {found.latency_p95_ms:,.1f} ms"
        rows.append((_name(one), _told(found.accuracy), _told(found.student_accuracy),
                     f"{found.escalation_rate.value:.1%}", f"{found.human_rate.value:.1%}" if found.human_rate else "–",
                     _dollars(found.llm_usd_per_million), latency))
    return rows


def comparison_table(compared: Sequence[Compared]) -> pd.DataFrame:
    """All figures of each, as numbers, by the ends of the names that runs are compared by."""
    return pd.DataFrame([
        {"what": one.name, "kind": str(one.kind), "best_cheap": one.best_cheap,
         **{name.removeprefix("cascade/"): value for name, value in one.worth.flat().items()}} for one in compared])


def cost_accuracy(points: Sequence[CostPoint], compared: Sequence[Compared], *, title: str, note: str = "") -> Figure:
    """Accuracy against what the LLM costs, as the threshold moves; marked are the cascades compared, the student and
    the LLM alone and the best single cheap model, with 95% intervals. Other models stand in the table alone.

    The band is exact and holds at each point by itself. What has no accuracy or no price is named as unknown.
    """
    figure = sheet(8.5, 5.4, title, note)
    axes = plot_area(figure)
    known = [(point.llm_usd_per_million, point.accuracy) for point in points if point.accuracy]
    _line(axes, known, BLUE, "-", "automatic answers, as the threshold moves, and 95% of each point alone", band=True)
    with_people = [(point.llm_usd_per_million, point.accuracy_with_people)
                   for point in points if point.accuracy_with_people]
    _line(axes, with_people, GREEN, (0, (4, 3)), "with people's answers, taken to be right")
    seen = dict.fromkeys(Kind, 0)
    lows = [found.value for _, found in known]
    dearest = max([point.llm_usd_per_million for point in points], default=0.0)
    for one in (one for one in compared if one.kind != Kind.OTHER or one.best_cheap):
        signs = SIGNS[one.kind]
        sign, colour = signs[seen[one.kind] % len(signs)]
        seen[one.kind] += 1
        found, usd = one.worth.accuracy, one.worth.llm_usd_per_million
        if found is None or usd is None:
            axes.plot([], [], sign, color=colour, label=f"{_name(one)}: unknown")
            continue
        people = f", {one.worth.human_rate.value:.1%} to people" if one.worth.human_rate else ""
        axes.errorbar(usd, found.value, [[found.value - found.low], [found.high - found.value]], fmt=sign, ms=8,
                      color=colour, mec="white", mew=0.8, elinewidth=1, zorder=4, clip_on=False,
                      label=plain_text(f"{_name(one)}: {found.value:.1%}, {_dollars(usd)}{people}"))
        lows.append(found.low)
        dearest = max(dearest, usd)
    _accuracy_axis(axes, lows)
    axes.set_xlim(0, 1.05 * dearest or 1.0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda usd, _: plain_text(f"${usd:,.6g}")))
    axes.set_xlabel(plain_text("LLM's cost of a million items"), color=GREY)
    axes.set_ylabel("accuracy", color=GREY)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize=8.5, borderaxespad=0.4)
    return figure


def coverage_accuracy(points: Sequence[CoveragePoint], *, target: float, certified: CoveragePoint | None,
                      usual: CoveragePoint | None, title: str, note: str = "", name: str = "certified") -> Figure:
    """How right the student is on what it is surest of, against the share of items that this is.

    Marked are the target and where the certified threshold (or another one, called `name`) and the usual one lie on
    these items. The band is exact and holds at each point by itself.
    """
    figure = sheet(8.5, 4.8, title, note)
    axes = plot_area(figure)
    known = [(point.share, point.accuracy) for point in points if point.accuracy]
    _line(axes, known, BLUE, "-", "student's accuracy, and 95% of each point alone", band=True)
    axes.axhline(target, color=GREY, lw=1, ls=(0, (4, 3)), label=f"target {target:.1%}")
    lows = [target, *(found.value for share, found in known if found.n >= 20)]
    for called, point, sign, colour in ((name, certified, "o", RED), ("usual", usual, "D", ORANGE)):
        if point is None or point.accuracy is None:
            what = "threshold: none" if point is None else f"threshold {point.threshold:.4f}: on no item with truth"
            axes.plot([], [], sign, color=colour, label=f"{called} {what}")
            continue
        found = point.accuracy
        axes.errorbar(point.share, found.value, [[found.value - found.low], [found.high - found.value]], fmt=sign, ms=8,
                      color=colour, mec="white", mew=0.8, elinewidth=1, zorder=4, clip_on=False,
                      label=f"{called} threshold {point.threshold:.4f}: {found.value:.1%} right of {point.share:.1%}")
        lows.append(found.low)
    share_axis(axes)
    _accuracy_axis(axes, lows)
    axes.tick_params(axis="y", pad=9)  # points; clear of the 0% below the corner
    axes.set_xlabel("share of items that the student would answer", color=GREY)
    axes.set_ylabel("accuracy on these", color=GREY)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize=8.5, borderaxespad=0.4)
    return figure


def escalations(table: pd.DataFrame, *, by: str, title: str, note: str = "") -> Figure:
    """Each class's share of items that the student did not answer alone, stacked by what became of them.

    `table` is `escalation_table`'s, and `by` says whose classes these are. Hatched are audits.
    """
    ways = [name for name in table.columns if name not in ("class", "items", Route.STUDENT)]
    figure = sheet(8.5, max(2.2, len(table) * (0.36 if len(table) <= 20 else 0.2)) + 1.4, title, note)
    axes = plot_area(figure)
    shares = table[ways].div(table["items"].clip(lower=1), axis=0)
    left = pd.Series(0.0, index=table.index)
    handles = []
    for way in ways:
        reason, outcome = way.split(": ")
        hatch = "////" if reason == EscalationReason.AUDIT else None
        fill: dict[str, Any] = {"facecolor": FILLS[outcome], "hatch": hatch, "edgecolor": "white", "linewidth": 0.5}
        axes.barh(range(len(table)), shares[way], 0.66, left=left, **fill)
        handles.append(Patch(**fill, label=f"{reason} → {WORDS[outcome]}"))
        left += shares[way]
    for y, (items, share) in enumerate(zip(table["items"], left, strict=True)):
        told = f"{share:.1%} of {items:,}" if items else "no items"
        axes.annotate(told, (share, y), (5, 0), textcoords="offset points", va="center", size=8, color=GREY)
    axes.set_yticks(range(len(table)), map(plain_text, table["class"]), size=9 if len(table) <= 20 else 6.5)
    axes.set_ylim(len(table) - 0.4, -0.6)
    share_axis(axes)
    axes.set_xlim(0, max(0.05, float(left.max())))
    axes.set_xlabel(f"share of items that the student did not answer alone, by {by}", color=GREY)
    if handles:
        # From the right, so that it may reach over the space of long class names.
        axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, fontsize=8.5,
                    borderaxespad=0.4)
    return figure


def _line(axes: Axes, known: Sequence[tuple[float, Interval]], colour: str, style: str | tuple[int, tuple[int, int]],
          label: str, *, band: bool = False) -> None:
    x = [place for place, _ in known]
    axes.plot(x, [found.value for _, found in known], color=colour, lw=1.6, ls=style, label=label)
    if band:
        axes.fill_between(x, [found.low for _, found in known], [found.high for _, found in known], color=colour,
                          alpha=0.15, lw=0)


def _accuracy_axis(axes: Axes, lows: Sequence[float]) -> None:
    axes.set_ylim(max(0.0, min([0.95, *lows]) - 0.03), 1.005)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(color=PALE, lw=0.6)


def _name(one: Compared) -> str:
    return f"{one.name} ({BEST_CHEAP})" if one.best_cheap else one.name


def _told(found: Interval | None) -> str:
    return f"{found.value:.1%} [{found.low:.1%}, {found.high:.1%}], n={found.n}" if found else "–"


def _dollars(usd: float | None) -> str:
    return "–" if usd is None else f"${usd:,.2f}"
