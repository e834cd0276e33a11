"""How much gold is enough. Pure."""

import math

from scipy.stats import beta

LIMIT = 10_000_000


def enough_gold(accuracy: float, half_width: float, level: float = 0.95) -> int:
    """The least number of gold items for which half the exact interval around `accuracy` is `half_width` or less.

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
    low = beta.ppf(tail, right, n - right + 1) if right > 0 else 0.0
    high = beta.ppf(1 - tail, right + 1, n - right) if right < n else 1.0
    return math.inf if math.isnan(low + high) else float(high - low) / 2
