"""A cascade's pictures are drawn and read back, and its rows compared with the figures that they tell."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure
from test_figures import LONG, NOTE, check_legible

from src.cascade.policy import Opinion, Policy, Reply
from src.cascade.replay import Case, Kind, compare, cost_curve, coverage_at, coverage_curve, escalation_table, replay
from src.reporting import cascades
from src.task import Failure

NAMES = ["mushroom", "sweet_pepper", "orange", "pear", "apple"]
MANY = [LONG, *(f"sweet_pepper_{number}" for number in range(39))]
POLICY = Policy(0.8, 0.6, 0.1)
CERTIFIED, USUAL = "cascade, certified threshold 0.8000", "cascade, usual threshold 0.6000"


def world(n: int = 500, names: list[str] = NAMES, *, seed: int = 0) -> tuple[list[Case], dict[str, Reply]]:
    """Cases, and what a cheaper model replies to them."""
    rng = random.Random(seed)
    made, cheap = [], {}
    for number in range(n):
        key, truth, sure, probability = f"item-{number}", rng.choice(names), rng.betavariate(6, 1), rng.uniform(0.5, 1)
        student = Opinion(truth if rng.random() < sure else rng.choice(names), sure)
        draw = rng.random()
        reply = Reply(failure=Failure.TIMEOUT, latency_s=30.0) if draw < 0.03 else Reply(over_budget=True) \
            if draw < 0.06 else Reply(truth if rng.random() < 0.95 else rng.choice(names), probability,
                                      cost_usd=4e-4, latency_s=1.5)
        cheap[key] = Reply(truth if rng.random() < 0.85 else rng.choice(names), cost_usd=1e-4, latency_s=0.5)
        made.append(Case(key, student, truth, reply))
    return made, cheap


def line(figure: Figure, label: str) -> tuple[np.ndarray, np.ndarray]:
    """What was drawn under that entry of the legend, as x and y."""
    [found] = [drawn for drawn in figure.axes[0].lines if str(drawn.get_label()).startswith(label)]
    return np.asarray(found.get_xdata()), np.asarray(found.get_ydata())


def marks(figure: Figure) -> dict[str, tuple[float, float]]:
    """Every point with an interval: its legend up to the colon, and where it lies."""
    return {str(bars.get_label()).partition(":")[0]: (float(bars[0].get_xdata()[0]), float(bars[0].get_ydata()[0]))
            for bars in figure.axes[0].containers}


def test_the_cost_curve_can_be_read_and_shows_what_was_found() -> None:
    made, cheap = world()
    rows = compare(made, {CERTIFIED: POLICY, USUAL: replace(POLICY, threshold=0.6)}, {"tiny-vl": cheap}, student_ms=8.0)
    points = cost_curve(made, POLICY)
    figure = cascades.cost_accuracy(points, rows, title="What accuracy costs", note=NOTE)
    told = check_legible(figure, NOTE, "What accuracy costs", "accuracy", "LLM's cost of a million items")
    x, y = line(figure, "automatic answers")
    assert x.tolist() == [point.llm_usd_per_million for point in points]
    assert y.tolist() == [point.accuracy.value for point in points if point.accuracy]
    assert line(figure, "with people")[1].tolist() == [
        point.accuracy_with_people.value for point in points if point.accuracy_with_people]
    assert marks(figure) == {
        (f"{row.name} (best single cheap model)" if row.best_cheap else row.name):
        (row.worth.llm_usd_per_million, row.worth.accuracy and row.worth.accuracy.value) for row in rows}
    assert len(rows) == 5 and sum(row.best_cheap for row in rows) == 1
    student = rows[2].worth.accuracy
    assert student and rf"student alone: {student.value:.1%}, \$0.00, 0.0% to people" in told


def test_models_that_are_neither_cheap_nor_best_stay_out_of_the_picture() -> None:
    made, cheap = world()
    dear = {case.key: Reply(case.truth, cost_usd=0.05) for case in made}
    rows = compare(made, {CERTIFIED: POLICY}, {"grand-vl": dear, "tiny-vl": cheap}, student_ms=8.0)
    figure = cascades.cost_accuracy(cost_curve(made, POLICY), rows, title="What accuracy costs")
    assert set(marks(figure)) == {CERTIFIED, "student alone", "LLM alone (best single cheap model)"}
    assert figure.axes[0].get_xlim()[1] < 1000  # the dear one would squeeze all others


def test_what_nobody_knows_is_named_and_a_free_llm_is_drawn() -> None:
    made, _ = world()
    free = [replace(case, reply=Reply("pear", 0.9)) for case in made]
    some = [replace(case, reply=None if place % 9 == 0 else case.reply) for place, case in enumerate(made)]
    rows = compare(some, {CERTIFIED: POLICY}, {}, student_ms=8.0)
    told = check_legible(cascades.cost_accuracy(cost_curve(free, POLICY), rows, title="What accuracy costs"))
    assert {f"{CERTIFIED}: unknown", "LLM alone: unknown"} <= set(told)


def test_the_coverage_curve_can_be_read_and_marks_both_thresholds() -> None:
    made, _ = world()
    points, certified, usual = coverage_curve(made), coverage_at(made, 0.9), coverage_at(made, 0.7)
    assert certified.accuracy and usual.accuracy
    figure = cascades.coverage_accuracy(points, target=0.95, certified=certified, usual=usual, title="Coverage",
                                        note=NOTE)
    told = check_legible(figure, NOTE, "target 95.0%")
    assert marks(figure) == {"certified threshold 0.9000": (certified.share, certified.accuracy.value),
                             "usual threshold 0.7000": (usual.share, usual.accuracy.value)}
    assert f"certified threshold 0.9000: {certified.accuracy.value:.1%} right of {certified.share:.1%}" in told
    assert line(figure, "student's accuracy")[0].tolist() == [point.share for point in points]
    assert line(figure, "target")[1].tolist() == [0.95, 0.95]


def test_a_threshold_that_is_none_or_that_nothing_reaches_is_said() -> None:
    made, _ = world(60)
    figure = cascades.coverage_accuracy(coverage_curve(made), target=0.95, certified=None,
                                        usual=coverage_at(made, 1.0), title="Coverage")
    told = check_legible(figure)
    assert {"certified threshold: none", "usual threshold 1.0000: on no item with truth"} <= set(told)


def test_a_student_that_is_mostly_wrong_is_drawn_down_to_nothing() -> None:
    made = [replace(case, student=replace(case.student, answer="none of these")) for case in world(50)[0]]
    figure = cascades.coverage_accuracy(coverage_curve(made), target=0.95, certified=None, usual=None, title="Coverage")
    assert check_legible(figure).count("0%") == 2 and figure.axes[0].get_ylim()[0] == 0
    assert line(figure, "student's accuracy")[1].tolist() == [0.0] * 50


@pytest.mark.parametrize(("names", "threshold"), [(NAMES, 0.8), (NAMES, None), (MANY, 0.8)],
                         ids=["few", "uncertified", "many"])
def test_escalations_can_be_read_with_few_classes_and_with_many(names: list[str], threshold: float | None) -> None:
    made, _ = world(1000, names)
    some = [replace(case, reply=None if place % 9 == 0 else case.reply) for place, case in enumerate(made)]
    outcomes = replay(some, replace(POLICY, threshold=threshold, audit_share=0.3))
    table = escalation_table(some, outcomes, names, by="truth")
    figure = cascades.escalations(table, by="true class", title="Escalations", note=NOTE)
    told = check_legible(figure, NOTE, "Escalations", *names)
    # Each bar is as long as the share that its label tells, and each way has its entry.
    ends = [0.0] * len(names)
    for bars in figure.axes[0].containers:
        for place, bar in enumerate(bars):
            assert bar.get_x() == pytest.approx(ends[place])
            ends[place] = bar.get_x() + bar.get_width()
    escalated = 1 - table["student"] / table["items"]
    assert ends == pytest.approx(escalated.tolist())
    assert f"{escalated[0]:.1%} of {table['items'][0]}" in told
    first = "doubtful" if threshold else "uncertified"
    ways = {text for text in told if "→" in text}
    assert {f"{first} → LLM", f"{first} → person (over budget)", f"{first} → nobody knows"} <= ways
    assert ("audit → person (they differ)" in ways) == (threshold is not None) and len(ways) == len(table.columns) - 3


def test_a_class_without_items_and_a_student_that_answers_all_are_drawn() -> None:
    made = [Case("a", Opinion("pear", 0.9), "pear")]
    table = escalation_table(made, replay(made, Policy(0.5, 0.5, 0.0)), NAMES, by="answer")
    told = check_legible(cascades.escalations(table, by="the student's answer", title="Escalations"))
    assert told.count("no items") == 4 and "0.0% of 1" in told


def test_rows_and_table_tell_the_same() -> None:
    made, cheap = world()
    compared = compare(made, {CERTIFIED: POLICY}, {"tiny-vl": cheap}, student_ms=8.0)
    rows, table = cascades.comparison_rows(compared), cascades.comparison_table(compared)
    assert all(len(row) == len(cascades.COLUMNS) for row in rows)
    for row, one, numbers in zip(rows, compared, table.to_dict("records"), strict=True):
        assert row[0].startswith(one.name) and numbers["what"] == one.name and numbers["kind"] == one.kind
        assert row[1].startswith(f"{numbers['accuracy']:.1%} [{numbers['accuracy_low']:.1%}, ")
        own = numbers["student_accuracy"]
        assert row[2] == "–" if math.isnan(own) else row[2].startswith(f"{own:.1%} [")
        assert row[3:5] == (f"{numbers['escalation_rate']:.1%}", f"{numbers['human_rate']:.1%}")
        assert row[5] == f"${numbers['llm_usd_per_million']:,.2f}"
        spread = "" if one.kind == Kind.STUDENT else f" / {numbers['latency_p95_ms']:,.1f}"
        assert row[6] == f"{numbers['latency_mean_ms']:,.1f}{spread} ms"
    assert rows[-1][0] == "tiny-vl alone (best single cheap model)" and table["best_cheap"].tolist()[-1]


def test_rows_leave_open_what_nobody_knows() -> None:
    made = [replace(case, reply=None) for case in world(40)[0]]
    [row] = cascades.comparison_rows(compare(made, {CERTIFIED: POLICY}, {}, student_ms=8.0)[:1])
    assert row[1] == row[4] == row[5] == row[6] == "–" and row[2] != "–"
