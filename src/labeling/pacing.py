"""When the next request may go: one pause for the whole pool, and backoff with jitter for one question.

Time, sleeping and chance are arguments. Knows nothing about what is asked.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable


class Pacer:
    """A shared gate. A server that says "wait" says it to everyone: it counts requests, not our questions."""

    def __init__(self, *, backoff_s: float, max_backoff_s: float, seed: int,
                 clock: Callable[[], float] = time.monotonic,
                 sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self._backoff_s = backoff_s
        self._max_backoff_s = max_backoff_s
        self._chance = random.Random(seed)
        self._clock = clock
        self._sleep = sleep
        self._open_at = 0.0
        self._released = False

    async def ready(self) -> None:
        """Return once no pause is on; a little apart from the others, or they would all arrive at once."""
        while not self._released and (left := self._open_at - self._clock()) > 0:
            await self._sleep(left + self._chance.uniform(0, 0.1 * left + 0.05))

    def pause(self, seconds: float) -> None:
        """Keep everyone back for at least `seconds`."""
        self._open_at = max(self._open_at, self._clock() + seconds)

    def release(self) -> None:
        """End all pauses, also those to come: nothing more will be asked, and nobody shall wait for that."""
        self._released = True

    async def back_off(self, tries: int) -> None:
        """Sleep before the try after `tries` failed ones: exponential, full jitter above a half."""
        longest = min(self._max_backoff_s, self._backoff_s * 2 ** (tries - 1))
        await self._sleep(longest * self._chance.uniform(0.5, 1.0))
