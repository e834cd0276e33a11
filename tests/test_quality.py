"""Annotations → labels, and how good the answers look, against figures worked out by hand and scikit-learn's kappa."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import cohen_kappa_score

from src.errors import ConfigError, QualityError
from src.metrics import proportion
from src.quality.agreement import agreement, check_collapse, label_accuracy, teacher_accuracy
from src.quality.conclude import conclude
from src.quality.heuristics import doubt
from src.quality.spec import QualitySpec
from src.task import Annotation, Failure, Item, Label, TaskSpec

NAMES = ["apple", "orange", "pear", "sweet_pepper"]
TASK = TaskSpec(
    name="fruit", version=1, kind="classify", classes=dict.fromkeys(NAMES, ""),
    aliases={"apples": "apple", "bell_pepper": "sweet_pepper"}, system_prompt="", user_prompt="", metric="accuracy",
)
TEACHER = "teacher/model"


def said(label: str | None, n: int = 0, *, item: str = "i", **fields: Any) -> Annotation:
    """What the teacher said in pass n."""
    return Annotation(**({"item": item, "annotator": TEACHER, "prompt_hash": "p", "task": "fruit", "pass_index": n,
                          "label": label, "confidence": 0.9} | fields))


def failed(failure: Failure, n: int = 0, label: str | None = None, **fields: Any) -> Annotation:
    return said(label, n, failure=failure, confidence=None, **fields)


def reviewed(label: str | None, who: str = "ada") -> Annotation:
    return Annotation(item="i", annotator=f"human:{who}", prompt_hash="fruit@1", task="fruit", label=label,
                      failure=None if label else Failure.WITHDRAWN)


def spec(**changes: Any) -> QualitySpec:
    return QualitySpec(**({"min_confidence": 0.0, "heuristics": "flag", "reviewer": "ada"} | changes))


def concluded(*annotations: Annotation, passes: int = 2, task: TaskSpec = TASK, **changes: Any) -> Label:
    (label,) = conclude([Item("i", Path("i.png"), "i")], annotations, task=task, passes=passes, spec=spec(**changes))
    return label


# Labels


def test_passes_that_agree_are_accepted() -> None:
    label = concluded(said("Apples", 0, confidence=0.9, why="red and round"), said("apple", 1, confidence=0.7))
    assert label == Label("i", "apple", True, TEACHER, "", 0.7, ("apple", "apple"), "red and round")


def test_passes_that_disagree_are_not() -> None:
    label = concluded(said("apple", 0), said("pear", 1))
    assert (label.label, label.accepted, label.reason) == (None, False, "passes disagree")
    assert label.votes == ("apple", "pear")


def test_votes_stand_in_the_order_of_passes() -> None:
    assert concluded(said("pear", 1), said("apple", 0)).votes == ("apple", "pear")


@pytest.mark.parametrize("failure", list(Failure))
def test_a_pass_that_failed_is_named(failure: Failure) -> None:
    label = concluded(said("apple", 0), failed(failure, 1))
    assert (label.label, label.accepted, label.reason) == (None, False, f"failed: {failure.value}")
    assert label.votes == ("apple", None)


def test_a_missing_pass_is_not_an_agreement() -> None:
    label = concluded(said("apple", 0))
    assert (label.label, label.accepted, label.reason) == (None, False, "not answered in every pass")
    assert concluded(said("apple", 0), passes=1).accepted


def test_passes_beyond_those_asked_for_have_no_say() -> None:
    assert concluded(said("apple", 0), said("apple", 1), said("pear", 2)).accepted
    assert concluded(said("apple", 0), said("apple", 1), said("pear", 2), passes=3).reason == "passes disagree"


def test_of_several_tries_the_last_usable_one_counts() -> None:
    tries = [failed(Failure.TIMEOUT, 0, attempt=0), said("pear", 0, attempt=1), said("apple", 0, attempt=2),
             failed(Failure.OVERLOADED, 0, attempt=3)]
    assert concluded(*tries, said("apple", 1)).label == "apple"
    assert concluded(*tries[:2], said("apple", 1)).reason == "passes disagree"


def test_where_all_tries_failed_the_last_failure_is_named() -> None:
    label = concluded(failed(Failure.TIMEOUT), failed(Failure.REFUSAL, attempt=1), said("apple", 1))
    assert label.reason == "failed: refusal"


def test_items_that_nobody_annotated_have_no_label_and_the_others_keep_their_order() -> None:
    items = [Item(key, Path(key), key) for key in ("c", "a", "b")]
    given = [said("apple", 0, item=key) for key in ("a", "c", "stranger")]
    assert [label.item for label in conclude(items, given, task=TASK, passes=1, spec=spec())] == ["c", "a"]


@pytest.mark.parametrize(("confidences", "threshold", "reason"), [
    ((0.9, 0.8), 0.8, ""),
    ((0.9, 0.8), 0.81, "confidence below 0.81"),
    ((0.8, 0.9), 0.81, "confidence below 0.81"),
    ((None, 0.9), 0.5, "confidence not said"),
    ((None, None), 0.01, "confidence not said"),
    ((None, None), 0.0, ""),
    ((0.0, 0.0), 0.0, ""),
    ((1.0, 1.0), 1.0, ""),
])
def test_every_pass_has_to_be_confident_enough(
    confidences: tuple[float | None, float | None], threshold: float, reason: str
) -> None:
    label = concluded(*[said("apple", n, confidence=c) for n, c in enumerate(confidences)], min_confidence=threshold)
    assert (label.label, label.accepted, label.reason) == ("apple", not reason, reason)
    assert label.confidence == (None if None in confidences else min(c for c in confidences if c is not None))


# People


def test_a_person_goes_before_everything() -> None:
    for given in ([said("apple", 0), said("apple", 1)], [said("apple", 0), said("orange", 1)],
                  [failed(Failure.REFUSAL, 0)], []):
        label = concluded(*given, reviewed("pear"), min_confidence=1.0, heuristics="drop")
        assert (label.label, label.accepted, label.source, label.reason) == ("pear", True, "human:ada", "reviewed")
        assert label.confidence == 1.0


def test_a_persons_vote_does_not_replace_the_teachers() -> None:
    assert concluded(said("apple", 0), said("orange", 1), reviewed("pear")).votes == ("apple", "orange")


def test_the_latest_word_of_people_counts() -> None:
    label = concluded(said("apple", 0), said("apple", 1), reviewed("pear"), reviewed("orange", who="bob"))
    assert (label.label, label.source) == ("orange", "human:bob")


def test_what_a_person_withdrew_is_the_teachers_again() -> None:
    teacher = (said("apple", 0), said("apple", 1))
    assert concluded(*teacher, reviewed("pear"), reviewed(None)) == concluded(*teacher)
    assert concluded(reviewed("pear"), reviewed(None)).reason == "not answered in every pass"


# The task may change after the answers came


def test_an_alias_added_later_turns_an_unknown_label_into_a_vote() -> None:
    given = (failed(Failure.UNKNOWN_LABEL, 0, label="Capsicum"), said("sweet pepper", 1))
    assert concluded(*given).reason == "failed: unknown_label"
    later = replace(TASK, aliases=TASK.aliases | {"capsicum": "sweet_pepper"})
    label = concluded(*given, task=later)
    assert (label.label, label.accepted, label.reason) == ("sweet_pepper", True, "")


def test_a_label_that_is_no_class_any_more_is_unknown() -> None:
    fewer = replace(TASK, classes=dict.fromkeys(NAMES[1:], ""), aliases={})
    assert concluded(said("apple", 0), said("apple", 1), task=fewer).reason == "failed: unknown_label"


# Heuristics


@pytest.mark.parametrize(("label", "why", "expected"), [
    ("apple", "a round green pear with a stem", "says apple and speaks of pear"),
    ("apple", "Two PEARS side by side", "says apple and speaks of pear"),
    ("apple", "an apple and not a pear", None),
    ("apple", "red, round, dimple at the stem", None),
    ("apple", "spear-shaped", None),
    ("orange", "hard to tell, perhaps round", "admits doubt: hard to tell"),
    ("orange", "Blurry but orange", "admits doubt: blurry"),
    ("orange", "guesswork is not needed", None),
    ("sweet_pepper", "an orange bell pepper", None),
    ("sweet_pepper", "an orange sweet pepper", None),
    ("sweet_pepper", "orange and shiny", "says sweet_pepper and speaks of orange"),
    ("bell pepper", "a sweet pepper, not an apple", None),
    (None, "a guess", None),
])
def test_doubt(label: str | None, why: str, expected: str | None) -> None:
    assert doubt(said(label, why=why), TASK) == expected


@pytest.mark.parametrize(("heuristics", "accepted", "reason"), [
    ("flag", True, "admits doubt: blurry"), ("drop", False, "admits doubt: blurry"), ("off", True, "")])
@pytest.mark.parametrize("doubtful", [0, 1])
def test_doubt_in_any_pass_is_flagged_dropped_or_let_be(
    heuristics: str, accepted: bool, reason: str, doubtful: int
) -> None:
    given = [said("apple", n, why="blurry" if n == doubtful else "an apple") for n in (0, 1)]
    label = concluded(*given, heuristics=heuristics)
    assert (label.label, label.accepted, label.reason) == ("apple", accepted, reason)


@pytest.mark.parametrize(("change", "message"), [
    ({"min_confidence": -0.1}, r"quality\.min_confidence=-0\.1 is not allowed: in \[0, 1\]"),
    ({"min_confidence": 1.5}, r"quality\.min_confidence=1\.5"),
    ({"min_confidence": math.nan}, r"quality\.min_confidence=nan"),
    ({"heuristics": "on"}, r"quality\.heuristics='on' is not allowed: one of flag, drop, off"),
    ({"reviewer": ""}, r"quality\.reviewer=''"),
])
def test_settings_out_of_range_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        spec(**change)


# Agreement


def two_passes(*pairs: tuple[str | None, str | None]) -> list[Annotation]:
    return [said(label, n, item=f"i{k}") if label else failed(Failure.REFUSAL, n, item=f"i{k}")
            for k, pair in enumerate(pairs) for n, label in enumerate(pair)]


def test_agreement_by_hand() -> None:
    """As spelt 2 of 5 agree, as classes 4. An answer without its partner is no pair, but counts for the spelling."""
    found = agreement(two_passes(("apple", "apple"), ("Apples", "apple"), ("pear", "pear"), ("pear", "apple"),
                                 ("Orange", "orange "), ("apple", None), (None, None)), TASK)
    assert found is not None
    assert (found.raw, found.mapped) == (proportion(2, 5), proportion(4, 5))
    # p_e = (2·3 + 2·1 + 1·1) / 25, kappa = (0.8 − 0.36) / 0.64
    assert found.kappa == pytest.approx(0.6875)
    assert found.spelt == pytest.approx(8 / 11)


def test_kappa_is_scikit_learns() -> None:
    rng = random.Random(0)
    truth = [rng.choice(NAMES) for _ in range(300)]
    pairs = [tuple(t if rng.random() < 0.8 else rng.choice(NAMES) for _ in (0, 1)) for t in truth]
    found = agreement(two_passes(*pairs), TASK)  # type: ignore[arg-type]
    assert found is not None
    first, second = zip(*pairs, strict=True)
    assert found.kappa == pytest.approx(cohen_kappa_score(first, second))
    assert 0.5 < found.kappa < found.mapped.value < 1
    assert found.mapped.value == sum(a == b for a, b in pairs) / 300


def test_kappa_of_independent_answers_is_nothing() -> None:
    rng = random.Random(0)
    pairs = [(rng.choices(NAMES, [9, 1, 1, 1])[0], rng.choices(NAMES, [9, 1, 1, 1])[0]) for _ in range(2000)]
    found = agreement(two_passes(*pairs), TASK)
    assert found is not None
    assert abs(found.kappa) < 0.08
    assert found.mapped.value > 0.5


def test_one_class_alone_has_no_kappa() -> None:
    found = agreement(two_passes(*[("apple", "apple")] * 5), TASK)
    assert found is not None
    assert math.isnan(found.kappa)
    assert found.mapped.value == 1


def test_with_three_passes_every_pair_counts() -> None:
    given = [said(label, n) for n, label in enumerate(["apple", "apple", "pear"])]
    found = agreement(given, TASK)
    assert found is not None
    assert found.mapped == proportion(1, 3)


@pytest.mark.parametrize("given", [[], [said("apple", 0)], [said("apple", 0), failed(Failure.REFUSAL, 1)],
                                   [said("apple", 0), said("apple", 1, item="other")]])
def test_without_a_pair_there_is_no_agreement(given: list[Annotation]) -> None:
    assert agreement(given, TASK) is None


def test_a_question_asked_again_counts_once() -> None:
    given = [failed(Failure.TIMEOUT, 0), said("pear", 0, attempt=1), said("apple", 0, attempt=2), said("apple", 1)]
    found = agreement(given, TASK)
    assert found is not None
    assert found.mapped == proportion(1, 1)


# Accuracy


def test_the_teachers_accuracy_is_that_of_first_answers() -> None:
    given = [said("pear", 1, item="a"), said("Apples", 0, item="a"),  # right at first
             failed(Failure.REFUSAL, 0, item="b"), said("pear", 1, item="b"),  # the first usable one is right
             said("apple", 0, item="c"), said("orange", 1, item="c"),  # wrong
             failed(Failure.REFUSAL, 0, item="d"),  # never answered
             said("apple", 0, item="e")]  # of unknown truth
    truths = {"a": "apple", "b": "pear", "c": "pear", "d": "pear"}
    assert teacher_accuracy(given, truths, TASK) == proportion(2, 3)
    assert teacher_accuracy(given, {}, TASK) is None
    assert teacher_accuracy([], truths, TASK) is None


def test_the_labels_accuracy_is_that_of_accepted_ones() -> None:
    labels = [Label("a", "apple", True, "t"), Label("b", "apple", True, "t"), Label("c", "pear", False, "t"),
              Label("d", "pear", True, "t")]
    assert label_accuracy(labels, {"a": "apple", "b": "pear", "c": "pear"}) == proportion(1, 2)
    assert label_accuracy(labels[2:3], {"c": "pear"}) is None


# Collapse


def answered(pairs: Sequence[tuple[str, str]]) -> tuple[list[Annotation], dict[str, str]]:
    """Answers and truths, from (truth, answer)."""
    return ([said(answer, 0, item=f"i{n}") for n, (_, answer) in enumerate(pairs)],
            {f"i{n}": truth for n, (truth, _) in enumerate(pairs)})


def check(pairs: Sequence[tuple[str, str]]) -> None:
    check_collapse(*answered(pairs), TASK)


@pytest.mark.parametrize("n", [20, 40, 200])
def test_nearly_one_class_stops(n: int) -> None:
    with pytest.raises(QualityError, match=rf"100% of {n} answers are 'pear', but only 25% of gold is: the teacher"):
        check([(NAMES[i % 4], "pear") for i in range(n)])


def test_nearly_one_class_in_the_pool_stops_too() -> None:
    given, truths = answered([(NAMES[i % 4], NAMES[i % 4]) for i in range(20)])
    given += [said("pear", 0, item=f"pool{i}") for i in range(2000)]
    with pytest.raises(QualityError, match=r"99% of 2020 answers are 'pear', but only 25% of gold is"):
        check_collapse(given, truths, TASK)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("n", [60, 150])
def test_answers_at_random_stop(n: int, seed: int) -> None:
    rng = random.Random(seed)
    with pytest.raises(QualityError, match=rf"accuracy on gold is 0\.\d+ .*, n={n}, no better than chance \(0\.2\d\)"):
        check([(NAMES[i % 4], rng.choice(NAMES)) for i in range(n)])


def test_answers_that_are_always_wrong_stop() -> None:
    with pytest.raises(QualityError, match=r"accuracy on gold is 0\.000 .*no better than chance"):
        check([(NAMES[i % 4], NAMES[(i + 1) % 4]) for i in range(40)])


def test_random_answers_in_unequal_shares_stop() -> None:
    """Chance is not one of C: with shares of 0.8 on both sides, 0.66 right says nothing."""
    rng = random.Random(0)
    shares = [8, 1, 1, 0]
    with pytest.raises(QualityError, match=r"no better than chance \(0\.\d+\)"):
        check([(rng.choices(NAMES, shares)[0], rng.choices(NAMES, shares)[0]) for _ in range(200)])


@pytest.mark.parametrize("accuracy", [0.6, 0.75, 0.9, 1.0])
@pytest.mark.parametrize("n", [40, 150])
@pytest.mark.parametrize("seed", range(5))
def test_a_teacher_who_sees_goes_on(accuracy: float, n: int, seed: int) -> None:
    rng = random.Random(seed)
    check([(NAMES[i % 4], NAMES[i % 4] if rng.random() < accuracy else rng.choice(NAMES)) for i in range(n)])


@pytest.mark.parametrize("n", [0, 1, 9])
def test_few_answers_say_nothing(n: int) -> None:
    check([(NAMES[i % 4], "pear") for i in range(n)])


def test_few_gold_answers_do_not_tell_chance() -> None:
    given, truths = answered([(NAMES[i % 4], NAMES[(i + 1) % 4]) for i in range(9)])
    check_collapse([*given, *[said(NAMES[i % 4], 0, item=f"pool{i}") for i in range(100)]], truths, TASK)


def test_without_truth_nothing_is_judged() -> None:
    given, _ = answered([("apple", "pear")] * 50)
    check_collapse(given, {}, TASK)


@pytest.mark.parametrize("n", [10, 20, 25, 60, 150])
@pytest.mark.parametrize("minority", [0, 1, 2])
def test_data_that_are_nearly_of_one_class_go_on_when_the_teacher_is_right(n: int, minority: int) -> None:
    check([("apple" if i >= minority else "pear",) * 2 for i in range(n)])  # type: ignore[misc]


@pytest.mark.parametrize("n", [20, 60, 150])
def test_one_missed_item_of_a_rare_class_is_no_collapse(n: int) -> None:
    check([("pear" if i == 0 else "apple", "apple") for i in range(n)])


def test_a_rare_class_that_is_never_seen_in_much_gold_stops() -> None:
    """16% of 200 gold items are pears and none is ever answered: 168 right of 200 is what the blind reach."""
    with pytest.raises(QualityError, match=r"100% of 200 answers are 'apple', but only 84% of gold is"):
        check([("pear" if i < 32 else "apple", "apple") for i in range(200)])
    with pytest.raises(QualityError, match=r"0\.860 .*n=200, no better than chance \(0\.86\)"):
        check([("pear" if i < 28 else "apple", "apple") for i in range(200)])
