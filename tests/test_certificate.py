"""The exact bound, the gold it takes, the sequence of tests and the books: published values and brute force."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from src.calibration.certificate import Certificate, certify, declare, lower_bound, usual_threshold
from src.calibration.gold_needed import chance, errors_allowed, highest_target, least_gold, needed_gold
from src.calibration.ledger import Budget, Spent, budget, read_ledger, spend
from src.errors import DataError
from src.metrics import coverage_at_precision, proportion
from src.reporting.certificates import allowed_rows, gold_rows, statement

GRID = [n / 20 for n in range(2, 21)]


@pytest.mark.parametrize(("target", "allowed"), [
    (0.90, [4, 12, 21, 38]), (0.95, [1, 4, 8, 16]), (0.98, [-1, 0, 1, 4]), (0.99, [-1, -1, 0, 1]),
])
def test_errors_allowed_are_those_of_the_published_table(target: float, allowed: list[int]) -> None:
    """At n accepted = 100, 200, 300, 500; -1 is not even none."""
    assert errors_allowed(np.array([100, 200, 300, 500]), target, 0.05).tolist() == allowed


@pytest.mark.parametrize("target", [0.8, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("delta", [0.1, 0.05, 0.00625])
def test_errors_allowed_are_the_most_that_are_rare_enough(target: float, delta: float) -> None:
    n = np.arange(1500)
    allowed = errors_allowed(n, target, delta)
    assert (binom.cdf(allowed, n, 1 - target) <= delta).all()
    assert (binom.cdf(allowed + 1, n, 1 - target) > delta).all()
    # The bound that certificates print says the same.
    for size in (1, 50, 400, 1499):
        bounds = [lower_bound(size - errors, size, delta) >= target for errors in range(size + 1)]
        assert sum(bounds) == allowed[size] + 1


def test_the_bound_is_one_end_of_the_two_sided_interval() -> None:
    assert lower_bound(95, 100, 0.025) == pytest.approx(proportion(95, 100, 0.95).low)
    assert lower_bound(100, 100, 0.05) == pytest.approx(0.05 ** (1 / 100)) and lower_bound(0, 10, 0.05) == 0


@pytest.mark.parametrize("precision", [0.8, 0.9, 0.97])
def test_the_bound_is_too_high_as_rarely_as_it_says(precision: float) -> None:
    n, delta = 80, 0.05
    too_high = [right for right in range(n + 1) if lower_bound(right, n, delta) > precision]
    assert binom.pmf(too_high, n, precision).sum() <= delta


def test_the_chance_is_that_of_a_simulation() -> None:
    n, coverage, error_rate, target, delta = 200, 0.7, 0.02, 0.95, 0.05
    rng = np.random.default_rng(0)
    accepted = rng.binomial(n, coverage, size=40_000)
    passed = rng.binomial(accepted, error_rate) <= errors_allowed(accepted, target, delta)
    assert chance(n, coverage, error_rate, target, delta) == pytest.approx(passed.mean(), abs=0.01)


@pytest.mark.parametrize(("coverage", "error_rate"), [(1.0, 0.0), (0.5, 0.0), (1.0, 0.03)])
def test_the_chance_at_the_edges(coverage: float, error_rate: float) -> None:
    """Everything accepted, or nothing wrong."""
    n = np.arange(121)
    passes = binom.cdf(errors_allowed(n, 0.95, 0.05), n, error_rate)
    expected = binom.pmf(n, 120, coverage) @ passes
    assert chance(120, coverage, error_rate, 0.95, 0.05) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("target", "error_rate", "coverage"), [
    (0.9, 0.005, 1.0), (0.9, 0.03, 0.7), (0.95, 0.01, 1.0), (0.95, 0.02, 0.5), (0.95, 0.0, 0.6),
])
def test_the_gold_needed_is_where_the_chance_stays(target: float, error_rate: float, coverage: float) -> None:
    too_few = [n for n in range(1, 1500) if chance(n, coverage, error_rate, target, 0.05) < 0.8]
    assert needed_gold(target, error_rate, coverage, 0.05) == 2 * (too_few[-1] + 1)


def test_no_gold_certifies_what_is_not_so() -> None:
    for error_rate in (0.05, 0.2):
        with pytest.raises(ValueError, match=r"no gold certifies 0\.95"):
            needed_gold(0.95, error_rate, 1.0, 0.05)
    with pytest.raises(ValueError, match="coverage=0: must lie in"):
        needed_gold(0.95, 0.0, 0, 0.05)
    with pytest.raises(ValueError, match="more than 100000 gold items"):
        needed_gold(0.95, 0.0499, 0.5, 0.05)


@pytest.mark.parametrize("target", [0.9, 0.95, 0.98])
def test_the_least_gold_is_just_enough(target: float) -> None:
    n = least_gold(target, 0.05) // 2
    assert highest_target(n, 0.05) >= target > highest_target(n - 1, 0.05)
    assert errors_allowed(n, target, 0.05) == 0 and errors_allowed(n - 1, target, 0.05) == -1
    assert highest_target(0, 0.05) == 0


def sample(n: int, seed: int = 0, *, wrong_below: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Confidences, and answers that are right from `wrong_below` on, and by a coin below."""
    rng = np.random.default_rng(seed)
    confidence = rng.random(n)
    return confidence, (confidence >= wrong_below) | (rng.random(n) < 0.5)


def test_the_last_threshold_that_passed_is_certified_and_the_first_failure_ends_it() -> None:
    # 100 items at each of four levels, with 0, 20, 0 and 0 errors: the second level spoils all that stand below it.
    confidence = np.repeat([0.9, 0.7, 0.5, 0.3], 100)
    correct = np.ones(400, bool)
    correct[100:120] = False
    found = certify(confidence, correct, [0.9, 0.7, 0.5, 0.3], target=0.9, delta=0.05)
    assert [(s.accepted, s.errors, s.passed) for s in found.steps] == [(100, 0, True), (200, 20, False)]
    assert found.threshold == 0.9 and found.coverage.value == 0.25 and found.gold_needed is None
    assert found.certified and found.certified.lower_bound == pytest.approx(0.05 ** 0.01)
    # 20 errors in 400 would have passed.
    assert certify(confidence, correct, [0.3], target=0.9, delta=0.05).threshold == 0.3


def test_what_cannot_be_certified_says_how_much_gold_would() -> None:
    confidence = np.concatenate([np.full(60, 0.9), np.full(40, 0.1)])
    correct = np.ones(100, bool)
    correct[:2] = False
    found = certify(confidence, correct, [0.5], target=0.9, delta=0.05)
    assert found.certified is None and found.threshold is None and found.to_dict()["threshold"] is None
    assert found.gold_needed == needed_gold(0.9, 2.5 / 61, 0.6, 0.05)
    assert f"{found.gold_needed} new gold items would certify it" in statement(found)
    # More errors than the target bears, or nothing accepted: no gold helps.
    correct[:10] = False
    hopeless = certify(confidence, correct, [0.5], target=0.9, delta=0.05)
    assert hopeless.gold_needed is None and "no amount of gold would" in statement(hopeless)
    assert certify(confidence, correct, [0.95], target=0.9, delta=0.05).gold_needed is None


def test_the_statement_holds_all_that_stands_behind_it() -> None:
    found = certify(np.full(100, 0.9), np.ones(100, bool), [0.9], target=0.95, delta=0.05)
    told = statement(found)
    for part in ("at least 95.0%", "confidence of 0.9000 or more", "against truth", "confidence 95.00%", "0 error(s)",
                 "100 answers", "97.0% or more", "1.000 [0.964, 1.000], n=100"):
        assert part in told
    everything = certify(np.full(100, 0.9), np.ones(100, bool), [0.0], target=0.95, delta=0.05)
    assert "everything that the student answers" in statement(everything)


def test_thresholds_must_fall_and_items_be_there() -> None:
    confidence, correct = sample(10)
    for thresholds in ([0.5, 0.5], [0.1, 0.2], []):
        with pytest.raises(ValueError, match="strictest first"):
            certify(confidence, correct, thresholds, target=0.9, delta=0.05)
    with pytest.raises(DataError, match="certify part is empty"):
        certify(confidence[:0], correct[:0], [0.5], target=0.9, delta=0.05)
    with pytest.raises(DataError, match="choose part is empty"):
        declare(confidence[:0], correct[:0], GRID, target=0.9, delta=0.05, certify_size=10)


def test_declared_thresholds_are_quantiles_and_begin_where_they_are_likeliest_to_pass() -> None:
    confidence, correct = sample(200)
    confidence = 0.5 + confidence / 2  # no more in doubt than it should be
    found = declare(confidence, correct, GRID, target=0.9, delta=0.05, certify_size=200)
    assert found == sorted(found, reverse=True) and found[-1] == 0.0
    shares = [(confidence >= threshold).mean() for threshold in found]
    assert shares == pytest.approx(GRID[-len(found):])
    first = (confidence >= found[0]).mean()
    assert 200 * first >= 29  # fewer would not pass without an error
    assert first < 0.7  # of 0.5 to 1, some 0.1 is wrong in the best 0.6


def test_a_sequence_that_began_at_the_top_would_certify_nothing() -> None:
    """Two errors in a thousand, and the surest tenth of 150 items is 15: even without an error too few."""
    confidence, correct = np.linspace(1, 0.8, 150), np.ones(150, bool)
    correct[-3:] = False
    top = [float(confidence[14]), 0.0]
    assert certify(confidence, correct, top, target=0.9, delta=0.05).threshold is None
    declared = declare(confidence, correct, GRID, target=0.9, delta=0.05, certify_size=150)
    assert certify(confidence, correct, declared, target=0.9, delta=0.05).threshold is not None


def test_a_start_is_found_though_confidence_says_too_much() -> None:
    """All say 0.99 and a third is wrong below the median: what was seen counts, not what was said."""
    confidence = np.linspace(0.999, 0.99, 200)
    correct = np.ones(200, bool)
    correct[100::3] = False
    found = declare(confidence, correct, GRID, target=0.95, delta=0.05, certify_size=200)
    assert 0.3 <= (confidence >= found[0]).mean() <= 0.55


def test_equal_confidences_are_accepted_together() -> None:
    found = declare(np.repeat([0.9, 0.6], 50), np.ones(100, bool), GRID, target=0.5, delta=0.05, certify_size=100)
    assert set(found) <= {0.9, 0.6, 0.0}


def broken(picked: Callable[[np.ndarray, np.ndarray], float | None], draws: int) -> float:
    """How often what is accepted is less than 0.9 right in truth: 1 above a confidence of 0.5, and 0.5 below it."""
    count = 0
    for seed in range(draws):
        threshold = picked(*sample(300, seed))
        if threshold is not None:
            below = max(0.0, 0.5 - threshold)
            count += below / 2 / (1 - threshold) > 0.1
    return count / draws


def test_the_promise_is_kept_where_the_usual_threshold_breaks_it() -> None:
    def certified(confidence: np.ndarray, correct: np.ndarray) -> float | None:
        choose, own = slice(0, 150), slice(150, 300)
        grid = declare(confidence[choose], correct[choose], GRID, target=0.9, delta=0.1, certify_size=150)
        return certify(confidence[own], correct[own], grid, target=0.9, delta=0.1).threshold

    assert broken(certified, 300) <= binom.ppf(0.999, 300, 0.1) / 300
    assert broken(lambda confidence, correct: usual_threshold(confidence, correct, 0.9), 300) > 0.4


def test_the_usual_threshold_is_the_one_with_the_most_coverage() -> None:
    confidence, correct = sample(200, 3)
    threshold = usual_threshold(confidence, correct, 0.9)
    assert threshold is not None and correct[confidence >= threshold].mean() >= 0.9
    assert (confidence >= threshold).mean() == coverage_at_precision(confidence, correct, 0.9)
    assert usual_threshold(confidence, np.zeros(200, bool), 0.9) is None


def test_the_plan_leaves_out_what_cannot_be() -> None:
    rows = gold_rows([0.95], 0.05)
    assert [row[1] for row in rows] == ["0.0%", "0.5%", "1.0%", "2.0%", "3.0%"] and rows[0][2] == "118"
    assert allowed_rows([600], [0.95, 0.99], 0.05) == [
        ("600", "8 of 300, 5 of 210, 2 of 150", "0 of 300, – of 210, – of 150", "99.0%")]


def entry(question: str, items: str, delta: float) -> Spent:
    return Spent(question, tuple(items), delta, "run", "2026-11-22T10:00:00+00:00")


def test_each_certification_takes_its_share_of_what_is_left_and_never_more_than_delta() -> None:
    books: list[Spent] = []
    for n in range(12):
        given = budget(books, f"question {n}", "abc", delta=0.05, spend=0.5)
        assert given.delta == pytest.approx(0.05 / 2 ** (n + 1)) and given.earlier == n and not given.paid
        books.append(entry(f"question {n}", "abc", given.delta))
    assert sum(spent.delta for spent in books) < 0.05


def test_one_item_in_common_makes_it_the_same_gold() -> None:
    books = [entry("first", "abc", 0.04)]
    assert budget(books, "second", "cde", delta=0.05, spend=0.5).delta == pytest.approx(0.005)
    assert budget(books, "second", "def", delta=0.05, spend=0.5) == Budget(0.025, 0.025, 0, False)


def test_the_same_question_costs_nothing_again() -> None:
    books = [entry("first", "abc", 0.025), entry("second", "abc", 0.0125)]
    again = budget(books, "first", "cba", delta=0.05, spend=0.5)
    assert again.paid and again.delta == 0.025 and again.left == pytest.approx(0.0125)
    assert not budget(books, "first", "abcd", delta=0.05, spend=0.5).paid  # other items, another question


def test_what_is_used_up_is_refused_with_a_way_out() -> None:
    with pytest.raises(DataError, match=r"1 certification\(s\) on this gold have used up its confidence") as error:
        budget([entry("first", "abc", 0.05)], "second", "abc", delta=0.05, spend=0.5)
    assert "certify on gold items that are new" in str(error.value)
    assert budget([entry("first", "abc", 0.05)], "first", "abc", delta=0.05, spend=0.5).paid


def test_the_books_are_kept_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "home" / "certifications.jsonl"
    assert read_ledger(path) == []
    given = [spend(path, question, ["b", "a"], delta=0.05, share=1.0, run="r", time="now")
             for question in ("first", "first")]
    assert [one.paid for one in given] == [False, True] and given[1].delta == 0.05
    assert read_ledger(path) == [Spent("first", ("a", "b"), 0.05, "r", "now")]
    with pytest.raises(DataError, match="used up"):
        spend(path, "second", ["a"], delta=0.05, share=1.0, run="r", time="now")
    assert len(read_ledger(path)) == 1


def test_broken_books_are_not_taken_for_empty_ones(tmp_path: Path) -> None:
    path = tmp_path / "certifications.jsonl"
    path.write_text('{"question": "a"}\n')
    with pytest.raises(DataError, match="line 1, cannot be read"):
        read_ledger(path)


def test_a_certificate_is_plain_values() -> None:
    found = certify(np.full(60, 0.9), np.ones(60, bool), [0.9], target=0.9, delta=0.05)
    assert isinstance(found, Certificate)
    assert found.to_dict()["tests"] == [{"threshold": 0.9, "accepted": 60, "errors": 0, "passed": True,
                                         "lower_bound": pytest.approx(0.05 ** (1 / 60))}]
