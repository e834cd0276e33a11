"""Reliability diagrams. Knows nothing about runs or files."""

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from src.calibration.reliability import Reliability
from src.reporting.figures import BLUE, DPI, GREY, INK, ORANGE, PALE, RED


def figure(parts: Mapping[str, tuple[Reliability, Reliability]], *, title: str, note: str = "") -> Figure:
    """A reliability diagram for each part, before and after calibration."""
    drawn = Figure(figsize=(5.5 * len(parts), 5.4), dpi=DPI, facecolor="white", layout="constrained")
    drawn.suptitle(f"{note}\n{title}".strip(), x=0.01, ha="left", size=13, color=RED if note else INK)
    for axes, (part, (before, after)) in zip(drawn.subplots(1, len(parts), squeeze=False)[0], parts.items(),
                                             strict=True):
        diagram(axes, before, after, part)
    return drawn


def diagram(axes: Axes, before: Reliability, after: Reliability, part: str) -> None:
    """What confidence says and what is found: on the diagonal, it can be taken at its word."""
    axes.plot([0, 1], [0, 1], color=GREY, lw=1, ls=(0, (4, 3)))
    for kind, colour, name in ((before, ORANGE, "as the student says"), (after, BLUE, "calibrated")):
        found = [row.accuracy for row in kind.bins]
        spread = [[i.value - i.low for i in found], [i.high - i.value for i in found]]
        label = f"{name}: ECE {kind.ece:.3f} (equal mass {kind.ece_equal_mass:.3f}), Brier {kind.brier:.3f}"
        axes.errorbar([row.confidence for row in kind.bins], [i.value for i in found], spread, fmt="o-", color=colour,
                      ms=5, lw=1.2, elinewidth=0.7, label=label)
    least = min(row.confidence for kind in (before, after) for row in kind.bins)
    axes.set_xlim(max(0.0, least - 0.05), 1.01)
    axes.set_ylim(0, 1.01)
    style(axes, f"confidence ({part}, n={before.accuracy.n}, as many items at each point)", "accuracy, 95% intervals")
    axes.legend(loc="lower right", frameon=False, fontsize=8.5)


def style(axes: Axes, x: str, y: str) -> None:
    """Two axes in percent, and nothing around them that is not needed."""
    axes.set_xlabel(x, color=GREY)
    axes.set_ylabel(y, color=GREY)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(PALE)
    axes.tick_params(length=0, labelcolor=INK, labelsize=9)
    axes.grid(color=PALE, lw=0.6)
