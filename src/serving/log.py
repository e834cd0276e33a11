"""Decisions on their way to disk: nobody is answered before what they are told is written.

Many writers share one commit: what arrives while one is under way goes with the next. Knows nothing about what is
decided.
"""

import asyncio
import secrets
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from types import TracebackType
from typing import NamedTuple

from src.errors import RowsRefused, StoreError
from src.store import DecisionLog, Logged

MOST_ROWS = 2000  # in one commit, so that nobody waits for everybody
MOST_WAITING = 100_000  # rows, about 100 MB: a store that stands still must not fill the memory


def new_request(at: datetime) -> str:
    """An identifier that nobody can guess, 32 hex characters. Those of later times sort behind: the index of requests
    then grows at its end, where a million random ones would each rewrite another page of it."""
    return f"{int(at.timestamp() * 1000):012x}{secrets.token_hex(10)}"


class Log:
    """`async with Log(decisions) as log`: writes in one thread of its own. On leaving, what was handed over is written.

    More than `most_waiting` rows are not taken, but for those of one writer, be it ever so many, where no others wait.
    """

    def __init__(self, decisions: DecisionLog, *, most_waiting: int = MOST_WAITING) -> None:
        self._decisions = decisions
        self._most_waiting = most_waiting
        self._queue: deque[_Entry] = deque()
        self._waiting = 0
        self._thread: ThreadPoolExecutor | None = None
        self._work: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Log":
        self._thread = ThreadPoolExecutor(1, "decision-log")
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        thread, self._thread = self._thread, None  # from here on nothing is taken
        if self._work:
            await asyncio.shield(self._work)
        if thread:
            thread.shutdown()

    @property
    def backlog(self) -> int:
        """Rows that are not on disk yet."""
        return self._waiting

    async def write(self, rows: Sequence[Logged]) -> None:
        """Return once all of them are on disk. Raises StoreError, and then none of them counts; RowsRefused where it is
        their own fault. A writer that is cancelled stops waiting; its rows are written all the same, once."""
        if not self._thread:
            raise StoreError("The decision log is closed: the server is stopping. Ask again when it is back.")
        if self._waiting and self._waiting + len(rows) > self._most_waiting:
            raise StoreError(f"The decision log is {self._waiting} rows behind, and takes no more until the disk has "
                             "caught up: wait, or find out what holds it.")
        if not rows:
            return
        entry = _Entry(tuple(rows), asyncio.get_running_loop().create_future())
        self._queue.append(entry)
        self._waiting += len(rows)
        if self._work is None:
            self._work = asyncio.create_task(self._write_all(self._thread))
        # Whoever was cancelled will not ask how it ended, which asyncio would complain of.
        entry.written.add_done_callback(lambda written: written.cancelled() or written.exception())
        await asyncio.shield(entry.written)

    async def _write_all(self, thread: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        while batch := self._next():
            outcomes = await loop.run_in_executor(thread, self._append, [entry.rows for entry in batch])
            for entry, outcome in zip(batch, outcomes, strict=True):
                self._waiting -= len(entry.rows)
                if outcome is None:
                    entry.written.set_result(None)
                else:
                    entry.written.set_exception(outcome)
        self._work = None

    def _next(self) -> "list[_Entry]":
        batch: list[_Entry] = []
        size = 0
        while self._queue and (not batch or size + len(self._queue[0].rows) <= MOST_ROWS):
            batch.append(self._queue.popleft())
            size += len(batch[-1].rows)
        return batch

    def _append(self, batch: Sequence[Sequence[Logged]]) -> list[Exception | None]:
        """In the thread: what became of each writer's rows."""
        try:
            self._decisions.append([row for rows in batch for row in rows])
        except Exception as error:
            if isinstance(error, StoreError) and not isinstance(error, RowsRefused):
                return [_own(error) for _ in batch]
            if len(batch) == 1:
                return [error]
            # One writer's rows are at fault, and the others must not suffer for it.
            return [self._append([rows])[0] for rows in batch]
        return [None] * len(batch)


class _Entry(NamedTuple):
    rows: tuple[Logged, ...]
    written: "asyncio.Future[None]"


def _own(error: StoreError) -> StoreError:
    """For one of several who are told: a shared exception would gather the tracebacks of all."""
    copy = type(error)(*error.args)
    copy.__cause__ = error
    return copy
