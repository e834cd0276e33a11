"""Every figure against a reference implementation, a published value or a case worked out by hand."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binom, norm, t
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_auroc,
    multiclass_calibration_error,
    multiclass_f1_score,
)

from src.metrics import (
    Interval,
    aurc,
    bootstrap,
    coverage_at_precision,
    ece,
    over_seeds,
    paired_difference,
    proportion,
    score,
)

NAMES = [f"class_{i}" for i in range(7)]
SHIFT = 0.15  # of a simulated student's margin


def sample(n=400, size=7, seed=0, skill=0.5):
    """Random probabilities [n, size] with some skill, and the truth they guess at."""
    rng = np.random.default_rng(seed)
    truth = np.concatenate([np.arange(size), rng.integers(size, size=n - size)])
    probabilities = rng.dirichlet(np.full(size, 0.6), size=n)
    probabilities[np.arange(n), truth] += skill * rng.random(n)
    return probabilities / probabilities.sum(axis=1, keepdims=True), truth


@pytest.mark.parametrize(("n", "size", "seed"), [(400, 7, 0), (60, 2, 1), (2000, 30, 2)])
def test_figures_agree_with_torchmetrics(n, size, seed):
    probabilities, truth = sample(n, size, seed)
    scores = score(probabilities, truth, [str(c) for c in range(size)])
    preds, target = torch.tensor(probabilities), torch.tensor(truth)
    reference = {
        "accuracy": multiclass_accuracy(preds, target, size, average="micro"),
        "f1_macro": multiclass_f1_score(preds, target, size, average="macro"),
        "auroc": multiclass_auroc(preds, target, size),
        "ece": multiclass_calibration_error(preds, target, size, n_bins=15, norm="l1"),
    }
    for name, value in reference.items():
        assert scores.flat("test")[f"test/{name}"] == pytest.approx(value.item(), abs=2e-6), name


def test_ece_of_saturated_confidences_agrees_with_torchmetrics():
    confidence = np.array([1.0, 1.0, 0.97, 0.95, 0.9, 0.6])
    correct = np.array([True, False, True, True, False, True])
    preds = torch.tensor(np.stack([confidence, 1 - confidence], axis=1))
    reference = multiclass_calibration_error(preds, torch.tensor(~correct).long(), 2, n_bins=15, norm="l1")
    assert ece(confidence, correct) == pytest.approx(reference.item(), abs=1e-6)


def test_ece_by_hand():
    """Two bins: 0.9 claimed where 3 of 4 are right, 0.5 claimed where 1 of 1 is."""
    value = ece(np.array([0.9, 0.9, 0.9, 0.9, 0.5]), np.array([True, True, True, False, True]))
    assert value == pytest.approx(4 / 5 * 0.15 + 1 / 5 * 0.5)


def test_per_class_and_confusion_agree_with_scikit_learn():
    probabilities, truth = sample()
    scores = score(probabilities, truth, NAMES)
    answers = probabilities.argmax(axis=1)
    columns = precision_recall_fscore_support(truth, answers, labels=range(7))
    assert [row.name for row in scores.per_class] == NAMES
    np.testing.assert_allclose([row[1:] for row in scores.per_class], np.transpose(columns))
    np.testing.assert_array_equal(scores.confusion, confusion_matrix(truth, answers, labels=range(7)))


def test_confusion_has_truth_in_its_rows():
    scores = score(np.array([[0.1, 0.9], [0.2, 0.8]]), np.array([0, 0]), ["a", "b"])
    assert scores.confusion.tolist() == [[0, 2], [0, 0]]


@pytest.mark.parametrize(
    ("successes", "n", "level", "low", "high"),
    [
        # Clopper and Pearson's closed form at the edges: up to 1 - (alpha / 2) ** (1 / n)
        (0, 100, 0.95, 0.0, 0.0362),
        (100, 100, 0.95, 0.9638, 1.0),
        (0, 10, 0.99, 0.0, 0.4113),
        # the table at https://codingace.net/statistics/clopper_pearson_interval.html
        (3, 20, 0.95, 0.0321, 0.3789),
        (12, 30, 0.90, 0.2495, 0.5661),
        (42, 100, 0.95, 0.3220, 0.5229),
        (85, 120, 0.99, 0.5904, 0.8092),
    ],
)
def test_proportion_has_the_tabulated_interval(successes, n, level, low, high):
    interval = proportion(successes, n, level)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5.1e-5)
    assert (interval.value, interval.n) == (successes / n, n)


@pytest.mark.parametrize("truth", [0.5, 0.9, 0.97])
def test_proportion_covers_the_truth_often_enough(truth):
    """Summed over all outcomes: an exact interval never covers less than it claims, nor needlessly much more."""
    n = 60
    intervals = [proportion(k, n) for k in range(n + 1)]
    covered = np.array([i.low <= truth <= i.high for i in intervals])
    coverage = binom.pmf(np.arange(n + 1), n, truth)[covered].sum()
    assert 0.95 <= coverage < 0.995


def test_bootstrap_covers_the_truth_about_as_often_as_it_claims():
    rng = np.random.default_rng(5)
    hits = 0
    for trial in range(200):
        values = rng.normal(size=60)
        interval = bootstrap(lambda index, values=values: float(values[index].mean()), 60, seed=trial, draws=200)
        hits += interval.low <= 0 <= interval.high
    assert 0.88 <= hits / 200 <= 0.99


def test_bootstrap_is_repeatable_and_holds_its_value():
    values = np.random.default_rng(0).random(50)
    one, again, other = (bootstrap(lambda index: float(values[index].mean()), 50, seed=s) for s in (1, 1, 2))
    assert one == again != other
    assert one.value == pytest.approx(values.mean())
    assert one.low < one.value < one.high


def trained(n, seeds, *, luck, seed):
    """Whether students are right, [2, S, N]; the second recipe's are better by `GAP` over all items and trainings.

    Items differ in how hard they are and suit one recipe more than the other; `luck` is that of a training.
    """
    rng = np.random.default_rng(seed)
    ease = rng.normal(0.9, 1, n) + rng.normal(0, 0.4, (2, 1, n))
    margin = ease + rng.normal(0, luck, (2, seeds, 1)) + rng.normal(0, 0.5, (2, seeds, n))
    margin[0] -= SHIFT
    return margin > 0


def true_gap(luck):
    """What `trained` makes in the limit."""
    spread = (1 + 0.4**2 + luck**2 + 0.5**2) ** 0.5
    return float(norm.cdf((0.9 - SHIFT) / spread) - norm.cdf(0.9 / spread))


def test_means_over_few_trainings_cover_what_more_would_show():
    """Of 2,000 sets of three, 95% of the intervals hold the mean (standard error 0.5%)."""
    rng = np.random.default_rng(0)
    found = [over_seeds(rng.normal(0.8, 0.02, 3)) for _ in range(2000)]
    assert 0.935 < np.mean([one.low <= 0.8 <= one.high for one in found]) < 0.965
    assert over_seeds([0.2, 0.4]).value == pytest.approx(0.3) and over_seeds([0.2, 0.4]).n == 2
    assert over_seeds([5.0, 5.0]) == Interval(5, 5, 5, 2)
    alone = over_seeds([0.7])
    assert alone.value == 0.7 and math.isnan(alone.low) and math.isnan(alone.high)


@pytest.mark.parametrize(("luck", "items_alone"), [(0.0, (0.92, 0.97)), (0.05, (0.84, 0.92)), (0.1, (0.67, 0.78))])
def test_paired_difference_covers_what_fresh_items_and_trainings_would_show(luck, items_alone):
    """Over items alone, an interval knows nothing of luck in training and misses the truth far too often."""
    covered, alone, trials = 0, 0, 1000
    for trial in range(trials):
        ours, theirs = trained(450, 3, luck=luck, seed=trial)
        interval = paired_difference(ours, theirs)
        covered += interval.low <= true_gap(luck) <= interval.high
        interval = paired_difference(ours.mean(axis=0, keepdims=True), theirs.mean(axis=0, keepdims=True))
        alone += interval.low <= true_gap(luck) <= interval.high
    assert 0.92 <= covered / trials <= 0.98
    assert items_alone[0] <= alone / trials <= items_alone[1]


def test_paired_difference_over_items_is_that_of_the_bootstrap():
    ours, theirs = trained(2000, 1, luck=0, seed=0)
    gap = ours[0].astype(float) - theirs[0]
    resampled = bootstrap(lambda index: float(gap[index].mean()), 2000, seed=0, draws=4000)
    interval = paired_difference(ours, theirs)
    assert interval.value == resampled.value == pytest.approx(ours.mean() - theirs.mean()) and interval.n == 2000
    assert (interval.low, interval.high) == pytest.approx((resampled.low, resampled.high), abs=1.5e-3)


def test_paired_difference_of_one_training_by_hand():
    """Agresti and Min: 7 and 2 of 30 on which one side alone is right become 7.5 and 2.5 of 32."""
    ours, theirs = np.zeros((1, 30)), np.zeros((1, 30))
    ours[0, :2] = theirs[0, 2:9] = 1
    interval = paired_difference(ours, theirs)
    error = (10 / 32 - (5 / 32) ** 2) ** 0.5 / 32**0.5
    assert interval.value == pytest.approx(-5 / 30)
    assert interval.high - interval.value == pytest.approx(t.ppf(0.975, 29) * error)
    assert interval.value - interval.low == pytest.approx(t.ppf(0.975, 29) * error)


def test_paired_difference_is_fair_to_both_sides():
    ours, theirs = trained(200, 3, luck=0.1, seed=1)
    there, back = paired_difference(ours, theirs), paired_difference(theirs, ours)
    assert (there.low, there.value, there.high) == pytest.approx((-back.high, -back.value, -back.low))


def test_paired_difference_of_luck_alone_is_students_t():
    """Where all items agree, there is nothing but the seeds: far beyond what items could explain."""
    ours = np.repeat([[1.0], [0.0], [1.0]], 100_000, axis=1)
    interval = paired_difference(ours, np.full_like(ours, 0.5))
    assert interval.value == pytest.approx(1 / 6)
    reach = t.ppf(0.975, 2) * np.std([0.5, -0.5, 0.5], ddof=1) / 3**0.5
    assert interval.low == pytest.approx(max(-1, 1 / 6 - reach), abs=1e-3) and interval.high == 1


def test_paired_difference_of_trainings_that_are_alike_is_that_over_items():
    """Three times the same training: the seeds have nothing to add, and must not be taken for more items."""
    ours, theirs = trained(300, 1, luck=0, seed=2)
    one, three = paired_difference(ours, theirs), paired_difference(np.repeat(ours, 3, 0), np.repeat(theirs, 3, 0))
    assert (one.low, one.high, one.n) == pytest.approx((three.low, three.high, three.n))


def test_paired_difference_without_disagreement_is_still_in_doubt():
    """150 items of which 3 in a hundred may be answered otherwise, by the rule of three."""
    interval = paired_difference(np.ones((3, 150)), np.ones((3, 150)))
    assert interval.value == 0 and 0.01 < interval.high == -interval.low < 0.03


@pytest.mark.parametrize(("ours", "theirs", "message"), [
    (np.ones(3), np.ones(3), r"ours \(3,\) and theirs \(3,\) must both be \[S, N\]"),
    (np.ones((2, 3)), np.ones((3, 3)), r"\(2, 3\) and theirs \(3, 3\)"),
    (np.ones((2, 1)), np.ones((2, 1)), "N > 1"),
    (np.ones((0, 3)), np.ones((0, 3)), "S > 0"),
    (np.full((1, 3), 2.0), np.ones((1, 3)), r"must lie in \[0, 1\]"),
    (np.full((1, 3), np.nan), np.ones((1, 3)), r"must lie in \[0, 1\]"),
])
def test_what_is_not_paired_is_refused(ours, theirs, message):
    with pytest.raises(ValueError, match=message):
        paired_difference(ours, theirs)


def test_f1_interval_narrows_with_more_items():
    widths = []
    for n in (100, 1600):
        interval = score(*sample(n, skill=0.3), NAMES).f1_macro
        assert interval.low < interval.value < interval.high
        widths.append(interval.high - interval.low)
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.35)


@pytest.mark.parametrize(
    ("confidence", "correct", "target", "coverage"),
    [
        ([0.9, 0.8, 0.7, 0.6], [1, 1, 0, 1], 1.0, 0.5),
        ([0.9, 0.8, 0.7, 0.6], [1, 1, 0, 1], 0.75, 1.0),  # dips to 2 of 3, then meets 3 of 4 exactly
        ([0.6, 0.9, 0.7, 0.8], [1, 1, 0, 1], 1.0, 0.5),  # the order of the items does not matter
        ([0.9, 0.8, 0.8, 0.6], [1, 1, 0, 0], 1.0, 0.25),  # the tie is accepted as a whole or not at all
        ([0.9, 0.8, 0.8, 0.6], [1, 0, 1, 0], 1.0, 0.25),
        ([0.5, 0.5, 0.5, 0.5], [1, 1, 1, 0], 0.95, 0.0),
        ([0.5, 0.5, 0.5, 0.5], [1, 1, 1, 0], 0.75, 1.0),
        ([0.9, 0.8], [0, 1], 0.95, 0.0),
        ([0.9] * 19 + [0.1], [1] * 19 + [0], 0.95, 1.0),  # 19 of 20 is 0.95, with no rounding against it
    ],
)
def test_coverage_at_precision(confidence, correct, target, coverage):
    assert coverage_at_precision(np.array(confidence), np.array(correct, dtype=bool), target) == coverage


def test_aurc_by_hand():
    """Risks 0/1, 1/2, 1/3, 2/4 at the four coverages."""
    value = aurc(np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, False]))
    assert value == pytest.approx((0 + 1 / 2 + 1 / 3 + 2 / 4) / 4)


def test_aurc_of_ties_is_the_mean_over_their_orders():
    confidence, correct = np.array([0.9, 0.5, 0.5, 0.5, 0.1]), np.array([True, False, True, True, False])
    rng = np.random.default_rng(0)
    shuffled = [aurc(confidence - 1e-6 * rng.random(5), correct) for _ in range(4000)]
    assert aurc(confidence, correct) == pytest.approx(np.mean(shuffled), abs=3e-3)
    assert aurc(np.full(5, 0.5), correct) == pytest.approx(2 / 5)


def test_a_class_absent_from_the_truth_shows():
    """Class b never occurs yet is answered once: it takes no part in macro-F1, and costs class a its recall."""
    probabilities = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [0.2, 0.2, 0.6]])
    scores = score(probabilities, np.array([0, 0, 2, 2]), ["a", "b", "c"])
    assert scores.f1_macro.value == pytest.approx((2 / 3 + 1) / 2)
    absent = scores.per_class[1]
    assert (absent.name, absent.support, absent.precision) == ("b", 0, 0.0)
    assert np.isnan([absent.recall, absent.f1]).all()
    assert np.isnan(scores.auroc)
    assert "test/auroc" not in scores.flat("test")


def test_a_class_never_answered_has_no_precision():
    row = score(np.array([[0.9, 0.1], [0.9, 0.1]]), np.array([0, 1]), ["a", "b"]).per_class[1]
    assert (row.recall, row.f1, row.support) == (0.0, 0.0, 1)
    assert np.isnan(row.precision)


def test_flat_uses_the_names_of_the_design():
    probabilities, truth = sample()
    scores = score(probabilities, truth, NAMES)
    flat = scores.flat("gold")
    assert set(flat) == {
        f"gold/{name}"
        for name in (
            *("n", "accuracy", "accuracy_low", "accuracy_high", "f1_macro", "f1_macro_low", "f1_macro_high"),
            *("auroc", "ece", "aurc", "coverage_at_precision_95"),
        )
    }
    assert flat["gold/n"] == 400
    assert flat["gold/accuracy_low"] == scores.accuracy.low < flat["gold/accuracy"] < flat["gold/accuracy_high"]
    assert all(type(value) is float for value in flat.values())


def test_an_interval_reads_well():
    assert str(Interval(0.8121, 0.775, 0.8449, 500)) == "0.812 [0.775, 0.845], n=500"


HALVES = np.full((3, 2), 0.5)


@pytest.mark.parametrize(
    ("probabilities", "truth", "message"),
    [
        (np.array([[0.5, 0.5], [np.nan, 0.5], [0.5, 0.5]]), [0, 1, 0], "nan or infinity, first in row 1"),
        (np.array([[0.5, 0.5], [0.5, 0.5], [0.5, 0.3]]), [0, 1, 0], r"row 2 sum to 0\.8"),
        (np.array([[0.5, 0.5], [1.2, -0.2], [0.5, 0.5]]), [0, 1, 0], r"row 1 sum to 1, least -0\.2"),
        (np.full((3, 4), 0.25), [0, 1, 0], r"shape \(3, 4\): must be \[N, C\], C = 2"),
        (np.full(3, 1.0), [0, 1, 0], r"shape \(3,\)"),
        (HALVES, [0, 1], r"truth has shape \(2,\): must be \[N\], N = 3"),
        (HALVES, [0, 1, 2], r"truth holds 2: must lie in 0\.\.1"),
        (HALVES, [0, -1, 1], "truth holds -1"),
        (HALVES, [0.0, 1.0, 1.0], "truth is of type float64"),
        (np.empty((0, 2)), [], "N = 0"),
    ],
)
def test_bad_input_is_named(probabilities, truth, message):
    with pytest.raises(ValueError, match=message):
        score(probabilities, np.array(truth), ["a", "b"])


def test_rounded_probabilities_pass():
    rounded = np.round(sample()[0], 4).astype(np.float32)
    assert score(rounded, sample()[1], NAMES).accuracy.n == 400


@pytest.mark.parametrize(("successes", "n", "level"), [(1, 0, 0.95), (3, 2, 0.95), (-1, 2, 0.95), (1, 2, 95)])
def test_impossible_shares_are_refused(successes, n, level):
    with pytest.raises(ValueError, match=f"successes={successes} of n={n}|level={level}"):
        proportion(successes, n, level)


def test_torch_stays_out(loaded: dict[str, set[str]]):
    assert "torch" not in loaded["src.metrics"]
