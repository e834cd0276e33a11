"""The labeler's hand on the store: claims and answers of many questions share each transaction.

What arrives during a write goes with the next one, so that a slow disk makes larger batches and not a longer queue. An
answer that the store refused was paid for: it goes with the next one too, and once more at the end. Knows nothing about
teachers or prompts.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from types import TracebackType
from typing import NamedTuple, Self

from src.errors import StoreError
from src.labeling.owner import BEAT_S, born, died
from src.store import Claim, Key, Standing, Store
from src.task import Annotation


class _Done(NamedTuple):
    """What came of a question: something to be stored, a claim to be given up, or both at once."""

    annotation: Annotation | None
    release: Key | None
    stored: asyncio.Future[None] | None


class Writer:
    """Use as `async with Writer(store) as writer`. At the end everything has been written that the store takes; claims
    that are still held then belong to requests that were cut off, and are booked at their worst case."""

    def __init__(self, store: Store, *, beat_s: float = BEAT_S) -> None:
        self._store = store
        self._beat_s = beat_s
        self._done: list[_Done] = []
        self._refused: list[_Done] = []
        self._claims: list[tuple[Sequence[Claim], asyncio.Future[list[Standing]]]] = []
        self._tell: list[Callable[[Exception], None]] = []
        self._writing: asyncio.Task[None] | None = None
        self._over = asyncio.Event()
        self._cut_off = False

    async def __aenter__(self) -> Self:
        self.owner = born()
        try:
            await asyncio.to_thread(self._store.beat, self.owner)
        except BaseException:
            died(self.owner)
            raise
        self._beating = asyncio.create_task(self._beat())
        return self

    async def __aexit__(self, _: type[BaseException] | None, error: BaseException | None,
                        __: TracebackType | None) -> None:
        self._over.set()
        try:
            await self.drain()
            if self._refused:
                # The lock may be gone by now, or somebody made room.
                self._start()
                await self.drain()
            # A beat that is late would bring back the row of an owner who is gone.
            await asyncio.shield(self._beating)
        finally:
            died(self.owner)
            for done in self._refused:
                if done.stored:
                    done.stored.cancel()
        try:
            await asyncio.to_thread(self._store.bury, lambda owner, _: owner == self.owner)
        except StoreError:
            if error is None:
                raise

    @property
    def backlog(self) -> int:
        """How much waits to be written."""
        return len(self._done)

    def when_refused(self, call: Callable[[Exception], None]) -> None:
        """Have `call` told at once when the store does not take what came back."""
        self._tell.append(call)

    async def claim(self, claims: Sequence[Claim]) -> list[Standing]:
        """Ask to be the one who asks; the standings name who is. Raises StoreError."""
        standings: asyncio.Future[list[Standing]] = asyncio.get_running_loop().create_future()
        self._claims.append((claims, standings))
        self._start()
        return await standings

    def keep(self, annotation: Annotation, *, release: Key | None) -> asyncio.Future[None]:
        """Store an answer, and give up its claim with it where this was the question's end. The future is done when
        both are on disk, and cancelled where they never came there."""
        stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._done.append(_Done(annotation, release, stored))
        self._start()
        return stored

    def release(self, key: Key) -> None:
        """Give up a claim without an answer: nothing was asked, or nothing that costs."""
        self._done.append(_Done(None, key, None))
        self._start()

    async def drain(self) -> None:
        """Return when everything that was handed over is on disk, or was refused."""
        while self._writing and not self._writing.done():
            await asyncio.shield(self._writing)

    def _start(self) -> None:
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())

    async def _write(self) -> None:
        while True:
            # In the order in which it came: a claim must never be given up before what it cost is booked.
            done, self._refused, self._done = [*self._refused, *self._done], [], []
            claims, self._claims = self._claims, []
            settled = asyncio.get_running_loop().run_in_executor(None, partial(
                self._store.settle, [d.annotation for d in done if d.annotation],
                release=[d.release for d in done if d.release],
                wanted=[claim for wanted, _ in claims for claim in wanted]))
            try:
                standings = await self._even_if_cancelled(settled)
            except Exception as error:
                self._refused = done
                for _, waiting in claims:
                    if not waiting.done():
                        waiting.set_exception(error)
                if done:
                    for tell in self._tell:
                        tell(error)
            else:
                for d in done:
                    if d.stored and not d.stored.done():
                        d.stored.set_result(None)
                given = iter(standings)
                for wanted, waiting in claims:
                    theirs = list(islice(given, len(wanted)))
                    if not waiting.done():
                        waiting.set_result(theirs)
                        continue
                    # Whoever waited was cancelled by a second Ctrl-C.
                    for claim, standing in zip(wanted, theirs, strict=True):
                        if standing.owner == claim.owner:
                            self._done.append(_Done(None, claim.key, None))
            if self._cut_off or not (self._done or self._claims):
                return

    async def _even_if_cancelled(self, settled: asyncio.Future[list[Standing]]) -> list[Standing]:
        """A transaction that is under way cannot be called back, and what it stores must be counted, also when the
        loop is being closed after a third Ctrl-C."""
        try:
            return await asyncio.shield(settled)
        except asyncio.CancelledError:
            self._cut_off = True
            return await settled

    async def _beat(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), self._beat_s)
                return
            # A store that cannot be written is found out by the next answer.
            with contextlib.suppress(StoreError):
                await asyncio.to_thread(self._store.beat, self.owner)
