"""What a replay is worth, its comparisons, curves and tables: against brute force, case by case."""

import math
import random
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from src.cascade.policy import Decision, Escalation, EscalationReason, HumanReason, Opinion, Policy, Reply, Route
from src.cascade.replay import (
    Case,
    Compared,
    Kind,
    asked,
    compare,
    cost_curve,
    coverage_at,
    coverage_curve,
    escalation_table,
    replay,
    reply_of,
    worth,
)
from src.metrics import coverage_at_precision, proportion
from src.task import Annotation, Failure, TaskSpec

NAMES = ["ant", "bee", "cat"]
POLICY = Policy(0.7, 0.6, 0.1, seed=5)


def cases(n: int = 600, seed: int = 0, *, unknown: float = 0.0, unjudged: float = 0.1) -> list[Case]:
    """Students that are as right as they say, in steps of 0.01 so that confidences tie, and LLMs that fail, doubt and
    run out of money."""
    rng = random.Random(seed)
    made = []
    for number in range(n):
        truth, sure = rng.choice(NAMES), round(rng.uniform(0.34, 1.0), 2)
        student = Opinion(truth if rng.random() < sure else rng.choice(NAMES), sure)
        cost, latency = rng.uniform(1e-4, 5e-4), rng.uniform(0.1, 3.0)
        draw, probability = rng.random(), rng.uniform(0.5, 1.0)
        if draw < 0.05:
            reply = Reply(failure=Failure.TIMEOUT, cost_usd=cost, latency_s=30.0)
        elif draw < 0.1:
            reply = Reply(over_budget=True)
        else:
            reply = Reply(truth if rng.random() < probability else rng.choice(NAMES),
                          None if draw < 0.15 else probability, cost_usd=cost, latency_s=latency)
        made.append(Case(f"item-{number}", student, None if rng.random() < unjudged else truth,
                         None if rng.random() < unknown else reply))
    return made


def by_hand(made: list[Case], policy: Policy) -> list[tuple[str, bool, float, float]]:
    """Of each case: who answers, whether that is right, dollars, seconds; written without the policy's own steps."""
    rows = []
    for case in made:
        sure = policy.threshold is not None and case.student.probability >= policy.threshold
        reply = case.reply
        if sure and not policy.audits(case.key):
            rows.append(("student", case.student.answer == case.truth, 0.0, 0.0))
            continue
        assert reply is not None
        good = reply.answer is not None and (policy.teacher_confidence == 0 or (
            reply.probability is not None and reply.probability >= policy.teacher_confidence))
        if sure and reply.answer != case.student.answer:
            good = False
        rows.append(("teacher" if good else "human", reply.answer == case.truth, reply.cost_usd, reply.latency_s))
    return rows


@pytest.mark.parametrize("policy", [
    POLICY, replace(POLICY, threshold=None), replace(POLICY, threshold=0.0), replace(POLICY, teacher_confidence=0.0),
    replace(POLICY, audit_share=1.0), Policy(1.0, 1.0, 0.0)], ids=str)
def test_the_worth_is_what_counting_case_by_case_finds(policy: Policy) -> None:
    made = cases()
    found = worth(made, replay(made, policy), student_ms=8.5)
    rows = by_hand(made, policy)
    judged = [row for case, row in zip(made, rows, strict=True) if case.truth]

    def share(hits: list[bool]) -> object:
        return proportion(sum(hits), len(hits)) if hits else None

    assert (found.n, found.judged, found.undecided) == (600, len(judged), 0) and 500 < len(judged) < 600
    assert found.coverage == share([who == "student" for who, *_ in rows])
    assert found.escalation_rate == share([who != "student" for who, *_ in rows])
    assert found.human_rate == share([who == "human" for who, *_ in rows])
    assert found.student_accuracy == share([right for who, right, *_ in judged if who == "student"])
    assert found.teacher_accuracy == share([right for who, right, *_ in judged if who == "teacher"])
    assert found.accuracy == share([right for who, right, *_ in judged if who != "human"])
    assert found.accuracy_with_people == share([right or who == "human" for who, right, *_ in judged])
    assert found.llm_usd_per_million == pytest.approx(sum(usd for *_, usd, _ in rows) / 600 * 1e6)
    milliseconds = sorted(8.5 + 1000 * seconds for *_, seconds in rows)
    assert found.latency_mean_ms == pytest.approx(sum(milliseconds) / 600)
    # The quantile lies between the two items around its place, 599 steps being the whole way.
    for value, part in ((found.latency_p50_ms, Fraction(1, 2)), (found.latency_p95_ms, Fraction(95, 100))):
        place = part * 599
        low, high = milliseconds[math.floor(place)], milliseconds[math.ceil(place)]
        assert value == pytest.approx(low + float(place - math.floor(place)) * (high - low))
    asked_about = [case for case, (who, *_) in zip(made, rows, strict=True) if who != "student"]
    assert found.llm_calls == sum(not case.reply.over_budget for case in asked_about)  # type: ignore[union-attr]


def test_reasons_add_up_to_what_was_escalated_and_handed_over() -> None:
    made = cases()
    found = worth(made, replay(made, POLICY), student_ms=0)
    assert set(found.escalated) == {EscalationReason.DOUBTFUL, EscalationReason.AUDIT}
    assert sum(found.escalated.values()) == round(found.escalation_rate.value * 600)
    assert set(found.human) == set(HumanReason)
    assert found.human_rate and sum(found.human.values()) == round(found.human_rate.value * 600)
    over = [case.reply and case.reply.over_budget and (case.student.probability < 0.7 or POLICY.audits(case.key))
            for case in made]
    assert found.human[HumanReason.OVER_BUDGET] == sum(map(bool, over))
    sure = [case for case in made if case.student.probability >= 0.7]
    assert found.escalated[EscalationReason.AUDIT] == sum(POLICY.audits(case.key) for case in sure)


def test_figures_go_by_the_names_that_runs_are_compared_by() -> None:
    made = cases()
    found = worth(made, replay(made, POLICY), student_ms=2.0)
    flat = found.flat()
    for name in ("coverage", "escalation_rate", "human_rate", "accuracy", "student_accuracy", "teacher_accuracy",
                 "accuracy_with_people"):
        interval = getattr(found, name)
        assert (flat[f"cascade/{name}_low"], flat[f"cascade/{name}"], flat[f"cascade/{name}_high"]) == (
            interval.low, interval.value, interval.high)
    assert flat["cascade/llm_usd_per_million"] == found.llm_usd_per_million and flat["cascade/n"] == 600
    assert flat["cascade/latency_p95_ms"] == found.latency_p95_ms and flat["cascade/llm_calls"] == found.llm_calls
    assert flat["cascade/escalated/doubtful"] * 600 == pytest.approx(found.escalated[EscalationReason.DOUBTFUL])
    assert flat["cascade/escalated/uncertified"] == 0 and flat["cascade/undecided"] == 0
    assert sum(flat[f"cascade/human/{reason}"] for reason in HumanReason) == pytest.approx(flat["cascade/human_rate"])
    assert all(type(value) is float and math.isfinite(value) for value in flat.values())
    assert set(found.flat("usual")) == {name.replace("cascade/", "usual/") for name in flat}


def test_what_would_have_to_be_asked_and_is_unknown_counts_as_nothing_else() -> None:
    made = cases(unknown=0.3)
    outcomes = replay(made, POLICY)
    open_ones = [case for case in made if case.reply is None
                 and (case.student.probability < 0.7 or POLICY.audits(case.key))]
    assert [found.key for found in outcomes if isinstance(found, Escalation)] == [case.key for case in open_ones]
    found = worth(made, outcomes, student_ms=1.0)
    assert found.undecided == len(open_ones) > 50
    # What does not hang on a reply is as if all were known.
    whole = [replace(case, reply=case.reply or Reply("ant", 0.9)) for case in made]
    known = worth(whole, replay(whole, POLICY), student_ms=1.0)
    assert (found.coverage, found.student_accuracy, found.escalated) == (
        known.coverage, known.student_accuracy, known.escalated)
    # The rest is not known.
    open_figures = ("human_rate", "accuracy", "accuracy_with_people", "llm_calls", "llm_usd_per_million",
                    "latency_mean_ms", "latency_p50_ms", "latency_p95_ms")
    assert {getattr(found, name) for name in open_figures} == {None}
    flat = found.flat()
    assert flat["cascade/undecided"] == len(open_ones)
    assert not any(f"cascade/{name}" in flat for name in (*open_figures, "accuracy_low", "human/teacher_unsure"))
    with pytest.raises(ValueError, match=f"unknown for {sum(c.reply is None for c in made)} of 600 cases"):
        cost_curve(made, POLICY)
    complete = asked(made)
    assert worth(complete, replay(complete, POLICY), student_ms=1.0).undecided == 0
    assert len(complete) == sum(case.reply is not None for case in made)


def test_nobody_minds_an_unknown_reply_that_is_not_needed() -> None:
    made = [replace(case, reply=None) for case in cases()]
    found = worth(made, replay(made, Policy(0.0, 0.5, 0.0)), student_ms=3.0)
    assert found.undecided == 0 and found.accuracy == found.student_accuracy and found.llm_usd_per_million == 0
    assert found.latency_p95_ms == 3.0 and found.teacher_accuracy is None


def test_without_truth_there_are_rates_and_no_accuracy() -> None:
    made = cases(unjudged=1.1)
    found = worth(made, replay(made, POLICY), student_ms=1.0)
    assert found.judged == 0 and found.human_rate and found.llm_usd_per_million
    assert {found.accuracy, found.student_accuracy, found.teacher_accuracy, found.accuracy_with_people} == {None}
    assert all(point.accuracy is None for point in coverage_curve(made))
    assert all(point.accuracy is None for point in cost_curve(made, POLICY))


def test_no_cases_make_no_curve() -> None:
    assert coverage_curve([]) == [] and cost_curve([], POLICY) == []
    with pytest.raises(ValueError, match="no cases"):
        coverage_at([], 0.5)


def test_nothing_and_outcomes_of_others_are_refused() -> None:
    made = cases(3)
    for given, outcomes in (([], []), (made, replay(made, POLICY)[:2])):
        with pytest.raises(ValueError, match=f"{len(given)} cases and {len(outcomes)} outcomes"):
            worth(given, outcomes, student_ms=1.0)


def flat_replies(made: list[Case], right: int, usd: float, *, failing: int = 0) -> dict[str, Reply]:
    """The first `failing` questions fail, of the others the first `right` are answered rightly."""
    found = {}
    for place, case in enumerate(made):
        wrong = NAMES[(NAMES.index(case.truth or "ant") + 1) % 3]
        answer = case.truth if place < failing + right else wrong
        found[case.key] = (Reply(failure=Failure.REFUSAL, cost_usd=usd) if place < failing
                           else Reply(answer, cost_usd=usd, latency_s=0.5))
    return found


def compared(*models: tuple[str, dict[str, Reply]], made: list[Case]) -> dict[str, Compared]:
    llm, *others = models
    given = [replace(case, reply=llm[1][case.key]) for case in made]
    rows = compare(given, {"cascade": POLICY, "other cascade": replace(POLICY, threshold=None)}, dict(others),
                   student_ms=4.0)
    return {row.name: row for row in rows}


def test_the_cascade_stands_beside_student_llm_and_other_models_on_the_same_cases() -> None:
    made = cases(100, unjudged=0.0)
    replies = flat_replies(made, 90, 4e-4)
    rows = compared(("llm", replies), ("small", flat_replies(made, 80, 1e-4, failing=5)), made=made)
    assert [(row.name, row.kind) for row in rows.values()] == [
        ("cascade", Kind.CASCADE), ("other cascade", Kind.CASCADE), ("student alone", Kind.STUDENT),
        ("LLM alone", Kind.LLM), ("small alone", Kind.OTHER)]
    student, llm, small = (rows[f"{name} alone"].worth for name in ("student", "LLM", "small"))
    assert student.accuracy == proportion(sum(case.student.answer == case.truth for case in made), 100)
    assert (student.escalation_rate.value, student.llm_usd_per_million, student.latency_p50_ms) == (0, 0, 4.0)
    # Alone, a model gives whatever it answers, its probability unknown; the student takes no time there.
    assert llm.accuracy == proportion(90, 100) and llm.latency_mean_ms == pytest.approx(500)
    assert llm.llm_usd_per_million == pytest.approx(400) and llm.human_rate == proportion(0, 100)
    assert small.accuracy == proportion(80, 95) and small.human_rate == proportion(5, 100)
    given = [replace(case, reply=replies[case.key]) for case in made]
    assert rows["cascade"].worth == worth(given, replay(given, POLICY), student_ms=4.0)
    assert rows["other cascade"].worth.coverage.value == 0


def test_the_best_single_cheap_model_is_the_one_right_most_often_below_the_dearest() -> None:
    made = cases(100, unjudged=0.0)

    def best(*models: tuple[int, float, int]) -> list[str]:
        """Of models that are so often right, cost so much and fail so often, the first being the LLM."""
        named = [(f"m{place}", flat_replies(made, right, usd, failing=failing))
                 for place, (right, usd, failing) in enumerate(models)]
        return [row.name for row in compared(*named, made=made).values() if row.best_cheap]

    assert best((90, 4e-4, 0)) == []
    assert best((90, 4e-4, 0), (95, 4e-4, 0)) == []
    assert best((90, 4e-4, 0), (80, 1e-4, 0)) == ["m1 alone"]
    assert best((90, 4e-4, 0), (80, 1e-4, 0), (95, 9e-4, 0)) == ["LLM alone"]
    assert best((99, 4e-4, 0), (80, 1e-4, 0), (85, 2e-4, 0)) == ["m2 alone"]
    # Right on all 60 that it answers, and no answer to 40: the other is of more use.
    assert best((99, 4e-4, 0), (60, 1e-4, 40), (85, 2e-4, 0)) == ["m2 alone"]
    assert best((99, 4e-4, 0), (80, 2e-4, 0), (80, 1e-4, 0)) == ["m2 alone"]


def test_a_model_that_was_not_asked_about_all_is_not_compared_as_if_it_were() -> None:
    made = cases(100, unjudged=0.0)
    partial = {key: reply for place, (key, reply) in enumerate(flat_replies(made, 90, 1e-4).items()) if place % 2}
    rows = compared(("llm", flat_replies(made, 90, 4e-4)), ("small", partial), made=made)
    assert rows["small alone"].worth.undecided == 50 and rows["small alone"].worth.accuracy is None
    assert not any(row.best_cheap for row in rows.values())


@pytest.mark.parametrize("policy", [POLICY, Policy(None, 0.0, 0.0), Policy(0.5, 0.95, 0.5)], ids=str)
def test_a_cost_curve_is_a_replay_at_every_threshold(policy: Policy) -> None:
    made = cases(400)
    points = cost_curve(made, policy)
    distinct = sorted({case.student.probability for case in made}, reverse=True)
    assert [point.threshold for point in points] == [None, *distinct] and len(distinct) < 100
    for point in points:
        found = worth(made, replay(made, replace(policy, threshold=point.threshold)), student_ms=0.0)
        assert (point.accuracy, point.accuracy_with_people) == (found.accuracy, found.accuracy_with_people)
        assert point.llm_usd_per_million == pytest.approx(found.llm_usd_per_million, abs=1e-9)
        assert found.human_rate and point.human_rate == found.human_rate.value
    costs = [point.llm_usd_per_million for point in points]
    assert costs == pytest.approx(sorted(costs, reverse=True))


def test_a_coverage_curve_is_counted_at_every_threshold() -> None:
    made = cases(400)
    points = coverage_curve(made)
    for point in points:
        accepted = [case for case in made if not case.student.probability < point.threshold]
        right = [case.student.answer == case.truth for case in accepted if case.truth]
        assert point.share == len(accepted) / 400
        assert point.accuracy == (proportion(sum(right), len(right)) if right else None)
        assert point == coverage_at(made, point.threshold)
    # Where all have truth, it is the curve that the rest of the figures are read off.
    made = cases(400, unjudged=0.0)
    enough = [p.share for p in coverage_curve(made) if p.accuracy and p.accuracy.value >= 0.9]
    confidence = np.array([case.student.probability for case in made])
    correct = np.array([case.student.answer == case.truth for case in made])
    assert max(enough) == pytest.approx(coverage_at_precision(confidence, correct, 0.9)) and 0.1 < max(enough) < 0.9


def test_a_curve_of_many_confidences_is_thinned_from_end_to_end() -> None:
    rng = random.Random(0)
    made = [replace(case, student=Opinion("ant", rng.random())) for case in cases(2000)]
    sure = [case.student.probability for case in made]
    for points in (coverage_curve(made), cost_curve(made, POLICY)[1:]):
        assert len(points) == 100 and points[0].threshold == max(sure) and points[-1].threshold == min(sure)
    assert coverage_curve(made)[-1].share == 1 and len(coverage_curve(made, points=7)) == 7


@pytest.mark.parametrize("by", ["answer", "truth"])
def test_the_escalation_table_is_counted_by_class_and_reason(by: str) -> None:
    made = cases(unknown=0.1)
    outcomes = replay(made, POLICY)
    table = escalation_table(made, outcomes, NAMES, by=by)
    assert table["class"].tolist() == NAMES
    assert list(table.columns[:3]) == ["class", "items", "student"]
    total = 0
    for name, row in zip(NAMES, table.to_dict("records"), strict=True):
        own = [(case, found) for case, found in zip(made, outcomes, strict=True)
               if (case.student.answer if by == "answer" else case.truth) == name]
        assert row["items"] == len(own) == sum(count for way, count in row.items() if way not in ("class", "items"))
        decided = [found for _, found in own if isinstance(found, Decision)]
        assert row["student"] == sum(found.route == Route.STUDENT for found in decided)
        for why in (EscalationReason.DOUBTFUL, EscalationReason.AUDIT):
            mine = [found for found in decided if found.escalated == why]
            assert row[f"{why}: teacher"] == sum(found.route == Route.TEACHER for found in mine)
            for human in HumanReason:
                assert row.get(f"{why}: {human}", 0) == sum(found.human == human for found in mine)
        lost = sum(isinstance(found, Escalation) for _, found in own)
        assert row["doubtful: unknown"] + row["audit: unknown"] == lost
        total += len(own)
    assert total == (600 if by == "answer" else sum(case.truth is not None for case in made))
    assert not [way for way in table.columns if way.startswith("uncertified")]
    assert "doubtful: disagreement" not in table.columns


def test_the_student_has_a_column_where_it_answers_nothing_and_a_class_a_row_without_items() -> None:
    made = [Case("a", Opinion("ant", 0.9), "ant", Reply("ant", 0.9))]
    table = escalation_table(made, replay(made, Policy(None, 0.5, 0.0)), NAMES, by="truth")
    assert table.to_dict("list") == {"class": NAMES, "items": [1, 0, 0], "student": [0, 0, 0],
                                     "uncertified: teacher": [1, 0, 0]}


def test_a_class_that_is_none_and_another_by_are_refused() -> None:
    made = cases(5)
    with pytest.raises(ValueError, match="none of the classes ant, bee"):
        escalation_table([replace(made[0], truth="cat")], replay(made[:1], POLICY), NAMES[:2], by="truth")
    with pytest.raises(ValueError, match="by='reason': must be"):
        escalation_table(made, replay(made, POLICY), NAMES, by="reason")


TASK = TaskSpec(name="insects", version=1, kind="classify", classes=dict.fromkeys(NAMES, ""), aliases={"emmet": "ant"},
                system_prompt="", user_prompt="", metric="accuracy")


@pytest.mark.parametrize(("label", "failure", "expected"), [
    ("Emmet", None, Reply("ant", 0.8, cost_usd=1e-4, latency_s=2.0)),
    # An alias that came later makes an answer of it.
    ("emmet", Failure.UNKNOWN_LABEL, Reply("ant", 0.8, cost_usd=1e-4, latency_s=2.0)),
    ("wasp", None, Reply(failure=Failure.UNKNOWN_LABEL, cost_usd=1e-4, latency_s=2.0)),
    (None, Failure.TIMEOUT, Reply(failure=Failure.TIMEOUT, cost_usd=1e-4, latency_s=2.0)),
])
def test_a_stored_annotation_is_a_reply(label: str | None, failure: Failure | None, expected: Reply) -> None:
    stored = Annotation("key", "llm", "hash", "insects", label=label, failure=failure, cost_usd=1e-4, latency_s=2.0)
    assert reply_of(stored, TASK, 0.8) == expected
