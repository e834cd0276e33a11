"""Trainings compared by one key of the configuration: in words, tables and a picture.

Knows nothing about runs or files. A difference is how much more often a value's students are right than the baseline's,
on the same items and seeds; above 0 is in the value's favour. Every interval holds by itself: among many values, one in
forty that are as good as the baseline is shown to be worse by chance.
"""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from src.metrics import Interval
from src.reporting.figures import BLUE, DPI, GREEN, GREY, INK, ORANGE, PALE, RED

NONE = "–"


@dataclass(frozen=True)
class Compared:
    """How the students of one value did.

    `agreement` is with the teacher, on validation; `accuracy` against truth, on gold's *choose* part: each the mean
    over items and seeds, with an interval over items. The differences' intervals cover fresh items and fresh trainings
    (`metrics.paired_difference`), except `items_alone`, which speaks of these very students; `difference` and
    `items_alone` are of both parts together, `by_seed` is `difference` for each seed. What a part without items would
    tell is None. Speed is the median over seeds, nan where it was not measured.
    """

    value: str
    agreement: Interval | None
    accuracy: Interval | None
    difference: Interval
    items_alone: Interval
    on_validation: Interval | None
    on_gold: Interval | None
    by_seed: tuple[float, ...]
    items_per_second: float
    p50_ms: float

    @property
    def worse(self) -> bool:
        """Shown to be worse than the baseline, which is not shown to be worse than itself."""
        return self.difference.high < 0

    def flat(self) -> dict[str, float]:
        """All figures, intervals as three; what is unknown is left out."""
        found = {"items_per_second": self.items_per_second, "p50_ms": self.p50_ms, "n": float(self.difference.n)}
        for name in ("agreement", "accuracy", "difference", "items_alone", "on_validation", "on_gold"):
            if interval := getattr(self, name):
                found |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
        return {name: value for name, value in found.items() if not math.isnan(value)}


def number(value: str) -> float | None:
    """None for what is no finite number."""
    try:
        found = float(value)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def smallest(rows: Sequence[Compared]) -> Compared | None:
    """The smallest value that is not shown to be worse; None unless all values are numbers."""
    if any(number(row.value) is None for row in rows):
        return None
    return min((row for row in rows if not row.worse), key=lambda row: float(row.value))


def statement(rows: Sequence[Compared], key: str, baseline: str) -> str:
    """The answer with all that stands behind it; the baseline is one of the rows."""
    chosen, base = smallest(rows), next(row for row in rows if row.value == baseline)
    worse = [row.value for row in rows if row.worse]
    if chosen is None:
        shown = f"shown to be worse than {baseline}: {', '.join(worse)}" if worse else \
            f"no value is shown to be worse than {baseline}"
        return f"{key} has values that are no numbers, so none is the smallest; {shown}."
    if chosen is base:
        below = any(float(row.value) < float(baseline) for row in rows)
        why = "all smaller ones are shown to be worse" if below else "it is the smallest that was tried"
        return f"The smallest {key} that is not shown to be worse than {baseline} is {baseline} itself: {why}. " \
               f"{_speed(base)}"
    gap, seeds = chosen.difference, len(chosen.by_seed)
    lost = f"up to {-gap.low:.3f} could be lost" if gap.low < 0 else "nothing is lost"
    told = (f"The smallest {key} that is not shown to be worse than {baseline} is {chosen.value}: difference "
            f"{signed(gap)}, n={gap.n} items of validation and gold, {seeds} seed{'s' if seeds > 1 else ''}; {lost}. "
            f"{_speed(chosen)[:-1]}{_times(chosen, base)}.")
    if above := [value for value in worse if float(value) > float(chosen.value)]:
        told += f" But {', '.join(above)} {'is' if len(above) == 1 else 'are'} shown to be worse: look twice, with " \
                "more seeds or items."
    if seeds == 1:
        told += " With one seed, luck in training is in no interval."
    return told


def score_rows(rows: Sequence[Compared]) -> list[tuple[str, ...]]:
    """Value, agreement, accuracy, items a second, milliseconds an item."""
    return [(row.value, str(row.agreement or NONE), str(row.accuracy or NONE), _known(row.items_per_second, ",.0f"),
             _known(row.p50_ms, ".1f")) for row in rows]


def difference_rows(rows: Sequence[Compared], baseline: str) -> list[tuple[str, ...]]:
    """Value, difference, its range over seeds, on validation and gold alone, and verdict: "not worse" stands where that
    is not shown, which is not to say that it is as good."""
    found = []
    for row in rows:
        if row.value == baseline:
            found.append((row.value, *[NONE] * 4, "baseline"))
            continue
        verdict = "worse" if row.worse else "better" if row.difference.low > 0 else "not worse"
        found.append((row.value, signed(row.difference), f"{min(row.by_seed):+.3f}…{max(row.by_seed):+.3f}",
                      signed(row.on_validation), signed(row.on_gold), verdict))
    return found


def frame(rows: Sequence[Compared], baseline: str) -> pd.DataFrame:
    """All figures, one row a value."""
    return pd.DataFrame([{"value": row.value, "baseline": row.value == baseline, "shown_worse": row.worse, **row.flat(),
                          "by_seed": " ".join(f"{gap:+.4f}" for gap in row.by_seed)} for row in rows])


def figure(rows: Sequence[Compared], baseline: str, *, title: str, note: str = "") -> Figure:
    """Two panels, a line for each value in the order given: its difference to the baseline, with each seed's as a small
    dot, and its throughput. The smallest value that is not shown to be worse is green."""
    chosen = smallest(rows)
    head = [*textwrap.wrap(note, 95), *textwrap.wrap(title, 95)]
    drawn = Figure(figsize=(10, 1.3 + 0.62 * len(rows) + 0.22 * len(head)), dpi=DPI, facecolor="white",
                   layout="constrained")
    drawn.suptitle(_plain("\n".join(head)), x=0.01, ha="left", size=12, color=RED if note else INK)
    left, right = drawn.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    legend: dict[str, Any] = {}
    for y, row in enumerate(rows):
        colour = GREEN if row is chosen else BLUE
        if row.value != baseline:
            legend["validation and gold"] = left.errorbar(row.difference.value, y, xerr=_reach(row.difference), fmt="o",
                                                          color=RED if row.worse else colour, ms=7, lw=2)
            for name, part, shift, shade in (("validation alone", row.on_validation, 0.2, GREY),
                                             ("gold alone", row.on_gold, 0.34, ORANGE)):
                if part:
                    legend[name] = left.errorbar(part.value, y + shift, xerr=_reach(part), fmt="o", color=shade, ms=3,
                                                 lw=1)
            legend["each seed"] = left.plot(row.by_seed, [y - 0.2] * len(row.by_seed), "|", color=INK, ms=7)[0]
        if not math.isnan(row.items_per_second):
            right.barh(y, row.items_per_second, 0.5, color=colour)
            right.annotate(f"{row.items_per_second:,.0f}", (row.items_per_second, y), (4, 0),
                           textcoords="offset points", va="center", size=9, color=INK)
    left.axvline(0, color=GREY, lw=1, ls=(0, (4, 3)))
    left.set_yticks(range(len(rows)), [_plain(row.value) + (" (baseline)" if row.value == baseline else "")
                                       for row in rows])
    left.set_ylim(len(rows) - 0.4, -0.6)
    left.xaxis.set_major_formatter(PercentFormatter(1))
    left.set_xlabel("more often right than the baseline, 95% intervals; red: shown to be worse", color=GREY)
    right.set_xlabel("items a second", color=GREY)
    right.set_xlim(0, 1.25 * max([1.0, *(row.items_per_second for row in rows if row.items_per_second > 0)]))
    for axes in (left, right):
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(PALE)
        axes.tick_params(length=0, labelcolor=INK, labelsize=9)
        axes.grid(axis="x", color=PALE, lw=0.6)
        axes.set_axisbelow(True)
    left.legend(legend.values(), legend.keys(), loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False,
                fontsize=8.5, borderaxespad=0.2)
    return drawn


def signed(interval: Interval | None) -> str:
    return f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]" if interval else NONE


def _reach(interval: Interval) -> list[list[float]]:
    return [[interval.value - interval.low], [interval.high - interval.value]]


def _speed(row: Compared) -> str:
    if math.isnan(row.items_per_second):
        return "Its throughput was not measured."
    return f"Throughput: {row.items_per_second:,.0f} items/s."


def _times(row: Compared, base: Compared) -> str:
    ratio = row.items_per_second / base.items_per_second
    return "" if math.isnan(ratio) else f", {ratio:.1f} times that of {base.value}"


def _known(value: float, form: str) -> str:
    return NONE if math.isnan(value) else format(value, form)


def _plain(text: str) -> str:
    """The text as it is: between two dollar signs matplotlib would typeset a formula."""
    return text.replace("$", r"\$")
