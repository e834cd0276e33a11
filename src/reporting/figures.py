"""Figures for people: each function takes plain arrays and returns a matplotlib Figure, ready for `savefig`.

Knows nothing about MLflow, files or runs, and never touches pyplot, so that nothing is shared between threads and
nothing waits for a window. Every figure takes a `title` and a `note`; the note stands in red above all else, which is
where a run with a stand-in says REHEARSAL.

The bars' colours are from the palette of Okabe and Ito (2008), which the colour-blind can tell apart.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from PIL import Image

from src.metrics import Bools, ClassRow, Floats, accepted_and_correct, proportion

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#B3261E"
INK, GREY, PALE = "#222222", "#767676", "#E6E6E6"
DPI = 120
CENTRED: dict[str, Any] = {"ha": "center", "va": "center"}

CELL_TEXT_CLASSES = 20  # a 21st class leaves no room for a count of four digits in its cell
MISTAKES = 25
TARGET = 0.95
BAND_POINTS = 200  # an exact interval costs 2 ms, and more points than this cannot be seen


def confusion(matrix: npt.NDArray[np.integer], names: Sequence[str], *, title: str, note: str = "") -> Figure:
    """A [C, C] matrix of counts, rows truth and columns answers; colour is the share of the row.

    Cells tell count and share up to 20 classes, and colour alone beyond. A class that never occurs has a grey row.
    Raises ValueError where matrix and names do not match.
    """
    matrix, size = np.asarray(matrix), len(names)
    if matrix.shape != (size, size):
        raise ValueError(f"confusion matrix of shape {matrix.shape} for {size} names")
    told = size <= CELL_TEXT_CLASSES
    side = max(2.6, size * (0.56 if told else 0.14))
    room = 0.075 * max(map(len, names)) + 0.8
    figure = sheet(side + room + 1.1, side + room, title, note)
    axes = plot_area(figure)
    support = matrix.sum(axis=1, keepdims=True)
    shares = np.ma.masked_invalid(np.divide(matrix, support, out=np.full(matrix.shape, np.nan), where=support > 0))
    # The square root lets a mistake of 2% be seen beside a diagonal of 90%.
    image = axes.imshow(shares, cmap=colormaps["Blues"].with_extremes(bad=PALE), norm=PowerNorm(0.5, 0, 1))
    if told:
        for row, column in np.argwhere(matrix):
            share = shares[row, column]
            ink = "white" if share > 0.35 else INK
            # Offsets in points: two classes have wide cells, where offsets in cells would tear the pair apart.
            for text, points, offset in ((str(matrix[row, column]), 9, 4), (f"{share:.0%}", 6.5, -8)):
                cell = axes.annotate(text, (column, row), (0, offset), textcoords="offset points", color=ink, **CENTRED)
                cell.set(size=points, in_layout=False)  # laying out 800 of them takes half a second more
    for row in np.flatnonzero(support == 0):
        axes.text((size - 1) / 2, int(row), "does not occur", color=GREY, size=8 if told else 5, **CENTRED)
    size_pt = 9 if told else 6
    axes.set_xticks(range(size), map(plain_text, names), rotation=90, size=size_pt)
    axes.set_yticks(range(size), map(plain_text, names), size=size_pt)
    axes.set_xlabel("answer", color=GREY)
    axes.set_ylabel("truth", color=GREY)
    axes.set_xticks(np.arange(0.5, size - 1), minor=True)
    axes.set_yticks(np.arange(0.5, size - 1), minor=True)
    axes.grid(which="minor", color="white", linewidth=1 if told else 0.3)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, shrink=min(1, 4 / side), aspect=25, format=PercentFormatter(1, 0))
    bar.set_ticks([0, 0.05, 0.25, 0.5, 1])
    bar.set_label("share of the true class", color=GREY, size=8)
    bar.ax.tick_params(labelsize=7, length=0, colors=GREY)
    bar.outline.set_visible(False)
    return figure


def per_class(rows: Sequence[ClassRow], *, title: str, note: str = "") -> Figure:
    """Precision, recall and F1 of each class as bars, in the order given, with the support beside them.

    What is undefined has no bar: precision where the class was never answered, the other two where it never occurs.
    """
    height = 0.42 if len(rows) <= CELL_TEXT_CLASSES else 0.27
    figure = sheet(8, len(rows) * height + 1.1, title, note)
    axes = plot_area(figure)
    where = np.arange(len(rows))
    for step, (name, colour) in enumerate((("precision", BLUE), ("recall", ORANGE), ("f1", GREEN))):
        values = [getattr(row, name) for row in rows]
        axes.barh(where + (step - 1) * 0.26, np.nan_to_num(values), 0.24, color=colour, label=name.replace("f1", "F1"))
    for y, row in enumerate(rows):
        axes.text(1.015, y, f"n={row.support}", color=GREY if row.support else RED, size=7.5, va="center")
    axes.set_yticks(where, [plain_text(row.name) for row in rows], size=9 if height > 0.3 else 7.5)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    share_axis(axes)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize=8.5, borderaxespad=0.2)
    return figure


def mistakes(
    images: Sequence[Image.Image],
    truths: Sequence[str],
    answers: Sequence[str],
    confidences: Sequence[float],
    *,
    title: str,
    note: str = "",
) -> Figure:
    """Up to 25 images, each under "true → answered" and the confidence of that answer, in the order given.

    Where there are more, the title says so. Raises ValueError where the four do not have one entry per image.
    """
    total = len(images)
    if not total == len(truths) == len(answers) == len(confidences):
        lengths = f"{total} images, {len(truths)} truths, {len(answers)} answers, {len(confidences)} confidences"
        raise ValueError(f"mistakes need one of each: {lengths}")
    shown = min(total, MISTAKES)
    if total > shown:
        title = f"{title} ({shown} of {total})"
    columns = 5
    lines = max(1, -(-shown // columns))
    figure = sheet(9.5, lines * 2.2, title, note)
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    if not shown:
        figure.text(0.5, 0.4, "none", ha="center", color=GREY)
    for axes, image, truth, answer, confidence in zip(grid.flat, images, truths, answers, confidences, strict=False):
        axes.imshow(np.asarray(image.convert("RGB")), interpolation="bicubic")
        axes.set_title(_caption(truth, answer, confidence), size=7.5, color=INK, pad=4)
    return figure


def coverage_curve(confidence: Floats, correct: Bools, *, title: str, note: str = "") -> Figure:
    """How accurate the accepted part is, against the share of items accepted, most confident first.

    The band is exact and holds at each point by itself: a threshold picked from the curve is not covered by it. The dot
    is `coverage_at_precision` for 95%. Raises ValueError unless both inputs are [N], N > 0.
    """
    accepted, right = accepted_and_correct(confidence, correct)
    n, precision = accepted[-1], right / accepted
    figure = sheet(7.5, 4.6, title, note)
    axes = plot_area(figure)
    some = np.unique(np.linspace(0, len(accepted) - 1, BAND_POINTS).astype(int))
    band = [proportion(int(right[i]), int(accepted[i])) for i in some]
    label = "95% interval of each point alone"
    axes.fill_between(
        accepted[some] / n, [i.low for i in band], [i.high for i in band], color=BLUE, alpha=0.15, lw=0, label=label
    )
    axes.plot(accepted / n, precision, color=BLUE, lw=1.6, label="accuracy of the accepted part")
    axes.axhline(TARGET, color=GREY, lw=1, ls=(0, (4, 3)), label=f"{TARGET:.0%}")
    enough = np.flatnonzero(precision >= TARGET)
    if len(enough):
        last = enough[-1]
        share = accepted[last] / n
        label = f"{TARGET:.0%} or more up to {share:.1%} of items"
        axes.plot(share, precision[last], "o", color=RED, ms=7, label=label, zorder=3, clip_on=False)
    else:
        axes.plot([], [], "o", color=RED, label=f"never {TARGET:.0%}")
    share_axis(axes)
    axes.set_xlabel(f"share of {n} items accepted", color=GREY)
    # The first few items say little and would squeeze everything else under the ceiling.
    settled = precision[accepted >= min(n, max(20, n // 50))]
    axes.set_ylim(max(0, min(0.9, float(settled.min()) - 0.05)), 1.005)
    axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
    axes.tick_params(axis="y", pad=9)  # points; clear of the 0% below the corner
    axes.grid(axis="y", color=PALE, lw=0.6)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize=8.5, borderaxespad=0.2)
    return figure


def label_votes(counts: Mapping[str, int], *, title: str, note: str = "") -> Figure:
    """What became of the items asked about (accepted, disagreed, failed): counts and shares, in the order given."""
    figure = sheet(7.5, len(counts) * 0.42 + 0.6, title, note)
    axes = plot_area(figure)
    total = sum(counts.values())
    axes.barh(range(len(counts)), list(counts.values()), 0.62, color=BLUE)
    for y, count in enumerate(counts.values()):
        text = f"{count:,}  ({count / total:.1%})" if total else "0"
        axes.annotate(text, (count, y), (5, 0), textcoords="offset points", va="center", size=9, color=INK)
    axes.set_yticks(range(len(counts)), map(plain_text, counts), size=9.5)
    axes.set_ylim(len(counts) - 0.4, -0.6)
    axes.set_xlim(0, max([1, *counts.values()]))
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    return figure


def sheet(width: float, height: float, title: str, note: str) -> Figure:
    """A white sheet of width x height inches, and above it as many lines as note and title need."""
    texts = [(note, 10, RED), (title, 13, INK)]
    wrapped = [(textwrap.wrap(text, int(width * 95 / points)), points, colour) for text, points, colour in texts]
    heights = [len(lines) * points * 1.4 / 72 for lines, points, _ in wrapped]
    top = 0.12
    total = height + top + sum(heights)
    figure = Figure(figsize=(width, total), dpi=DPI, facecolor="white", layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0, 1, height / total), w_pad=0.08, h_pad=0.08)  # type: ignore[union-attr, call-arg]
    for (lines, points, colour), used in zip(wrapped, heights, strict=True):
        if lines:
            weight = "bold" if colour == RED else "normal"
            text = plain_text("\n".join(lines))
            figure.text(0.12 / width, 1 - top / total, text, size=points, color=colour, weight=weight, va="top")
        top += used
    return figure


def plot_area(figure: Figure) -> Axes:
    axes = figure.add_subplot()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(PALE)
    axes.tick_params(length=0, labelcolor=INK, labelsize=9)
    axes.set_axisbelow(True)
    return axes


def share_axis(axes: Axes) -> None:
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(axis="x", color=PALE, lw=0.6)


def _caption(truth: str, answer: str, confidence: float) -> str:
    """One line where it fits a grid cell, else two; longer names end in an ellipsis."""
    truth, answer = (plain_text(_cut(name, 22)) for name in (truth, answer))
    gap = " " if len(truth) + len(answer) <= 19 else "\n"
    return f"{truth} →{gap}{answer} {confidence:.2f}"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def plain_text(text: str) -> str:
    """The text as it is: between two dollar signs matplotlib would typeset a formula."""
    return text.replace("$", r"\$")
