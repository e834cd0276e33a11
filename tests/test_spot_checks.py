"""Spot checks: the same draw in every run, and an accuracy that nobody's choice of what to answer can embellish."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from src.metrics import proportion
from src.quality.reviewers import last_words, reviewer_agreement
from src.quality.spot_checks import audit, sample
from src.task import Annotation, Failure, Label, TaskSpec

TASK = TaskSpec(name="fruit", version=1, kind="classify", classes={"apple": "", "pear": "", "plum": ""},
                aliases={"apples": "apple"}, system_prompt="", user_prompt="", metric="accuracy")
LABELS = [Label(f"{n:064x}", "apple", True, "teacher") for n in range(300)]
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def says(item: str, label: str | None, who: str = "human:ada", minute: int = 0) -> Annotation:
    return Annotation(item=item, annotator=who, prompt_hash="fruit@1", task="fruit", label=label,
                      failure=None if label else Failure.WITHDRAWN, created_at=BEGIN + timedelta(minutes=minute))


def items(labels: list[Label]) -> list[str]:
    return [label.item for label in labels]


# The draw


def test_a_larger_sample_adds_to_a_smaller_one_whatever_the_order_of_labels() -> None:
    small, large = sample(LABELS, 25, seed=7), sample(LABELS[::-1], 100, seed=7)
    assert len(small) == 25 and items(large)[:25] == items(small)
    assert items(sample(LABELS, 25, seed=8)) != items(small)
    assert sample(LABELS, 0, seed=7) == [] and len(sample(LABELS, 10_000, seed=7)) == 300


def test_a_stricter_filter_only_takes_items_out_and_fills_up_behind() -> None:
    lax = items(sample(LABELS, 50, seed=7))
    refused = set(items(LABELS[::3]))
    strict = items(sample([replace(label, accepted=label.item not in refused) for label in LABELS], 50, seed=7))
    kept = [item for item in lax if item not in refused]
    assert 0 < len(kept) < 50 and strict[: len(kept)] == kept and not refused & set(strict)


def test_every_item_is_drawn_equally_often() -> None:
    """25 of 100 items by 600 seeds: each count is binomial, mean 150, deviation 10.6; six deviations allow for 100."""
    counts = dict.fromkeys(items(LABELS[:100]), 0)
    for seed in range(600):
        for label in sample(LABELS[:100], 25, seed):
            counts[label.item] += 1
    assert all(abs(count - 150) < 6 * 10.6 for count in counts.values())
    assert np.std(list(counts.values())) > 5  # and it is a draw, no round robin


# What people's answers say


def test_the_machines_label_is_held_against_the_persons() -> None:
    drawn = items(sample(LABELS, 20, seed=1))
    reviews = [says(item, "pear" if n in (3, 8) else "Apples") for n, item in enumerate(drawn)]
    found = audit(LABELS, reviews, task=TASK, spot_checks=20, seed=1)
    assert found and found.accuracy == proportion(18, 20)
    assert found.wrong == (drawn[3], drawn[8]) and (found.drawn, found.next, found.waiting) == (20, None, 0)


def test_only_answers_before_the_first_gap_count() -> None:
    drawn = items(sample(LABELS, 20, seed=1))
    reviews = [says(item, "apple") for item in drawn[:7] + drawn[9:]]
    found = audit(LABELS, reviews, task=TASK, spot_checks=20, seed=1)
    assert found and found.accuracy == proportion(7, 7) and (found.next, found.waiting) == (drawn[7], 11)


def test_answers_outside_the_sample_do_not_count() -> None:
    order = items(sample(LABELS, 300, seed=1))
    reviews = [says(item, "apple" if n < 20 else "pear") for n, item in enumerate(order)]
    found = audit(LABELS, reviews, task=TASK, spot_checks=20, seed=1)
    assert found and found.accuracy == proportion(20, 20)


def test_the_last_word_counts_and_a_withdrawn_one_is_none() -> None:
    drawn = items(sample(LABELS, 3, seed=1))
    reviews = [says(drawn[0], "apple"), says(drawn[0], "pear", "human:bob", 1), says(drawn[1], "apple", minute=2),
               says(drawn[2], "apple", minute=3), says(drawn[2], None, minute=4)]
    assert last_words(reviews, TASK) == {drawn[0]: "pear", drawn[1]: "apple"}
    found = audit(LABELS, reviews, task=TASK, spot_checks=3, seed=1)
    assert found and found.accuracy == proportion(1, 2) and found.next == drawn[2]


@pytest.mark.parametrize("reviews", [[], [says(LABELS[0].item, None)], [says("f" * 64, "apple")]])
def test_no_answer_is_no_audit(reviews: list[Annotation]) -> None:
    assert audit(LABELS[:1], reviews, task=TASK, spot_checks=25, seed=0) is None
    assert audit([], reviews, task=TASK, spot_checks=25, seed=0) is None
    assert audit(LABELS[:1], [says(LABELS[0].item, "apple")], task=TASK, spot_checks=0, seed=0) is None


@pytest.mark.parametrize("habit", ["answers what is easy", "answers what is doubtful, and a part of the spot checks"])
def test_the_interval_holds_the_truth_whatever_people_like_to_answer(habit: str) -> None:
    """Of 300 accepted labels a tenth is wrong, two thirds of these on items that are hard or flagged. The answers taken
    together miss the truth often; the audit's 95% interval holds it in at least 93% of 150 rounds."""
    rng, rounds = np.random.default_rng(0), 150
    held, naively_held, judged = 0, 0, 0
    for seed in range(rounds):
        wrong = rng.random(len(LABELS)) < 0.1
        special = np.where(wrong, rng.random(len(LABELS)) < 0.66, rng.random(len(LABELS)) < 0.1)
        place = {item: n for n, item in enumerate(items(sample(LABELS, 150, seed)))}
        if habit == "answers what is easy":
            answered = [n for n, label in enumerate(LABELS) if label.item in place and not special[n]]
        else:
            answered = [n for n, label in enumerate(LABELS) if special[n] or place.get(label.item, 999) < 60]
        reviews = [says(LABELS[n].item, "pear" if wrong[n] else "apple") for n in answered]
        accuracy = 1 - wrong.mean()
        naive = proportion(int(sum(not wrong[n] for n in answered)), len(answered))
        naively_held += naive.low <= accuracy <= naive.high
        if found := audit(LABELS, reviews, task=TASK, spot_checks=150, seed=seed):
            judged += 1
            held += found.accuracy.low <= accuracy <= found.accuracy.high
    assert judged > 0.7 * rounds and held >= 0.93 * judged
    assert naively_held < 0.7 * rounds


# Reviewers against each other


def test_reviewers_agree_where_all_say_the_same_last() -> None:
    a, b, c, d, e = items(LABELS[:5])
    reviews = [
        says(a, "apple"), says(a, "Apples", "human:bob"),  # two of one mind
        says(b, "apple"), says(b, "pear", "human:bob"), says(b, "apple", minute=1),  # two of two
        says(c, "pear"), says(c, "pear", "human:bob"), says(c, "apple", "human:bob", 1), says(c, "apple", minute=2),
        says(d, "apple"), says(d, "pear", minute=1),  # one alone, who changed their mind
        says(e, "apple"), says(e, "pear", "human:bob"), says(e, None, "human:bob", 1),  # one withdrew
    ]
    assert reviewer_agreement(reviews, TASK) == proportion(2, 3)
    assert reviewer_agreement(reviews[9:], TASK) is None
    third = [*reviews, says(a, "plum", "human:eve")]
    assert reviewer_agreement(third, TASK) == proportion(1, 3)
