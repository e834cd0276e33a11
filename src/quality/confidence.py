"""How likely a label is right: what is known of it, calibrated on gold.

What annotators say of their own confidence is evidence like any other and never taken at its word: it has few
distinct values, near 0.95 to 0.99 whatever the accuracy. Pure. Takes gold for a random sample of what is labelled, and
its labels for concluded by the same rule as all others. Knows nothing about how a consensus is reached.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from src.metrics import Bools, Floats, Interval, ece, proportion
from src.task import Label

GOLD_LEAST = 10  # fewer judged labels say nothing
# From so many right and wrong labels each, a regression beat the share in Brier score, at equal calibration, in
# simulations with 60 to 300 gold items and teachers of 0.75 to 0.97.
OUTCOMES_LEAST = 5
FOLDS = 5
EDGE = 1e-3  # nothing is taken for surer than one less this: certainty would outweigh all other evidence

Judge = Callable[[Floats], Floats]
OutOfFold = Mapping[str, Sequence[float] | Floats]


@dataclass(frozen=True)
class Trust:
    """How far a confidence can be taken at its word: its mean, which should be the accuracy; its expected calibration
    error; its Brier score, the mean squared distance from 1 (right) or 0 (wrong). Of the latter two, lower is better.
    """

    mean: float
    ece: float
    brier: float


@dataclass(frozen=True)
class Reliability:
    """What gold says of confidence, on the `accuracy.n` labels that both figures are about: `said` by the annotators,
    None where they did not, and `calibrated`, each label's probability as fitted without its own item.

    `one_for_all` says that gold holds too few mistakes to tell labels apart: each has the share of right ones (of its
    kind, split or of one voice), which is calibrated by construction, so that its calibration error tells nothing.
    """

    accuracy: Interval
    said: Trust | None
    calibrated: Trust
    one_for_all: bool = False


@dataclass(frozen=True)
class Confidence:
    """What gold taught of how likely labels are right, for labels that come later as well; made by `fit`.

    `judges` hold by kind of label, split votes (True) or one voice, what tells its probability from the evidence;
    `crossed` has, for each of gold's own labels, that label and its probability as fitted without its item. Both are
    empty where gold has too few labels to tell.
    """

    names: Sequence[str]
    judges: Mapping[bool, "Judge"]
    crossed: Mapping[str, tuple[str, float]]

    def judge(self, labels: Sequence[Label], out_of_fold: OutOfFold | None = None) -> list[Label]:
        """The labels with their `probability`; None where there is no label or gold cannot tell."""
        made = list(labels)
        for kind, judge in self.judges.items():
            index = [n for n, label in enumerate(labels) if label.label is not None and _split(label) == kind]
            fresh = [n for n in index if self._own(labels[n]) is None]
            found = {n: own for n in index if (own := self._own(labels[n])) is not None}
            if fresh:
                evidence = _evidence([labels[n] for n in fresh], self.names, out_of_fold or {})
                found |= zip(fresh, judge(evidence).tolist(), strict=True)
            for n, probability in found.items():
                made[n] = replace(made[n], probability=None if math.isnan(probability) else probability)
        return made

    def _own(self, label: Label) -> float | None:
        """The probability of one of gold's labels; None for any other."""
        known = self.crossed.get(label.item)
        return known[1] if known and known[0] == label.label else None


def fit(labels: Iterable[Label], *, truths: Mapping[str, str], names: Sequence[str],
        out_of_fold: OutOfFold | None = None) -> Confidence:
    """Learn from those of `labels` whose truth gold knows (`truths`: item → class); the others are passed over.

    Labels whose votes are split are judged apart from those of one voice: where votes tie, no evidence of an item's
    difficulty tells which is right. Of each kind, gold gives the share of right labels, or, with mistakes enough, a
    regression on three pieces of evidence: how sure the consensus is (`distribution`), how sure the annotators say they
    are, and how sure the student is (`out_of_fold`: item → [C], in the order of `names`). That one of them is missing
    counts by itself.
    """
    known = [label for label in labels if label.label is not None and label.item in truths]
    if len(known) < GOLD_LEAST:
        return Confidence(names, {}, {})
    judges: dict[bool, Judge] = {}
    crossed: dict[str, tuple[str, float]] = {}
    for kind in (True, False):
        gold = [label for label in known if _split(label) == kind]
        if not gold:
            continue
        right = np.array([label.label == truths[label.item] for label in gold], dtype=bool)
        evidence = _evidence(gold, names, out_of_fold or {})
        judges[kind] = _fitted(evidence, right)
        own = zip(gold, _crossed(evidence, right).tolist(), strict=True)
        crossed |= {label.item: (str(label.label), probability) for label, probability in own}
    return Confidence(names, judges, crossed)


def with_probability(labels: Sequence[Label], *, truths: Mapping[str, str], names: Sequence[str],
                     out_of_fold: OutOfFold | None = None) -> list[Label]:
    """The labels with their `probability`, fitted on those of them that gold knows, as in `fit`. Gold's own labels are
    judged by the rest of gold."""
    return fit(labels, truths=truths, names=names, out_of_fold=out_of_fold).judge(labels, out_of_fold)


def reliability(labels: Sequence[Label], truths: Mapping[str, str]) -> Reliability | None:
    """Confidence before and after calibration, over gold's labels that have both (or, where nobody said a confidence,
    a probability); None without any."""
    judged = [label for label in labels if label.item in truths and label.probability is not None]
    told = [label for label in judged if label.confidence is not None]
    judged = told or judged
    if not judged:
        return None
    right = np.array([label.label == truths[label.item] for label in judged])
    return Reliability(
        proportion(int(right.sum()), len(right)),
        _trust([label.confidence for label in told], right) if told else None,
        _trust([label.probability for label in judged], right),
        not any(_tell_apart(kind) for kind in _by_kind(labels, truths)),
    )


def _by_kind(labels: Sequence[Label], truths: Mapping[str, str]) -> list[Bools]:
    """Whether gold's labels are right, those of split votes and those of one voice."""
    known = [label for label in labels if label.item in truths and label.label is not None]
    right = np.array([label.label == truths[label.item] for label in known], dtype=bool)
    split = np.array([_split(label) for label in known], dtype=bool)
    return [right[split], right[~split]]


def _split(label: Label) -> bool:
    return len({vote for vote in label.votes if vote}) > 1


def _tell_apart(right: Bools) -> bool:
    """Whether there are right and wrong ones enough for a regression."""
    return bool(min(right.sum(), (~right).sum()) >= OUTCOMES_LEAST)


def _trust(confidence: Sequence[float | None], right: Bools) -> Trust:
    given = np.array(confidence, dtype=np.float64)
    return Trust(float(given.mean()), ece(given, right), float(np.mean((given - right) ** 2)))


def _evidence(labels: Sequence[Label], names: Sequence[str], out_of_fold: OutOfFold) -> Floats:
    """[N, 3] how sure of its label the consensus (log odds), the annotators (as they say) and the student (log odds)
    are; nan where unknown."""
    place = {name: n for n, name in enumerate(names)}
    rows = np.full((len(labels), 3), np.nan)
    for row, label in zip(rows, labels, strict=True):
        column = place[str(label.label)]
        if label.distribution:
            row[0] = _log_odds(label.distribution[column])
        if label.confidence is not None:
            row[1] = label.confidence
        if label.item in out_of_fold:
            row[2] = _log_odds(out_of_fold[label.item][column])
    return rows


def _log_odds(probability: float) -> float:
    clipped = min(max(float(probability), EDGE), 1 - EDGE)
    return math.log(clipped / (1 - clipped))


def _fitted(evidence: Floats, right: Bools) -> Judge:
    """What tells from [N, 3] evidence how probably a label is right, learned from gold's."""
    return (_regression if _tell_apart(right) else _share)(evidence, right)


def _crossed(evidence: Floats, right: Bools) -> Floats:
    """[n] gold's own probabilities, each from the other folds (nan where there are none); right and wrong ones are
    dealt to the folds in turn."""
    fit = _regression if _tell_apart(right) else _share
    fold = np.empty(len(right), dtype=np.int64)
    for outcome in (True, False):
        fold[right == outcome] = np.arange((right == outcome).sum()) % FOLDS
    found = np.full(len(right), np.nan)
    for n in range(FOLDS):
        if (fold == n).any() and (fold != n).any():
            found[fold == n] = fit(evidence[fold != n], right[fold != n])(evidence[fold == n])
    return found


def _share(evidence: Floats, right: Bools) -> Judge:
    """The posterior mean of the share of right labels under Jeffreys' prior."""
    share = (right.sum() + 0.5) / (len(right) + 1)
    return lambda evidence: np.full(len(evidence), share)


def _regression(evidence: Floats, right: Bools) -> Judge:
    """L2 logistic regression. Evidence beyond what gold shows counts as the most extreme that it does."""
    seen = ~np.isnan(evidence).all(axis=0)
    said = np.sort(evidence[~np.isnan(evidence[:, 1]), 1])

    def rows(evidence: Floats) -> Floats:
        """Of what annotators say, only the order means anything: it becomes the place among gold's."""
        place = (said.searchsorted(evidence[:, 1]) + said.searchsorted(evidence[:, 1], "right")) / 2
        place[np.isnan(evidence[:, 1])] = np.nan
        return np.column_stack([evidence[:, 0], place, evidence[:, 2]])[:, seen]

    known = rows(evidence)
    low, high = np.nanmin(known, axis=0), np.nanmax(known, axis=0)
    mean, spread = np.nanmean(known, axis=0), np.nanstd(known, axis=0)

    def columns(evidence: Floats) -> Floats:
        found = rows(evidence)
        scaled = (np.clip(found, low, high) - mean) / np.where(spread > 0, spread, 1)
        return np.hstack([np.where(np.isnan(found), 0, scaled), np.isnan(found)])

    from sklearn.linear_model import LogisticRegression  # takes memory while a million items are asked about

    fitted = LogisticRegression(C=1.0).fit(columns(evidence), right)

    def judge(evidence: Floats) -> Floats:
        probability: Floats = fitted.predict_proba(columns(evidence))[:, 1]
        return probability

    return judge
