"""Which labels look wrong: what to ask again, never to flip.

Pure. Knows nothing about budgets or about who is asked.
"""

from collections.abc import Container, Sequence

import numpy as np

from src.quality.conclude import HUMAN
from src.quality.confidence import OutOfFold
from src.task import Label


def suspects(labels: Sequence[Label], *, gold: Container[str], names: Sequence[str],
             out_of_fold: OutOfFold | None = None) -> list[Label]:
    """The accepted labels, most suspicious first, without `gold`'s items and without what a person said.

    A student that did not learn from the item, where there is one (`out_of_fold`: item → [C] in the order of `names`),
    judges by its margin: the label's probability less that of the best other class (cleanlab's normalized margin;
    Northcutt, Jiang and Chuang, 2021). What no student judged comes after, least `probability` first. Where these are
    the same, the consensus and then the annotators' own confidence decide, and at last the key, which is random.
    """
    eligible = [label for label in labels
                if label.accepted and label.item not in gold and not label.source.startswith(HUMAN)]
    judged = [label for label in eligible if label.item in (out_of_fold or {})]
    quality = dict(zip((label.item for label in judged), _margins(judged, names, out_of_fold or {}), strict=True))

    def order(label: Label) -> tuple[float, float, float, float, str]:
        consensus = label.distribution[names.index(str(label.label))] if label.distribution else 1.0
        return (quality.get(label.item, np.inf), _or_sure(label.probability), consensus, _or_sure(label.confidence),
                label.item)

    return sorted(eligible, key=order)


def _or_sure(probability: float | None) -> float:
    return 1.0 if probability is None else probability


def _margins(labels: Sequence[Label], names: Sequence[str], out_of_fold: OutOfFold) -> list[float]:
    if not labels:
        return []
    from cleanlab.rank import get_label_quality_scores  # takes seconds to import

    classes = np.array([names.index(str(label.label)) for label in labels])
    probabilities = np.array([out_of_fold[label.item] for label in labels], dtype=np.float64)
    scores: list[float] = get_label_quality_scores(classes, probabilities, method="normalized_margin").tolist()
    return scores
