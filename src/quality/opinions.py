"""How many opinions there really are: agreement beyond chance, and mistakes that opinions share.

Pure. An opinion is one annotator in one pass. Knows nothing about which labels were accepted.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from src.metrics import Bools, Interval, bootstrap
from src.quality.conclude import votes
from src.quality.gold_size import advice, for_choose
from src.task import Annotation, Panel, TaskSpec

MISTAKES_LEAST = 5  # of each opinion: a correlation of fewer is the story of one or two items


@dataclass(frozen=True)
class Independence:
    """What `asked` opinions are worth. `correlation` is that of their mistakes on gold, over all pairs; `effective`
    is how many independent opinions would carry as much, from 1 to `asked`, with its bootstrap interval. Both are None
    where gold cannot tell, and `reason` says why."""

    asked: int
    correlation: float | None
    effective: Interval | None
    reason: str = ""


def independence(annotations: Iterable[Annotation], truths: Mapping[str, str], task: TaskSpec, panel: Panel, *,
                 seed: int) -> Independence:
    """Judged on gold's *choose* part (`truths`: item → class), on its items that every member answered in every pass.

    Kish's design effect (1965): k opinions whose mistakes correlate by rho are worth k / (1 + (k - 1) rho).
    """
    opinions = [(member, n) for member in panel.members for n in range(panel.passes)]
    k = len(opinions)
    if k < 2:
        return Independence(k, None, None, "there is only one opinion")
    by_item: dict[str, list[Annotation]] = defaultdict(list)
    for annotation in annotations:
        if annotation.item in truths:
            by_item[annotation.item].append(annotation)
    rows = []
    for item, annotations in by_item.items():
        given = votes(annotations, task)
        said = [task.map_label(given[opinion].label) if opinion in given else None for opinion in opinions]
        if all(said):
            rows.append([label != truths[item] for label in said])
    wrong = np.array(rows, dtype=bool).reshape(-1, k)
    n, fewest = len(wrong), int(wrong.sum(axis=0).min())
    if fewest < MISTAKES_LEAST:
        needed = f"; {advice(for_choose(MISTAKES_LEAST * len(truths) / fewest))} would tell" if fewest else ""
        return Independence(k, None, None,
                            f"{fewest} mistakes of the best opinion on {n} gold items are too few{needed}")
    effective = bootstrap(lambda index: k / (1 + (k - 1) * _correlation(wrong[index])), n, seed=seed)
    return Independence(k, _correlation(wrong), effective)


def krippendorff_alpha(items: Iterable[Sequence[Hashable]]) -> float:
    """Agreement corrected for chance, for any number of answers an item: 1 is perfect, 0 is chance.

    Each entry holds one item's answers, in any order, without the missing ones; nominal distance (Krippendorff, 2011).
    nan where all answers are one class, or no item has two.
    """
    within, totals = 0.0, Counter[Hashable]()
    for answers in items:
        if len(answers) < 2:
            continue
        counts = Counter(answers)
        within += sum(count * (len(answers) - count) for count in counts.values()) / (len(answers) - 1)
        totals += counts
    n = totals.total()
    between = sum(count * (n - count) for count in totals.values())
    return 1 - (n - 1) * within / between if between else math.nan


def _correlation(wrong: Bools) -> float:
    """Of the columns of [N, K], over all pairs, in [0, 1]: the pairs' covariances against those of full correlation.

    The mean of the pairs' correlations where all columns vary alike; an opinion that is never wrong, as in some
    resamples, then weighs nothing instead of having none.
    """
    share = wrong.mean(axis=0)
    covariance = wrong.astype(float).T @ wrong / len(wrong) - np.outer(share, share)
    spread = np.sqrt(covariance.diagonal())
    pairs = np.triu_indices(len(covariance), 1)
    full = np.outer(spread, spread)[pairs].sum()
    return float(np.clip(covariance[pairs].sum() / full, 0, 1)) if full > 0 else 0.0
