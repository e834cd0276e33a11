"""The end of a labelling run, before its time or by a signal; shared by all that take part in it."""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator

from src.errors import FlywheelError


@contextlib.contextmanager
def on_signals(call: Callable[[], None]) -> Iterator[None]:
    """Have the running loop call it at every SIGINT and SIGTERM, and put back what was there."""
    loop = asyncio.get_running_loop()
    installed = []
    for number in (signal.SIGINT, signal.SIGTERM):
        # Not in another thread than the main one, and not on Windows: there Ctrl-C ends at once.
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            before = signal.getsignal(number)
            loop.add_signal_handler(number, call)
            installed.append((number, before))
    try:
        yield
    finally:
        for number, before in installed:
            loop.remove_signal_handler(number)
            signal.signal(number, before)


class Stop:
    """`why` is the first reason to ask nothing more, or None; what is in flight is still waited for, as it is paid."""

    def __init__(self) -> None:
        self.why: FlywheelError | KeyboardInterrupt | None = None
        self._event = asyncio.Event()
        self._then: list[Callable[[], None]] = []

    def when_stopped(self, call: Callable[[], None]) -> None:
        self._then.append(call)

    def end(self, why: FlywheelError | KeyboardInterrupt) -> None:
        """Ask nothing more; the first reason is the one that is told."""
        self.why = self.why or why
        self._event.set()
        for call in self._then:
            call()

    async def nap(self, seconds: float) -> None:
        """Sleep, but not through the end of the run: a server may ask for minutes of patience."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._event.wait(), seconds)

    async def until(self, done: asyncio.Future[None]) -> None:
        """Wait for `done`, but not through the end of the run either."""
        end = asyncio.ensure_future(self._event.wait())
        try:
            await asyncio.wait((done, end), return_when=asyncio.FIRST_COMPLETED)
        finally:
            end.cancel()

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """The first SIGINT or SIGTERM lets what is in flight arrive; the second ends at once. Either way, what comes
        out is `why`."""
        task = asyncio.current_task()

        def interrupt() -> None:
            if self.why and task:
                task.cancel()
            self.end(KeyboardInterrupt())

        with on_signals(interrupt):
            try:
                yield
            except asyncio.CancelledError:
                if self.why:
                    raise self.why from None
                raise
        if self.why:
            raise self.why
