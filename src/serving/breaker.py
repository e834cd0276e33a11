"""Whom to ask at all: after several faults in a row nobody, but for one try now and then.

A teacher that is dead, or too slow for those who wait, then costs nobody any time, and is found back when it answers.
Pure: the time is an argument. Knows nothing about what is asked.
"""

import time
from collections.abc import Callable

from src.task import Failure


class Breaker:
    """Opens after `after` faults in a row, for `first_s`; each fault of a try doubles that, up to `longest_s`.

    `why` is the last fault while it is open, else None.
    """

    def __init__(self, *, after: int = 5, first_s: float = 1.0, longest_s: float = 60.0,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self.why: Failure | None = None
        self._after, self._first_s, self._longest_s, self._clock = after, first_s, longest_s, clock
        self._faults = 0
        self._wait_s = first_s
        self._try_at = 0.0
        self._trying: object = None

    def admits(self, who: object) -> bool:
        """Whether `who` may ask. While it is open, that is one at a time, once the wait is over; until it leaves."""
        if self.why is None or self._trying is who:
            return True
        if self._trying is not None or self._clock() < self._try_at:
            return False
        self._trying = who
        return True

    def leave(self, who: object) -> None:
        """`who` asks no more, whatever became of it."""
        if self._trying is who:
            self._trying = None

    def failed(self, why: Failure, *, for_long: bool = False) -> None:
        """A fault. `for_long`, it opens at once and for the longest time: the next try would meet the same."""
        self._faults += 1
        if for_long:
            self._open(why, self._longest_s)
        elif self.why is None and self._faults >= self._after:
            self._open(why, self._first_s)
        elif self.why is not None and self._trying is not None:
            self._open(why, min(2 * self._wait_s, self._longest_s))

    def worked(self) -> None:
        self._faults, self.why, self._trying = 0, None, None

    def _open(self, why: Failure, wait_s: float) -> None:
        self.why, self._wait_s, self._trying = why, wait_s, None
        self._try_at = self._clock() + wait_s
