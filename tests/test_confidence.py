"""Probabilities of being right: honest on items they were not fitted on, whatever annotators say of themselves."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from src.metrics import ece, proportion
from src.quality.conclude import conclude
from src.quality.confidence import reliability, with_probability
from src.quality.spec import QualitySpec
from src.task import Annotation, Failure, Item, Label, Panel, TaskSpec

NAMES = ["ant", "bee", "cow", "dog"]
TASK = TaskSpec(name="zoo", version=1, kind="classify", classes=dict.fromkeys(NAMES, ""), aliases={}, system_prompt="",
                user_prompt="", metric="accuracy")
GOLD, POOL = 200, 1500


def spec(**changes: Any) -> QualitySpec:
    return QualitySpec(**({
        "consensus": "agreement", "disagreements": "drop", "min_confidence": 0.0, "min_probability": 0.0,
        "heuristics": "off", "second_look_share": 0.0, "second_looks": 1, "folds": 3, "gold_half_width": 0.05,
        "spot_checks": 0, "reviewer": "ada",
    } | changes))


class World:
    """Items of unequal difficulty, an over-confident teacher that half knows it, and a student.

    Answers to one item share its difficulty, so that mistakes do; the teacher says 0.9, 0.95 or 0.99, or nothing one
    time in ten, and `base` sets its accuracy.
    """

    def __init__(self, seed: int, *, base: float, members: int = 1, passes: int = 2, gold: int = GOLD) -> None:
        rng = np.random.default_rng(seed)
        n = gold + POOL
        truth = rng.integers(4, size=n)
        trap = (truth + rng.integers(1, 4, size=n)) % 4
        ease = base + 1.5 * rng.normal(size=n)
        self.items = [Item(f"{i}", "text", f"{i}") for i in range(n)]
        self.truth = {f"{i}": NAMES[t] for i, t in enumerate(truth)}
        self.truths = dict(list(self.truth.items())[:gold])
        self.panel = Panel(tuple(f"teacher {m}" for m in range(members)), passes)
        self.annotations = []
        for annotator in self.panel.members:
            own = ease + 0.7 * rng.normal(size=n)
            for pass_index in range(passes):
                right = rng.random(n) < 1 / (1 + np.exp(-own))
                feels = 0.7 * (own - base) + 0.7 * rng.normal(size=n)
                says = np.select([feels > 0.5, feels > -0.8], [0.99, 0.95], 0.9)
                told = rng.random(n) < 0.9
                answer = np.where(right, truth, trap)
                self.annotations += [
                    Annotation(f"{i}", annotator, "p", "zoo", pass_index, label=NAMES[answer[i]],
                               confidence=float(says[i]) if told[i] else None) for i in range(n)]
        knows = 1 / (1 + np.exp(-(ease + rng.normal(size=n))))
        student = np.repeat((1 - knows)[:, None] / 3, 4, axis=1)
        student[np.arange(n), truth] = knows
        self.out_of_fold = {f"{i}": row for i, row in enumerate(student)}

    def labels(self, *, student: bool = False, **changes: Any) -> list[Label]:
        return conclude(self.items, self.annotations, task=TASK, panel=self.panel, spec=spec(**changes),
                        truths=self.truths, out_of_fold=self.out_of_fold if student else None)

    def held_out(self, labels: Sequence[Label]) -> tuple[Any, Any]:
        """Probabilities and outcomes of the labels that gold does not hold."""
        judged = [label for label in labels if label.label and label.item not in self.truths]
        return (np.array([label.probability for label in judged], dtype=float),
                np.array([label.label == self.truth[label.item] for label in judged]))


# Honest


@pytest.mark.parametrize(("base", "how", "panel"), [
    (1.0, {}, {}),
    (2.5, {}, {}),
    (1.0, {"disagreements": "soft"}, {}),
    (2.5, {"consensus": "majority"}, {"members": 3, "passes": 1}),
    (1.0, {"consensus": "dawid_skene"}, {"members": 3, "passes": 1}),
    (1.0, {"consensus": "crowdlab", "student": True}, {}),
])
def test_probabilities_keep_their_word_on_items_they_have_not_seen(
    base: float, how: dict[str, Any], panel: dict[str, int]
) -> None:
    """Teachers of 0.65 and 0.85 accuracy that say 0.95; 500 gold items, whose own chance the limits allow for."""
    gaps, calibrated_ece = [], []
    for seed in range(3):
        world = World(seed, base=base, gold=500, **panel)
        probability, right = world.held_out(world.labels(**how))
        gaps.append(probability.mean() - right.mean())
        calibrated_ece.append(ece(probability, right))
    assert abs(np.mean(gaps)) < 0.025
    assert np.mean(calibrated_ece) < 0.045


def test_what_annotators_say_tells_labels_apart_though_it_is_not_believed() -> None:
    """Of labels that agree, 0.9 means one right in three and 0.99 nearly all."""
    world = World(0, base=1.0, gold=1000)
    labels = [label for label in world.labels() if label.label and label.item not in world.truths]
    for said, near in ((0.9, 0.35), (0.95, 0.87), (0.99, 0.98)):
        alike = [label for label in labels if label.confidence == said]
        assert len(alike) > 100
        mean = np.mean([label.probability for label in alike if label.probability is not None])
        assert mean == pytest.approx(np.mean([label.label == world.truth[label.item] for label in alike]), abs=0.07)
        assert mean == pytest.approx(near, abs=0.1)


def test_only_the_order_of_what_annotators_say_counts() -> None:
    world = World(1, base=1.5)
    before = world.labels()
    other = {0.9: 0.1, 0.95: 0.11, 0.99: 1.0, None: None}
    world.annotations = [replace(a, confidence=other[a.confidence]) for a in world.annotations]
    assert [label.probability for label in world.labels()] == [label.probability for label in before]


def test_split_votes_are_judged_apart() -> None:
    """Where two passes contradict, the label is a coin's, however sure its pass says it is."""
    world = World(2, base=1.0, gold=1000)
    split = [label for label in world.labels(disagreements="soft") if len(set(label.votes)) > 1]
    for said in (0.9, 0.95, 0.99):
        alike = [label.probability for label in split if label.confidence == said]
        assert np.mean(alike) == pytest.approx(0.5, abs=0.15)


def test_the_students_word_sharpens_probabilities() -> None:
    world = World(3, base=1.5)
    errors = []
    for student in (False, True):
        probability, right = world.held_out(world.labels(student=student))
        errors.append(np.mean((probability - right) ** 2))
    assert errors[1] < errors[0] - 0.02


def test_confidence_that_nobody_said_drops_nothing() -> None:
    """Missing words are no doubt: the probability comes from the rest."""
    world = World(4, base=2.5)
    world.annotations = [replace(a, confidence=None) for a in world.annotations]
    labels = [label for label in world.labels(min_probability=0.8) if label.label]
    assert all(label.accepted for label in labels)
    probability, right = world.held_out(labels)
    assert probability.mean() == pytest.approx(right.mean(), abs=0.05)


def test_that_confidence_is_missing_counts_by_itself() -> None:
    """Half of the labels have none, and all mistakes are among these."""
    labels, truths = [], {}
    for i in range(400):
        silent = i % 2 == 0
        labels.append(label_of(f"{i}", "ant", confidence=None if silent else 0.9))
        truths[f"{i}"] = "bee" if silent and i % 4 == 0 else "ant"
    gold = dict(list(truths.items())[:200])
    made = with_probability(labels, truths=gold, names=NAMES)[200:]
    assert {label.confidence is None: round(label.probability or 0, 1) for label in made} == {True: 0.5, False: 1.0}


# Little gold


def label_of(item: str, label: str | None = "ant", *, votes: tuple[str | None, ...] = ("ant", "ant"),
             **fields: Any) -> Label:
    return Label(item, label, True, "teacher", votes=votes, **({"distribution": (0.9, 0.1, 0.0, 0.0)} | fields))


def test_without_mistakes_the_share_is_jeffreys() -> None:
    """Of 20 right, gold's own are judged by the other 16; the confidence says nothing yet."""
    labels = [label_of(f"{i}", confidence=0.5 + i / 100) for i in range(30)]
    made = with_probability(labels, truths={f"{i}": "ant" for i in range(20)}, names=NAMES)
    assert [label.probability for label in made[:20]] == pytest.approx([16.5 / 17] * 20)
    assert [label.probability for label in made[20:]] == pytest.approx([20.5 / 21] * 10)


def test_split_votes_have_a_share_of_their_own() -> None:
    """Gold: 12 of one voice, 3 mistakes; 4 split, 2 mistakes. A label of one vote and a failure is of one voice."""
    labels = [label_of(f"{i}") for i in range(12)]
    labels += [label_of(f"{i}", votes=("ant", "bee")) for i in range(12, 16)]
    labels += [label_of("x", votes=("ant", None)), label_of("y", votes=("bee", None, "ant")), label_of("z", None)]
    wrong = {"0", "1", "2", "12", "13"}
    truths = {f"{i}": "bee" if f"{i}" in wrong else "ant" for i in range(16)}
    x, y, z = with_probability(labels, truths=truths, names=NAMES)[-3:]
    assert (x.probability, y.probability, z.probability) == (pytest.approx(9.5 / 13), pytest.approx(2.5 / 5), None)


@pytest.mark.parametrize("gold", [0, 1, 9])
def test_with_little_gold_nothing_is_said(gold: int) -> None:
    labels = [label_of(f"{i}") for i in range(20)]
    made = with_probability(labels, truths={f"{i}": "ant" for i in range(gold)}, names=NAMES)
    assert made == labels
    assert with_probability(labels, truths={f"{i}": "ant" for i in range(10)}, names=NAMES) != labels


def test_where_gold_has_no_split_votes_they_have_no_probability() -> None:
    labels = [label_of(f"{i}") for i in range(20)] + [label_of("x", votes=("ant", "bee"))]
    assert with_probability(labels, truths={f"{i}": "ant" for i in range(20)}, names=NAMES)[-1].probability is None


def test_evidence_beyond_golds_counts_as_golds_most_extreme() -> None:
    labels = [label_of(f"{i}", distribution=(0.6 + (i % 3) / 10, 0.2, 0.1, 0.1)) for i in range(60)]
    truths = {f"{i}": "ant" if i % 3 == 2 or i % 2 else "bee" for i in range(60)}
    beyond = [label_of("x", distribution=(0.8, 0.2, 0.0, 0.0)), label_of("y", distribution=(1.0, 0.0, 0.0, 0.0))]
    x, y = with_probability([*labels, *beyond], truths=truths, names=NAMES)[-2:]
    assert x.probability == y.probability


def test_golds_own_labels_are_not_judged_by_themselves() -> None:
    """A student that knows nothing looks useful in the sample it was fitted on, and must not look so here."""
    excess = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        right = rng.random(40) < 0.5
        truths = {f"{i}": "ant" if right[i] else "bee" for i in range(40)}
        noise = {f"{i}": rng.dirichlet(np.ones(4)) for i in range(40)}
        labels = [label_of(f"{i}", confidence=float(rng.random())) for i in range(40)]
        made = with_probability(labels, truths=truths, names=NAMES, out_of_fold=noise)
        probability = np.array([label.probability for label in made], dtype=float)
        excess.append(np.mean((probability - right) ** 2) - right.mean() * (1 - right.mean()))
    assert np.mean(excess) > 0


# The threshold


@pytest.mark.parametrize(("gold", "threshold", "accepted", "reason"), [
    (20, 0.9, True, ""), (20, 0.99, False, "probability below 0.99"), (20, 0.0, True, ""), (0, 0.0, True, ""),
    (9, 0.5, False, "probability unknown: gold is too small to tell"),
])
def test_labels_below_the_threshold_are_refused(gold: int, threshold: float, accepted: bool, reason: str) -> None:
    keys = [f"{i}" for i in range(gold + 1)]
    answers = [Annotation(key, "t", "p", "zoo", label="ant", confidence=1.0) for key in keys]
    label = conclude([Item(key, "", "") for key in keys], answers, task=TASK, panel=Panel(("t",), 1),
                     spec=spec(min_probability=threshold), truths=dict.fromkeys(keys[:-1], "ant"))[-1]
    assert (label.label, label.accepted, label.reason) == ("ant", accepted, reason)
    assert label.probability == (pytest.approx(20.5 / 21) if gold == 20 else None)


def test_a_person_needs_no_probability() -> None:
    """Gold tells how often the teacher is right, not how often a person is."""
    keys = [f"{i}" for i in range(20)]
    answers = [Annotation(key, "t", "p", "zoo", label="ant") for key in [*keys, "x", "y"]]
    answers.append(Annotation("y", "human:ada", "p", "zoo", label="bee"))
    *_, x, y = conclude([Item(key, "", "") for key in [*keys, "x", "y"]], answers, task=TASK, panel=Panel(("t",), 1),
                        truths=dict.fromkeys(keys, "ant"), spec=spec(min_probability=0.99))
    assert (x.accepted, x.probability) == (False, pytest.approx(20.5 / 21))
    assert (y.label, y.accepted, y.probability, y.distribution) == ("bee", True, None, (0, 1, 0, 0))


# Gold's own report


def test_reliability_by_hand() -> None:
    """Four gold labels, three right; the fifth has no word, the sixth no probability, the seventh is not gold's."""
    labels = [
        label_of("a", confidence=1.0, probability=0.8), label_of("b", confidence=1.0, probability=0.8),
        label_of("c", confidence=0.9, probability=0.6), label_of("d", confidence=0.9, probability=0.6),
        label_of("e", probability=0.1), label_of("f", confidence=0.1), label_of("g", confidence=0.1, probability=0.1),
    ]
    found = reliability(labels, {"a": "ant", "b": "ant", "c": "ant", "d": "bee", "e": "ant", "f": "ant"})
    assert found is not None and found.said is not None
    assert found.accuracy == proportion(3, 4)
    assert (found.said.mean, found.said.ece) == (pytest.approx(0.95), pytest.approx(0.2))
    assert found.said.brier == pytest.approx((0.1**2 + 0.9**2) / 4)
    assert (found.calibrated.mean, found.calibrated.ece) == (pytest.approx(0.7), pytest.approx(0.15))
    assert found.calibrated.brier == pytest.approx((2 * 0.2**2 + 0.4**2 + 0.6**2) / 4)


@pytest.mark.parametrize(("right", "wrong", "split_wrong", "one_for_all"), [
    (60, 0, 0, True), (56, 4, 0, True), (55, 5, 0, False), (4, 30, 0, True), (30, 4, 4, True), (30, 1, 5, False)])
def test_one_probability_for_all_is_told_as_such(right: int, wrong: int, split_wrong: int, one_for_all: bool) -> None:
    """Its calibration error is next to nothing by construction. Labels of split votes are judged by themselves."""
    truths = {f"{i}": "ant" for i in range(right + wrong + 2 * split_wrong)}
    answers = ["ant"] * right + ["bee"] * wrong
    labels = [label_of(f"{i}", label, votes=(label,), confidence=0.9 + 0.001 * i) for i, label in enumerate(answers)]
    labels += [label_of(f"{right + wrong + i}", label, votes=("ant", "bee"), confidence=0.9 + 0.001 * i)
               for i, label in enumerate(["ant", "bee"] * split_wrong)]
    pool = [label_of(f"x{i}", votes=votes, confidence=0.9 + 0.001 * i) for i in range(9)
            for votes in ((("ant",), ("ant", "bee")) if split_wrong else (("ant",),))]
    made = with_probability([*labels, *pool], truths=truths, names=NAMES)
    found = reliability(made[:len(labels)], truths)
    assert found and found.one_for_all == one_for_all
    kinds = 2 if split_wrong else 1
    assert (len({label.probability for label in made[len(labels):]}) == kinds) == one_for_all


def test_reliability_without_words_or_without_gold() -> None:
    found = reliability([label_of("a", probability=0.75), label_of("b", probability=0.75)], {"a": "ant", "b": "bee"})
    assert found is not None
    assert (found.said, found.accuracy.n, found.calibrated.mean) == (None, 2, 0.75)
    assert reliability([label_of("a", probability=0.75)], {}) is None
    assert reliability([label_of("a", confidence=0.75)], {"a": "ant"}) is None


def test_calibration_mends_over_confidence() -> None:
    """Cross-validated on gold itself."""
    world = World(5, base=1.0)
    found = reliability(world.labels(), world.truths)
    assert found is not None and found.said is not None
    assert found.said.mean > found.accuracy.high
    assert found.accuracy.low < found.calibrated.mean < found.accuracy.high
    assert found.calibrated.brier < found.said.brier - 0.03
    assert found.calibrated.ece < found.said.ece / 1.5


def test_a_failed_answer_is_no_evidence() -> None:
    answers = [Annotation(f"{i}", "t", "p", "zoo", label=None, failure=Failure.REFUSAL) for i in range(20)]
    labels = conclude([Item(f"{i}", "", "") for i in range(20)], answers, task=TASK, panel=Panel(("t",), 1),
                      spec=spec(), truths={f"{i}": "ant" for i in range(20)})
    assert {label.probability for label in labels} == {None}
    assert not any(math.isnan(p) for label in labels for p in label.distribution)
