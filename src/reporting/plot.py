"""The geometry of a small picture that is drawn inside a page: where data lie on it. Draws nothing itself.

Unlike the figures for MLflow it takes the page's colours, so that it can be read in the dark and on paper, and its text
grows with the reader's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

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
