"""Why labels were refused, and which keys would change that.

Pure. Reads the reasons that `conclude` gives. Knows nothing about files or about who is asked again.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from src.quality.confidence import GOLD_LEAST, OUTCOMES_LEAST
from src.quality.gold_size import advice, for_choose
from src.quality.spec import QualitySpec
from src.task import Label


def ways_out(labels: Sequence[Label], gold: Sequence[Label], *, truths: Mapping[str, str], spec: QualitySpec) -> str:
    """A sentence or two for each kind of refusal among `labels`, the most frequent first.

    `gold` are the labels of gold's *choose* part, and `truths` holds its items' classes.
    """
    refused = [label for label in labels if not label.accepted]
    kinds = Counter(_kind(label.reason) for label in refused)
    judged = [label.label == truths[label.item] for label in gold if label.label and label.item in truths]
    said = max((label.confidence for label in refused if label.confidence is not None), default=0.0)
    likely = max((label.probability for label in refused if label.probability is not None), default=0.0)
    ways = {
        "failed": "Run again, with labeler.retry_failed=true for what failed for good.",
        "not answered": "Run again, so that every pass is answered.",
        "passes disagree": "quality.disagreements=soft learns from what opinions differ on as well.",
        "confidence not said": f"quality.min_confidence={spec.min_confidence:g} refuses every answer that does not say "
                               "how sure it is: quality.min_confidence=0 accepts it.",
        "confidence below": f"The highest confidence is {said:.4g}: lower quality.min_confidence="
                            f"{spec.min_confidence:g}.",
        "probability unknown": f"quality.min_probability={spec.min_probability:g} is judged on gold, "
                               f"{_too_small(judged, len(truths), spec.min_probability)}; "
                               "quality.min_probability=0 does without.",
        "probability below": f"The highest probability is {likely:.4g}: lower quality.min_probability="
                             f"{spec.min_probability:g}{_more_gold(judged, len(truths), spec.min_probability)}.",
        "doubtful": "quality.heuristics=flag accepts what only looks doubtful.",
    }
    return " ".join(ways[kind] for kind, _ in kinds.most_common())


def _kind(reason: str) -> str:
    begins = ("failed", "not answered", "passes disagree", "confidence not said", "confidence below",
              "probability unknown", "probability below")
    return next((kind for kind in begins if reason.startswith(kind)), "doubtful")


def _too_small(judged: Sequence[bool], choose: int, least: float) -> str:
    n = len(judged)
    if n >= GOLD_LEAST:
        return "where no label of this kind (with votes that are split, or are not) is known"
    items = max(GOLD_LEAST, _faultless(least))
    wanted = advice(for_choose(items * choose / n if n else items))
    return f"where {n} items have a label and {GOLD_LEAST} are the least: {wanted} may do"


def _more_gold(judged: Sequence[bool], choose: int, least: float) -> str:
    """What would let probabilities differ, or rise; nothing where gold has taught all it can."""
    n, right = len(judged), sum(judged)
    fewest = min(right, n - right)
    if not n or fewest >= OUTCOMES_LEAST:
        return ""
    if right == n:
        return (f"; {n} gold items without a mistake promise no more, and "
                f"{advice(for_choose(_faultless(least) * choose / n))} without any would")
    if not fewest:
        return ""
    return (f"; with {n - right} mistakes on {n} gold items all labels have the same, and "
            f"{advice(for_choose(OUTCOMES_LEAST * choose / fewest))} would tell them apart")


def _faultless(least: float) -> int:
    """How many right labels without a wrong one make a probability of `least`, by the share that `confidence` takes."""
    return max(1, math.ceil((least - 0.5) / (1 - least)))
