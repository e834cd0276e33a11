"""The words, tables and picture of a comparison: what stands there, and that it can be read."""

from dataclasses import replace

import pytest
from test_figures import check_legible

from src.metrics import Interval
from src.reporting.comparisons import (
    Compared,
    Metric,
    difference_rows,
    differences,
    figure,
    frame,
    metric_rows,
    number,
    score_rows,
    scores,
    smallest,
    statement,
)

NOTE = "REHEARSAL (stand-in teacher and images)"
KEY = "student.input_size"


def row(value: str, low: float = 0.0, middle: float = 0.0, high: float = 0.0, rate: float = 400.0,
        seeds: int = 3) -> Compared:
    gap = Interval(middle, low, high, 450)
    score = Interval(0.8 + middle, 0.76 + middle, 0.84 + middle, 300)
    spread = tuple(middle + 0.01 * (seed - 1) for seed in range(seeds))
    return Compared(value, ("validation", "gold"), score, replace(score, n=150), replace(score, n=500), gap, gap, gap,
                    gap, gap, spread, {}, rate, 1000 / rate)


SIZES = [row("64", -0.09, -0.06, -0.03, 2600), row("96", -0.05, -0.02, 0.01, 1450), row("128", -0.03, -0.01, 0.01, 900),
         row("224", rate=373)]


def test_the_answer_says_what_it_costs_and_what_it_gains() -> None:
    assert statement(SIZES, KEY, "224") == (
        "The smallest student.input_size that is not shown to be worse than 224 is 96: difference -0.020 [-0.050, "
        "+0.010], n=450 items of validation and gold, 3 seeds; up to 0.050 could be lost. Throughput: 1,450 items/s, "
        "3.9 times that of 224.")


@pytest.mark.parametrize(("rows", "told"), [
    ([SIZES[0], SIZES[3]], "is 224 itself: all smaller ones are shown to be worse. Throughput: 373 items/s."),
    ([SIZES[3], row("256", -0.1, -0.06, -0.02), row("288", 0.01, 0.02, 0.03), row("320", -0.01, 0.02, 0.05)],
     "student.input_size against 224, n=450 items of validation and gold, 3 seeds: shown to be better: 288 (+0.020 "
     "[+0.010, +0.030]); shown to be worse: 256 (-0.060 [-0.100, -0.020]); neither: 320 (+0.020 [-0.010, +0.050])."),
    ([row("96", 0.01, 0.02, 0.03), SIZES[3]], "is 96: difference +0.020 [+0.010, +0.030], n=450 items of validation "
                                              "and gold, 3 seeds; nothing is lost."),
    ([row("64", -0.03, -0.01, 0.01), row("96", -0.09, -0.06, -0.03), SIZES[3]],
     "is 64: difference -0.010 [-0.030, +0.010]"),
    ([row("64", -0.03, -0.01, 0.01), row("96", -0.09, -0.06, -0.03), SIZES[3]],
     "But 96 is shown to be worse: look twice, with more seeds or items."),
    ([row("64", -0.03, -0.01, 0.01, seeds=1), row("224", seeds=1)], "1 seed; up to 0.030 could be lost"),
    ([row("64", -0.03, -0.01, 0.01, seeds=1), row("224", seeds=1)], "With one seed, luck in training is in no "
                                                                      "interval."),
    ([row("64", -0.03, -0.01, 0.01, rate=float("nan")), SIZES[3]], "up to 0.030 could be lost."),
])
def test_the_answer_fits_what_was_found(rows: list[Compared], told: str) -> None:
    assert told in statement(rows, KEY, "224")


def test_an_interval_that_touches_nought_shows_nothing() -> None:
    assert not row("64", -0.06, -0.03, 0.0).worse and row("64", -0.06, -0.03, -1e-9).worse


def test_names_have_no_smallest() -> None:
    rows = [row("drop", -0.09, -0.06, -0.03), row("flag")]
    assert smallest(rows) is None
    assert statement(rows, "quality.heuristics", "flag") == (
        "quality.heuristics against flag, n=450 items of validation and gold, 3 seeds: shown to be worse: drop (-0.060 "
        "[-0.090, -0.030]).")
    told = statement([replace(row("drop", seeds=1), parts=("gold",)), replace(row("flag", seeds=1), parts=("gold",))],
                     "k", "flag")
    assert told == ("k against flag, n=450 items of gold, 1 seed: neither: drop (+0.000 [+0.000, +0.000]). With one "
                    "seed, luck in training is in no interval.")


def test_the_smallest_goes_by_number_not_by_letter() -> None:
    found = smallest([row("224"), row("1e-4"), row("96"), row("64", -0.09, -0.06, -0.03)])
    assert found and found.value == "1e-4"
    assert [number(text) for text in ("224", "1e-4", "nan", "true", "")] == [224, 1e-4, None, None, None]


def test_the_tables_hold_every_value() -> None:
    assert score_rows(SIZES)[0] == ("64", "0.740 [0.700, 0.780], n=300", "0.740 [0.700, 0.780], n=150",
                                    "0.740 [0.700, 0.780], n=500", "2,600", "0.4")
    rows = difference_rows(SIZES, "224")
    assert rows[0] == ("64", "-0.060 [-0.090, -0.030]", "-0.070…-0.050", *["-0.060 [-0.090, -0.030]"] * 3, "worse")
    assert differences(SIZES) == ("validation and gold", "by seed", "validation alone", "gold alone", "test, beside it",
                                  "verdict")
    alone = [replace(one, parts=("gold",)) for one in SIZES]
    assert differences(alone) == ("gold", "by seed", "test, beside it", "verdict")
    assert difference_rows(alone, "224")[3] == ("224", *["–"] * 3, "baseline")
    assert [shown for *_, shown in rows] == ["worse", "not worse", "not worse", "baseline"]
    assert difference_rows([row("9", 0.01, 0.02, 0.03), SIZES[3]], "224")[0][-1] == "better"
    unknown = replace(SIZES[0], agreement=None, on_validation=None, test=None, items_per_second=float("nan"),
                      p50_ms=float("nan"))
    assert score_rows([unknown])[0] == ("64", "0.740 [0.700, 0.780], n=150")
    assert scores([unknown]) == ("accuracy against truth (gold)",)
    assert score_rows([unknown, SIZES[3]])[0][1:] == ("–", "0.740 [0.700, 0.780], n=150", "–", "–", "–")
    table = frame([unknown, SIZES[3]], "224")
    assert table.value.tolist() == ["64", "224"] and table.baseline.tolist() == [False, True]
    assert table.difference_low[0] == -0.09 and table.isna().agreement[0]


def test_metrics_stand_beside_with_their_differences() -> None:
    labels = Metric(Interval(1431, 1431, 1431, 3), Interval(-69, -69, -69, 3))
    ece = Metric(Interval(0.061, 0.04, 0.082, 3), Interval(-0.01, -0.03, 0.01, 3))
    rows = [replace(one, metrics={"label/accepted": labels, "ece": ece}) for one in SIZES[2:]]
    assert metric_rows(rows, "224") == [
        ("128", "1,431\n-69", "0.061 [0.040, 0.082]\n-0.010 [-0.030, +0.010]"),
        ("224", "1,431", "0.061 [0.040, 0.082]")]
    table = frame(rows, "224")
    assert table["label/accepted"].tolist() == [1431, 1431] and table["ece_difference_low"][0] == -0.03


def test_the_picture_can_be_read() -> None:
    drawn = figure(SIZES, "224", title="sweep: student.input_size against 224", note=NOTE)
    found = check_legible(drawn, "64", "96", "128", "224 (baseline)", "items a second", "2,600", "373", "each seed",
                          "validation alone", "gold alone", "validation and gold", "test, beside it")
    assert any(NOTE in text for text in found)
    left, right = drawn.axes
    assert [bar.get_width() for bar in right.patches] == [2600, 1450, 900, 373]
    ticks = [line for line in left.lines if line.get_marker() == "|"]
    assert [list(line.get_xdata()) for line in ticks] == [list(one.by_seed) for one in SIZES[:3]]


def test_the_picture_shows_the_answer_in_green_and_what_is_worse_in_red() -> None:
    left, right = figure(SIZES, "224", title="sizes").axes
    colours = [line.get_color() for line in left.lines if line.get_marker() == "o" and line.get_markersize() == 7]
    assert len(colours) == 3 and len(set(colours)) == 3
    assert colours[0] == "#B3261E" and colours[1] == "#009E73"
    assert len({bar.get_facecolor() for bar in right.patches}) == 2


@pytest.mark.parametrize("count", [2, 30])
def test_few_and_many_values_can_be_read(count: int) -> None:
    rows = [row(f"a_rather_long_value_of_${n}", -0.03, 0.0, 0.03) for n in range(count)]
    blind = [replace(one, items_per_second=float("nan"), on_gold=None, accuracy=None) for one in rows]
    for some in (rows, blind):
        check_legible(figure(some, rows[0].value, title="a long title of many words, again and again " * 5, note=NOTE))
