"""The geometry of the small pictures that are drawn inside a report: where data lie on them. Draws nothing itself.

Unlike the figures for MLflow it takes the page's colours, so that it can be read in the dark and on paper, and its text
grows with the reader's.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from src.metrics import Floats, accepted_and_correct, proportion

CURVE_POINTS = 80
SETTLED = 20  # items; the accuracy of fewer would squeeze the curve under its ceiling
WIDTH, HEIGHT = 440, 318
LEFT, RIGHT, TOP, BOTTOM = 46, 24, 30, 44


@dataclass(frozen=True)
class Plot:
    """Both axes rise from `low` to `high` of theirs; `x_ticks` and `y_ticks` are values and what is written there."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    x_label: str
    y_label: str
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM

    def x(self, value: float) -> float:
        low, high = self.x_range
        return round(self.left + (self.right - self.left) * (value - low) / (high - low), 1)

    def y(self, value: float) -> float:
        """Downwards, as pages count; what lies below the range is drawn at its edge."""
        low, high = self.y_range
        share = max(0.0, min(1.0, (value - low) / (high - low)))
        return round(self.bottom - (self.bottom - self.top) * share, 1)

    def line(self, points: Sequence[tuple[float, float]]) -> str:
        """An SVG path through the points."""
        return "M" + "L".join(f"{self.x(x)},{self.y(y)}" for x, y in points)

    def band(self, points: Sequence[tuple[float, float, float]]) -> str:
        """An SVG path around everything between the low and the high of (x, low, high)."""
        upper = [(x, high) for x, _, high in points]
        lower = [(x, low) for x, low, _ in reversed(points)]
        return self.line([*upper, *lower]) + "Z"


def percents(low: float, high: float) -> list[tuple[float, str]]:
    """Ticks in percent, about five of them, that end at `high`."""
    span = high - low
    step = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.25) if span / step <= 5.01 or step == 0.25)
    count = int(span / step + 1e-9)
    return [(high - step * place, f"{high - step * place:.0%}") for place in range(count, -1, -1)]


def dollars(high: float) -> list[tuple[float, str]]:
    """Ticks from 0 up to about `high`, at round sums."""
    raw = high / 4 or 1.0
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    return [(step * place, f"${step * place:,.6g}") for place in range(int(high / step + 1e-9) + 1)]


def accuracy_curve(confidence: Floats, correct: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Accuracy of what the student is surest of, against the share of items that this is."""
    accepted, right = accepted_and_correct(confidence, correct)
    n = int(accepted[-1])
    places = [p for p in np.unique(np.linspace(0, len(accepted) - 1, CURVE_POINTS).astype(int))
              if accepted[p] >= min(n, SETTLED)]
    points = [(accepted[p] / n, proportion(int(right[p]), int(accepted[p]))) for p in places]
    low = _floor([one.low for _, one in points])
    plot = Plot((0, 1), (low, 1), percents(0, 1), percents(low, 1), "share of items that it answers, surest first",
                "right answers among these")
    return {"plot": plot, "line": plot.line([(x, one.value) for x, one in points]),
            "band": plot.band([(x, one.low, one.high) for x, one in points])}


def reliability(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """What confidence says against what is found, in bins of as many items."""
    low = _floor([row["confidence"] for row in (*before["bins"], *after["bins"])])
    plot = Plot((low, 1), (0, 1), percents(low, 1), percents(0, 1), "how sure the student says it is", "right answers")
    marks = [{"kind": kind, "x": plot.x(row["confidence"]), "y": plot.y(row["accuracy"]["value"]),
              "low": plot.y(row["accuracy"]["low"]), "high": plot.y(row["accuracy"]["high"])}
             for kind, rows in (("before", before["bins"]), ("after", after["bins"])) for row in rows]
    return {"plot": plot, "marks": marks, "diagonal": plot.line([(low, low), (1, 1)])}


def accuracy_for_cost(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Accuracy against what the LLM costs, a mark for each answerer."""
    known = [row for row in rows if row["accuracy"] and row["usd"] is not None]
    if not known:
        return None
    low = _floor([row["accuracy"].low for row in known])
    dearest = max(row["usd"] for row in known) * 1.15 or 1.0
    plot = Plot((0, dearest), (low, 1), dollars(dearest), percents(low, 1), "the LLM's cost of a million items",
                "right answers")
    marks: dict[tuple[float, float], dict[str, Any]] = {}
    for row in known:
        found = row["accuracy"]
        place = (plot.x(row["usd"]), plot.y(found.value))
        if place in marks:  # what is worth the same has one mark, and both letters
            marks[place]["mark"] += f", {row['mark']}"
        else:
            marks[place] = {"mark": row["mark"], "kind": row["kind"], "x": place[0], "y": place[1],
                            "low": plot.y(found.low), "high": plot.y(found.high)}
    return {"plot": plot, "marks": list(marks.values())}


def _floor(lows: Sequence[float], ceiling: float = 0.9) -> float:
    """A round place below all of them to begin an axis at."""
    return max(0.0, math.floor(10 * min([ceiling, *lows]) - 1e-9) / 10)
