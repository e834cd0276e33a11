"""How many requests a second a server takes, learned from what it refuses.

Between two refusals a server's bucket went from empty to empty, so what it took in between, over the time between, is
the rate at which it fills. From there the rate creeps up, slowly at first, until the next refusal tells more; a limit
that was raised is found within a minute. Before the first refusal there is no limit.

The number of requests under way is no help here: 64 at 50 ms are 1,280 a second, at 2 s they are 32.

Pure: the time, in seconds, is an argument. Knows nothing about pauses and slots.
"""

import math
from bisect import insort
from typing import NamedTuple

from src.labeling.quota import LATE_S, Pace

BELOW = 0.97  # of the measured rate: what comes right after a refusal
RETURN_S = 5.0  # in which most of the way back to the measured rate is made
DOUBLE_S = 60.0  # in which a rate without refusals doubles, slowly at first
SEARCH_S = 40.0  # the same while the rate is hardly known, or well below what it was
MEASURED = 10  # accepted requests, and
MEASURED_S = 2.0  # the time they must span at least, to measure a rate by
FULL_S = 1.0  # what a bucket is taken to hold where it may have been full, in seconds of its rate
GROWN = 1.25  # a rate that much higher is another one: measuring starts anew
MEMORY_S = 120.0  # older starts measure nothing, except where there are no younger ones
USUAL_S = 60.0  # over which the usual rate is a mean
FAULT = 0.5  # of the usual rate: a lower one is taken for a fault that will pass, not for a new limit
LOST = 0.8  # of the usual rate: a lower one is soon tried to be raised
SLOWEST = 0.1  # requests a second: a try every ten seconds does no harm


class Start(NamedTuple):
    """A request's number, from 1, and when it started, on a clock that counts silences by half: while nothing was
    asked, the bucket filled, but nobody knows how long it took to be full."""

    number: int
    time: float


class Mark(NamedTuple):
    """A start from or to which a rate can be measured."""

    number: int
    time: float
    refused: bool
    full: bool  # the bucket may have been full then


class LearnedRate:
    """Paces starts just below the rate that is taken. `start` books one, `accepted` or `refused` tells its end."""

    def __init__(self) -> None:
        self._pace = Pace()
        self._count = 0
        self._last_at = -math.inf
        self._silence_s = 0.0
        self._marks: list[Mark] = []  # by number
        self._marked_rate = math.inf
        self._rounds = 0
        self._round_ends = 0
        self._measured = math.inf  # the measured rate, or the usual one after a fault
        self._base = math.inf
        self._pressed_s = 0.0  # since the last refusal, as far as starts came as fast as they might
        self._searching = False
        self._usual = 0.0
        self._usual_at = 0.0

    @property
    def per_second(self) -> float:
        if self._rounds == 0:
            return math.inf
        back = self._measured - (self._measured - self._base) * math.exp(-self._pressed_s / RETURN_S)
        return float(back * 2 ** (self._pressed_s / (SEARCH_S if self._searching else DOUBLE_S)) ** 3)

    def opens_at(self) -> float:
        return self._pace.due

    def start(self, now: float) -> Start:
        if not self._marks:
            self._marks.append(Mark(0, now, False, True))
            self._last_at = now
        silence_s = max(0.0, now - max(self._pace.due, self._last_at + LATE_S))
        self._silence_s += silence_s
        self._last_at = now
        self._count += 1
        start = Start(self._count, now - self._silence_s / 2)
        rate = self.per_second
        # A rate that is not used to the full is not tested, and must not grow: it stays within a fifth of what is used.
        self._pressed_s += 1 / rate if self._pace.start(now, 1 / rate) else -min(1.0, self._pressed_s)
        apart = start.time >= self._marks[-1].time + FULL_S
        if rate == math.inf and (silence_s or apart):
            self._mark(start, full=True)
        elif rate >= GROWN * self._marked_rate and apart:
            self._mark(start)
            self._marked_rate = rate
        return start

    def accepted(self, now: float) -> None:
        # Only here, not by refusals: a server that takes nothing at all says nothing about what it usually takes.
        self._usual = self._usual * math.exp((self._usual_at - now) / USUAL_S) + 1 / USUAL_S
        self._usual_at = now

    def refused(self, start: Start) -> None:
        if start.time < self._marks[-1].time - MEMORY_S:
            return
        # Refusals of what was under way together are one piece of news.
        if start.number > self._round_ends:
            self._round_ends = self._count
            self._rounds += 1
        self._mark(start, refused=True)
        rate = self._rate()
        self._measured = max(SLOWEST, rate if rate >= FAULT * self._usual else self._usual)
        self._base = max(SLOWEST, BELOW * rate, self._measured / 10)
        # The first refusals measure no more than the server's patience with a burst.
        self._searching = self._rounds == 1 or rate < LOST * self._usual
        self._pressed_s = 0.0
        self._marked_rate = self._base

    def _mark(self, start: Start, *, refused: bool = False, full: bool = False) -> None:
        insort(self._marks, Mark(*start, refused, full))
        oldest = self._marks[-1].time - MEMORY_S
        while len(self._marks) > 2 and self._marks[1].time < oldest:
            del self._marks[0]

    def _rate(self) -> float:
        """Accepted starts a second from the youngest mark that is far enough before the last refused one, up to that.
        What is still under way counts as accepted until it is refused."""
        marks = reversed(self._marks)
        burst_ends = self._round_ends
        while not (last := next(marks)).refused:
            burst_ends = last.number - 1
        rate, refused = 0.0, 1
        for mark in marks:
            accepted = last.number - mark.number - refused
            seconds = last.time - mark.time
            burst = mark.full and seconds < FULL_S
            if mark.full:
                # What came at once was in the bucket; of what came later, only a second's worth.
                seconds = FULL_S if burst else seconds + FULL_S
            if accepted >= MEASURED and (mark.full or seconds >= MEASURED_S):
                rate = max(rate, accepted / seconds)
                # Where the bucket only may have been full, an older mark may tell more.
                if not mark.full:
                    return rate
            refused += mark.refused
        # The burst of the run's beginning may end with some that were taken.
        if burst:
            accepted += burst_ends - last.number
        return max(rate, accepted / max(FULL_S, seconds))
