"""Annotations → labels: whose word counts, what becomes of disagreements, and what students learn from."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fruit_answers import NAMES, PANEL, TASK, TEACHER, failed, reviewed, said

from src.errors import ConfigError
from src.quality.conclude import conclude, to_learn
from src.quality.consensus import METHODS
from src.quality.heuristics import doubt
from src.quality.spec import DISAGREEMENTS, QualitySpec
from src.task import SECOND_LOOK, Annotation, Failure, Item, Label, Panel, TaskSpec


def spec(**changes: Any) -> QualitySpec:
    return QualitySpec(**({
        "consensus": "agreement", "disagreements": "drop", "min_confidence": 0.0, "min_probability": 0.0,
        "heuristics": "flag", "second_look_share": 0.0, "second_looks": 1, "folds": 3, "gold_half_width": 0.05,
        "spot_checks": 0, "reviewer": "ada",
    } | changes))


def concluded(*annotations: Annotation, passes: int = 2, task: TaskSpec = TASK, panel: Panel | None = None,
              **changes: Any) -> Label:
    (label,) = conclude([Item("i", Path("i.png"), "i")], annotations, task=task, spec=spec(**changes), truths={},
                        panel=panel or Panel((TEACHER,), passes))
    return label


# Labels


def test_passes_that_agree_are_accepted() -> None:
    label = concluded(said("Apples", 0, confidence=0.9, why="red and round"), said("apple", 1, confidence=0.7))
    assert label == Label("i", "apple", True, TEACHER, "", 0.7, ("apple", "apple"), "red and round",
                          distribution=(1.0, 0.0, 0.0, 0.0))


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
    labels = conclude(items, given, task=TASK, panel=Panel((TEACHER,), 1), spec=spec(), truths={})
    assert [label.item for label in labels] == ["c", "a"]


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


# Panels


A, B, ARBITER = "a", "b", "arbiter"
WIDE = Panel((A, B), 1, arbiter=ARBITER, second_looks=2)


def by(annotator: str, label: str | None, n: int = 0, **fields: Any) -> Annotation:
    fields = fields if label else {"failure": Failure.REFUSAL, "confidence": None} | fields
    return said(label, n, annotator=annotator, **fields)


def test_all_members_have_to_agree_in_all_passes() -> None:
    panel = Panel((A, B), 2)
    four = [by(who, "apple", n) for who in (B, A) for n in (1, 0)]
    label = concluded(*four, panel=panel)
    assert (label.label, label.accepted, label.source, label.votes) == ("apple", True, "a, b", ("apple",) * 4)
    assert concluded(*four[:3], panel=panel).reason == "not answered in every pass"
    assert concluded(*four[:3], by(A, None), panel=panel).reason == "failed: refusal"
    assert concluded(*four[:3], by(A, "pear"), panel=panel).reason == "passes disagree"


def test_who_is_not_on_the_panel_has_no_say() -> None:
    label = concluded(by(A, "apple"), by(B, "apple"), by("c", "pear"), by(ARBITER, "pear", 1), panel=WIDE)
    assert (label.label, label.accepted, label.votes) == ("apple", True, ("apple", "apple"))


@pytest.mark.parametrize(("arbiter", "label", "reason"), [
    ("apple", "apple", "arbiter decided"), ("pear", "pear", "arbiter decided"), ("orange", None, "passes disagree"),
    (None, None, "passes disagree"),
])
def test_an_arbiter_decides_with_whom_it_agrees(arbiter: str | None, label: str | None, reason: str) -> None:
    """A third opinion settles nothing, and one that failed loses nothing."""
    found = concluded(by(A, "apple"), by(B, "pear"), by(ARBITER, arbiter), panel=WIDE)
    assert (found.label, found.accepted, found.reason) == (label, label is not None, reason)
    assert found.votes == ("apple", "pear", arbiter)
    assert found.source == (f"{A if label == 'apple' else B}, {ARBITER}" if label else "a, b, arbiter")


def test_an_arbiter_needs_more_than_half_of_the_answers() -> None:
    panel = Panel((A, B, "c"), 1, arbiter=ARBITER)
    given = [by(A, "apple"), by(B, "apple"), by("c", "pear")]
    assert concluded(*given, by(ARBITER, "apple"), panel=panel).label == "apple"
    assert concluded(*given, by(ARBITER, "pear"), panel=panel).label is None
    assert concluded(*given, by(ARBITER, "orange"), panel=panel).label is None


def test_a_label_is_as_sure_as_those_who_gave_it() -> None:
    """And has their reasons, whoever else said what."""
    found = concluded(by(A, "apple", confidence=0.2, why="blurry"), by(B, "pear", confidence=0.8, why="green"),
                      by(ARBITER, "pear", confidence=0.9), panel=WIDE, min_confidence=0.8)
    assert (found.label, found.accepted, found.confidence, found.why) == ("pear", True, 0.8, "green")
    assert found.reason == "arbiter decided"


@pytest.mark.parametrize(("looks", "label"), [
    (["apple"], "apple"), (["pear"], None), (["pear", "apple"], None), (["apple", "apple"], "apple"), ([None], "apple"),
    (["apple", "apple", "pear"], "apple"),  # one look more than the panel allows
])
def test_a_second_look_can_only_agree_or_not(looks: list[str | None], label: str | None) -> None:
    found = concluded(by(A, "apple"), by(B, "apple"), panel=WIDE,
                      *[by(A, look, SECOND_LOOK + n) for n, look in enumerate(looks)])  # noqa: B026
    assert (found.label, found.accepted) == (label, label is not None)
    assert found.reason == ("" if label else "passes disagree")
    assert found.votes == ("apple", "apple", *looks[:2])


def test_a_second_look_can_undo_what_an_arbiter_decided() -> None:
    given = [by(A, "apple"), by(B, "pear"), by(ARBITER, "pear")]
    assert concluded(*given, by(B, "apple", SECOND_LOOK), panel=WIDE).label is None
    assert concluded(*given, by(B, "pear", SECOND_LOOK), panel=WIDE).label == "pear"


# Other kinds of consensus, and what becomes of disagreements


@pytest.mark.parametrize("consensus", ["majority", "dawid_skene"])
def test_a_failed_pass_loses_no_item(consensus: str) -> None:
    found = concluded(said("apple", 0), failed(Failure.REFUSAL, 1), consensus=consensus)
    assert (found.label, found.accepted, found.reason, found.votes) == ("apple", True, "", ("apple", None))
    assert concluded(said("apple", 1), consensus=consensus).accepted
    assert concluded(failed(Failure.REFUSAL, 1), consensus=consensus).reason == "failed: refusal"


def test_a_majority_is_more_than_anybody_else_has() -> None:
    three = [said(label, n) for n, label in enumerate(["apple", "pear", "pear"])]
    found = concluded(*three, passes=3, consensus="majority")
    assert (found.label, found.accepted, found.reason) == ("pear", True, "")
    assert found.distribution[2] == max(found.distribution)
    tied = concluded(*three[:2], passes=3, consensus="majority")
    assert (tied.label, tied.accepted, tied.reason) == (None, False, "passes disagree")
    assert concluded(*three, passes=3).label is None


@pytest.mark.parametrize("consensus", ["agreement", "majority"])
def test_disagreements_can_stay_as_probabilities(consensus: str) -> None:
    """Of several classes with as many votes, the first that was said stands for them; the votes are kept."""
    found = concluded(said("pear", 0), said("apple", 1), consensus=consensus, disagreements="soft")
    assert (found.label, found.accepted, found.reason) == ("pear", True, "passes disagree")
    assert found.votes == ("pear", "apple")
    assert found.distribution[0] == pytest.approx(found.distribution[2]) and found.distribution[0] > 0.3
    assert sum(found.distribution) == pytest.approx(1)


def test_the_most_voted_class_stands_for_a_soft_label() -> None:
    three = [said(label, n) for n, label in enumerate(["apple", "pear", "pear"])]
    found = concluded(*three, passes=3, disagreements="soft")
    assert (found.label, found.accepted, found.reason) == ("pear", True, "passes disagree")
    assert found.distribution[2] > found.distribution[0] > found.distribution[1] == found.distribution[3]
    assert found.confidence == 0.9


def test_of_soft_classes_the_arbiters_comes_first() -> None:
    found = concluded(by(A, "apple"), by(B, "pear"), by(ARBITER, "orange"), panel=WIDE, disagreements="soft")
    assert (found.label, found.accepted) == ("orange", True)


def test_what_failed_is_no_disagreement() -> None:
    found = concluded(said("apple", 0), failed(Failure.REFUSAL, 1), disagreements="soft")
    assert (found.label, found.accepted, found.reason) == (None, False, "failed: refusal")


def test_disagreements_that_are_dropped_keep_votes_and_distribution() -> None:
    found = concluded(said("apple", 0), said("pear", 1))
    assert found.votes == ("apple", "pear") and found.distribution[0] == found.distribution[2] > 0.3


def test_opinions_are_weighed_on_all_items_together() -> None:
    """Three models, one better than the others: Dawid-Skene finds out, the majority cannot."""
    rng = random.Random(0)
    truth = {f"{n}": rng.choice(NAMES) for n in range(300)}
    given = [by(who, true if rng.random() < accuracy else rng.choice(NAMES), item=item)
             for item, true in truth.items() for who, accuracy in (("a", 0.45), ("b", 0.45), ("c", 0.97))]
    items = [Item(item, "", "") for item in truth]
    right = {}
    for consensus in ("majority", "dawid_skene"):
        labels = conclude(items, given, task=TASK, panel=Panel(("a", "b", "c"), 1), spec=spec(consensus=consensus),
                          truths={})
        right[consensus] = sum(label.label == truth[label.item] for label in labels)
    assert right["dawid_skene"] > right["majority"] + 20


def test_crowdlab_takes_the_students_side_and_needs_one() -> None:
    student = {f"{n}": [0.1, 0.0, 0.9, 0.0] if n == 0 else [0.9, 0.0, 0.1, 0.0] for n in range(20)}
    given = [said("apple", n, item=key) for key in student for n in (0, 1)]
    given[1] = replace(given[1], label="pear")
    items = [Item(key, "", "") for key in student]
    labels = conclude(items, given, task=TASK, panel=PANEL, spec=spec(consensus="crowdlab"), truths={},
                      out_of_fold=student)
    assert [label.label for label in labels] == ["pear"] + ["apple"] * 19
    with pytest.raises(ConfigError, match=r"quality\.consensus='crowdlab'.*quality\.folds"):
        conclude(items, given, task=TASK, panel=PANEL, spec=spec(consensus="crowdlab"), truths={})


def test_of_a_student_and_answers_only_what_was_answered_can_be_the_label() -> None:
    """However sure the student, and however little the answers weigh: whoever contradicts is asked, not flipped."""
    rng = random.Random(0)
    keys = [f"{n}" for n in range(120)]
    given = [by(who, rng.choice(NAMES), n, item=key) for key in keys for who, n in (
        (A, 0), (B, 0), (ARBITER, 0), (ARBITER, SECOND_LOOK)) if rng.random() < 0.6]
    student = {key: [float(name == certain) for name in NAMES] for key in keys for certain in [rng.choice(NAMES)]}
    answered = {key: {a.label for a in given if a.item == key} for key in keys}
    for consensus in METHODS:
        for disagreements in DISAGREEMENTS:
            labels = conclude([Item(key, "", "") for key in keys], given, task=TASK, panel=WIDE, truths={},
                              spec=spec(consensus=consensus, disagreements=disagreements), out_of_fold=student)
            assert len(labels) == sum(map(bool, answered.values())) > 100
            assert all(label.label is None or label.label in answered[label.item] for label in labels)
            # Where all said the same, nothing is left to decide.
            assert all(label.label in (None, *answered[label.item]) and (label.label or consensus == "agreement")
                       for label in labels if len(answered[label.item]) == 1)


@pytest.mark.parametrize("consensus", ["agreement", "majority", "crowdlab"])
@pytest.mark.parametrize("further", [(A, SECOND_LOOK), (ARBITER, SECOND_LOOK), (ARBITER, 0)])
@pytest.mark.parametrize("members", [(A,), (A, B)])
def test_asking_again_where_there_is_doubt_moves_no_other_label(consensus: str, further: tuple[str, int],
                                                                members: tuple[str, ...]) -> None:
    """Opinions are weighed by what members said of all items, not by what was asked for the doubtful ones' sake."""
    rng = random.Random(1)
    truth = {f"{n}": NAMES[n % 4] for n in range(80)}
    given = [by(who, true if rng.random() < 0.8 else rng.choice(NAMES), item=key)
             for key, true in truth.items() for who in members]
    student = {key: [0.7 * (name == true) + 0.075 for name in NAMES] for key, true in truth.items()}
    doubtful = {a.item for a in given if a.label != truth[a.item]}
    who, n = further
    more = [by(who, truth[key], n, item=key) for key in sorted(doubtful)]

    def found(annotations: Sequence[Annotation]) -> dict[str, Label]:
        labels = conclude([Item(key, "", "") for key in truth], annotations, task=TASK, truths={}, out_of_fold=student,
                          panel=replace(WIDE, members=members), spec=spec(consensus=consensus))
        return {label.item: label for label in labels}

    before, after = found(given), found([*given, *more])
    assert 8 < len(doubtful) < 40
    for key in truth:
        assert (before[key] == after[key]) == (key not in doubtful)


# What students learn from


def test_students_get_probabilities_only_where_opinions_differ_and_only_if_asked_to() -> None:
    split, alike, single, partly = (
        replace(Label("i", "apple", True, "t", votes=votes), distribution=(0.6, 0.0, 0.4, 0.0))
        for votes in (("apple", "pear"), ("apple", "apple"), ("apple",), ("apple", None)))
    dropped = replace(split, accepted=False)
    labels = [split, alike, single, partly, dropped]
    hard = [replace(label, distribution=()) for label in labels]
    assert to_learn(labels, spec()) == hard
    assert to_learn(labels, spec(disagreements="soft")) == [split, *hard[1:4], dropped]


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
    nobody = concluded(reviewed("pear"), reviewed(None))
    assert (nobody.label, nobody.reason, nobody.distribution) == (None, "not answered in every pass", ())


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


@pytest.mark.parametrize("alias", ["Paprika", "PAPRIKA", "paprika"])
def test_an_alias_may_be_spelt_in_capitals(alias: str) -> None:
    task = replace(TASK, aliases={alias: "sweet_pepper"})
    assert doubt(said("sweet_pepper", why="a Paprika, not a pear"), task) is None


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
    ({"consensus": "vote"}, r"quality\.consensus='vote' is not allowed: one of agreement, majority, dawid"),
    ({"disagreements": "keep"}, r"quality\.disagreements='keep' is not allowed: one of drop, soft"),
    ({"min_probability": 1.0}, r"quality\.min_probability=1\.0 is not allowed: in \[0, 1\)"),
    ({"min_probability": math.nan}, r"quality\.min_probability=nan"),
    ({"second_look_share": 1.1}, r"quality\.second_look_share=1\.1 is not allowed: in \[0, 1\]"),
    ({"second_looks": 0}, r"quality\.second_looks=0 is not allowed: 1 or more"),
    ({"folds": 1}, r"quality\.folds=1 is not allowed: 2 or more"),
    ({"gold_half_width": 0.0}, r"quality\.gold_half_width=0\.0 is not allowed: between 0 and 0\.5"),
    ({"gold_half_width": 0.5}, r"quality\.gold_half_width=0\.5"),
    ({"spot_checks": -1}, r"quality\.spot_checks=-1 is not allowed: 0 or more"),
])
def test_settings_out_of_range_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        spec(**change)
