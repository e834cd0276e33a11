"""How much is taken at a time: no more than can be answered soon, by how fast it went of late.

A fixed number of images fits no machine: what one answers in 50 ms keeps clients of another waiting for seconds, who
have given up by then. Knows nothing about what is done with images.
"""

import math
import time
from collections.abc import Callable

QUEUE_S = 0.25  # that an image shall wait for those before it, at most
MEMORY_S = 1.0  # of work by which the pace is judged: what lies so far back counts a third
GUESS_S = 0.05  # of work, as which the first guess at the pace counts
LEAST = 1e-3  # images, which a long standstill leaves of the pace
BUSY_S = 1.0  # after which a client that was turned away may come again


class Busy(Exception):
    """More images are in work than allowed, or the server is stopping."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"too much is in work: ask again after {retry_after_s:g} s")
        self.retry_after_s = retry_after_s


class Admission:
    """`pending` images are in work, `most` at the most. Where those before it take longer than `queue_s`, a request is
    turned away as well, unless they are fewer than `few`, which are one batch. `clock` tells seconds."""

    # Little's law: who comes waits for pending / pace. The pace counts while there is at least a batch in work: that of
    # one image after the other says nothing of what can be done. At first it is thought to be as good as can be.

    def __init__(self, most: int, few: int, *, queue_s: float = QUEUE_S,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._few, self._queue_s, self._clock = most, min(few, most), queue_s, clock
        self._done, self._worked_s = most * GUESS_S / queue_s, GUESS_S
        self._looked = clock()
        self.pending = 0

    @property
    def queue_s(self) -> float:
        """How long those in work will take, by the pace of late."""
        self._look()
        return self.pending * self._worked_s / self._done

    def take(self, images: int) -> None:
        """Raises Busy."""
        if self.pending + images > self._most or (self.pending >= self._few and self.queue_s > self._queue_s):
            raise Busy(BUSY_S)
        self._look()
        self.pending += images

    def leave(self, images: int) -> None:
        self._look()
        if self.pending >= self._few:
            self._done += images
        self.pending -= images

    def _look(self) -> None:
        """Note the time that has passed."""
        now = self._clock()
        if self.pending >= self._few:
            passed = now - self._looked
            fades = math.exp(-passed / MEMORY_S)
            self._done = max(LEAST, self._done * fades)
            self._worked_s = self._worked_s * fades + passed
        self._looked = now
