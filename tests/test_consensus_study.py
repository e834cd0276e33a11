"""Opinions at equal spend: the study's own arithmetic, and what a real LLM's recorded answers show."""

import csv
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from conftest import SHARED
from jobs import call
from scipy import stats

from src import benchmark
from src.benchmarks import consensus
from src.benchmarks.consensus import (
    ALONE,
    ARMS,
    BASE,
    CHEAP_USD,
    ERROR_RATES,
    GOOD,
    POOR,
    STRONG,
    Bought,
    Crowd,
    Outcome,
)
from src.benchmarks.recorded import Recorded
from src.config import Job
from src.errors import DataError
from src.metrics import proportion
from src.quality.spot_checks import sample
from src.task import Annotation, Label

REVIEWS = SHARED / "movie_reviews" / "train.csv"


def wrong(crowd: Crowd, annotations: list[Annotation]) -> np.ndarray:
    truths = {item.key: item.truth for item in crowd.items}
    return np.array([a.label != truths[a.item] for a in annotations])


@pytest.mark.parametrize("common", [0.0, 0.5, 1.0])
def test_teachers_err_as_often_and_as_much_alike_as_is_said(common: float) -> None:
    crowd = Crowd(common=common, seed=0)
    first, second = (wrong(crowd, crowd.ask(ALONE, crowd.items, n)) for n in (0, 1))
    good, poor, strong = (wrong(crowd, crowd.ask(who, crowd.items)) for who in (GOOD, POOR, STRONG))
    for who, errs in ((ALONE, first), (ALONE, second), (GOOD, good), (POOR, poor), (STRONG, strong)):
        told = proportion(int(errs.sum()), len(errs), level=0.999)
        assert told.low < ERROR_RATES[who] < told.high

    def together(left: float, right: float) -> float:
        """How often both err, where the less frequent one's common errors are all the other's too."""
        shared = common * min(left, right)
        own = [(rate - common * rate) / (1 - common * rate) for rate in (left, right)]
        only = (common * max(left, right) - shared) * own[0 if left < right else 1]
        return shared + only + (1 - common * max(left, right)) * own[0] * own[1]

    for (a, left), (b, right) in (((ALONE, first), (ALONE, second)), ((GOOD, good), (POOR, poor)),
                                  ((STRONG, strong), (ALONE, first))):
        both = proportion(int((left & right).sum()), len(left), level=0.999)
        assert both.low < together(ERROR_RATES[a], ERROR_RATES[b]) < both.high


def test_every_way_spends_as_much() -> None:
    crowd = Crowd(common=0.5, seed=0)
    for arm, buy in ARMS.items():
        bought = buy(crowd, 300)
        assert 290 * CHEAP_USD < bought.cost_usd < 300.5 * CHEAP_USD, arm
        assert [label.item for label in bought.labels] == [item.key for item in crowd.items[: bought.items]], arm


def test_the_stronger_teacher_looks_at_what_is_most_likely_wrong() -> None:
    crowd = Crowd(common=0.0, seed=0)
    labels = ARMS["one pass, re-asked, agreement"](crowd, 600).labels
    truths = {item.key: item.truth for item in crowd.items}
    looked_at = [label for label in labels if len(label.votes) == 2]
    assert len(looked_at) == 40 and len(labels) == 400
    assert fmean(label.votes[0] != truths[label.item] for label in looked_at) > 0.8
    assert fmean(label.votes[1] == truths[label.item] for label in looked_at) > 0.8
    assert all(label.accepted == (len(set(label.votes)) == 1) for label in labels)


def test_agreement_shows_no_error_that_both_passes_make() -> None:
    """Without common errors, two passes agree on a wrong label once in hundreds; with nothing else, they always do."""
    for common in (0.0, 1.0):
        crowd = Crowd(common=common, seed=1)
        labels = ARMS["two passes, agreement"](crowd, 1200).labels
        alone = wrong(crowd, crowd.ask(ALONE, crowd.items[:600]))
        accepted = np.array([label.accepted for label in labels])
        right = np.array([label.label == item.truth for label, item in zip(labels, crowd.items, strict=False)])
        if common:
            assert accepted.all() and (right == ~alone).all() and alone.mean() > 0.1
        else:
            assert accepted.mean() < 0.8 and right[accepted].mean() > 0.97


@pytest.mark.parametrize("arm", ["one pass, re-asked, CROWDLAB", "two teachers, re-asked, CROWDLAB"])
def test_no_label_is_what_nobody_answered(arm: str) -> None:
    """However sure a student is. Of two answers that contradict each other, it chooses well."""
    for common in (0.0, 1.0):
        crowd = Crowd(common=common, seed=0)
        labels = ARMS[arm](crowd, 1200).labels
        assert all(label.label in label.votes for label in labels)
        assert all(label.accepted for label in labels)
        truths = {item.key: item.truth for item in crowd.items}
        right = fmean(label.label == truths[label.item] for label in labels)
        assert right > fmean(label.votes[0] == truths[label.item] for label in labels) + 0.01


def test_students_learn_from_probabilities_where_opinions_differ_and_that_is_wanted() -> None:
    crowd = Crowd(common=0.0, seed=0)
    bought = ARMS[BASE](crowd, 300)
    plain = crowd.judge(bought)
    assert plain.softness == 0 and plain.coverage == 1
    names = crowd.task.names
    following = dict(zip(names, [*names[1:], names[0]], strict=True))
    truths = {item.key: str(item.truth) for item in crowd.items}
    # Every label is wrong, and says 4 to 1 that it is.
    labels = [replace(label, label=following[truths[label.item]], votes=(names[0], names[1]), distribution=tuple(
        0.8 * (name == truths[label.item]) + 0.2 * (name == following[truths[label.item]]) for name in names))
        for label in bought.labels]
    hard, soft = (crowd.judge(Bought(300, labels, 0.0, kind)) for kind in ("drop", "soft"))
    assert hard.accuracy == soft.accuracy == 0 and hard.student < 0.1 < 0.85 < soft.student
    assert hard.softness == soft.softness == pytest.approx(soft.student - hard.student)
    alike = [replace(label, votes=(names[0], names[0])) for label in labels]
    assert crowd.judge(Bought(300, alike, 0.0, "soft")).student == hard.student
    dropped = [replace(label, accepted=n % 3 == 0) for n, label in enumerate(bought.labels)]
    assert crowd.judge(Bought(300, dropped, 0.0)).coverage == pytest.approx(1 / 3)
    with pytest.raises(DataError, match="No label was accepted"):
        crowd.judge(Bought(300, [replace(label, accepted=False) for label in labels], 0.0))
    assert {arm: buy(crowd, 150).disagreements for arm, buy in ARMS.items()} == dict.fromkeys(ARMS, "drop") | {
        "two passes, disagreements soft": "soft"}


def test_out_of_fold_no_student_learned_from_the_label_that_it_judges_or_from_one_not_accepted() -> None:
    crowd = Crowd(common=0.0, seed=0)
    labels = ARMS[BASE](crowd, 300).labels
    before = crowd.out_of_fold(labels)
    other = next(name for name in crowd.task.names if name != labels[7].label)
    for changed in (replace(labels[7], label=other), replace(labels[7], accepted=False)):
        after = crowd.out_of_fold([*labels[:7], changed, *labels[8:]])
        np.testing.assert_array_equal(before[labels[7].item], after[labels[7].item])
        assert sum(not np.array_equal(before[key], after[key]) for key in before) > 200
    np.testing.assert_allclose([np.sum(row) for row in before.values()], 1)


def outcome(student: float, softness: float = 0.0) -> Outcome:
    return Outcome(10, 1.0, 0.9, student, softness, 1.0)


def test_findings_are_paired_and_say_only_what_is_sure() -> None:
    base = [0.80, 0.90, 0.70, 0.85]  # far apart, so that nothing is sure unless seeds are paired
    by_arm = {BASE: [outcome(x) for x in base],
              "better": [outcome(x + d) for x, d in zip(base, (0.01, 0.02, 0.015, 0.012), strict=True)],
              "unsure": [outcome(x + d, 0.01) for x, d in zip(base, (0.01, -0.02, 0.015, 0.0), strict=True)],
              "worse": [outcome(x + d, d - 0.1) for x, d in zip(base, (-0.05, -0.04, -0.05, -0.06), strict=True)]}
    gained = consensus.gain(by_arm, "better")
    low, high = stats.t.interval(0.95, 3, loc=gained.value, scale=stats.sem([0.01, 0.02, 0.015, 0.012]))
    assert (gained.low, gained.high, gained.n) == (pytest.approx(low), pytest.approx(high), 4)
    (line,) = consensus.findings({0.5: by_arm})
    assert "Students surely better than after one pass: “better”; surely worse: “worse”." in line
    assert "Students surely better for soft labels: “unsure”; surely worse: “worse”." in line


def test_the_suite_prints_tables_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chart = tmp_path / "there" / "chart.png"
    assert call(benchmark.main, "suite=consensus", f"home={tmp_path}", "spend=150", "shares=[0.0,1.0]", "seeds=2",
                f"chart={chart}") == 0
    told = capsys.readouterr().out
    assert "SIMULATED: 0% of errors" in told and "SIMULATED: 100% of errors" in told
    assert "100% common: labels are best by" in told and "Recorded answers of a real LLM: skipped" in told
    pictures = [*tmp_path.rglob("consensus.png"), chart]
    assert len(pictures) == 2 and all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    assert all(str(path) in told.replace("\n", "") for path in pictures)


@pytest.mark.parametrize(("override", "told"), [
    ("spend=1201", "spend=1201 is not allowed: 150 to 1200"), ("seeds=1", "seeds=1 is not allowed"),
    ("shares=[0.5,1.5]", "shares=[0.5, 1.5] is not allowed"), ("shares=[]", "shares=[] is not allowed"),
])
def test_what_cannot_be_studied_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str,
                                           told: str) -> None:
    assert call(benchmark.main, "suite=consensus", f"home={tmp_path}", override) == 1
    assert told in capsys.readouterr().err


# Recorded answers


def test_other_files_are_refused(tmp_path: Path, make_job: Callable[..., Job]) -> None:
    quality = make_job("+experiment=demo").quality
    with pytest.raises(DataError, match="cannot be read as a UTF-8 CSV file"):
        Recorded(tmp_path / "none.csv", quality)
    for text, lacking in (("text,gold\na,b\n", "llm_label"), ("", "text"), ("gold,llm_label\n", "text")):
        (tmp_path / "other.csv").write_text(text)
        with pytest.raises(DataError, match=f"lacks the column '{lacking}'"):
            Recorded(tmp_path / "other.csv", quality)


@pytest.fixture(scope="module")
def real() -> Recorded:
    return Recorded(REVIEWS, Crowd(common=0.0, seed=0).quality)


@pytest.fixture(scope="module")
def ranked(real: Recorded) -> list[Label]:
    """Most suspicious first; a student is trained for it."""
    return real.suspects()


@pytest.mark.shared
def test_the_llm_is_as_right_as_the_file_says(real: Recorded) -> None:
    with REVIEWS.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    answered = [row for row in rows if row["llm_label"]]
    assert (len(rows), len(real.items)) == (8662, 8662)
    assert real.accuracy.n == len(answered) == sum(label.accepted for label in real.labels) == 8278
    assert real.accuracy.value == pytest.approx(fmean(row["llm_label"] == row["gold"] for row in answered))


@pytest.mark.shared
def test_the_interval_from_200_gold_items_covers_the_llms_true_accuracy(real: Recorded) -> None:
    """At least 95% of the time by its construction; the standard error of 1,000 draws is 0.7 points."""
    assert real.gold_covers(200, draws=1000, seed=0) >= 0.93


@pytest.mark.shared
def test_filters_buy_accuracy_with_coverage(real: Recorded, ranked: list[Label]) -> None:
    """Those that a student doubts are wrong far more often, and most of them are right all the same."""
    kept = [real.right(ranked[round(share * len(ranked)):]) for share in (0, 0.05, 0.1, 0.2)]
    assert kept[0].value == real.accuracy.value
    assert all(later.value > earlier.value for earlier, later in pairwise(kept))
    assert kept[3].low > kept[0].high
    doubted = real.right(ranked[: len(ranked) // 20])
    assert 0.5 < doubted.low < doubted.high < kept[0].low


@pytest.mark.shared
def test_audits_correct_most_where_a_student_doubts_and_estimate_where_lots_decide(real: Recorded,
                                                                                  ranked: list[Label]) -> None:
    true, size = real.accuracy.value, 800
    by_lot, by_doubt = (real.corrected(part) for part in (sample(real.labels, size, 0), ranked[:size]))
    # People correct what they look at, and nothing else.
    assert by_doubt.value == pytest.approx(true + fmean(
        label.label != real.truths[label.item] for label in ranked[:size]) * size / 8278)
    assert by_doubt.value - by_lot.value > 0.004 and by_lot.value - true > 0.003

    told = [real.audited(sample(real.labels, 200, seed), size=200, seed=seed) for seed in range(200)]
    assert {interval.n for interval in told if interval} == {200} and None not in told
    assert fmean(interval.low <= true <= interval.high for interval in told if interval) >= 0.93
    assert real.right(ranked[:size]).high < true - 0.05
    # Reviews of what is doubtful stand for nothing else: at most the few that were drawn as well, up to the first gap.
    for seed in range(20):
        little = real.audited(ranked[:size], size=200, seed=seed)
        assert little is None or little.n < 10


@pytest.mark.shared
def test_the_suite_prints_the_recorded_answers(real: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    from src.benchmarks import recorded

    recorded.run(REVIEWS, Crowd(common=0.0, seed=0).quality)
    told = capsys.readouterr().out
    assert "RECORDED: a real LLM on the 8662 items of train.csv" in told and "not an estimate" in told
    assert "The LLM is right on 0.937 [0.932, 0.942], n=8278" in told
