"""Quotas that a provider states: requests and tokens per minute.

Providers count in different ways: by fixed minutes, by sliding ones, or with a bucket that fills steadily and may hold
little. What is safe for all of them is an even pace and, on top of it, never more than the quota in any minute.

Pure: the time, in seconds, is an argument. Knows nothing about who waits.
"""

import math
from collections import deque

MINUTE_S = 60.5  # requests are not all equally long on their way, and the provider counts arrivals
LATE_S = 0.2  # a start that late is made up for; what was not used for longer is lost
MEASURED = 64  # requests in the rolling mean of tokens


class Pace:
    """Starts one after another, each `gap` seconds after the one before; `due` is when the next may go."""

    def __init__(self) -> None:
        self.due = -math.inf

    def start(self, now: float, gap: float) -> bool:
        """Book a start; True where starts come as fast as the pace lets them."""
        pressed = now - self.due < LATE_S
        # From when it was due, or a busy machine's late timers would add up to a slower pace.
        self.due = (self.due if pressed else now) + gap
        return pressed


class RequestQuota:
    """At most `per_minute` starts in any minute, evenly spaced."""

    def __init__(self, per_minute: float) -> None:
        self._gap = MINUTE_S / per_minute
        self._starts: deque[float] = deque(maxlen=max(1, int(per_minute)))
        self._pace = Pace()

    def opens_at(self) -> float:
        full = len(self._starts) == self._starts.maxlen
        return max(self._pace.due, self._starts[0] + MINUTE_S if full else -math.inf)

    def start(self, now: float) -> None:
        self._pace.start(now, self._gap)
        self._starts.append(now)


class TokenQuota:
    """At most `per_minute` tokens in any minute, prompt and answer together.

    Some providers count a request when it arrives, some when it is answered. So its tokens count from its start until
    a minute after its end: a request that takes 3 s costs 5% of the rate.

    A request under way counts with the caller's guess times the rolling ratio of used to guessed tokens, so a constant
    guess, however wrong, makes this the rolling mean of what was measured.
    """

    def __init__(self, per_minute: float) -> None:
        self._per_minute = per_minute
        self._pace = Pace()
        self._under_way = 0
        self._guessed = 0.0  # of what is under way
        self._ended: deque[tuple[float, float]] = deque()  # when, and the tokens used
        self._used = 0.0  # their sum
        self._measured: deque[tuple[float, float]] = deque(maxlen=MEASURED)  # used, guessed
        self._ratio = 1.0

    def opens_at(self, now: float, guess: float) -> float:
        """The earliest time for a request of `guess` tokens; inf where one under way must end first."""
        while self._ended and self._ended[0][0] + MINUTE_S <= now:
            self._used -= self._ended.popleft()[1]
        if not self._ended:
            self._used = 0.0
            # A request larger than the quota goes alone, or it would wait for ever.
            if not self._under_way:
                return self._pace.due
        if self._used + (self._guessed + guess) * self._ratio <= self._per_minute:
            return self._pace.due
        return max(self._pace.due, self._ended[0][0] + MINUTE_S) if self._ended else math.inf

    def start(self, now: float, guess: float) -> float:
        """Book a request; returns the tokens it was booked with."""
        booked = guess * self._ratio
        self._pace.start(now, booked * MINUTE_S / self._per_minute)
        self._under_way += 1
        self._guessed += guess
        return booked

    def settle(self, now: float, guess: float, booked: float, used: float | None) -> None:
        """Put what was used in the place of what was booked; None where nobody knows."""
        self._under_way -= 1
        # Sums of many floats drift; nothing under way means nothing guessed.
        self._guessed = self._guessed - guess if self._under_way else 0.0
        if used and guess:
            self._measured.append((used, guess))
            self._ratio = sum(used for used, _ in self._measured) / sum(guess for _, guess in self._measured)
        used = booked if used is None else used
        self._ended.append((now, used))
        self._used += used
        self._pace.due += (used - booked) * MINUTE_S / self._per_minute
