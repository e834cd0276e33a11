"""Requests and tokens per minute, on a simulated clock: no minute has more than was promised, and few have less."""

import asyncio
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from simulated_time import MINUTE, make_pacer, now, settle, simulate

from src.labeling.pacing import Pacer
from src.labeling.quota import MINUTE_S, RequestQuota, TokenQuota


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
