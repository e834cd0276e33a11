"""How many opinions there are, how much gold is enough, which labels look wrong: against known truths."""

import random
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from src.data.splits import split
from src.metrics import proportion
from src.quality.gold_size import enough_gold, needed_gold
from src.quality.opinions import Independence, independence, krippendorff_alpha
from src.quality.suspects import suspects
from src.task import SECOND_LOOK, Annotation, Failure, Item, Label, Panel, TaskSpec

NAMES = ["ant", "bee", "cow", "dog"]
TASK = TaskSpec(name="zoo", version=1, kind="classify", classes=dict.fromkeys(NAMES, ""), aliases={}, system_prompt="",
                user_prompt="", metric="accuracy")

# Agreement beyond chance



def test_alpha_is_krippendorffs() -> None:
    """Four observers, twelve units, missing answers (Computing Krippendorff's alpha-reliability, 2011, section C)."""
    rows = [
        [1, 1, None, 1], [2, 2, 3, 2], [3, 3, 3, 3], [3, 3, 3, 3], [2, 2, 2, 2], [1, 2, 3, 4], [4, 4, 4, 4],
        [1, 1, 2, 1], [2, 2, 2, 2], [None, 5, 5, 5], [None, None, 1, 1], [None, 3, None, None],
    ]
    assert krippendorff_alpha([[a for a in row if a] for row in rows]) == pytest.approx(0.743, abs=0.0005)


def test_alpha_of_two_by_hand() -> None:
    """Ten units, two observers, 14 zeros and 6 ones, 4 units of contradiction: 1 - 19 * 8 / (2 * 14 * 6)."""
    pairs = [(0, 1), (1, 0), (0, 1), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0), (1, 0), (1, 1)]
    assert krippendorff_alpha(pairs) == pytest.approx(1 - 19 * 8 / (2 * 14 * 6))


def test_alpha_of_chance_is_nothing_and_of_one_class_unknown() -> None:
    rng = random.Random(0)
    assert abs(krippendorff_alpha([[rng.choice("aab") for _ in range(3)] for _ in range(2000)])) < 0.03
    assert krippendorff_alpha(["aaa", "bbb", "aa"]) == 1
    for nothing in ([], ["a", "b"], ["aa", "aaa"]):
        assert np.isnan(krippendorff_alpha(nothing))


# Independent opinions

THREE = Panel(("a", "b", "c"), 1)


def answers(wrong: Sequence[Sequence[bool]], panel: Panel = THREE) -> tuple[list[Annotation], dict[str, str]]:
    """By item and opinion, whether it is wrong."""
    opinions = [(member, n) for member in panel.members for n in range(panel.passes)]
    given = [Annotation(f"{i}", who, "p", "zoo", n, label="bee" if is_wrong else "ant")
             for i, row in enumerate(wrong) for (who, n), is_wrong in zip(opinions, row, strict=True)]
    return given, {f"{i}": "ant" for i in range(len(wrong))}


def correlated(rho: float, *, n: int, k: int = 3, rate: float = 0.2, seed: int = 0) -> list[list[bool]]:
    """Mistakes at `rate`, of which each opinion takes a share of sqrt(rho) from one common draw."""
    rng = np.random.default_rng(seed)
    common = rng.random((n, 1)) < rate
    own = rng.random((n, k)) < rate
    wrong: list[list[bool]] = np.where(rng.random((n, k)) < rho**0.5, common, own).tolist()
    return wrong


@pytest.mark.parametrize(("rho", "worth"), [(0.0, 3.0), (0.25, 2.0), (0.5, 1.5), (1.0, 1.0)])
def test_shared_mistakes_make_fewer_opinions(rho: float, worth: float) -> None:
    given, truths = answers(correlated(rho, n=2500))
    found = independence(given, truths, TASK, THREE, seed=0)
    assert found.effective is not None
    assert (found.asked, found.effective.n, found.reason) == (3, 2500, "")
    assert found.correlation == pytest.approx(rho, abs=0.04)
    assert found.effective.value == pytest.approx(worth, abs=0.2)


def test_correlation_is_the_mean_over_pairs() -> None:
    wrong = np.array(correlated(0.3, n=300))
    given, truths = answers(wrong.tolist())
    pairs = np.corrcoef(wrong.T)[np.triu_indices(3, 1)]
    found = independence(given, truths, TASK, THREE, seed=0)
    assert found.correlation == pytest.approx(pairs.mean(), abs=0.01)


def test_the_interval_covers_what_is_true() -> None:
    held = 0
    for seed in range(12):
        given, truths = answers(correlated(0.5, n=200, seed=seed))
        effective = independence(given, truths, TASK, THREE, seed=seed).effective
        assert effective is not None
        held += effective.low <= 1.5 <= effective.high
    assert held >= 10


def test_passes_are_opinions_and_second_looks_are_not() -> None:
    panel = Panel(("a",), 2, arbiter="b", second_looks=1)
    given, truths = answers(correlated(1.0, n=100, k=2), panel)
    given += [Annotation(f"{i}", who, "p", "zoo", n, label="cow") for i in range(100)
              for who, n in (("a", SECOND_LOOK), ("b", 0), ("a", 2))]
    found = independence(given, truths, TASK, panel, seed=0)
    assert (found.asked, found.correlation) == (2, pytest.approx(1))


def test_items_with_a_failed_answer_do_not_count() -> None:
    given, truths = answers(correlated(0.0, n=100))
    given[0] = Annotation("0", "a", "p", "zoo", failure=Failure.REFUSAL)
    effective = independence(given, truths, TASK, THREE, seed=0).effective
    assert effective is not None and effective.n == 99


def test_where_gold_cannot_tell_the_reason_is_said() -> None:
    rare = [[i < 3, i < 10, i < 10] for i in range(90)]
    assert independence(*answers(rare), TASK, THREE, seed=0) == Independence(
        3, None, None, "3 mistakes of the best opinion on 90 gold items are too few; data.gold_size of about 300 (or "
                       "so many rows in data.gold_csv) would tell")
    assert independence(*answers([[False] * 3] * 50), TASK, THREE, seed=0).reason == (
        "0 mistakes of the best opinion on 50 gold items are too few")
    assert independence([], {}, TASK, THREE, seed=0).reason.startswith("0 mistakes of the best opinion on 0 gold items")
    one = Panel(("a",), 1)
    assert independence(*answers([[True]] * 50, one), TASK, one, seed=0).reason == "there is only one opinion"


# How much gold


def choose_part(gold_size: int) -> list[Item]:
    """Gold's *choose* part where the config asks for so much gold."""
    items = [Item(f"{i:04}", "text", f"{i}", truth=NAMES[i % 4]) for i in range(4000)]
    return split(items, [], gold=frozenset(), gold_size=gold_size, test_size=8, validation_share=0.2, seed=0,
                 classes=4).choose


@pytest.mark.parametrize(("accuracy", "answered"), [(0.9, 1.0), (0.8, 0.9), (1.0, 0.8)])
def test_the_size_that_is_advised_is_enough_when_it_is_given(accuracy: float, answered: float) -> None:
    """A part of the items never gets a usable answer, of more gold as well."""
    def advised(gold_size: int) -> int | None:
        choose = choose_part(gold_size)
        n = round(answered * len(choose))
        return needed_gold(proportion(round(accuracy * n), n), len(choose), 0.04)

    needed = advised(100)
    assert needed and advised(needed + 8) is None  # shares of it are no whole numbers, and so a little different
    assert advised(round(0.8 * needed)) is not None  # and it is not far more than enough


def test_the_size_that_is_advised_to_count_opinions_tells_when_it_is_given() -> None:
    def told(gold_size: int) -> Independence:
        choose = choose_part(gold_size)
        # One mistake of the first opinion in every 20 items, more of the others; one item in ten has no third answer.
        given = [Annotation(item.key, who, "p", "zoo", label="" if who == "c" and n % 10 == 3 else
                            "bee" if n % every == 1 else "cow") for n, item in enumerate(choose)
                 for who, every in (("a", 20), ("b", 10), ("c", 10))]
        return independence(given, {item.key: "cow" for item in choose}, TASK, THREE, seed=0)

    few = told(80)
    advised, = re.findall(r"data\.gold_size of about (\d+)", few.reason)
    assert few.effective is None and told(int(advised)).effective is not None
    assert told(round(0.8 * int(advised))).effective is None


@pytest.mark.parametrize("accuracy", [0.0, 0.5, 0.8, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("half_width", [0.02, 0.05, 0.1])
def test_enough_gold_is_just_enough(accuracy: float, half_width: float) -> None:
    """By search among the sizes for which the accuracy is a whole number of items."""
    for n in range(20, 3000, 20):
        found = proportion(round(accuracy * n), n)
        if (found.high - found.low) / 2 <= half_width:
            break
    assert n - 20 < enough_gold(accuracy, half_width) <= n


def test_known_sizes_of_gold() -> None:
    """Without a mistake the interval is 1 - 0.025^(1/n) wide; at one half it is nearly the normal one."""
    assert enough_gold(1.0, 0.05) == 36  # 0.025^(1/35) = 0.8999..., 0.025^(1/36) = 0.9026
    assert enough_gold(0.5, 0.05) == pytest.approx(1.96**2 / 4 / 0.05**2, abs=25)
    assert enough_gold(0.9, 0.05) < enough_gold(0.8, 0.05) < enough_gold(0.5, 0.05)


@pytest.mark.parametrize(("accuracy", "half_width"), [(-0.1, 0.05), (1.1, 0.05), (0.9, 0.0), (0.9, 0.5), (0.5, 1e-5)])
def test_sizes_that_make_no_sense_are_refused(accuracy: float, half_width: float) -> None:
    with pytest.raises(ValueError, match=r"accuracy=|half_width="):
        enough_gold(accuracy, half_width)


# Suspects


def label_of(item: str, label: str | None = "ant", **fields: Any) -> Label:
    given = {"accepted": True, "source": "teacher", "distribution": (1.0, 0.0, 0.0, 0.0)} | fields
    return Label(item, label, **given)


def test_a_student_finds_mislabelled_items() -> None:
    """100 of 1,000 labels are wrong and the student, right on four of five, does not know which."""
    rng = np.random.default_rng(0)
    truth = rng.integers(4, size=1000)
    given = np.where(np.arange(1000) < 100, (truth + rng.integers(1, 4, size=1000)) % 4, truth)
    seen = np.where(rng.random(1000) < 0.8, truth, rng.integers(4, size=1000))
    student = 0.6 * np.eye(4)[seen] + 0.4 * rng.dirichlet(np.ones(4), 1000)
    labels = [label_of(f"{i:04}", NAMES[given[i]]) for i in range(1000)]
    found = suspects(labels, gold={}, names=NAMES, out_of_fold={f"{i:04}": student[i] for i in range(1000)})
    wrong = [int(label.item) < 100 for label in found]
    assert len(found) == 1000
    assert roc_auc_score(wrong, -np.arange(1000)) > 0.85
    assert sum(wrong[:100]) > 30


def test_the_margin_decides_between_labels_of_one_probability() -> None:
    """0.4 of four against 0.6 is more suspicious than 0.4 against three times 0.2."""
    student = {"alone": [0.4, 0.2, 0.2, 0.2], "beaten": [0.4, 0.6, 0.0, 0.0], "sure": [0.9, 0.1, 0.0, 0.0]}
    found = suspects([label_of(item) for item in student], gold={}, names=NAMES, out_of_fold=student)
    assert [label.item for label in found] == ["beaten", "alone", "sure"]


def test_without_a_student_probability_decides_then_consensus_then_words_then_the_key() -> None:
    labels = [
        label_of("f"), label_of("a"), label_of("d", probability=0.9, confidence=0.3), label_of("e", probability=0.9),
        label_of("c", probability=0.9, distribution=(0.6, 0.4, 0.0, 0.0)), label_of("b", probability=0.2),
    ]
    for order in (labels, labels[::-1]):
        assert [label.item for label in suspects(order, gold={}, names=NAMES)] == ["b", "c", "d", "e", "a", "f"]


def test_those_that_no_student_judged_come_after_those_it_did() -> None:
    labels = [label_of("a", probability=0.1), label_of("b", probability=0.9)]
    found = suspects(labels, gold={}, names=NAMES, out_of_fold={"b": [1.0, 0.0, 0.0, 0.0]})
    assert [label.item for label in found] == ["b", "a"]


def test_people_gold_and_what_nobody_learns_from_are_never_suspected() -> None:
    labels = [label_of("person", source="human:ada", reason="reviewed"), label_of("gold"), label_of("fine"),
              label_of("refused", accepted=False), label_of("none", None, accepted=False)]
    student = {label.item: [0.0, 1.0, 0.0, 0.0] for label in labels}
    for out_of_fold in (None, student):
        found = suspects(labels, gold={"gold": "ant"}, names=NAMES, out_of_fold=out_of_fold)
        assert [label.item for label in found] == ["fine"]
