"""Pacing against servers that are simulated on a clock of their own: quotas in every window, a learned rate, no waiter
forgotten. A simulated minute takes a fraction of a second, and comes out the same every time."""

import asyncio
import math
import random
import selectors
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest

from src.labeling.learned_rate import LearnedRate
from src.labeling.pacing import Pacer, Permit
from src.labeling.quota import MINUTE_S, RequestQuota, TokenQuota

MINUTE = 60.0


class VirtualLoop(asyncio.SelectorEventLoop):
    """Where everybody waits, time jumps to the next timer. Where there is none, somebody waits for ever: an error."""

    def __init__(self) -> None:
        self.now = 1000.0
        loop = self

        class Jump(selectors.SelectSelector):
            def select(self, timeout: float | None = None) -> Any:
                if timeout is None:
                    raise RuntimeError("everybody waits, and nothing will ever happen")
                loop.now += max(0.0, timeout)
                return []  # nothing comes from outside

        super().__init__(Jump())

    def time(self) -> float:
        return self.now


def simulate(main: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def now() -> float:
    return asyncio.get_running_loop().time()


def make_pacer(**changes: Any) -> Pacer:
    """Without any limit but on how many at once; on the running loop's clock."""
    fields: dict[str, Any] = {
        "backoff_s": 1.0, "max_backoff_s": 60.0, "seed": 0, "requests_per_minute": None, "tokens_per_minute": None,
        "concurrency": 64, "adaptive": False, "clock": now,
    }
    return Pacer(**(fields | changes))


def settle(pacer: Pacer, permit: Permit, *, tokens: int | None = None, refused: bool = False,
           retry_after_s: float | None = None) -> None:
    pacer.done(permit, tokens=tokens, refused=refused, retry_after_s=retry_after_s)


def most_in_a_window(events: list[tuple[float, float]], seconds: float) -> float:
    """The largest sum of amounts in any window of so many seconds, the window's end excluded; (time, amount) each."""
    inside: deque[tuple[float, float]] = deque()
    total = most = 0.0
    for at, amount in sorted(events):
        while inside and inside[0][0] <= at - seconds:
            total -= inside.popleft()[1]
        inside.append((at, amount))
        total += amount
        most = max(most, total)
    return most


# How many at once, and who goes first


def test_without_limits_nobody_waits_until_all_slots_are_taken() -> None:
    async def main() -> None:
        pacer = make_pacer(concurrency=3)
        permits = []
        for _ in range(3):
            with pytest.raises(StopIteration) as returned:  # without having waited for anything, not even for a turn
                pacer.ready(1).send(None)
            permits.append(returned.value.value)
        fourth = asyncio.ensure_future(pacer.ready(1))
        await asyncio.sleep(100)
        assert not fourth.done()
        settle(pacer, permits[0])
        settle(pacer, permits[0])  # frees no second slot
        await asyncio.sleep(0)
        await fourth
        fifth = asyncio.ensure_future(pacer.ready(1))
        await asyncio.sleep(100)
        assert not fifth.done() and pacer.per_second == math.inf
        fifth.cancel()

    simulate(main())


@pytest.mark.parametrize("limits", [{}, {"requests_per_minute": 600.0}, {"tokens_per_minute": 6000.0},
                                    {"adaptive": True}], ids=str)
def test_whoever_asks_first_goes_first(limits: dict[str, Any]) -> None:
    async def main() -> None:
        pacer = make_pacer(concurrency=2, **limits)
        order: list[int] = []

        async def work(n: int) -> None:
            permit = await pacer.ready(10)
            order.append(n)
            await asyncio.sleep(0.05 * (n % 3))
            settle(pacer, permit, tokens=10, refused=n == 7)

        await asyncio.gather(*(work(n) for n in range(40)))
        assert order == list(range(40))

    simulate(main())


@pytest.mark.parametrize("seed", range(8))
def test_a_cancelled_waiter_takes_nothing_with_it(seed: int) -> None:
    chance = random.Random(seed)
    limits = chance.choice([{}, {"requests_per_minute": 900.0}, {"tokens_per_minute": 9000.0}, {"adaptive": True}])

    async def main() -> None:
        pacer = make_pacer(concurrency=5, **limits)
        here, most, served = 0, 0, 0

        async def work() -> None:
            nonlocal here, most, served
            permit = await pacer.ready(10)
            here += 1
            most = max(most, here)
            try:
                await asyncio.sleep(chance.uniform(0, 0.3))
                served += 1
            finally:
                here -= 1
                settle(pacer, permit, tokens=10, refused=chance.random() < 0.02)

        tasks = []
        for _ in range(400):
            tasks.append(asyncio.ensure_future(work()))
            if chance.random() < 0.1:
                pacer.pause(chance.uniform(0, 0.2))
            if chance.random() < 0.5:
                # Also at the very moment at which it was let in.
                await asyncio.sleep(chance.choice([0, 0, 0.01, 0.2]))
            if chance.random() < 0.4:
                chance.choice(tasks).cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        cancelled = sum(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
        assert served == 400 - cancelled and 20 < cancelled < 380 and most == 5 and here == 0
        # All five slots are there.
        await asyncio.wait_for(asyncio.gather(*(pacer.ready(10) for _ in range(5))), 300)

    simulate(main())


def test_the_end_frees_all_who_wait_for_whatever() -> None:
    async def main() -> None:
        paused, full = make_pacer(), make_pacer(concurrency=1)
        rationed, thrifty = make_pacer(requests_per_minute=1.0), make_pacer(tokens_per_minute=10.0)
        slowed = make_pacer(adaptive=True)
        paused.pause(3600)
        for pacer in (full, rationed, thrifty):
            await pacer.ready(10)
        settle(slowed, await slowed.ready(10), refused=True)
        await slowed.ready(10)
        pacers = [paused, full, rationed, thrifty, slowed]
        waiting = [asyncio.ensure_future(pacer.ready(10)) for pacer in pacers for _ in range(10)]
        waiting += [asyncio.ensure_future(pacer.back_off(7)) for pacer in pacers]
        await asyncio.sleep(0.5)
        assert not any(task.done() for task in waiting)
        before = now()
        for pacer in pacers:
            pacer.release()
            pacer.pause(3600)
        await asyncio.gather(*waiting, *(pacer.ready(10) for pacer in pacers), *(p.back_off(7) for p in pacers))
        assert now() == before

    simulate(main())


# Pauses and backoff


def test_a_pause_holds_everybody_and_lets_them_in_one_by_one() -> None:
    async def main() -> None:
        pacer = make_pacer()
        settle(pacer, await pacer.ready(1), refused=True, retry_after_s=10)
        pacer.pause(5)  # shortens nothing
        pacer.pause(0)
        starts: list[float] = []

        async def work() -> None:
            await pacer.ready(1)
            starts.append(now() - 1000)

        await asyncio.gather(*(work() for _ in range(64)))
        assert min(starts) >= 10 and max(starts) <= 10 + 2.1 and len(set(starts)) == 64
        gaps = [late - early for early, late in pairwise(starts)]
        assert max(gaps) < 0.1 and max(starts) - min(starts) > 0.1, "apart, but not far"

    simulate(main())


def test_processes_that_are_told_the_same_come_at_different_times() -> None:
    async def first(seed: int) -> float:
        pacer = make_pacer(seed=seed)
        pacer.pause(10)
        await pacer.ready(1)
        return now()

    arrivals = [simulate(first(seed)) for seed in range(20)]
    assert len(set(arrivals)) == 20 and max(arrivals) - min(arrivals) > 0.5


def test_backoff_doubles_up_to_its_limit() -> None:
    async def main() -> None:
        pacer = make_pacer(max_backoff_s=10.0)
        for tries, longest in enumerate([1, 2, 4, 8, 10, 10], start=1):
            waits = []
            for _ in range(100):
                before = now()
                await pacer.back_off(tries)
                waits.append(now() - before)
            assert 0.5 * longest <= min(waits) < 0.55 * longest and 0.95 * longest < max(waits) <= longest + 1e-6
        permit = await pacer.ready(1)
        before, backing_off = now(), asyncio.ensure_future(pacer.back_off(1))
        await asyncio.sleep(0.1)
        settle(pacer, permit)
        await backing_off
        assert now() - before >= 0.5, "what others do does not cut it short"

    simulate(main())


def test_waiting_costs_nothing() -> None:
    async def main() -> int:
        naps: list[float] = []

        def sleep(seconds: float) -> Awaitable[None]:
            naps.append(seconds)
            return asyncio.sleep(seconds)

        pacer = make_pacer(requests_per_minute=6000.0, adaptive=True, sleep=sleep)
        pacer.pause(3600)
        await asyncio.gather(*(pacer.ready(1) for _ in range(64)))
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}, "no timer is left behind"
        return len(naps)

    # One for the pause and at most one for each start: whoever waits does not look at the clock again and again.
    assert simulate(main()) <= 65


def test_it_keeps_its_pace_on_a_real_clock() -> None:
    async def main() -> float:
        pacer = make_pacer(requests_per_minute=6000.0, clock=time.monotonic)
        before = time.monotonic()
        for _ in range(30):
            settle(pacer, await pacer.ready(1))
        return time.monotonic() - before

    assert asyncio.run(main()) >= 29 * 0.01 - 0.001


# Requests per minute


async def starts_of(pacer: Pacer, *, seconds: float, latency: Callable[[], float] = lambda: 0.5,
                    idle: Callable[[], float] = lambda: 0.0) -> list[float]:
    """When requests of a pool that is as large as it may be started; each worker is idle in between."""
    starts: list[float] = []

    async def work() -> None:
        while True:
            permit = await pacer.ready(1)
            starts.append(now())
            await asyncio.sleep(latency())
            settle(pacer, permit)
            await asyncio.sleep(idle())

    workers = [asyncio.ensure_future(work()) for _ in range(64)]
    await asyncio.sleep(seconds)
    for worker in workers:
        worker.cancel()
    return starts


@pytest.mark.parametrize("per_minute", [0.5, 1, 7.5, 60, 1200])
def test_no_minute_has_more_requests_than_promised_and_few_have_less(per_minute: float) -> None:
    minutes = 10 if per_minute < 1000 else 3
    starts = simulate(starts_of(make_pacer(requests_per_minute=per_minute), seconds=minutes * MINUTE))
    assert len(starts) >= 0.98 * minutes * (int(per_minute) or per_minute)
    events = [(at, 1.0) for at in starts]
    assert most_in_a_window(events, MINUTE) <= max(1, int(per_minute))
    # No burst, at the beginning neither: a provider may look at every second.
    assert most_in_a_window(events, 1.0) <= 1 + per_minute / MINUTE
    # Nor where some are faster on their way than others.
    chance = random.Random(0)
    arrivals = [(at + chance.uniform(0, 0.5), 1.0) for at in starts]
    assert most_in_a_window(arrivals, MINUTE) <= max(1, int(per_minute))


@pytest.mark.parametrize("seed", range(3))
def test_no_minute_has_more_requests_than_promised_whenever_they_come(seed: int) -> None:
    chance = random.Random(seed)

    async def late(seconds: float) -> None:
        """A busy machine's timers."""
        await asyncio.sleep(seconds + chance.choice([0.0, 0.002, 0.05]))

    async def main() -> list[float]:
        pacer = make_pacer(requests_per_minute=300.0, sleep=late)
        # Rush hours and quiet ones.
        return await starts_of(pacer, seconds=8 * MINUTE, latency=lambda: chance.uniform(0.1, 3),
                               idle=lambda: 30 if math.sin(now() / 40) < 0 else 0)

    events = [(at, 1.0) for at in simulate(main())]
    assert len(events) > 1000 and most_in_a_window(events, MINUTE) <= 300
    assert most_in_a_window(events, 1.0) <= 1 + (1 + 0.2) * 5, "a little is made up for, and no more"


def test_late_timers_do_not_slow_the_pace() -> None:
    async def late(seconds: float) -> None:
        await asyncio.sleep(seconds + 0.02)

    async def main() -> int:
        return len(await starts_of(make_pacer(requests_per_minute=1200.0, sleep=late), seconds=MINUTE))

    assert simulate(main()) >= 0.97 * 1200


def test_a_refused_request_counts_as_well() -> None:
    quota = RequestQuota(2)
    quota.start(0)
    quota.start(31)
    assert quota.opens_at() == pytest.approx(31 + MINUTE_S / 2)
    quota.start(62)
    assert quota.opens_at() == pytest.approx(max(31 + MINUTE_S, 62 + MINUTE_S / 2))


# Tokens per minute


@dataclass
class Used:
    started: float
    ended: float
    tokens: int


async def tokens_used(pacer: Pacer, *, seconds: float, guess: Callable[[int], float], true: Callable[[int], int],
                      latency_s: float = 2.0) -> list[Used]:
    """What a pool used whose n-th request is guessed at and uses so many tokens."""
    used: list[Used] = []
    counter = iter(range(10**6))

    async def work() -> None:
        while True:
            n = next(counter)
            permit = await pacer.ready(guess(n))
            started = now()
            await asyncio.sleep(latency_s)
            used.append(Used(started, now(), true(n)))
            settle(pacer, permit, tokens=true(n))

    workers = [asyncio.ensure_future(work()) for _ in range(64)]
    await asyncio.sleep(seconds)
    for worker in workers:
        worker.cancel()
    return used


def most_tokens(used: list[Used]) -> float:
    """In any minute, however the provider counts: by arrival or by answer."""
    return max(most_in_a_window([(u.started, float(u.tokens)) for u in used], MINUTE),
               most_in_a_window([(u.ended, float(u.tokens)) for u in used], MINUTE))


def test_with_right_guesses_no_minute_has_more_tokens_than_promised() -> None:
    sizes = [100 + 37 * (n % 50) for n in range(10**4)]
    used = simulate(tokens_used(make_pacer(tokens_per_minute=60_000.0), seconds=5 * MINUTE,
                                guess=lambda n: sizes[n], true=lambda n: sizes[n]))
    assert most_tokens(used) <= 60_000
    assert sum(u.tokens for u in used) >= 0.93 * 5 * 60_000
    # Evenly from the beginning on: 1,000 a second, and one request more.
    assert most_in_a_window([(u.started, float(u.tokens)) for u in used], 5.0) <= 5 * 1000 + 2 * max(sizes)


@pytest.mark.parametrize("factor", [0.1, 1 / 3, 3.0, 10.0])
def test_a_wrong_first_guess_is_corrected_by_what_is_measured(factor: float) -> None:
    chance = random.Random(0)
    sizes = [round(chance.uniform(300, 700)) for _ in range(10**4)]
    used = simulate(tokens_used(make_pacer(tokens_per_minute=60_000.0), seconds=6 * MINUTE,
                                guess=lambda n: 500 * factor, true=lambda n: sizes[n]))
    # In the first seconds nothing was measured yet; all that were let in by then may be wrong by the guess's error.
    blind = [u for u in used if u.started < 1000 + 2.1]
    error = sum(u.tokens for u in blind) * max(0.0, 1 - factor)
    assert most_tokens(used) <= 60_000 + error + 64 * 200
    later = [u for u in used if u.started > 1000 + 2 * MINUTE]
    # Single sizes are not known beforehand: what is under way, some 4, may be larger than the mean.
    assert most_tokens(later) <= 60_000 * 1.02
    assert sum(u.tokens for u in later) >= 0.93 * 4 * 60_000


def test_what_is_under_way_and_what_was_used_never_exceed_the_quota_by_more_than_the_errors() -> None:
    chance = random.Random(3)

    async def main() -> None:
        pacer = make_pacer(tokens_per_minute=20_000.0)
        under_way: dict[int, int] = {}
        ended: list[tuple[float, float]] = []

        async def work(worker: int) -> None:
            while True:
                permit = await pacer.ready(400)
                true = round(chance.lognormvariate(math.log(400), 0.5))
                under_way[worker] = true
                lately = sum(tokens for at, tokens in ended if at > now() - MINUTE)
                # Each one under way was taken for the mean, 450 or so.
                errors = sum(max(0, tokens - 400) for tokens in under_way.values())
                assert lately + sum(under_way.values()) <= 20_000 + errors
                await asyncio.sleep(chance.uniform(0.5, 8))
                ended.append((now(), float(under_way.pop(worker))))
                settle(pacer, permit, tokens=true)

        workers = [asyncio.ensure_future(work(n)) for n in range(64)]
        await asyncio.wait(workers, timeout=5 * MINUTE)
        assert sum(tokens for _, tokens in ended) > 0.85 * 5 * 20_000
        for worker in workers:
            assert not worker.done() or worker.result()
            worker.cancel()

    simulate(main())


def test_a_guess_in_proportion_is_scaled_for_each_request() -> None:
    quota = TokenQuota(10_000)
    for _ in range(3):
        quota.settle(0.0, 100, quota.start(0.0, 100), 250)
    assert quota.start(0.0, 40) == pytest.approx(100)


def test_a_request_larger_than_the_quota_goes_alone() -> None:
    async def main() -> None:
        pacer = make_pacer(tokens_per_minute=1000.0)
        small = await pacer.ready(10)
        large = asyncio.ensure_future(pacer.ready(5000))
        await asyncio.sleep(10)
        settle(pacer, small, tokens=10)
        await asyncio.sleep(10)
        assert not large.done()
        permit = await asyncio.wait_for(large, MINUTE)
        settle(pacer, permit, tokens=5000)
        before = now()
        await pacer.ready(10)
        assert now() - before >= 5 * MINUTE * 0.9, "and is paid off before the next"

    simulate(main())


@pytest.mark.parametrize(("tokens", "refused", "free"), [(None, True, True), (None, False, False), (0, False, True)])
def test_what_a_failed_request_used(tokens: int | None, refused: bool, free: bool) -> None:
    """Nothing where it was turned away; what was booked where nobody knows, as after a timeout."""

    async def main() -> float:
        pacer = make_pacer(tokens_per_minute=1000.0)
        settle(pacer, await pacer.ready(1000), tokens=tokens, refused=refused)
        before = now()
        await pacer.ready(1000)
        return now() - before

    assert (simulate(main()) < 1) == free


# The learned rate


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
