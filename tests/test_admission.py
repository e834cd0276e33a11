"""What is taken: as much as is answered soon, by the pace that was kept, and never less than a batch."""

from collections import deque

import pytest

from src.serving.admission import Admission, Busy


class World:
    """A server that answers `pace` images a second, one after the other, on a clock that stands still between."""

    def __init__(self, pace: float, *, most: int = 10_000, few: int = 32) -> None:
        self.now, self.pace = 0.0, pace
        self.admission = Admission(most, few, queue_s=0.25, clock=lambda: self.now)
        self.came = deque[tuple[float, int]]()
        self.free_at = 0.0
        self.waits: list[float] = []

    def until(self, end: float) -> None:
        while self.came and (done := max(self.free_at, self.came[0][0]) + self.came[0][1] / self.pace) <= end:
            came, images = self.came.popleft()
            self.now = self.free_at = done
            self.waits.append(done - came)
            self.admission.leave(images)
        self.now = end

    def offer(self, rate: float, seconds: float, images: int = 1) -> int:
        """How many requests, at an even pace, were turned away."""
        start, refused = self.now, 0
        for n in range(round(rate * seconds)):
            self.until(start + n / rate)
            try:
                self.admission.take(images)
                self.came.append((self.now, images))
            except Busy as error:
                assert error.retry_after_s > 0
                refused += 1
        self.until(start + seconds)
        return refused


@pytest.mark.parametrize("pace", [200.0, 1000.0, 5000.0])
def test_twice_what_can_be_done_is_cut_to_what_waits_shortly(pace: float) -> None:
    world = World(pace, most=512)
    assert world.offer(pace / 2, 2) == 0
    assert max(world.waits) <= 2 / pace
    world.offer(2 * pace, 3)  # the first time it has yet to learn its pace
    assert max(world.waits) < 1
    world.waits.clear()
    refused = world.offer(2 * pace, 5)
    assert 0.4 < refused / (10 * pace) < 0.55  # what cannot be done, and no more
    assert max(world.waits) == pytest.approx(min(0.25, 512 / pace), rel=0.2)
    world.until(world.now + 1)
    world.waits.clear()
    assert world.offer(pace / 2, 2) == 0 and max(world.waits) <= 2 / pace


def test_large_requests_are_taken_one_behind_the_other() -> None:
    """By those before it, not by its own size: or who sends much at a time would never get in."""
    world = World(400.0)
    assert world.offer(11, 5, images=32) == 0  # 12.5 a second can be done
    world.offer(25, 5, images=32)
    world.until(world.now + 1)
    assert not world.admission.pending
    world.admission.take(128)
    assert world.admission.queue_s == pytest.approx(0.32, rel=0.2)
    with pytest.raises(Busy):
        world.admission.take(1)


def test_what_comes_at_once_to_an_idle_server_is_taken() -> None:
    """However slowly single images went before: that says nothing."""
    world = World(1000.0, most=512)
    for _ in range(20):
        world.admission.take(1)
        world.now += 0.1
        world.admission.leave(1)
    for _ in range(200):
        world.admission.take(1)


def test_a_batch_is_always_taken() -> None:
    """After a long standstill the pace looks like nothing, and would never be found again."""
    world = World(100.0, few=8)
    for _ in range(8):
        world.admission.take(1)
    world.now = 60.0
    for _ in range(8):
        with pytest.raises(Busy):
            world.admission.take(1)
        world.admission.leave(1)
        world.admission.take(1)
    world.until(world.now)
    for _ in range(8):
        world.admission.leave(1)
    world.free_at = world.now
    assert world.offer(200, 2) > 100
    assert world.offer(200, 4) == pytest.approx(400, rel=0.1)
    assert max(world.waits[-100:]) == pytest.approx(0.25, rel=0.3)  # the pace is known again


def test_no_more_than_the_most() -> None:
    world = World(1.0, most=4, few=4)
    world.admission.take(3)
    with pytest.raises(Busy):
        world.admission.take(2)
    world.admission.take(1)
    assert world.admission.pending == 4
    world.admission.leave(3)
    world.admission.take(3)
