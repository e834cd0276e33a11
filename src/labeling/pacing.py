"""When the next request may go: pauses for the whole pool, slots, quotas, a learned rate, and backoff for one question.

Time, sleeping and chance are arguments. Knows nothing about what is asked.
"""

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from src.labeling.learned_rate import LearnedRate, Start
from src.labeling.quota import RequestQuota, TokenQuota

TICK_S = 1e-6  # no timer is finer


@dataclass(eq=False, slots=True)
class Permit:
    """One request under way, as it was booked. Goes back to the pacer by `done`, whatever became of the request."""

    start: Start | None
    usual_tokens: float
    booked_tokens: float
    settled: bool = False


class Pacer:
    """A shared gate. A server that says "wait" says it to everyone: it counts requests, not our questions.

    At most `concurrency` requests are under way. `requests_per_minute` and `tokens_per_minute` are promises kept in
    every window of a minute; None promises nothing. `adaptive` learns from refusals how many requests a second are
    taken. Whoever asks first goes first. What an `earlier` one learned, was told or used of the quotas still counts.
    """

    def __init__(self, *, backoff_s: float, max_backoff_s: float, seed: int, requests_per_minute: float | None,
                 tokens_per_minute: float | None, concurrency: int, adaptive: bool, earlier: "Pacer | None" = None,
                 clock: Callable[[], float] = time.monotonic,
                 sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self._backoff_s = backoff_s
        self._max_backoff_s = max_backoff_s
        self._chance = random.Random(seed)
        self._requests = RequestQuota(requests_per_minute) if requests_per_minute else None
        self._tokens = TokenQuota(tokens_per_minute) if tokens_per_minute else None
        self._learned = LearnedRate() if adaptive else None
        self._concurrency = concurrency
        self._clock = clock
        self._sleep = sleep
        self._under_way = 0
        self._paused_until = -math.inf  # as told
        self._open_at = -math.inf  # the same with jitter
        self._spread_s = 0.0
        if earlier:
            self._requests, self._tokens, self._learned = earlier._requests, earlier._tokens, earlier._learned
            self._paused_until, self._open_at, self._spread_s = (
                earlier._paused_until, earlier._open_at, earlier._spread_s)
        self._next_at = -math.inf
        # Only whoever holds the turn looks at time and room; the others wait for the turn, in order.
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()
        self._over = asyncio.Event()

    @property
    def per_second(self) -> float:
        """The learned rate; inf without one."""
        return self._learned.per_second if self._learned else math.inf

    @property
    def paused_s(self) -> float:
        """How long the server wants nothing of anyone; 0 where it does not."""
        return max(0.0, self._open_at - self._clock())

    async def ready(self, usual_tokens: float) -> Permit:
        """Return once a request may go: no pause is on, a slot is free, and the quotas have room.

        `usual_tokens` is the first guess of what it will use, prompt and answer together; measured usage corrects it.
        """
        async with self._turn:
            while not self._over.is_set() and (wait := self._wait(usual_tokens)) > TICK_S:
                self._changed.clear()
                await self._rest(wait, self._changed)
            return self._start(usual_tokens)

    def done(self, permit: Permit, *, tokens: int | None, refused: bool, retry_after_s: float | None) -> None:
        """Settle a request: its slot is free, its tokens are what it used, or what was booked where that is unknown.

        `refused` says that the server turned it away for its rate or its load; that costs no tokens. A `retry_after_s`
        pauses everyone. A second call for the same permit changes nothing.
        """
        if permit.settled:
            return
        permit.settled = True
        now = self._clock()
        self._under_way -= 1
        if self._tokens:
            self._tokens.settle(now, permit.usual_tokens, permit.booked_tokens, 0 if refused else tokens)
        if self._learned and permit.start:
            if refused:
                self._learned.refused(permit.start)
            else:
                self._learned.accepted(now)
        if retry_after_s:
            self.pause(retry_after_s)
        self._changed.set()

    def pause(self, seconds: float) -> None:
        """Keep everyone back for at least `seconds`, and then a little apart, or they would all come at once."""
        until = self._clock() + seconds
        if until > max(self._paused_until, self._clock()):
            self._paused_until = until
            self._spread_s = 0.1 * seconds + 0.05
            self._open_at = until + self._chance.uniform(0, self._spread_s)

    def release(self) -> None:
        """End all waiting, also that to come: nothing more will be asked, and nobody shall wait for that."""
        self._over.set()
        self._changed.set()

    async def back_off(self, tries: int) -> None:
        """Sleep before the try after `tries` failed ones: exponential, full jitter above a half."""
        longest = min(self._max_backoff_s, self._backoff_s * 2 ** (tries - 1))
        await self._rest(longest * self._chance.uniform(0.5, 1.0), self._over)

    def _wait(self, usual_tokens: float) -> float:
        """Seconds until a request may go; inf where only a settled one can make room."""
        if self._under_way >= self._concurrency:
            return math.inf
        now = self._clock()
        opens_at = max(self._open_at, self._next_at)
        if self._requests:
            opens_at = max(opens_at, self._requests.opens_at())
        if self._tokens:
            opens_at = max(opens_at, self._tokens.opens_at(now, usual_tokens))
        if self._learned:
            opens_at = max(opens_at, self._learned.opens_at())
        return opens_at - now

    def _start(self, usual_tokens: float) -> Permit:
        now = self._clock()
        self._under_way += 1
        if now < self._open_at + self._spread_s:
            self._next_at = now + self._chance.uniform(0, self._spread_s / self._concurrency)
        if self._requests:
            self._requests.start(now)
        booked = self._tokens.start(now, usual_tokens) if self._tokens else 0.0
        start = self._learned.start(now) if self._learned else None
        return Permit(start, usual_tokens, booked)

    async def _rest(self, seconds: float, event: asyncio.Event) -> None:
        """Return after `seconds`, or when `event` is set if that is sooner."""
        waits: list[asyncio.Future[Any]] = [asyncio.ensure_future(event.wait())]
        if seconds < math.inf:
            waits.append(asyncio.ensure_future(self._sleep(seconds)))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
