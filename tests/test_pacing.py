"""Who may ask when: slots, turns, pauses and backoff on a simulated clock, and no waiter forgotten."""

import asyncio
import math
import random
import time
from collections.abc import Awaitable
from itertools import pairwise
from typing import Any

import pytest
from simulated_time import make_pacer, now, settle, simulate

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
