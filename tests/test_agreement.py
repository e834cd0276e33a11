"""How good the answers look: agreement, accuracy and collapse, by hand and against scikit-learn's kappa."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from fruit_answers import NAMES, PANEL, TASK, TEACHER, failed, reviewed, said
from sklearn.metrics import cohen_kappa_score

from src.errors import QualityError
from src.labeling.ask import PREFLIGHT
from src.metrics import proportion
from src.quality.agreement import agreement, check_collapse, label_accuracy, teacher_accuracy, teacher_confusion
from src.task import SECOND_LOOK, Annotation, Failure, Label, Panel


def two_passes(*pairs: tuple[str | None, str | None]) -> list[Annotation]:
    return [said(label, n, item=f"i{k}") if label else failed(Failure.REFUSAL, n, item=f"i{k}")
            for k, pair in enumerate(pairs) for n, label in enumerate(pair)]


def test_agreement_by_hand() -> None:
    """As spelt 2 of 5 agree, as classes 4. An answer without its partner is no pair, but counts for the spelling."""
    found = agreement(two_passes(("apple", "apple"), ("Apples", "apple"), ("pear", "pear"), ("pear", "apple"),
                                 ("Orange", "orange "), ("apple", None), (None, None)), TASK, PANEL)
    assert found is not None
    assert (found.raw, found.mapped) == (proportion(2, 5), proportion(4, 5))
    # p_e = (2·3 + 2·1 + 1·1) / 25, kappa = (0.8 − 0.36) / 0.64
    assert found.kappa == pytest.approx(0.6875)
    assert found.spelt == pytest.approx(8 / 11)


def test_kappa_is_scikit_learns() -> None:
    rng = random.Random(0)
    truth = [rng.choice(NAMES) for _ in range(300)]
    pairs = [tuple(t if rng.random() < 0.8 else rng.choice(NAMES) for _ in (0, 1)) for t in truth]
    found = agreement(two_passes(*pairs), TASK, PANEL)  # type: ignore[arg-type]
    assert found is not None
    first, second = zip(*pairs, strict=True)
    assert found.kappa == pytest.approx(cohen_kappa_score(first, second))
    assert 0.5 < found.kappa < found.mapped.value < 1
    assert found.mapped.value == sum(a == b for a, b in pairs) / 300


def test_kappa_of_independent_answers_is_nothing() -> None:
    rng = random.Random(0)
    pairs = [(rng.choices(NAMES, [9, 1, 1, 1])[0], rng.choices(NAMES, [9, 1, 1, 1])[0]) for _ in range(2000)]
    found = agreement(two_passes(*pairs), TASK, PANEL)
    assert found is not None
    assert abs(found.kappa) < 0.08
    assert found.mapped.value > 0.5


def test_one_class_alone_has_no_kappa() -> None:
    found = agreement(two_passes(*[("apple", "apple")] * 5), TASK, PANEL)
    assert found is not None
    assert math.isnan(found.kappa) and math.isnan(found.alpha)
    assert found.mapped.value == 1


def test_with_three_passes_every_pair_counts() -> None:
    given = [said(label, n) for n, label in enumerate(["apple", "apple", "pear"])]
    found = agreement(given, TASK, Panel((TEACHER,), 3))
    assert found is not None
    assert found.mapped == proportion(1, 3)


def test_kappa_of_three_opinions_is_the_mean_of_pairs() -> None:
    rng = random.Random(1)
    truth = [rng.choice(NAMES) for _ in range(200)]
    columns = [[t if rng.random() < accuracy else rng.choice(NAMES) for t in truth] for accuracy in (0.9, 0.8, 0.6)]
    given = [said(label, item=f"i{n}", annotator=f"model {m}") for m, column in enumerate(columns)
             for n, label in enumerate(column)]
    found = agreement(given, TASK, Panel(("model 0", "model 1", "model 2"), 1))
    assert found is not None
    pairs = [(0, 1), (0, 2), (1, 2)]
    assert found.kappa == pytest.approx(sum(cohen_kappa_score(columns[a], columns[b]) for a, b in pairs) / 3)
    assert found.mapped.n == 600
    assert found.mapped.value == sum(columns[a][n] == columns[b][n] for a, b in pairs for n in range(200)) / 600
    assert found.alpha == pytest.approx(found.kappa, abs=0.03)


def test_agreement_is_that_of_members_alone() -> None:
    """An arbiter and second looks see doubtful items only."""
    given = [said("apple", 0), said("apple", 1), said("pear", 2), said("pear", SECOND_LOOK),
             said("pear", annotator="arbiter")]
    found = agreement(given, TASK, Panel((TEACHER,), 2, arbiter="arbiter", second_looks=1))
    assert found is not None
    assert found.mapped == proportion(1, 1)


@pytest.mark.parametrize("given", [[], [said("apple", 0)], [said("apple", 0), failed(Failure.REFUSAL, 1)],
                                   [said("apple", 0), said("apple", 1, item="other")]])
def test_without_a_pair_there_is_no_agreement(given: list[Annotation]) -> None:
    assert agreement(given, TASK, PANEL) is None


def test_a_question_asked_again_counts_once() -> None:
    given = [failed(Failure.TIMEOUT, 0), said("pear", 0, attempt=1), said("apple", 0, attempt=2), said("apple", 1)]
    found = agreement(given, TASK, PANEL)
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
    assert teacher_accuracy(given, truths, TASK) == {TEACHER: proportion(2, 3)}
    assert teacher_accuracy(given, {}, TASK) == {}
    assert teacher_accuracy([], truths, TASK) == {}


def test_an_arbiter_is_judged_on_what_it_was_asked_alone() -> None:
    """Its preflight is about items on which nobody disagrees; members answer theirs as their first pass."""
    panel = Panel((TEACHER,), 1, arbiter="arbiter", second_looks=1)
    given = [said("apple", item="a"), said("pear", item="b"), said("pear", 1, item="c"),
             *(said("apple", PREFLIGHT, item=item, annotator="arbiter") for item in "abcd"),
             said("pear", item="b", annotator="arbiter"), said("apple", SECOND_LOOK, item="e", annotator="arbiter")]
    truths = dict.fromkeys("abcde", "apple")
    assert teacher_accuracy(given, truths, TASK, panel) == {TEACHER: proportion(1, 2), "arbiter": proportion(1, 2)}
    assert teacher_confusion(given, truths, TASK, panel)["arbiter"].sum() == 2
    assert teacher_accuracy(given, truths, TASK)["arbiter"].n == 5  # where no panel says what counts


def test_every_annotator_has_an_accuracy_but_people() -> None:
    given = [said("apple", item="a"), said("pear", item="b"), said("pear", item="a", annotator="other"),
             said("pear", item="c", annotator="silent on gold"), reviewed("pear")]
    truths = {"a": "apple", "b": "apple", "i": "pear"}
    assert teacher_accuracy(given, truths, TASK) == {TEACHER: proportion(1, 2), "other": proportion(0, 1)}


def test_confusion_by_hand() -> None:
    given = [said("apple", item="a"), said("pear", 1, item="a"), said("Apples", item="b"), said("pear", item="c"),
             failed(Failure.REFUSAL, item="d"), said("pear", item="e"), said("orange", item="a", annotator="other")]
    found = teacher_confusion(given, {"a": "apple", "b": "pear", "c": "pear", "d": "pear"}, TASK)
    assert found[TEACHER].tolist() == [[1, 0, 0, 0], [0] * 4, [1, 0, 1, 0], [0] * 4]
    assert found["other"].tolist() == [[0, 1, 0, 0], [0] * 4, [0] * 4, [0] * 4]
    assert teacher_confusion(given, {"x": "apple"}, TASK) == {}


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
    check_collapse(*answered(pairs), TASK, images=True)


@pytest.mark.parametrize("answer", ["pear", None])
def test_nobody_is_told_to_look_for_images_where_there_are_texts(answer: str | None) -> None:
    """Neither where all answers are one, nor where they are at random."""
    pairs = [(NAMES[i % 4], answer or NAMES[(i + 1) % 4]) for i in range(40)]
    for images in (True, False):
        with pytest.raises(QualityError) as error:
            check_collapse(*answered(pairs), TASK, images=images)
        assert ("image" in str(error.value)) == images


@pytest.mark.parametrize("n", [20, 40, 200])
def test_nearly_one_class_stops(n: int) -> None:
    with pytest.raises(QualityError, match=rf"100% of {n} answers are 'pear', but only 25% of gold is: the teacher"):
        check([(NAMES[i % 4], "pear") for i in range(n)])


def test_nearly_one_class_in_the_pool_stops_too() -> None:
    given, truths = answered([(NAMES[i % 4], NAMES[i % 4]) for i in range(20)])
    given += [said("pear", 0, item=f"pool{i}") for i in range(2000)]
    with pytest.raises(QualityError, match=r"99% of 2020 answers are 'pear', but only 25% of gold is"):
        check_collapse(given, truths, TASK, images=True)


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


def test_of_several_the_one_who_does_not_see_is_named() -> None:
    given, truths = answered([(NAMES[i % 4], NAMES[i % 4]) for i in range(40)])
    blind = [replace(annotation, annotator="blind/model", label="pear") for annotation in given]
    check_collapse(given, truths, TASK, images=True)
    with pytest.raises(QualityError, match=r"but only 25% of gold is: blind/model does not seem to see"):
        check_collapse([*given, *blind], truths, TASK, images=True)


@pytest.mark.parametrize("n", [0, 1, 9])
def test_few_answers_say_nothing(n: int) -> None:
    check([(NAMES[i % 4], "pear") for i in range(n)])


def test_few_gold_answers_do_not_tell_chance() -> None:
    given, truths = answered([(NAMES[i % 4], NAMES[(i + 1) % 4]) for i in range(9)])
    check_collapse([*given, *[said(NAMES[i % 4], 0, item=f"pool{i}") for i in range(100)]], truths, TASK,
                   images=True)


def test_without_truth_nothing_is_judged() -> None:
    given, _ = answered([("apple", "pear")] * 50)
    check_collapse(given, {}, TASK, images=True)


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
