"""The learned rate: simulated servers of unknown rates are used to the full and rarely refuse, changing ones too."""

import asyncio
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from simulated_time import make_pacer, now, settle, simulate

from src.labeling.learned_rate import LearnedRate
from src.labeling.pacing import Pacer


@dataclass(frozen=True)
class Asked:
    at: float  # seconds since the beginning
    taken: bool


class Bucket:
    """A server that takes `rate` requests a second, saved up to `room`, and refuses the rest. `trouble` is the share
    that it refuses for another reason."""

    def __init__(self, rate: float, *, room: float | None = None, seed: int = 0) -> None:
        self.asked: list[Asked] = []
        self.trouble = 0.0
        self._chance = random.Random(seed)
        self._began = self._at = now()
        self.set_rate(rate, room)
        self._level = self._room

    def set_rate(self, rate: float, room: float | None = None) -> None:
        self._rate, self._room = rate, room or rate
        self._level = min(getattr(self, "_level", self._room), self._room)

    def ask(self) -> float | None:
        """None where it is taken, else the seconds until the next will be."""
        self._level = min(self._room, self._level + (now() - self._at) * self._rate)
        self._at = now()
        taken = self._level >= 1 and self._chance.random() >= self.trouble
        self.asked.append(Asked(self._at - self._began, taken))
        self._level -= taken
        return None if taken else max(0.0, 1 - self._level) / self._rate or 1.0

    def taken(self, start: float, end: float) -> float:
        """Requests a second between the two times."""
        return sum(asked.taken for asked in self.asked if start <= asked.at < end) / (end - start)

    def refused(self, start: float, end: float) -> float:
        """Their share."""
        there = [asked.taken for asked in self.asked if start <= asked.at < end]
        return 1 - sum(there) / len(there)


Says = Callable[[float], float | None]


def whole(seconds: float) -> float:
    return float(math.ceil(seconds))


def exact(seconds: float) -> float:
    return seconds


def nothing(seconds: float) -> None:
    return None


Latency = Callable[[random.Random], float]


def always(seconds: float) -> Latency:
    return lambda chance: seconds


def ask_for(seconds: float, *, latency: Latency, says: Says = whole, seed: int = 0, concurrency: int = 64,
            rate: float = 20.0, room: float | None = None, events: dict[float, Callable[[Bucket], None]] | None = None,
            idle_s: float = 0.0, alone_s: float = 0.0) -> tuple[Bucket, Pacer]:
    """A pool that asks for so long, as the labeler does, the first of it alone at first; `events` happen to the server
    at their times."""

    async def main() -> tuple[Bucket, Pacer]:
        chance = random.Random(seed)
        pacer = make_pacer(seed=seed, concurrency=concurrency, adaptive=True)
        server = Bucket(rate, room=room, seed=seed)
        silent_until = -math.inf

        async def question(there: float) -> None:
            nonlocal silent_until
            tries = 0
            while True:
                permit = await pacer.ready(1)
                assert now() >= silent_until, "Retry-After is honoured by everyone"
                took = latency(chance)
                await asyncio.sleep(chance.uniform(0, there))
                wait = server.ask()
                await asyncio.sleep(took)
                retry_after = None if wait is None else says(wait)
                settle(pacer, permit, refused=wait is not None, retry_after_s=retry_after)
                if wait is None:
                    return
                tries += 1
                if retry_after:
                    silent_until = max(silent_until, now() + retry_after)
                else:
                    await pacer.back_off(tries)

        async def work(first: bool) -> None:
            await asyncio.sleep(0 if first else alone_s)
            there = 0.2  # the first time there is a connection to be made
            while True:
                await question(there)
                there = 0.01
                if idle_s:
                    await asyncio.sleep(idle_s)

        workers = [asyncio.ensure_future(work(n == 0)) for n in range(concurrency)]
        began = now()
        for at, event in sorted((events or {}).items()):
            await asyncio.sleep(began + at - now())
            event(server)
        await asyncio.sleep(began + seconds - now())
        for worker in workers:
            if worker.done():
                worker.result()
            worker.cancel()
        return server, pacer

    bucket, pacer = simulate(main())
    return bucket, pacer


@pytest.mark.parametrize("says", [whole, exact, nothing])
@pytest.mark.parametrize("latency_s", [0.05, 0.5, 2.0])
@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 8))])
def test_a_server_of_unknown_rate_is_used_to_the_full_and_rarely_refuses(seed: int, latency_s: float,
                                                                         says: Says) -> None:
    server, _ = ask_for(60, latency=always(latency_s), says=says, seed=seed)
    assert server.taken(0, 60) >= 0.9 * 20
    assert server.refused(5, 60) <= 0.02


@pytest.mark.parametrize("latency_s", [0.05, 0.5, 2.0])
def test_a_slow_beginning_teaches_nothing_wrong(latency_s: float) -> None:
    """As where a few questions are asked before the many."""
    server, _ = ask_for(70, latency=always(latency_s), alone_s=10)
    assert server.taken(10, 70) >= 0.9 * 20 and server.refused(15, 70) <= 0.02


@pytest.mark.parametrize(("rate", "room"), [
    (2.0, 2.0), (20.0, 5.0), (20.0, 200.0), pytest.param(100.0, 100.0, marks=pytest.mark.slow),
    pytest.param(100.0, 10.0, marks=pytest.mark.slow)])
def test_rates_and_bursts_of_any_size_are_learned_within_two_minutes(rate: float, room: float) -> None:
    server, pacer = ask_for(200, latency=lambda chance: chance.uniform(0.2, 0.6), rate=rate, room=room)
    # A burst that is saved up faster than the second which Retry-After names goes partly to waste.
    assert server.taken(120, 200) >= (0.9 if room >= rate else 0.75) * rate
    assert server.refused(120, 200) <= 0.02 and 0.8 * rate < pacer.per_second < 1.3 * rate


@pytest.mark.parametrize("says", [whole, pytest.param(nothing, marks=pytest.mark.slow)])
@pytest.mark.parametrize("latency_s", [pytest.param(0.05, marks=pytest.mark.slow), 0.5, 2.0])
def test_a_limit_that_changes_is_followed_within_a_minute(latency_s: float, says: Says) -> None:
    # The third of the cases in which every refusal costs the most silence keeps a little less.
    share = 0.85 if latency_s == 2.0 and says is whole else 0.9
    server, _ = ask_for(360, latency=always(latency_s), says=says,
                        events={120: lambda server: server.set_rate(10), 240: lambda server: server.set_rate(20)})
    assert server.taken(180, 240) >= share * 10 and server.refused(180, 240) <= 0.03
    assert server.taken(300, 360) >= share * 20 and server.refused(300, 360) <= 0.03


@pytest.mark.parametrize(("trouble", "lasts_s"), [
    (0.5, 10), pytest.param(1.0, 10, marks=pytest.mark.slow), (1.0, 60)])
@pytest.mark.parametrize("says", [lambda seconds: 2.0, nothing], ids=["2 s", "nothing"])
def test_trouble_that_passes_is_not_taken_for_a_limit(says: Says, trouble: float, lasts_s: float) -> None:
    def troubled(server: Bucket) -> None:
        server.trouble = trouble

    def well(server: Bucket) -> None:
        server.trouble = 0.0

    over = 120 + lasts_s
    server, pacer = ask_for(over + 110, latency=always(0.5), says=says, events={120: troubled, over: well})
    asked = sum(121 <= asked.at < over for asked in server.asked) / (over - 121)
    assert asked < (0.9 if lasts_s == 10 else 0.5) * server.taken(0, 120), "it slows down meanwhile"
    assert server.taken(over + 60, over + 110) >= 0.9 * 20 and server.refused(over + 60, over + 110) <= 0.03
    assert pacer.per_second < 30


def test_a_rate_that_is_not_used_does_not_grow() -> None:
    # 10 workers with 1 s of other work each ask some 7 times a second.
    _, pacer = ask_for(30, latency=always(0.5), concurrency=10, idle_s=1.0)
    assert pacer.per_second == math.inf, "nothing was refused, nothing was learned"
    server, pacer = ask_for(600, latency=always(0.5), concurrency=10, idle_s=1.0, rate=20,
                            events={10: lambda server: server.set_rate(5), 30: lambda server: server.set_rate(20)})
    assert server.taken(300, 600) == pytest.approx(10 / 1.5, rel=0.05) and pacer.per_second < 1.5 * 10 / 1.5


def test_what_was_refused_together_counts_once_and_measures_the_rest() -> None:
    for refused in (slice(20, 64), slice(0, 44)):  # on its way, the last may have overtaken the first
        learned = LearnedRate()
        assert learned.per_second == math.inf
        burst = [learned.start(0.0) for _ in range(64)]
        later = learned.start(1.5)  # of no account for what the burst brought
        for start in burst[refused]:
            learned.refused(start)
        assert learned.per_second == pytest.approx(0.97 * 20), "as many as were taken of a burst, in its second"
    # Ten seconds later the next refusal: 150 were taken in between.
    starts = [learned.start(1.5 + n * 10 / 150) for n in range(151)]
    learned.refused(later)
    learned.refused(starts[0])
    learned.refused(starts[-1])
    assert learned.per_second == pytest.approx(0.97 * 15, rel=0.02)


def test_silence_is_half_the_time() -> None:
    """A full bucket does not fill: of a silence of 2 s, nobody knows how much of it was in vain."""
    learned = LearnedRate()
    first = [learned.start(0.0) for _ in range(40)]
    learned.refused(first[-1])
    later = [learned.start(2.2 + n * 0.05) for n in range(41)]
    learned.refused(later[-1])
    # From 0 to 4.2 s 40 more were taken; 2 s of these were silent but for the 0.2 s that are none.
    assert learned.per_second == pytest.approx(0.97 * 40 / 3.2, rel=0.03)


def test_few_that_were_taken_measure_nothing() -> None:
    learned = LearnedRate()
    starts = [learned.start(n * 0.2) for n in range(101)]
    for number in (50, *range(85, 99, 2), 100):  # the last 3 s brought 8, which may be luck
        learned.refused(starts[number])
    assert learned.per_second == pytest.approx(0.97 * (50 - 8) / 10)


def go(learned: LearnedRate, at: float, seconds: float) -> tuple[float, Any]:
    """Ask as fast as it lets for so long; returns the time then, and the last start."""
    end, start = at + seconds, None
    while (at := max(at, learned.opens_at())) < end:
        start = learned.start(at)
        learned.accepted(at)
    return end, start


def test_a_rate_doubles_in_a_minute_without_refusals_and_hardly_moves_at_first() -> None:
    learned = LearnedRate()
    learned.refused([learned.start(0.0) for _ in range(21)][-1])
    at, last = go(learned, 0.0, 20)
    learned.refused(last)
    rate = learned.per_second / 0.97
    at, _ = go(learned, at, 15)
    assert 0.99 * rate < learned.per_second < 1.03 * rate
    go(learned, at, 45)
    assert learned.per_second == pytest.approx(2 * rate, rel=0.03)


def experienced() -> tuple[LearnedRate, float]:
    """What has learned 20 requests a second for minutes, and the time."""
    learned = LearnedRate()
    for start in [learned.start(0.0) for _ in range(30)][20:]:
        learned.refused(start)
    at = 0.0
    for _ in range(10):
        at, last = go(learned, at, 25)
        learned.refused(last)
    return learned, at


def test_a_rate_that_is_hardly_known_or_was_higher_doubles_sooner() -> None:
    learned = LearnedRate()
    for start in [learned.start(0.0) for _ in range(30)][20:]:
        learned.refused(start)
    go(learned, 0.0, 40)
    assert learned.per_second == pytest.approx(2 * 20, rel=0.03)
    learned, at = experienced()
    high = learned.per_second
    # It falls to 0.7 of that.
    starts = [learned.start(at + n / (0.7 * high)) for n in range(1000)]
    learned.refused(starts[0])
    learned.refused(starts[-1])
    low = learned.per_second / 0.97
    assert low == pytest.approx(0.7 * high, rel=0.02)
    go(learned, at + 1000 / (0.7 * high), 40)
    assert learned.per_second == pytest.approx(2 * low, rel=0.03)


def test_a_standstill_of_ten_minutes_is_not_forgotten_in_ten_seconds() -> None:
    learned, at = experienced()
    usual = learned.per_second
    for _ in range(300):
        at += 2
        learned.refused(learned.start(at))
    assert 0.05 * usual < learned.per_second < 0.2 * usual, "it goes on trying, cautiously"
    go(learned, at, 10)
    assert 0.7 * usual < learned.per_second < 1.1 * usual


def test_a_refusal_that_comes_minutes_late_teaches_nothing() -> None:
    learned = LearnedRate()
    starts = [learned.start(float(n)) for n in range(400)]
    learned.refused(starts[100])
    assert learned.per_second == math.inf


@pytest.mark.parametrize("seed", range(5))
def test_whatever_comes_in_whatever_order_leaves_a_rate(seed: int) -> None:
    chance = random.Random(seed)
    learned, at, under_way = LearnedRate(), 0.0, []
    for _ in range(3000):
        at = max(at + chance.choice([0, 0, 0.01, 1, 200 * chance.random() ** 4]), learned.opens_at())
        under_way.append(learned.start(at))
        while under_way and chance.random() < 0.5:
            start = under_way.pop(chance.choice([0, -1]))
            if chance.random() < 0.3:
                learned.refused(start)
            else:
                learned.accepted(at)
        assert learned.per_second > 0.05 and learned.opens_at() <= at + 20


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("says", [whole, exact, nothing])
@pytest.mark.parametrize("latency_s", [0.05, 0.5, 2.0])
def test_it_stays_so_for_ten_minutes_where_no_two_answers_take_equally_long(latency_s: float, says: Says,
                                                                            seed: int) -> None:
    server, _ = ask_for(600, latency=lambda chance: chance.uniform(0.5 * latency_s, 1.5 * latency_s), says=says,
                        seed=seed)
    # Where answers take up to 3 s, refusals and their Retry-After of 1 s trickle in for as long.
    assert server.taken(0, 600) >= (0.85 if latency_s == 2.0 and says is whole else 0.9) * 20
    assert server.refused(5, 600) <= 0.02
