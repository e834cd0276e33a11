"""Votes → probabilities: by hand, against a second implementation, and where there is next to nothing to go by."""

import numpy as np
import pytest
from cleanlab.multiannotator import get_label_quality_multiannotator

from src.errors import ConfigError
from src.metrics import Bools, Floats, Ints
from src.quality.consensus import METHODS, posterior, winners

N, C = 600, 4


def crowd(accuracies: list[float], *, missing: float = 0.0, seed: int = 0) -> tuple[Ints, Ints, Floats]:
    """Truth [N], independent votes [N, A], and a student [N, C] that is right on 3 of 4 items."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(C, size=N)
    votes = np.stack([np.where(rng.random(N) < a, truth, (truth + rng.integers(1, C, size=N)) % C)
                      for a in accuracies], axis=1)
    votes[rng.random(votes.shape) < missing] = -1
    seen = np.where(rng.random(N) < 0.75, truth, rng.integers(C, size=N))
    return truth, votes, 0.5 * np.eye(C)[seen] + 0.5 * rng.dirichlet(np.ones(C), N)


@pytest.mark.parametrize("method", ["agreement", "majority"])
def test_the_pool_of_votes_by_hand(method: str) -> None:
    """Of 8 votes in company, 7 go with their item's most frequent class; with one added, a vote is 8/9 sure of its."""
    votes = np.array([[0, 0], [1, 1], [2, -1], [0, 1], [2, 2], [-1, -1]])
    found = posterior(method, votes, 3)
    sure, rest = 8 / 9, 1 / 18
    half = (sure + rest) / 2
    expected = [[sure, rest, rest], [rest, sure, rest], [rest, rest, sure], [half, half, rest], [rest, rest, sure],
                [np.nan] * 3]
    np.testing.assert_allclose(found, expected)


def test_a_single_opinion_is_taken_as_it_is() -> None:
    for method in ("agreement", "majority", "dawid_skene"):
        np.testing.assert_allclose(posterior(method, np.array([[1], [2], [1]]), 3), np.eye(3)[[1, 2, 1]], atol=1e-6)


def test_where_everybody_contradicts_votes_still_count_for_their_class() -> None:
    votes = np.array([[0, 1], [1, 0], [0, -1]])
    assert winners(posterior("majority", votes, 2), votes).tolist() == [-1, -1, 0]


def test_votes_that_are_missing_lose_no_item() -> None:
    votes = np.array([[0, 0, 0], [1, -1, -1], [2, -1, 2], [-1, 1, 0], [0, 0, 1], [-1, -1, -1]])
    assert winners(posterior("majority", votes, 3), votes).tolist() == [0, 1, 2, -1, 0, -1]


def test_the_most_probable_class_that_somebody_named_wins() -> None:
    probabilities = np.array([[0.1, 0.2, 0.7], [0.3, 0.3, 0.4], [0.3, 0.3, 0.4], [0.2, 0.5, 0.3], [np.nan] * 3])
    votes = np.array([[0, 1], [0, 0], [0, 1], [2, 1], [-1, -1]])
    assert winners(probabilities, votes).tolist() == [1, 0, -1, 1, -1]


@pytest.mark.parametrize("method", METHODS)
def test_a_class_that_nobody_named_wins_nowhere(method: str) -> None:
    """Poor voters who contradict each other, and a student that is always sure of another class."""
    _, votes, _ = crowd([0.3, 0.3, 0.3], missing=0.3)
    sure = np.eye(C)[(votes.max(axis=1) + 1) % C]
    for on_all in (None, [True, True, False], [True, False, False]):
        found = posterior(method, votes, C, sure, None if on_all is None else np.array(on_all))
        won = winners(found, votes)
        assert ((won[:, None] == votes).any(axis=1) | (won < 0)).all()
        alone = np.ptp(np.where(votes >= 0, votes, votes.max(axis=1, keepdims=True)), axis=1) == 0
        assert alone.sum() > 100 and (won[alone] == votes[alone].max(axis=1)).all()


# Opinions that were asked for where there is doubt


def with_looks(accuracies: list[float], *, look: float) -> tuple[Ints, Ints, Floats, Bools]:
    """A crowd with one opinion more, right as often as `look` says, on most items on which the first opinion is
    wrong and few others; and which opinions are asked for on all."""
    truth, votes, student = crowd(accuracies)
    rng = np.random.default_rng(1)
    looked = rng.random(N) < np.where(votes[:, 0] != truth, 0.8, 0.03)
    said = np.where(rng.random(N) < look, truth, (truth + rng.integers(1, C, size=N)) % C)
    return (truth, np.column_stack([votes, np.where(looked, said, -1)]), student,
            np.arange(votes.shape[1] + 1) < votes.shape[1])


@pytest.mark.parametrize("method", METHODS)
def test_looks_where_there_is_doubt_change_nothing_elsewhere(method: str) -> None:
    """Neither weights nor consistency are estimated from them."""
    _, votes, student, on_all = with_looks([0.9, 0.85], look=0.9)
    alone = votes[:, 2] < 0
    assert 100 < alone.sum() < N - 40
    found = posterior(method, votes, C, student, on_all)
    np.testing.assert_allclose(found[alone], posterior(method, votes[:, :2], C, student)[alone])
    assert np.abs(found - posterior(method, votes[:, :2], C, student)).max() > 0.1
    assert np.abs(found[alone] - posterior(method, votes, C, student)[alone]).max() > 5e-4


@pytest.mark.parametrize("method", ["agreement", "majority", "dawid_skene"])
def test_one_opinion_and_a_second_look_count_alike(method: str) -> None:
    votes = np.array([[0, -1, -1], [1, -1, -1], [0, 1, -1], [0, 1, 1], [2, 2, 2]])
    found = posterior(method, votes, 3, on_all=np.array([True, False, False]))
    np.testing.assert_allclose(found, [[1, 0, 0], [0, 1, 0], [0.5, 0.5, 0], [1 / 3, 2 / 3, 0], [0, 0, 1]], atol=1e-9)


def test_crowdlab_with_one_opinion_lets_the_student_choose_between_it_and_a_second_look() -> None:
    student = np.array([[0.9, 0.1, 0], [0, 0.4, 0.6], [0.3, 0.7, 0], [0, 0.2, 0.8], [0, 0, 1.0]])
    votes = np.array([[0, -1], [1, -1], [0, 1], [0, 1], [0, -1]])
    found = posterior("crowdlab", votes, 3, student, np.array([True, False]))
    np.testing.assert_allclose(found, [[0.95, 0.05, 0], [0, 0.7, 0.3], [1.3 / 3, 1.7 / 3, 0], [1 / 3, 0.4, 0.8 / 3],
                                       [0.5, 0, 0.5]])
    assert winners(found, votes).tolist() == [0, 1, 1, 1, 0]


def test_crowdlab_with_one_opinion_asked_twice_where_it_is_suspicious_keeps_what_was_not() -> None:
    """Estimated from suspicious items alone, opinions weigh next to nothing, and every label is the student's."""
    truth, votes, student, on_all = with_looks([0.85], look=0.95)
    alone = votes[:, 1] < 0
    found = winners(posterior("crowdlab", votes, C, student, on_all), votes)
    assert (found[alone] == votes[alone, 0]).all()
    assert posterior("crowdlab", votes, C, student, on_all)[alone].argmax(axis=1).tolist() == votes[alone, 0].tolist()
    misjudged = posterior("crowdlab", votes, C, student)[alone].argmax(axis=1)
    assert np.mean(misjudged != votes[alone, 0]) > 0.1
    assert np.mean(found == truth) > np.mean(votes[:, 0] == truth) + 0.03


def test_crowdlab_gives_looks_the_mean_weight() -> None:
    _, votes, student, on_all = with_looks([0.9, 0.7, 0.7], look=0.9)
    told = get_label_quality_multiannotator(votes[:, :3].astype(float), student, consensus_method="majority_vote",
                                            return_weights=True, verbose=False)
    weights, sure = told["annotator_weight"], told["label_quality"]["annotator_agreement"].mean()
    assert np.ptp(weights) > 0.05
    row = int(np.flatnonzero((votes[:, 3] >= 0) & (votes[:, 3] != votes[:, 0]))[0])
    expected = told["model_weight"] * student[row]
    for weight, vote in zip([*weights, weights.mean()], votes[row], strict=True):
        expected = expected + weight * np.where(np.arange(C) == vote, sure, (1 - sure) / (C - 1))
    np.testing.assert_allclose(posterior("crowdlab", votes, C, student, on_all)[row], expected / expected.sum(),
                               atol=1e-6)


def test_opinions_may_stand_in_any_order() -> None:
    _, votes, student, on_all = with_looks([0.9, 0.8, 0.7], look=0.9)
    for method in METHODS:
        found = posterior(method, votes, C, student, on_all)
        turned = posterior(method, votes[:, ::-1], C, student, on_all[::-1])
        np.testing.assert_allclose(turned, found, atol=1e-4)


def test_looks_where_nobody_else_answered_count_too() -> None:
    _, votes, student, on_all = with_looks([0.9, 0.8], look=0.9)
    votes[0] = [-1, -1, 3]
    for method in METHODS:
        assert winners(posterior(method, votes, C, student, on_all), votes)[0] == 3


# Dawid-Skene


def expectation_maximization(votes: Ints, classes: int, steps: int) -> Floats:
    """Dawid and Skene's estimate in its plainest form, from majority votes on."""
    onehot = (votes[:, :, None] == np.arange(classes)).astype(float)  # [N, A, C]
    found = onehot.sum(axis=1) / onehot.sum(axis=(1, 2))[:, None]
    for _ in range(steps):
        confusion = np.einsum("nt,nac->atc", found, onehot)
        confusion = np.clip(confusion, 1e-10, None)
        confusion /= confusion.sum(axis=2, keepdims=True)
        logs = np.log(found.mean(axis=0)) + np.einsum("nac,atc->nt", onehot, np.log(confusion))
        found = np.exp(logs - logs.max(axis=1, keepdims=True))
        found /= found.sum(axis=1, keepdims=True)
    return found


def test_dawid_skene_is_expectation_maximization() -> None:
    _, votes, _ = crowd([0.9, 0.85, 0.8, 0.8], missing=0.1)
    votes = votes[(votes >= 0).any(axis=1)]
    np.testing.assert_allclose(posterior("dawid_skene", votes, C), expectation_maximization(votes, C, 500), atol=0.005)


def test_dawid_skene_takes_looks_in_by_bayes_rule() -> None:
    """With the mean of the confusions that the opinions on all items have."""
    truth, votes, _, on_all = with_looks([0.9, 0.85, 0.8], look=0.9)
    own = votes[:, :3]
    found = expectation_maximization(own, C, 500)
    onehot = (own[:, :, None] == np.arange(C)).astype(float)
    confusion = np.einsum("nt,nac->atc", found, onehot)
    mean = (confusion / confusion.sum(axis=2, keepdims=True)).mean(axis=0)  # [true, answered]
    looked = votes[:, 3] >= 0
    expected = np.where(looked[:, None], found * mean[:, votes[:, 3]].T, found)
    got = posterior("dawid_skene", votes, C, on_all=on_all)
    np.testing.assert_allclose(got, expected / expected.sum(axis=1, keepdims=True), atol=0.02)
    right, before = (np.mean(p.argmax(axis=1)[looked] == truth[looked]) for p in (got, found))
    assert right > before


def test_dawid_skene_hears_of_a_class_from_a_look_alone() -> None:
    votes = np.array([[0, 0, -1], [1, 1, -1], [0, 1, 2], [0, 0, 2]])
    found = posterior("dawid_skene", votes, 4, on_all=np.array([True, True, False]))
    assert np.isfinite(found).all() and (found.sum(axis=1) == pytest.approx(1))
    assert winners(found, votes).tolist()[:2] == [0, 1] and winners(found, votes)[3] == 0


def test_dawid_skene_keeps_classes_in_their_places() -> None:
    """Rows and columns are not mentioned in order, and class 1 never is."""
    votes = np.array([[3, 3], [-1, -1], [0, 0], [2, 2], [3, 3], [0, 0], [2, 2]])
    found = posterior("dawid_skene", votes, 5)
    np.testing.assert_allclose(found[[0, 2, 3, 4, 5, 6]], np.eye(5)[[3, 0, 2, 3, 0, 2]], atol=1e-6)
    assert np.isnan(found[1]).all()


# CROWDLAB


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_crowdlab_is_cleanlabs(missing: float) -> None:
    _, votes, student = crowd([0.9, 0.6, 0.6], missing=missing)
    voted = (votes >= 0).any(axis=1)
    given = np.where(votes >= 0, votes, np.nan)[voted]
    found = posterior("crowdlab", votes, C, student)[voted]
    best = get_label_quality_multiannotator(given, student[voted], verbose=False)["label_quality"]
    assert found.argmax(axis=1).tolist() == best["consensus_label"].tolist()
    majority = get_label_quality_multiannotator(given, student[voted], consensus_method="majority_vote",
                                                verbose=False)["label_quality"]
    np.testing.assert_allclose(found[np.arange(len(found)), majority["consensus_label"]],
                               majority["consensus_quality_score"], atol=1e-6)


def test_crowdlab_breaks_ties_with_the_student() -> None:
    truth, votes, student = crowd([0.7, 0.7])
    tied = votes[:, 0] != votes[:, 1]
    found = winners(posterior("crowdlab", votes, C, student), votes)
    assert (winners(posterior("majority", votes, C), votes)[tied] == -1).all()
    assert (found >= 0).all()
    assert np.mean(found[tied] == truth[tied]) > 0.55


def test_crowdlab_does_without_the_student_where_it_said_nothing() -> None:
    truth, votes, student = crowd([0.9, 0.8, 0.8])
    student[:300] = np.nan
    found = posterior("crowdlab", votes, C, student)
    assert not np.isnan(found).any()
    assert np.mean(winners(found, votes)[:300] == truth[:300]) > 0.85


def test_crowdlab_with_one_opinion_doubts_it_as_far_as_the_student_does() -> None:
    student = np.array([[0.9, 0.1], [0.2, 0.8], [0.0, 1.0]])
    found = posterior("crowdlab", np.array([[0], [0], [1]]), 2, student)
    np.testing.assert_allclose(found, [[0.95, 0.05], [0.6, 0.4], [0, 1]])


@pytest.mark.parametrize("student", [None, np.full((2, 3), np.nan)])
def test_crowdlab_needs_a_student(student: Floats | None) -> None:
    with pytest.raises(ConfigError, match=r"quality\.consensus='crowdlab' is not allowed: needs .* choose agreement"):
        posterior("crowdlab", np.array([[0, 1], [1, 1]]), 3, student)


# Next to nothing


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("votes", [
    [[0]], [[0, 1]], [[1, 1]], [[0, 0], [0, 0]], [[0], [1], [1]], [[0, -1], [-1, 1]], [[0, 1, -1], [1, 0, -1]],
    [[2, 2, -1], [1, 1, -1], [-1, -1, -1]], [[0, 1, 2]], [[0, 1, 2], [2, 0, 1], [1, 2, 0]], [[-1, -1]],
])
def test_little_is_no_trouble(method: str, votes: list[list[int]], capfd: pytest.CaptureFixture[str]) -> None:
    """One opinion, one class, one item, an opinion without votes, contradictions alone, nothing at all."""
    matrix = np.array(votes)
    found = posterior(method, matrix, 3, np.full((len(votes), 3), 1 / 3))
    voted = (matrix >= 0).any(axis=1)
    assert found.shape == (len(votes), 3)
    assert np.isnan(found[~voted]).all()
    np.testing.assert_allclose(found[voted].sum(axis=1), 1)
    assert (found[voted] >= 0).all()
    for row, given in zip(found[voted], matrix[voted], strict=True):
        if len({*given[given >= 0]}) == 1 and method != "dawid_skene":
            assert row.argmax() == given.max()
    np.testing.assert_array_equal(found, posterior(method, matrix, 3, np.full((len(votes), 3), 1 / 3)))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("method", METHODS)
def test_no_items_have_no_probabilities(method: str) -> None:
    assert posterior(method, np.empty((0, 2), dtype=int), 3).shape == (0, 3)


def test_what_is_not_chosen_is_not_imported(loaded: dict[str, set[str]]) -> None:
    assert not {"crowdkit", "cleanlab"} & loaded["src.quality.suspects"]
