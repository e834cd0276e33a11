"""Trainings compared by one key of the configuration: in words, tables and a picture.

Knows nothing about runs or files. A difference is how much more often a value's students are right than the baseline's,
on the same items and seeds; above 0 is in the value's favour. Every interval holds by itself: among many values, one in
forty that are as good as the baseline is shown to be worse by chance.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from src.metrics import Interval
from src.reporting.figures import BLUE, DPI, GREEN, GREY, INK, ORANGE, PALE, RED

NONE = "–"


@dataclass(frozen=True)
class Metric:
    """A logged metric of one value's students: its mean over seeds, and how much higher it is than the baseline's, seed
    by seed; intervals over seeds."""

    mean: Interval
    difference: Interval


@dataclass(frozen=True)
class Compared:
    """How the students of one value did.

    `agreement` is with the teacher, on validation; `accuracy` against truth, on gold's *choose* part: each the mean
    over items and seeds, with an interval over items. The differences' intervals cover fresh items and fresh trainings
    (`metrics.paired_difference`), except `items_alone`, which speaks of these very students; `difference` and
    `items_alone` are of the `parts` together that decide, `by_seed` is `difference` for each seed. `test` and `on_test`
    are accuracy and difference on test, which decides nothing. What a part without items would tell is None. Speed is
    the median over seeds, nan where it was not measured.
    """

    value: str
    parts: tuple[str, ...]
    agreement: Interval | None
    accuracy: Interval | None
    test: Interval | None
    difference: Interval
    items_alone: Interval
    on_validation: Interval | None
    on_gold: Interval | None
    on_test: Interval | None
    by_seed: tuple[float, ...]
    metrics: Mapping[str, Metric]
    items_per_second: float
    p50_ms: float

    @property
    def worse(self) -> bool:
        """Shown to be worse than the baseline, which is not shown to be worse than itself."""
        return self.difference.high < 0

    @property
    def better(self) -> bool:
        return self.difference.low > 0

    def flat(self) -> dict[str, float]:
        """All figures, intervals as three; what is unknown is left out."""
        found = {"items_per_second": self.items_per_second, "p50_ms": self.p50_ms, "n": float(self.difference.n)}
        told = {name: getattr(self, name) for name in ("agreement", "accuracy", "test", "difference", "items_alone",
                                                       "on_validation", "on_gold", "on_test")}
        for name, metric in self.metrics.items():
            told |= {name: metric.mean, f"{name}_difference": metric.difference}
        for name, interval in told.items():
            if interval:
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
    if chosen is None or not any(float(row.value) < float(baseline) for row in rows):
        return _verdicts(rows, key, base)
    if chosen is base:
        return f"The smallest {key} that is not shown to be worse than {baseline} is {baseline} itself: all smaller " \
               f"ones are shown to be worse.{_speed(base)}"
    gap, seeds = chosen.difference, len(chosen.by_seed)
    lost = f"up to {-gap.low:.3f} could be lost" if gap.low < 0 else "nothing is lost"
    told = (f"The smallest {key} that is not shown to be worse than {baseline} is {chosen.value}: difference "
            f"{signed(gap)}, n={gap.n} items of {' and '.join(chosen.parts)}, {seeds} "
            f"seed{'s' if seeds > 1 else ''}; {lost}.{_speed(chosen, base)}")
    if above := [value for value in worse if float(value) > float(chosen.value)]:
        told += f" But {', '.join(above)} {'is' if len(above) == 1 else 'are'} shown to be worse: look twice, with " \
                "more seeds or items."
    return told + _luck(rows)


def scores(rows: Sequence[Compared]) -> tuple[str, ...]:
    """What `score_rows` tell after the value; what no row has is left out."""
    told = ("agreement with the teacher (validation)", "accuracy against truth (gold)",
            "on test, which chooses nothing", "items/s", "ms an item")
    return tuple(name for n, name in enumerate(told) if any(_scores(row)[n] != NONE for row in rows))


def score_rows(rows: Sequence[Compared]) -> list[tuple[str, ...]]:
    """The value and its `scores`."""
    known = [n for n in range(5) if any(_scores(row)[n] != NONE for row in rows)]
    return [(row.value, *(_scores(row)[n] for n in known)) for row in rows]


def _scores(row: Compared) -> tuple[str, ...]:
    return (str(row.agreement or NONE), str(row.accuracy or NONE), str(row.test or NONE),
            _known(row.items_per_second, ",.0f"), _known(row.p50_ms, ".1f"))


def differences(rows: Sequence[Compared]) -> tuple[str, ...]:
    """What `difference_rows` tell after the value."""
    alone = ("validation alone", "gold alone") if len(rows[0].parts) > 1 else ()
    return (" and ".join(rows[0].parts), "by seed", *alone, "test, beside it", "verdict")


def difference_rows(rows: Sequence[Compared], baseline: str) -> list[tuple[str, ...]]:
    """The value and its `differences`. "not worse" stands where that is not shown, which is not to say that it is as
    good; test has no say."""
    found = []
    for row in rows:
        if row.value == baseline:
            found.append((row.value, *[NONE] * (len(differences(rows)) - 1), "baseline"))
            continue
        verdict = "worse" if row.worse else "better" if row.better else "not worse"
        alone = (signed(row.on_validation), signed(row.on_gold)) if len(row.parts) > 1 else ()
        found.append((row.value, signed(row.difference), f"{min(row.by_seed):+.3f}…{max(row.by_seed):+.3f}", *alone,
                      signed(row.on_test), verdict))
    return found


def metric_rows(rows: Sequence[Compared], baseline: str) -> list[tuple[str, ...]]:
    """The value, and for each of its metrics the mean and, in the second line, the difference to the baseline."""
    return [(row.value, *(_short(metric.mean) if row.value == baseline else
                          f"{_short(metric.mean)}\n{_short(metric.difference, sign='+', beside=metric.mean)}"
                          for metric in row.metrics.values())) for row in rows]


def frame(rows: Sequence[Compared], baseline: str) -> pd.DataFrame:
    """All figures, one row a value."""
    return pd.DataFrame([{"value": row.value, "baseline": row.value == baseline, "shown_worse": row.worse, **row.flat(),
                          "by_seed": " ".join(f"{gap:+.4f}" for gap in row.by_seed)} for row in rows])


def figure(rows: Sequence[Compared], baseline: str, *, title: str, note: str = "") -> Figure:
    """Two panels, a line for each value in the order given: its difference to the baseline, with each seed's as a small
    dot, and its throughput where that was measured. The smallest value that is not shown to be worse is green."""
    chosen = smallest(rows)
    head = [*textwrap.wrap(note, 95), *textwrap.wrap(title, 95)]
    drawn = Figure(figsize=(10, 1.3 + 0.68 * len(rows) + 0.22 * len(head)), dpi=DPI, facecolor="white",
                   layout="constrained")
    drawn.suptitle(_plain("\n".join(head)), x=0.01, ha="left", size=12, color=RED if note else INK)
    timed = [row for row in rows if not math.isnan(row.items_per_second)]
    panels = drawn.subplots(1, 2 if timed else 1, sharey=True, squeeze=False, width_ratios=(2, 1) if timed else None)[0]
    left, right = panels[0], panels[-1]
    legend: dict[str, Any] = {}
    for y, row in enumerate(rows):
        colour = GREEN if row is chosen else BLUE
        if row.value != baseline:
            legend[" and ".join(row.parts)] = left.errorbar(
                row.difference.value, y, xerr=_reach(row.difference), fmt="o", color=RED if row.worse else colour, ms=7,
                lw=2)
            small = [("validation alone", row.on_validation, 0.16, GREY), ("gold alone", row.on_gold, 0.26, ORANGE),
                     ("test, beside it", row.on_test, 0.36, INK)]
            for name, part, shift, shade in small if len(row.parts) > 1 else small[2:]:
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
    if timed:
        right.set_xlabel("items a second", color=GREY)
        right.set_xlim(0, 1.25 * max(1.0, *(row.items_per_second for row in timed)))
    for axes in panels:
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(PALE)
        axes.tick_params(length=0, labelcolor=INK, labelsize=9)
        axes.grid(axis="x", color=PALE, lw=0.6)
        axes.set_axisbelow(True)
    left.legend(legend.values(), legend.keys(), loc="lower left", bbox_to_anchor=(0, 1), ncols=5, frameon=False,
                fontsize=8.5, borderaxespad=0.2, columnspacing=1.2, handletextpad=0.4)
    return drawn


def signed(interval: Interval | None) -> str:
    return f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]" if interval else NONE


def _reach(interval: Interval) -> list[list[float]]:
    return [[interval.value - interval.low], [interval.high - interval.value]]


def _verdicts(rows: Sequence[Compared], key: str, base: Compared) -> str:
    """What is shown of each value, where none is to be the smallest."""
    others = [row for row in rows if row is not base]
    kinds = (("shown to be better", [row for row in others if row.better]),
             ("shown to be worse", [row for row in others if row.worse]),
             ("neither", [row for row in others if not row.better and not row.worse]))
    told = "; ".join(f"{kind}: " + ", ".join(f"{row.value} ({signed(row.difference)})" for row in of)
                     for kind, of in kinds if of)
    seeds = len(base.by_seed)
    return f"{key} against {base.value}, n={base.difference.n} items of {' and '.join(base.parts)}, {seeds} " \
           f"seed{'s' if seeds > 1 else ''}: {told}.{_luck(rows)}"


def _luck(rows: Sequence[Compared]) -> str:
    return " With one seed, luck in training is in no interval." if len(rows[0].by_seed) == 1 else ""


def _short(interval: Interval, sign: str = "", beside: Interval | None = None) -> str:
    """As exact as it takes, or as what it stands beside; an interval of no width, as where every seed has the same
    labels, is left out."""
    form = f"{sign},.0f" if abs((beside or interval).value) >= 100 else f"{sign}.3f"
    told = format(interval.value, form)
    if math.isnan(interval.low) or math.isclose(interval.low, interval.high):
        return told
    return f"{told} [{interval.low:{form}}, {interval.high:{form}}]"


def _speed(row: Compared, base: Compared | None = None) -> str:
    if math.isnan(row.items_per_second):
        return ""
    ratio = row.items_per_second / base.items_per_second if base else math.nan
    times = "" if base is None or math.isnan(ratio) else f", {ratio:.1f} times that of {base.value}"
    return f" Throughput: {row.items_per_second:,.0f} items/s{times}."


def _known(value: float, form: str) -> str:
    return NONE if math.isnan(value) else format(value, form)


def _plain(text: str) -> str:
    """The text as it is: between two dollar signs matplotlib would typeset a formula."""
    return text.replace("$", r"\$")
