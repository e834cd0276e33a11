"""Votes in, a probability for every class out: the ways of weighing several opinions, in one shape.

Pure. An opinion is one annotator in one pass. Knows nothing about items, gold or who the annotators are, so it cannot
know that two passes of one model share their mistakes: Dawid-Skene and CROWDLAB take opinions for independent and are
over-confident where they are not. How often a label is right is told by `confidence`, which asks gold.
"""

import warnings

import numpy as np

from src.errors import ConfigError
from src.metrics import Bools, Floats, Ints

METHODS = ("agreement", "majority", "dawid_skene", "crowdlab")


def posterior(method: str, votes: Ints, classes: int, out_of_fold: Floats | None = None,
              on_all: Bools | None = None) -> Floats:
    """[N, C] probabilities, C = `classes`, from [N, A] `votes`: class indices, -1 where an opinion is missing.

    Rows that nobody voted on are nan. `out_of_fold`, [N, C], holds the probabilities of a student that did not learn
    from the item, nan where there is none; only "crowdlab" uses it, and raises ConfigError without any.

    `on_all`, [A], tells the opinions that were asked for on all items, which is what all of them are where it is
    missing. How good opinions are is estimated from these alone: where others were asked for, something was wrong, and
    judged by such items everybody would look bad. The others count as much as these do on average. Where no item has
    two of these, nothing can be estimated, and one opinion counts as much as another (and as the student).
    """
    votes = np.asarray(votes)
    on_all = np.ones(votes.shape[1], dtype=bool) if on_all is None else np.asarray(on_all)
    voted = (votes >= 0).any(axis=1)
    found = np.full((len(votes), classes), np.nan)
    student = np.full_like(found, np.nan) if out_of_fold is None else np.asarray(out_of_fold, dtype=np.float64)
    if method == "crowdlab" and len(votes) and np.isnan(student).any(axis=1).all():
        raise ConfigError("quality.consensus", method, "needs the probabilities of a student that did not learn from "
                          "the items (quality.folds); without one, choose agreement, majority or dawid_skene")
    if not voted.any():
        return found
    given = votes[voted]
    if method == "crowdlab":
        found[voted] = _crowdlab(given, classes, student[voted], on_all)
    elif method == "dawid_skene" and _several(given[:, on_all]).any():
        found[voted] = _dawid_skene(given, classes, on_all)
    else:
        consistency = _consistency(given[:, on_all], classes)
        found[voted] = _pool(given, classes, consistency, np.ones(votes.shape[1]))
    return found


def winners(probabilities: Floats, votes: Ints) -> Ints:
    """[N] the most probable of the classes that [N, A] `votes` name, by [N, C]; -1 where two share the first place or
    nobody voted. What nobody named wins nowhere: neither a student nor estimated mistakes flip a label by themselves.
    """
    named = _counts(np.asarray(votes), probabilities.shape[1], np.ones(votes.shape[1])) > 0
    chances = np.where(named, probabilities, -np.inf)
    best = named & (chances >= chances.max(axis=1, keepdims=True) - 1e-9)
    return np.where(best.sum(axis=1) == 1, best.argmax(axis=1), -1)


def _several(votes: Ints) -> Bools:
    """[N] whether an item has two or more opinions."""
    several: Bools = (votes >= 0).sum(axis=1) > 1
    return several


def _counts(votes: Ints, classes: int, weights: Floats) -> Floats:
    """[N, C] the weights of the opinions for each class."""
    counts = np.zeros((len(votes), classes))
    for weight, column in zip(weights, votes.T, strict=True):
        counts[column >= 0, column[column >= 0]] += weight
    return counts


def _consistency(votes: Ints, classes: int) -> float:
    """The share of votes that go with their item's most frequent class, where there are two or more.

    One vote more than there is goes with it, so that the share is above chance even where everybody contradicts.
    """
    counts = _counts(votes, classes, np.ones(votes.shape[1]))
    several = counts[counts.sum(axis=1) > 1]
    return float((1 + several.max(axis=1).sum()) / (1 + several.sum())) if len(several) else 1.0


def _pool(votes: Ints, classes: int, consistency: float, weights: Floats, student: Floats | None = None,
          student_weight: float = 0.0) -> Floats:
    """The weighted mean of opinions, each turned into `consistency` for its class and the rest for all others.

    A linear opinion pool (Stone, 1961): unlike a product of likelihoods it never grows surer than its surest member,
    so that mistakes which opinions share do not count as evidence. CROWDLAB's estimate has the same form.
    """
    rest = (1 - consistency) / (classes - 1)
    pooled = rest * (weights * (votes >= 0)).sum(axis=1, keepdims=True)
    pooled = pooled + (consistency - rest) * _counts(votes, classes, weights)
    if student is not None:
        pooled += student_weight * np.nan_to_num(student)
    shares: Floats = pooled / pooled.sum(axis=1, keepdims=True)
    return shares


def _dawid_skene(votes: Ints, classes: int, on_all: Bools) -> Floats:
    """Each opinion's confusion and each item's class, estimated together (Dawid and Skene, 1979).

    Opinions that were not asked for on all items come in afterwards, by Bayes' rule, with the others' mean confusion.
    """
    import pandas as pd
    from crowdkit.aggregation import DawidSkene  # takes seconds to import

    task, worker = np.nonzero(votes[:, on_all] >= 0)
    table = pd.DataFrame({"task": task, "worker": worker, "label": votes[:, on_all][task, worker]})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Its own tolerance of 1e-5 stops while single probabilities are still 0.1 from where they end.
        fitted = DawidSkene(n_iter=100, tol=1e-7).fit(table)
    # Rows and columns come in the order of their first mention, and a class that nobody answered has none.
    every = range(classes)
    found = fitted.probas_.reindex(columns=every, fill_value=0.0)
    prior = fitted.priors_.reindex(every, fill_value=0.0).to_numpy()
    probabilities: Floats = np.tile(prior, (len(votes), 1))
    probabilities[found.index] = found.to_numpy()
    # [C, C], from true (column) to answered class (row): the sum of all does as well as the mean.
    confusion = fitted.errors_.groupby("label").sum().reindex(index=every, columns=every, fill_value=0.0).to_numpy()
    confusion = np.maximum(confusion, 1e-10)
    for column in votes[:, ~on_all].T:
        probabilities[column >= 0] *= confusion[column[column >= 0]]
    shares: Floats = probabilities / probabilities.sum(axis=1, keepdims=True)
    return shares


def _crowdlab(votes: Ints, classes: int, student: Floats, on_all: Bools) -> Floats:
    """Opinions and the student, each weighted by how far it goes with the majority (Goh, Tkachenko and Mueller, 2022).

    cleanlab estimates the weights; of the result it tells one class and its probability, so the weighted mean is
    taken here.
    """
    from cleanlab.multiannotator import get_label_quality_multiannotator  # takes seconds to import

    own = votes[:, on_all]
    weights, student_weight, consistency = np.ones(votes.shape[1]), 1.0, _consistency(own, classes)
    known = ~np.isnan(student).any(axis=1) & (own >= 0).any(axis=1)
    seen = own[known]
    if _several(seen).any():
        present = (seen >= 0).any(axis=0)
        # Where votes and student both tie, cleanlab draws lots: a trace of preference keeps the result the same.
        preference = np.linspace(2, 1, classes) / np.linspace(2, 1, classes).sum()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            told = get_label_quality_multiannotator(
                np.where(seen >= 0, seen, np.nan)[:, present], student[known] * (1 - 1e-9) + preference * 1e-9,
                consensus_method="majority_vote", return_detailed_quality=False, return_annotator_stats=False,
                return_weights=True, verbose=False,
            )
        student_weight = float(told["model_weight"])
        weights = np.full(len(weights), told["annotator_weight"].mean())
        weights[np.flatnonzero(on_all)[present]] = told["annotator_weight"]
        several = told["label_quality"]["num_annotations"] > 1
        consistency = float(told["label_quality"]["annotator_agreement"][several].mean())
    return _pool(votes, classes, consistency, weights, student, student_weight)
