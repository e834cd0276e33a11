"""How much gold a promise takes, before any is looked at. Pure.

Gold's two parts are equally large, and only *certify* counts towards the promise: its n items, of which the share
`coverage` is accepted, and of these the share `error_rate` is wrong. Both are assumptions here.
"""

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr, bdtrik, gammaln, xlog1py, xlogy

from src.metrics import Ints

CHANCE = 0.8  # of being certified if things are as assumed; the usual power of a planned study
LIMIT = 100_000
EDGE = 1e-9  # 1 - 0.95 is not quite 0.05
TEETH = 3  # so far ahead the chance must not fall back
SPREAD = 6.0  # standard deviations to either side, beyond which a binomial count is not seen in a million draws


def errors_allowed(accepted: Ints | int, target: float, delta: float) -> npt.NDArray[np.int64]:
    """The most errors among [N] numbers of `accepted` items with which the exact one-sided lower bound of precision
    (Clopper and Pearson, level 1 - `delta`) is `target` or more; -1 where even none are too many.

    So many or fewer errors come with a chance of at most `delta` where precision is below `target`.
    """
    n = np.atleast_1d(np.asarray(accepted, dtype=np.int64))
    found = np.full(n.shape, -1.0)
    some = n * math.log(target) <= math.log(delta)  # no error at all is rare enough
    found[some] = np.floor(bdtrik(delta, n[some], 1 - target))
    # bdtrik is an approximate inverse, good to some digits: the sum itself decides.
    found[some] -= bdtr(found[some], n[some], 1 - target) > delta
    found[some] += bdtr(found[some] + 1, n[some], 1 - target) <= delta
    return found.astype(np.int64)


def chance(n: int, coverage: float, error_rate: float, target: float, delta: float) -> float:
    """How likely a threshold is certified on `n` items of gold's *certify* part, if it comes to its test."""
    mean, deviation = n * coverage, math.sqrt(n * coverage * (1 - coverage))
    low, high = max(0, math.floor(mean - SPREAD * deviation)), min(n, math.ceil(mean + SPREAD * deviation))
    allowed = _allowed(1 << n.bit_length(), target, delta)[low:high + 1]
    accepted = np.arange(low, high + 1)[allowed >= 0]
    ways = gammaln(n + 1) - gammaln(accepted + 1) - gammaln(n - accepted + 1)
    likely = np.exp(ways + xlogy(accepted, coverage) + xlog1py(n - accepted, -coverage))
    return float(likely @ bdtr(allowed[allowed >= 0], accepted, error_rate))


@lru_cache(maxsize=64)
def _allowed(size: int, target: float, delta: float) -> npt.NDArray[np.int64]:
    """`errors_allowed` for 0 to `size` - 1 accepted; kept, since many chances are asked for in a row."""
    return errors_allowed(np.arange(size), target, delta)


def needed_gold(target: float, error_rate: float, coverage: float, delta: float, wanted: float = CHANCE) -> int:
    """How many gold items, both parts together, certify `target` with the chance `wanted` or more.

    The chance rises with gold in teeth, one for each error more that is allowed: this is the size from which on it
    stays, and luckier ones may lie below. Raises ValueError where no gold would do: an error rate of 1 - `target` or
    more, no coverage, or more than LIMIT items.
    """
    if not 0 <= error_rate < 1 - target - EDGE:
        raise ValueError(f"error_rate={error_rate}: no gold certifies {target} unless it lies in [0, {1 - target:.3g})")
    if not 0 < coverage <= 1:
        raise ValueError(f"coverage={coverage}: must lie in (0, 1]")

    def enough(n: int) -> bool:
        return chance(n, coverage, error_rate, target, delta) >= wanted

    low, high = 0, 1
    while not enough(high):
        low, high = high, 2 * high
        if high > LIMIT // 2:
            raise ValueError(f"error_rate={error_rate}: more than {LIMIT} gold items would be needed for {target}")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    ahead = math.ceil(TEETH / ((1 - target) * coverage))
    while behind := [n for n in range(high, high + ahead) if not enough(n)]:
        high = behind[-1] + 1
    return 2 * high


def least_gold(target: float, delta: float) -> int:
    """The gold that certifies `target` where everything is accepted and nothing is wrong: with less, nothing can."""
    return 2 * math.ceil(math.log(delta) / math.log(target))


def highest_target(n: int, delta: float) -> float:
    """The highest target that `n` items of the *certify* part can certify, all of them accepted and right."""
    return float(delta ** (1 / n)) if n else 0.0
