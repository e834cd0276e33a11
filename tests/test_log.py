"""Writing decisions from a server: on disk before anybody is told, one commit for many, faults where they belong."""

import asyncio
import sqlite3
import threading
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from decided import NOON, asked, make

from src.errors import RowsRefused, StoreError
from src.serving.log import Log, new_request
from src.store import DecisionLog, Logged


class Watched(DecisionLog):
    """Counts commits; each waits until it is let go."""

    def __init__(self, path: Path, *, held: bool = False) -> None:
        super().__init__(path, lock_wait_s=0.1)
        self.commits: list[int] = []
        self.threads: set[int] = set()
        self.begun, self.go = threading.Event(), threading.Event()
        if not held:
            self.go.set()

    def append(self, rows: Sequence[Logged]) -> None:
        self.begun.set()
        assert self.go.wait(30)
        self.threads.add(threading.get_ident())
        super().append(rows)
        self.commits.append(len(rows))


async def begun(decisions: Watched) -> None:
    assert await asyncio.to_thread(decisions.begun.wait, 30)


def test_what_was_written_is_on_disk_when_the_writer_goes_on(tmp_path: Path) -> None:
    async def check() -> None:
        decisions, reader = DecisionLog(tmp_path / "a.db"), DecisionLog(tmp_path / "a.db")
        async with Log(decisions) as log:
            for n in range(5):
                await log.write([make(n), make(n, position=1)])
                assert reader.of(make(n).request) == [make(n), make(n, position=1)]
            await log.write([])
            assert log.backlog == 0

    asyncio.run(check())


def test_what_comes_while_a_commit_is_under_way_shares_the_next(tmp_path: Path) -> None:
    async def check() -> None:
        decisions = Watched(tmp_path / "a.db", held=True)
        async with Log(decisions) as log:
            writers = [asyncio.create_task(log.write([make(0)]))]
            await begun(decisions)
            writers += [asyncio.create_task(log.write([make(n), make(n, step=1)])) for n in range(1, 301)]
            await asyncio.sleep(0)
            assert log.backlog == 601 and not any(writer.done() for writer in writers)
            decisions.go.set()
            await asyncio.gather(*writers)
            assert log.backlog == 0
        assert decisions.commits == [1, 600] and len(decisions.threads) == 1
        assert threading.get_ident() not in decisions.threads
        assert decisions.count() == 601

    asyncio.run(check())


def test_a_commit_has_an_end(tmp_path: Path) -> None:
    async def check() -> None:
        decisions = Watched(tmp_path / "a.db", held=True)
        async with Log(decisions) as log:
            writers = [asyncio.create_task(log.write([make(0)]))]
            await begun(decisions)
            writers += [asyncio.create_task(log.write([make(100 * n + m) for m in range(900)])) for n in (1, 11, 21)]
            writers += [asyncio.create_task(log.write([make(10_000 + n) for n in range(2500)]))]
            await asyncio.sleep(0)
            decisions.go.set()
            await asyncio.gather(*writers)
        assert decisions.commits == [1, 1800, 900, 2500]

    asyncio.run(check())


def test_a_writer_whose_rows_are_refused_stands_alone(tmp_path: Path) -> None:
    async def check() -> None:
        decisions = Watched(tmp_path / "a.db")
        decisions.append([make(1)])
        decisions.go.clear()
        async with Log(decisions) as log:
            writers = [asyncio.create_task(log.write([make(0)]))]
            await asyncio.sleep(0)
            wanted = [[make(2)], [make(3), make(1, answer="again")], [make(4, answer="\ud83d")],
                      [make(5, probabilities=("much",))], [make(6)], [make(6)]]
            writers += [asyncio.create_task(log.write(rows)) for rows in wanted]
            await asyncio.sleep(0)
            decisions.go.set()
            ends = await asyncio.gather(*writers, return_exceptions=True)
            assert [type(end).__name__ for end in ends] == ["NoneType", "NoneType", "RowsRefused", "RowsRefused",
                                                            "error", "NoneType", "RowsRefused"]
            assert "stands there already" in str(ends[2])
            await log.write([make(7)])
        assert [int(row.request, 16) for row in decisions.read()] == [1, 0, 2, 6, 7]

    asyncio.run(check())


def test_a_locked_store_fails_its_batch_and_the_next_goes_on(tmp_path: Path) -> None:
    async def check() -> None:
        decisions = Watched(tmp_path / "a.db")
        other = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        async with Log(decisions) as log:
            ends = await asyncio.gather(*(log.write([make(n)]) for n in range(3)), return_exceptions=True)
            assert all(isinstance(end, StoreError) and "database is locked" in str(end) for end in ends)
            assert not any(isinstance(end, RowsRefused) for end in ends) and len({id(end) for end in ends}) == 3
            assert log.backlog == 0 and decisions.count() == 0
            other.execute("ROLLBACK")
            await asyncio.gather(*(log.write([make(n)]) for n in range(3)))  # as a client would try again
        other.close()
        assert decisions.count() == 3

    asyncio.run(check())


def test_an_unknown_outcome_is_found_out_and_not_doubled(tmp_path: Path) -> None:
    """The commit went through, and its answer was lost on the way."""

    class Cut(DecisionLog):
        cut = True

        def append(self, rows: Sequence[Logged]) -> None:
            super().append(rows)
            if self.cut:
                self.cut = False
                raise StoreError("The decision log could not be written: connection lost.")

    async def check() -> None:
        decisions = Cut(tmp_path / "a.db")
        async with Log(decisions) as log:
            with pytest.raises(StoreError, match="connection lost"):
                await log.write([make(1), make(2)])
            with pytest.raises(RowsRefused, match="stands there already"):
                await log.write([make(1), make(2)])
        assert list(decisions.read()) == [make(1), make(2)]

    asyncio.run(check())


def test_a_cancelled_writers_rows_are_written_once_and_hurt_nobody(tmp_path: Path) -> None:
    async def check() -> None:
        decisions = Watched(tmp_path / "a.db", held=True)
        async with Log(decisions) as log:
            under_way = asyncio.create_task(log.write([make(0)]))
            await begun(decisions)
            queued = asyncio.create_task(log.write([make(1)]))
            refused = asyncio.create_task(log.write([make(0)]))
            stays = asyncio.create_task(log.write([make(2)]))
            await asyncio.sleep(0)
            for writer in (under_way, queued, refused):
                writer.cancel()
            ends = await asyncio.gather(under_way, queued, refused, return_exceptions=True)
            assert all(isinstance(end, asyncio.CancelledError) for end in ends)
            decisions.go.set()
            await stays
            assert log.backlog == 0
        assert [int(row.request, 16) for row in decisions.read()] == [0, 1, 2]

    told: list[object] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        await check()

    asyncio.run(main())
    assert told == [], "nobody waits for the refused writer's failure, and nobody needs to"


def test_leaving_writes_what_was_handed_over_and_takes_no_more(tmp_path: Path) -> None:
    async def check() -> None:
        decisions = Watched(tmp_path / "a.db", held=True)
        log = Log(decisions)
        async with log:
            writers = [asyncio.create_task(log.write([make(n)])) for n in range(3)]
            await asyncio.sleep(0)
            threading.Timer(0.2, decisions.go.set).start()
        await asyncio.gather(*writers)
        assert decisions.count() == 3 and log.backlog == 0
        with pytest.raises(StoreError, match="is closed: the server is stopping"):
            await log.write([make(9)])

    asyncio.run(check())


def test_a_store_that_stands_still_does_not_fill_the_memory(tmp_path: Path) -> None:
    async def check() -> None:
        decisions = Watched(tmp_path / "a.db", held=True)
        async with Log(decisions, most_waiting=10) as log:
            writers = [asyncio.create_task(log.write([make(n), make(n, step=1)])) for n in range(5)]
            await asyncio.sleep(0)
            with pytest.raises(StoreError, match="is 10 rows behind"):
                await log.write([asked(9)])
            decisions.go.set()
            await asyncio.gather(*writers)
            await log.write([asked(9)])
        assert decisions.count() == 11

    asyncio.run(check())


def test_one_word_about_very_many_requests_is_written(tmp_path: Path) -> None:
    """A picture that cameras send when they see nothing waits in ever so many requests for the same person."""
    async def check() -> None:
        decisions = DecisionLog(tmp_path / "a.db")
        async with Log(decisions, most_waiting=10) as log:
            await log.write([make(n) for n in range(11)])
        assert decisions.count() == 11

    asyncio.run(check())


def test_requests_of_later_times_sort_behind() -> None:
    named = [new_request(NOON + timedelta(milliseconds=n)) for n in range(200)]
    assert named == sorted(named) and all(len(name) == 32 and int(name, 16) for name in named)
    assert new_request(NOON) != new_request(NOON)
