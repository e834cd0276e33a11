"""How much gold is enough. Pure.

Gold has two equal parts, and all figures but the guarantee are judged on *choose* alone: advice that a person can
follow is about both parts together, as `data.gold_size` is.
"""

import math

from scipy.special import betaincinv  # scipy.stats takes 60 MB

from src.metrics import Interval

LIMIT = 10_000_000


def advice(gold_size: int) -> str:
    """In the words of the keys that decide how much gold there is."""
    return f"data.gold_size of about {gold_size} (or so many rows in data.gold_csv)"


def for_choose(items: float) -> int:
    """The size of all gold that brings so many items into the *choose* part."""
    return 2 * math.ceil(items)


def needed_gold(accuracy: Interval, choose: int, half_width: float) -> int | None:
    """The size of all gold that would bring `accuracy` within `half_width`, or None where it is already.

    Of gold's *choose* part, of `choose` items, `accuracy.n` could be judged; the same share of more gold will.
    """
    enough = enough_gold(accuracy.value, half_width)
    return for_choose(enough * choose / accuracy.n) if enough > accuracy.n else None


def enough_gold(accuracy: float, half_width: float, level: float = 0.95) -> int:
    """The least number of judged items for which half the exact interval around `accuracy` is `half_width` or less.

    Clopper and Pearson's, as in `metrics.proportion`, with the expected number of right answers, which need not be
    whole. Raises ValueError for an accuracy outside [0, 1] and a half-width outside (0, 0.5).
    """
    if not 0 <= accuracy <= 1:
        raise ValueError(f"accuracy={accuracy}: must lie in [0, 1]")
    if not 0 < half_width < 0.5:
        raise ValueError(f"half_width={half_width}: must lie between 0 and 0.5")
    # The interval narrows as n grows, so that halving finds the place.
    too_few, enough = 0, 1
    while _half_width(accuracy, enough, level) > half_width:
        too_few, enough = enough, 2 * enough
        if enough > LIMIT:
            raise ValueError(f"half_width={half_width}: would take more than {LIMIT} items")
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if _half_width(accuracy, middle, level) > half_width:
            too_few = middle
        else:
            enough = middle
    return enough


def _half_width(accuracy: float, n: int, level: float) -> float:
    right, tail = accuracy * n, (1 - level) / 2
    low = betaincinv(right, n - right + 1, tail) if right > 0 else 0.0
    high = betaincinv(right + 1, n - right, 1 - tail) if right < n else 1.0
    return math.inf if math.isnan(low + high) else float(high - low) / 2
