"""Every figure is drawn to a PNG and its texts are read back: what stands there, and whether it can be read."""

import io

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image

from src.metrics import ClassRow, coverage_at_precision
from src.reporting import figures

NOTE = "REHEARSAL: teacher and images are stand-ins"
LONG = "balance_not_updated_after_cheque_or_cash_deposit"
TEN = [
    *("apple", "aquarium_fish", "baby", "sweet_pepper", "bear"),
    *("streetcar", "bee", "pickup_truck", "bicycle", "bottle"),
]
MANY = [LONG, *(f"sweet_pepper_{i}" for i in range(76))]


def drawn(figure: Figure) -> Image.Image:
    """The figure as it would be saved."""
    png = io.BytesIO()
    figure.savefig(png)
    return Image.open(png).convert("RGB")


def texts(figure: Figure) -> list[tuple[str, Bbox]]:
    """What is visibly written in a figure that has been drawn, and where."""
    hidden = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            beyond = [tick for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high]
            hidden |= {text for artist in (beyond if axes.axison else [axis]) for text in artist.findobj(Text)}
    # Without it, each of hundreds of texts is measured by a canvas of its own.
    renderer = FigureCanvasAgg(figure).get_renderer()
    artists = [t for t in figure.findobj(Text) if t not in hidden and t.get_visible() and t.get_text().strip()]
    boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in artists]
    return [(text, box) for text, box in boxes if box.width > 0]


def check_legible(figure: Figure, *expected: str) -> list[str]:
    """Draw it; all text lies on the sheet, none covers another, and what is expected is written. Returns the texts."""
    picture = drawn(figure)
    assert picture.size == tuple(int(side) for side in figure.get_size_inches() * figure.dpi)
    boxes = texts(figure)
    for text, box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0, f"{text!r} is cut off"
        assert box.x1 <= picture.width and box.y1 <= picture.height, f"{text!r} is cut off"
    sides = np.array([box.extents for _, box in boxes])
    overlap = np.minimum(sides[:, None, 2:], sides[:, 2:]) - np.maximum(sides[:, None, :2], sides[:, :2])
    # A pixel of overlap is the empty margin that a text's box has above and below its letters.
    covered = np.argwhere(np.triu((overlap > 1).all(axis=2), k=1))
    assert not len(covered), f"{[(boxes[i][0], boxes[j][0]) for i, j in covered]} cover each other"
    found = [text for text, _ in boxes]
    assert set(expected) <= set(found)
    return found


def matrix(size: int, hits: int = 90) -> np.ndarray:
    return np.random.default_rng(size).integers(1, 9, size=(size, size)) + np.eye(size, dtype=int) * hits


def rows(names: list[str]) -> list[ClassRow]:
    figures = np.random.default_rng(0).random((len(names), 3))
    return [ClassRow(name, *map(float, row), 100) for name, row in zip(names, figures, strict=True)]


def curve(n: int = 500, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    confidence = rng.random(n)
    return confidence, rng.random(n) < 0.5 + confidence / 2


def images(n: int, side: int = 32) -> list[Image.Image]:
    return [Image.new("RGB", (side, side), (200, 20, 10 * i % 255)) for i in range(n)]


@pytest.mark.parametrize("names", [TEN[:2], TEN, (TEN + [f"{n}_b" for n in TEN]), MANY], ids=len)
def test_confusion_can_be_read(names):
    counts = matrix(len(names))
    found = check_legible(figures.confusion(counts, names, title="Test", note=NOTE), *names, NOTE, "Test", "truth")
    told = [text for text in found if text.isdigit()]
    assert sorted(map(int, told)) == (sorted(counts.ravel().tolist()) if len(names) <= 20 else [])


def test_confusion_shares_are_of_the_row():
    found = check_legible(figures.confusion(np.array([[30, 10], [0, 7]]), ["a", "b"], title="Test"))
    # 0% and 100%, 5%, 25%, 50% once more are the colour bar's ticks; a cell of none is empty.
    assert sorted(t for t in found if t.endswith("%")) == sorted(
        ["75%", "25%", "100%", "0%", "5%", "25%", "50%", "100%"]
    )
    assert "0" not in found


def test_confusion_tells_a_class_that_does_not_occur():
    counts = matrix(10)
    assert "does not occur" not in check_legible(figures.confusion(counts, TEN, title="Test"))
    counts[3] = 0
    assert "does not occur" in check_legible(figures.confusion(counts, TEN, title="Test"))


def test_confusion_refuses_other_names():
    with pytest.raises(ValueError, match=r"\(10, 10\) for 9 names"):
        figures.confusion(matrix(10), TEN[:9], title="Test")


@pytest.mark.parametrize("names", [TEN[:2], TEN, MANY], ids=len)
def test_per_class_can_be_read(names):
    figure = figures.per_class(rows(names), title="By class", note=NOTE)
    found = check_legible(figure, *names, NOTE, "By class", "precision", "recall", "F1")
    assert found.count("n=100") == len(names)


def test_per_class_draws_no_bar_for_what_is_undefined():
    known, absent = ClassRow("bee", 0.5, 0.25, 1 / 3, 40), ClassRow("bear", 0.75, np.nan, np.nan, 0)
    figure = figures.per_class([known, absent], title="By class")
    check_legible(figure, "bee", "bear", "n=40", "n=0")
    widths = [[bar.get_width() for bar in container] for container in figure.axes[0].containers]
    assert widths == [[0.5, 0.75], [0.25, 0.0], [1 / 3, 0.0]]


def test_mistakes_captions_and_their_number():
    n = 28
    truths, answers = ["sweet_pepper", "bee", LONG, "bear"] * 7, ["aquarium_fish", "bear", LONG, "pickup_truck"] * 7
    figure = figures.mistakes(images(n), truths, answers, np.linspace(0.99, 0.5, n).tolist(), title="Worst", note=NOTE)
    found = check_legible(figure, NOTE, "Worst (25 of 28)", "sweet_pepper →\naquarium_fish 0.99", "bee → bear 0.97")
    assert sum("→" in text for text in found) == 25


def test_mistakes_shows_the_images_themselves():
    picture = drawn(figures.mistakes(images(1), ["bee"], ["bear"], [0.9], title="Worst"))
    count, _ = max((pair for pair in picture.getcolors(1 << 20) if pair[1] == (200, 20, 0)), default=(0, None))
    assert count > 150 * 150


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_mistakes_takes_any_kind_of_image(mode):
    figure = figures.mistakes([Image.new(mode, (40, 20))], ["bee"], ["bear"], [0.9], title="Worst")
    check_legible(figure, "Worst", "bee → bear 0.90")


def test_no_mistakes_are_none():
    assert "none" in check_legible(figures.mistakes([], [], [], [], title="Worst", note=NOTE), NOTE, "Worst")


def test_mistakes_refuses_lists_of_other_lengths():
    with pytest.raises(ValueError, match="2 images, 1 truths"):
        figures.mistakes(images(2), ["bee"], ["bear", "bear"], [0.9, 0.9], title="Worst")


def test_coverage_curve_marks_what_the_metric_says():
    confidence, correct = curve()
    share = coverage_at_precision(confidence, correct, 0.95)
    assert 0 < share < 1
    figure = figures.coverage_curve(confidence, correct, title="Coverage", note=NOTE)
    check_legible(figure, NOTE, "Coverage", f"95% or more up to {share:.1%} of items", "share of 500 items accepted")
    line, target, dot = figure.axes[0].lines
    assert line.get_xydata()[-1].tolist() == [1.0, correct.mean()]
    assert target.get_ydata()[0] == 0.95
    assert dot.get_xdata()[0] == share


def test_coverage_curve_band_holds_the_line():
    figure = figures.coverage_curve(*curve(), title="Coverage")
    drawn(figure)
    band = figure.axes[0].collections[0].get_paths()[0].vertices
    at_full = band[band[:, 0] == 1.0][:, 1]
    accuracy = figure.axes[0].lines[0].get_ydata()[-1]
    # Half the width is about 1.96 standard errors of a share of 500.
    assert at_full.min() < accuracy < at_full.max()
    assert np.ptp(at_full) / 2 == pytest.approx(1.96 * (accuracy * (1 - accuracy) / 500) ** 0.5, rel=0.1)


@pytest.mark.parametrize("correct", [True, False])
@pytest.mark.parametrize("n", [1, 40])
def test_coverage_curve_of_a_single_confidence(n, correct):
    figure = figures.coverage_curve(np.full(n, 0.5), np.full(n, correct), title="Coverage")
    check_legible(figure, "95% or more up to 100.0% of items" if correct else "never 95%")


def test_label_votes_tells_counts_and_shares():
    counts = {"accepted": 1712, "disagreed": 188, "low confidence": 70, "failed": 30, "human": 0}
    figure = figures.label_votes(counts, title="Where the labels came from", note=NOTE)
    check_legible(figure, *counts, NOTE, "1,712  (85.6%)", "188  (9.4%)", "0  (0.0%)")
    assert [bar.get_width() for bar in figure.axes[0].patches] == list(counts.values())


def test_label_votes_of_nothing():
    check_legible(figures.label_votes({"accepted": 0, "failed": 0}, title="Votes", note=NOTE), "accepted", "0")


def test_the_note_is_red_and_on_top():
    figure = figures.label_votes({"accepted": 3}, title="Votes", note=NOTE)
    picture = np.asarray(drawn(figure)).astype(int)
    red = (picture[..., 0] - picture[..., 2] > 90).any(axis=1)
    assert red[:40].any() and not red[40:].any()
    plain = np.asarray(drawn(figures.label_votes({"accepted": 3}, title="Votes"))).astype(int)
    assert not (plain[..., 0] - plain[..., 2] > 90).any()


def test_long_titles_are_wrapped_and_dollars_are_no_formula():
    title = "Labels of the paid run, $1.20 of $2.00 spent, " * 4
    found = check_legible(figures.label_votes({"a$b$c": 3}, title=title, note=f"{NOTE}; " * 4))
    assert any(text.count("\n") >= 2 and r"\$1.20" in text for text in found)


def test_figures_never_load_pyplot(loaded: dict[str, set[str]]):
    assert not {"matplotlib.pyplot", "torch"} & loaded["src.reporting.figures"]
