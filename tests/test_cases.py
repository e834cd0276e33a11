"""Stored annotations as an LLM's replies: which attempt counts, what it cost, how far it can be believed."""

from pathlib import Path

import numpy as np
import pytest
from conftest import composed

from src.cascade.cases import cases, confidence, replies, replies_by
from src.config import Job, read
from src.task import Annotation, Failure, Item, TaskSpec

TRUTHS = {f"gold{n}": "apple" for n in range(20)}


@pytest.fixture(scope="module")
def task() -> TaskSpec:
    job: Job = read(composed("job"), Job)
    return job.task


def said(item: str, label: str | None, **values: object) -> Annotation:
    return Annotation(item, "llm", "prompt", "cifar5", label=label, **values)  # type: ignore[arg-type]


def on_gold(wrong: int) -> list[Annotation]:
    return [said(item, "pear" if n < wrong else "apple", confidence=0.9 if n < wrong else 0.99)
            for n, item in enumerate(TRUTHS)]


def test_an_answer_is_as_probably_right_as_gold_shows(task: TaskSpec) -> None:
    found = replies([*on_gold(2), said("x", "Apples", confidence=0.99)], TRUTHS, task)
    # Two mistakes are too few to tell answers apart: each has the share of right ones.
    assert found["x"].answer == "apple" and found["x"].probability == pytest.approx(18.5 / 21)


def test_with_mistakes_enough_doubtful_answers_are_told_from_sure_ones(task: TaskSpec) -> None:
    found = replies([*on_gold(8), said("sure", "pear", confidence=0.99), said("unsure", "pear", confidence=0.9)],
                    TRUTHS, task)
    sure, unsure = found["sure"].probability, found["unsure"].probability
    assert sure is not None and unsure is not None and sure > 0.8 > 0.5 > unsure


def test_the_last_attempt_counts_and_all_are_paid(task: TaskSpec) -> None:
    tried = [said("x", None, failure=Failure.TIMEOUT, attempt=0, cost_usd=0.25, latency_s=3.0),
             said("x", "pear", attempt=1, cost_usd=0.5, latency_s=1.0)]
    found = replies([*on_gold(0), *reversed(tried)], TRUTHS, task)["x"]
    assert (found.answer, found.failure, found.cost_usd, found.latency_s) == ("pear", None, 0.75, 4.0)


def test_what_failed_or_is_no_class_is_a_failure(task: TaskSpec) -> None:
    found = replies([*on_gold(0), said("x", None, failure=Failure.REFUSAL), said("y", "banana")], TRUTHS, task)
    assert found["x"].failure == Failure.REFUSAL and found["y"].failure == Failure.UNKNOWN_LABEL


def test_further_passes_are_other_questions(task: TaskSpec) -> None:
    further = [said("x", "orange", pass_index=1), said("y", "pear", pass_index=1)]
    found = replies([*on_gold(0), said("x", "pear"), *further], TRUTHS, task)
    assert found["x"].answer == "pear" and "y" not in found


def test_with_hardly_any_gold_nobody_knows_how_far_to_believe_it(task: TaskSpec) -> None:
    few = dict(list(TRUTHS.items())[:5])
    found = replies([*on_gold(0)[:5], said("x", "pear")], few, task)
    assert found["x"].probability is None


def test_a_case_joins_item_student_and_reply(task: TaskSpec) -> None:
    items = [Item("x", Path("x.png"), "x", truth="pear"), Item("z", Path("z.png"), "z")]
    probabilities = np.array([[0.1, 0.1, 0.1, 0.6, 0.1], [0.2, 0.2, 0.2, 0.2, 0.2]])
    found = cases(items, probabilities, task.names, replies([*on_gold(0), said("x", "orange")], TRUTHS, task))
    assert (found[0].student.answer, found[0].student.probability) == ("pear", 0.6)
    assert found[0].truth == "pear" and found[0].reply is not None and found[0].reply.answer == "orange"
    assert found[1].truth is None and found[1].reply is None


@pytest.mark.parametrize("wrong", [2, 8])
def test_a_confidence_that_was_fitted_once_judges_one_answer_as_a_replay_does_all(task: TaskSpec, wrong: int) -> None:
    gold = on_gold(wrong)
    others = [said(f"x{n}", "pear", confidence=sure) for n, sure in enumerate([0.9, 0.99, 0.5, None])]
    everything = [*gold, *others, said("failed", None, failure=Failure.EMPTY)]
    expected, fitted = replies(everything, TRUTHS, task), confidence(gold, TRUTHS, task)
    for annotation in everything:
        (found,) = replies_by([annotation], fitted, task).values()
        assert found.answer == expected[annotation.item].answer
        assert found.probability == pytest.approx(expected[annotation.item].probability, abs=1e-12)


def test_an_answer_about_gold_that_changed_since_is_judged_like_any_other(task: TaskSpec) -> None:
    """What was fitted without an item is about the answer that was known then."""
    fitted = confidence(on_gold(2), TRUTHS, task)
    before, after = (replies_by([said("gold5", label)], fitted, task)["gold5"] for label in ("apple", "pear"))
    fresh = replies_by([said("fresh", "pear")], fitted, task)["fresh"]
    assert after.probability == fresh.probability != before.probability
