"""Batches: what goes together, who hears of an error, and that nothing is lost on the way out."""

import asyncio
import threading
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from src.metrics import Floats
from src.serving.batcher import Batcher

NEVER_MS = 3_600_000.0


def images(*values: int) -> NDArray[np.uint8]:
    """One image for each value, of which it consists."""
    return np.tile(np.array(values, np.uint8)[:, None, None, None], (1, 3, 2, 2))


def valued(given: NDArray[np.uint8]) -> Floats:
    return given[:, :1, 0, 0] / 1.0


class Gate:
    """A student that answers when it is let; `sizes` are those of its batches, in order."""

    def __init__(self, answer: Callable[[NDArray[np.uint8]], Floats] = valued) -> None:
        self.sizes: list[int] = []
        self.threads: set[int] = set()
        self.begun = threading.Semaphore(0)
        self.let = threading.Semaphore(0)
        self._answer = answer

    def __call__(self, given: NDArray[np.uint8]) -> Floats:
        self.sizes.append(len(given))
        self.threads.add(threading.get_ident())
        self.begun.release()
        self.let.acquire()
        return self._answer(given)


async def under_way(gate: Gate) -> None:
    await asyncio.to_thread(gate.begun.acquire)


def test_one_client_alone_does_not_wait_for_others() -> None:
    async def body() -> None:
        async with Batcher(valued, most=8, wait_ms=NEVER_MS) as batcher:
            for value in range(5):
                assert (await batcher(images(value))).tolist() == [[value]]

    asyncio.run(body())


def test_what_comes_during_a_batch_goes_together_in_order_and_in_one_thread() -> None:
    async def body() -> None:
        gate = Gate()
        async with Batcher(gate, most=8, wait_ms=0) as batcher:
            first = asyncio.create_task(batcher(images(1)))
            await under_way(gate)
            others = [asyncio.create_task(batcher(images(*values))) for values in ([2], [3, 4], [5])]
            await asyncio.sleep(0)
            assert batcher.pending == 5
            gate.let.release(2)
            found = [(await task).ravel().tolist() for task in (first, *others)]
            assert found == [[1], [2], [3, 4], [5]]
            assert gate.sizes == [1, 4]
            assert batcher.pending == 0
        assert len(gate.threads) == 1 and threading.get_ident() not in gate.threads

    asyncio.run(body())


def test_a_crowd_is_waited_for_but_not_for_ever() -> None:
    """Three came together before: the next one waits for two more, or until the time is over."""
    async def body() -> None:
        gate = Gate()
        gate.let.release(100)
        async with Batcher(gate, most=3, wait_ms=NEVER_MS) as batcher:
            alone = asyncio.create_task(batcher(images(0)))
            await under_way(gate)
            await alone
            # Within one turn of the loop: the first of these goes alone, the other two during its batch.
            await asyncio.gather(*(batcher(images(n)) for n in (1, 2, 3)))
            assert gate.sizes == [1, 1, 2]
            waiting = asyncio.create_task(batcher(images(4)))
            await asyncio.sleep(0.05)
            assert not waiting.done()
            await batcher(images(5))  # with which there are two again
            await waiting
            assert gate.sizes == [1, 1, 2, 2]

        gate = Gate()
        gate.let.release(100)
        async with Batcher(gate, most=3, wait_ms=5) as batcher:
            await asyncio.gather(*(batcher(images(n)) for n in (1, 2, 3)))
            assert (await batcher(images(4))).tolist() == [[4]]  # nobody else comes

    asyncio.run(body())


def test_a_full_batch_does_not_wait_for_the_crowd() -> None:
    async def body() -> None:
        gate = Gate()
        gate.let.release(100)
        async with Batcher(gate, most=4, wait_ms=NEVER_MS) as batcher:
            await asyncio.gather(*(batcher(images(n)) for n in (1, 2, 3)))
            assert gate.sizes == [1, 2]
            assert len(await batcher(images(*range(4)))) == 4

    asyncio.run(body())


def test_larger_requests_are_cut_and_put_together_again() -> None:
    async def body() -> None:
        gate = Gate()
        gate.let.release(100)
        async with Batcher(gate, most=4, wait_ms=0) as batcher:
            large, small = await asyncio.gather(batcher(images(*range(10))), batcher(images(77)))
        assert large.ravel().tolist() == list(range(10))
        assert small.ravel().tolist() == [77]
        assert gate.sizes == [4, 4, 3]  # the rest of the large one shares its batch

    asyncio.run(body())


def failing(given: NDArray[np.uint8]) -> Floats:
    if 13 in given:
        raise ZeroDivisionError("13")
    return valued(given)


def test_an_error_reaches_those_of_its_batch_and_nobody_else() -> None:
    async def body() -> None:
        gate = Gate(failing)
        async with Batcher(gate, most=2, wait_ms=0) as batcher:
            held = asyncio.create_task(batcher(images(0)))
            await under_way(gate)
            calls = [asyncio.create_task(batcher(images(*values)))
                     for values in ([1], [2], [3], [13], [4, 5, 13, 6, 7, 8, 9], [10])]
            await asyncio.sleep(0)
            gate.let.release(100)
            found = await asyncio.gather(held, *calls, return_exceptions=True)
            assert [type(one) is ZeroDivisionError for one in found] == [False, False, False, True, True, True, False]
            # Of the long one, nothing is computed that nobody would get: 8 and 9 were never seen.
            assert gate.sizes == [1, 2, 2, 2, 2, 1]
            assert batcher.pending == 0

    asyncio.run(body())


def test_too_few_answers_are_an_error_and_no_mix_up() -> None:
    async def body() -> None:
        async with Batcher(lambda given: valued(given)[:-1], most=4) as batcher:
            with pytest.raises(RuntimeError, match="0 answers for 1 images"):
                await batcher(images(1))

    asyncio.run(body())


def test_who_leaves_takes_what_has_not_begun_along() -> None:
    async def body() -> None:
        gate = Gate()
        async with Batcher(gate, most=4, wait_ms=0) as batcher:
            first = asyncio.create_task(batcher(images(1)))
            await under_way(gate)
            leaving, staying = asyncio.create_task(batcher(images(2, 3))), asyncio.create_task(batcher(images(4)))
            await asyncio.sleep(0)
            leaving.cancel()
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaving
            assert batcher.pending == 2  # 1 is under way, whether anybody wants it or not
            gate.let.release(2)
            assert (await staying).tolist() == [[4]]
            assert gate.sizes == [1, 1]
            assert batcher.pending == 0

    asyncio.run(body())


def test_on_leaving_what_was_accepted_is_answered_and_nothing_more_is_taken() -> None:
    async def body() -> None:
        gate = Gate()
        batcher = Batcher(gate, most=2, wait_ms=NEVER_MS)
        async with batcher:
            calls = [asyncio.create_task(batcher(images(n))) for n in range(4)]
            await asyncio.sleep(0)
            gate.let.release(100)
        assert [task.result().tolist() for task in calls] == [[[n]] for n in range(4)]
        with pytest.raises(RuntimeError, match="closed"):
            await batcher(images(9))

    asyncio.run(body())


@pytest.mark.parametrize(("most", "wait_ms"), [(0, 1.0), (1, -1.0), (1, float("nan"))])
def test_nonsense_is_refused(most: int, wait_ms: float) -> None:
    with pytest.raises(ValueError, match=f"most={most}, wait_ms={wait_ms}"):
        Batcher(valued, most, wait_ms)


def test_no_images_are_refused() -> None:
    async def body() -> None:
        async with Batcher(valued) as batcher:
            with pytest.raises(ValueError, match="at least one"):
                await batcher(images())

    asyncio.run(body())
