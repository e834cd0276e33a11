"""Money: what may still be promised, what was spent. All amounts are US dollars.

Knows nothing about requests; the worst case of one is an argument.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable

HOUR_S = 3600.0


class Budget:
    """A cap that counts what is in flight: a request starts only if its worst case still fits.

    `spent_usd` is what was settled so far, beginning with what the same job spent before; `in_flight` is how many
    promises are not settled yet.
    """

    def __init__(self, cap_usd: float, spent_usd: float = 0.0) -> None:
        self.cap_usd = cap_usd
        self.spent_usd = spent_usd
        self.in_flight = 0
        self._reserved_usd = 0.0
        self._settled = asyncio.Event()

    def reserve(self, worst_usd: float) -> bool:
        """Promise `worst_usd` and return True, or leave everything as it is and return False."""
        # A free model (worst case 0) passes under any cap, also under one of 0.
        if worst_usd > 0 and self.spent_usd + self._reserved_usd + worst_usd > self.cap_usd:
            return False
        self._reserved_usd += worst_usd
        self.in_flight += 1
        return True

    def settle(self, worst_usd: float, cost_usd: float) -> None:
        """Turn a promise into what it cost in the end (0 where nothing was charged)."""
        self.in_flight -= 1
        # Sums of many cents drift; nothing in flight means nothing promised.
        self._reserved_usd = self._reserved_usd - worst_usd if self.in_flight else 0.0
        self.spent_usd += cost_usd
        self._settled.set()
        self._settled = asyncio.Event()  # whoever waits next may do so in another event loop

    async def change(self) -> None:
        """Return when something in flight has been settled: it may have cost less than its worst case."""
        await self._settled.wait()


class HourlyBudget:
    """A cap on what any hour may cost, counting what is in flight at its worst case. For one process: what others spend
    is not known to it.

    `spent_usd` is what the last hour cost before this one began, which counts for an hour from now.
    """

    def __init__(self, cap_usd: float, spent_usd: float = 0.0, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.cap_usd = cap_usd
        self._clock = clock
        self._bills: deque[tuple[float, float]] = deque()
        self._billed_usd = 0.0
        self._reserved_usd = 0.0
        self._in_flight = 0
        if spent_usd:
            self.book(spent_usd)

    @property
    def spent_usd(self) -> float:
        """What the last hour cost, as far as it was settled."""
        since = self._clock() - HOUR_S
        while self._bills and self._bills[0][0] <= since:
            self._billed_usd -= self._bills.popleft()[1]
        # Sums of many cents drift.
        self._billed_usd = self._billed_usd if self._bills else 0.0
        return self._billed_usd

    def fits(self, worst_usd: float) -> bool:
        """Whether so much may be promised. A free model (0) passes under any cap, also under one of 0."""
        return worst_usd <= 0 or self.spent_usd + self._reserved_usd + worst_usd <= self.cap_usd

    def reserve(self, worst_usd: float) -> bool:
        """Promise `worst_usd` and return True, or leave everything as it is and return False."""
        if not self.fits(worst_usd):
            return False
        self._reserved_usd += worst_usd
        self._in_flight += 1
        return True

    def settle(self, worst_usd: float, cost_usd: float) -> None:
        """Turn a promise into what it cost in the end (0 where nothing was charged)."""
        self._in_flight -= 1
        self._reserved_usd = self._reserved_usd - worst_usd if self._in_flight else 0.0
        if cost_usd:
            self.book(cost_usd)

    def book(self, cost_usd: float) -> None:
        """Note what was spent just now."""
        self._bills.append((self._clock(), cost_usd))
        self._billed_usd += cost_usd
